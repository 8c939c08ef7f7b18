"""A node of a real CouchDB cluster is cut off, or killed, while pilots on all nodes make the tokens that commands have named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_picas.tokens import stage_views
from stack.couchdb import CouchDBAdmin
from tests.chaos.couchdb_nodes import CouchDBNodes, cluster_or_skip, until
from tests.chaos.run import tell
from tests.chaos.test_stages import NAME, OPTIONS, check, start_wait
from tests.integration.pilots import Pool, Submission, new_pool

PARENTS = 120
BEFORE = 30  # of them run before a node is lost
LEASE = 8  # seconds
PATIENCE = 300.0


@pytest.fixture
def nodes() -> Iterator[CouchDBNodes]:
    with cluster_or_skip() as found:
        yield found


@pytest.fixture
def staged(nodes: CouchDBNodes) -> Iterator[Pool]:
    """A pool on the cluster, with the views for stages; it is reached through the first node."""
    with new_pool(CouchDBAdmin.from_url(nodes[0].url)) as pool:
        assert pool.request("PUT", f"_design/{stage_views.STAGES}", stage_views.stages())[0] == 201
        yield pool


@pytest.fixture
def submissions(nodes: CouchDBNodes, staged: Pool, tmp_path: Path) -> Iterator[list[Submission]]:
    """The folder of a submission for each node, through which its pilots reach the pool."""
    made = [Submission(tmp_path / f"node-{place}", staged, node.address) for place, node in enumerate(nodes.nodes)]
    yield made
    for submission in made:
        submission.close()


@pytest.mark.parametrize("fault", ["cut", "kill"])
def test_lists_are_carried_out_once_while_a_node_is_lost(
    nodes: CouchDBNodes, staged: Pool, submissions: list[Submission], tmp_path: Path, fault: str
) -> None:
    """Pilots on the lost node get no safe answers meanwhile, and go on when it is back."""
    parents = [{"_id": f"b:{number:04d}", "input": number, "ordinal": number} for number in range(PARENTS)]
    staged.push(parents[:BEFORE])
    for place, submission in enumerate(submissions):
        options = {**OPTIONS, "lease": LEASE, "env": {"RUNS": str(tmp_path / "runs")}}
        submission.start(NAME + "sleep 0.05", batch="b", **options)
        submission.start("sleep 0.01", batch="b.t" if place == 0 else "b.s", **options)

    def made() -> int:
        return sum(doc.get("stage") == "s" for doc in staged.docs().values())

    until(lambda: made() > 0, "The first new tokens", PATIENCE)
    if fault == "cut":
        nodes.cut(nodes[2])
    else:
        nodes[2].kill()
    staged.push(parents[BEFORE:])
    wait = start_wait(staged, staged.server.url, PARENTS, tmp_path / "wait.log")
    try:
        until(lambda: made() >= 3 * BEFORE + 60, "New tokens on the other nodes", PATIENCE)
        tell(f"a node is lost ({fault}) while lists are carried out: {made() - 3 * BEFORE} new tokens meanwhile")
        if fault == "cut":
            nodes.heal()
        else:
            nodes.restart(nodes[2])
        assert wait.wait(PATIENCE) == 0, (tmp_path / "wait.log").read_text()[-3000:]
    finally:
        wait.kill()
    assert check(staged, tmp_path, PARENTS) == PARENTS + 3 * PARENTS + 3 * PARENTS // 10
