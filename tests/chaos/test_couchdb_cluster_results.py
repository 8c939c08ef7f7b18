"""Pilots on a real CouchDB cluster of three nodes, of which one is cut off: no result is lost or undone, no token runs twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_picas.tokens.states import State, state_of
from stack import couchdb
from tests.chaos.couchdb_nodes import CouchDBNode, CouchDBNodes, cluster_or_skip, until
from tests.chaos.run import tell
from tests.integration.pilots import Pool, Submission, new_pool

RUN = (
    'run=$(cat /proc/sys/kernel/random/uuid); echo "begin $PICAS_TOKEN_ID $(date +%s.%N) $run" >> "$RUNS"; sleep {seconds};'
    ' echo "\\"$run\\"" > output.json; echo "end $PICAS_TOKEN_ID $(date +%s.%N) $run" >> "$RUNS"'
)


@pytest.fixture(scope="module")
def nodes() -> Iterator[CouchDBNodes]:
    with cluster_or_skip() as made:
        yield made


@pytest.fixture
def pool(nodes: CouchDBNodes) -> Iterator[Pool]:
    """An empty pool with the views."""
    with new_pool(couchdb.CouchDBAdmin.from_url(nodes[0].url)) as made:
        yield made
        nodes.mend()


class Site:
    """Pilots that each talk to a node of their own, and what their commands wrote down."""

    def __init__(self, folder: Path, pool: Pool, nodes: CouchDBNodes) -> None:
        self.pool, self.nodes, self.runs = pool, nodes, folder / "runs"
        self.submissions = [
            Submission(folder / f"node-{place}", pool, node.address) for place, node in enumerate(nodes.nodes)
        ]

    def start(self, pilots: int, seconds: float, **keys: Any) -> None:
        """So many pilots at each node."""
        for submission in self.submissions:
            for _ in range(pilots):
                submission.start(RUN.format(seconds=seconds), env={"RUNS": str(self.runs)}, **keys)

    def lines(self) -> list[tuple[str, str, float, str]]:
        """What the commands wrote down: begin or end, the token, when, and the run."""
        words = [line.split() for line in self.runs.read_text().splitlines()] if self.runs.exists() else []
        return [(what, token, float(at), run) for what, token, at, run in words]

    def wait(self, seconds: float = 300) -> None:
        """Wait for the end of all pilots."""
        for submission in self.submissions:
            for process in submission.pilots:
                assert process.wait(seconds) == 0, self.logs()

    def logs(self) -> str:
        return "\n".join(
            f"--- node {place}, pilot {number}\n{submission.log(number)}"
            for place, submission in enumerate(self.submissions)
            for number in range(len(submission.pilots))
        )

    def check(self) -> int:
        """Every token is done once, by a run that had its end. How many runs were for nothing."""
        docs = {row["id"]: row["doc"] for row in self._rows() if row["doc"].get("type") == "token"}
        ended = {run: token for what, token, _, run in self.lines() if what == "end"}
        for token, doc in docs.items():
            assert state_of(doc) is State.DONE, (doc, self.logs())
            assert ended.get(doc["output"]) == token, doc
            assert "_conflicts" not in doc, (doc, self.logs())
        last: dict[str, float] = {}
        for what, token, at, run in sorted(self.lines(), key=lambda line: line[2]):
            if what == "begin":
                assert at > last.get(token, 0.0), f"{token} ran twice at the same time: {self.logs()}"
            last[token] = at if what == "end" else last.get(token, 0.0)
            assert run
        return sum(what == "begin" for what, *_ in self.lines()) - len(docs)

    def _rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.pool.request("GET", "_all_docs?include_docs=true&conflicts=true")[1]["rows"]
        return rows

    def results(self, node: CouchDBNode) -> dict[str, str]:
        """The results that a node shows, by token."""
        rows = node.request("GET", f"/{self.pool.name}/_all_docs?include_docs=true")[1]["rows"]
        return {row["id"]: row["doc"]["output"] for row in rows if "output" in row["doc"]}

    def close(self) -> None:
        for submission in self.submissions:
            submission.close()


@pytest.fixture
def site(tmp_path: Path, pool: Pool, nodes: CouchDBNodes) -> Iterator[Site]:
    made = Site(tmp_path, pool, nodes)
    yield made
    made.close()


def begun(site: Site, tokens: int) -> Callable[[], bool]:
    return lambda: sum(what == "begin" for what, *_ in site.lines()) >= tokens


def test_a_node_is_cut_off_for_less_than_a_lease(site: Site, nodes: CouchDBNodes) -> None:
    """Nobody counts as dead then: not a single token runs again."""
    site.pool.push([{"input": place} for place in range(400)])
    site.start(2, 0.4, lease=60)
    for part in (20, 150):
        until(begun(site, part), f"{part} tokens")
        nodes.cut(nodes[2])
        count = len(site.results(nodes[0]))
        until(lambda count=count: len(site.results(nodes[0])) > count + 30, "more results")  # type: ignore[misc]
        nodes.heal()
    site.wait()
    again = site.check()
    tell(f"400 tokens, a node cut off twice for less than a lease: {again} ran again")
    assert again == 0
    assert not any(submission.files("refused") for submission in site.submissions)


def test_a_node_is_cut_off_for_longer_than_a_lease(site: Site, nodes: CouchDBNodes) -> None:
    """Its pilots count as dead, and stop their work before. What the others accepted meanwhile stands."""
    site.pool.push([{"input": place} for place in range(150)])
    site.start(2, 0.3, lease=6)
    until(begun(site, 30), "the first tokens")
    nodes.cut(nodes[2])
    until(
        lambda: any("did not renew its lease" in log for log in site.logs().splitlines()),
        "the death of a pilot by its lease",
        60,
    )
    accepted = site.results(nodes[0])
    nodes.heal()
    site.wait()
    again = site.check()
    results = site.results(nodes[1])
    undone = sum(results[token] != run for token, run in accepted.items())
    tell(
        f"150 tokens, a node cut off for longer than a lease: {again} ran again, {undone} of {len(accepted)} results undone"
    )
    assert undone == 0


def test_a_node_is_killed_and_comes_back(site: Site, nodes: CouchDBNodes) -> None:
    """Its copies lag behind then, and its views may be missing: no pilot leaves while tokens wait."""
    site.pool.push([{"input": place} for place in range(300)])
    site.start(1, 0.05, lease=30)
    until(begun(site, 30), "the first tokens")
    for _ in range(2):
        nodes[2].kill()
        count = len(site.lines())
        until(lambda count=count: len(site.lines()) > count + 40, "more runs")  # type: ignore[misc]
        nodes.restart(nodes[2])
    left = 300 - len(site.results(nodes[0]))
    site.wait()
    again = site.check()
    tell(f"300 tokens, a node killed twice: {again} ran again; {left} were left when it was back")
    assert again == 0
