"""Parents with three tokens each, in groups of ten, while pilots, the wait and the database are killed at random.

What exists at the end is compared with a graph that is computed from what each attempt has written beside the pool:
commands name other tokens in each attempt. ``--parents`` sets the size, ``--seed`` the order of the faults. The database is
the server of this machine that PICAS_TEST_COUCHDB_URL names, else the embedded one.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_picas.tokens import stage_views
from airflow_provider_picas.tokens.states import State, state_of
from stack.couchdb import CouchDB, CouchDBAdmin
from tests.chaos import chain_wait
from tests.chaos.couchdb_nodes import CouchDBNode
from tests.integration import lives
from tests.integration.pilots import PASSWORD, Pool, Proxy, Submission, new_pool
from tests.integration.pilots import make_member as a_member

STAGES = {"s": "b.s", "t": "b.t"}
NAME = """
for part in 0 1 2; do
  place=$((3 * PICAS_INPUT + part))
  line='{"stage": "s", "key": "'$PICAS_INPUT-$part-$$'", "group": "g'$((place / 10))'"}'
  echo "$line" >> "$PICAS_TOKENS_FILE"
  echo "$line" >> "$RUNS.named.$PICAS_INPUT.$PICAS_FIELD_CLAIM"
done
"""
FAULTS = 12  # before the rest is done in peace
MOST_FAULTS = 100
MANY = 1_000  # parents: the faults are spread over the time that they take
OPTIONS: dict[str, Any] = {"max_scrubs": 9, "stages": STAGES, "wait_for_work": 3600, "outage": 600}


class NamedServer(CouchDBAdmin):
    """The server that the environment names: its process is found by the port."""

    def __init__(self, url: str) -> None:
        named = CouchDBAdmin.from_url(url)
        super().__init__(named.url, named.admin, named.password)
        self._node = CouchDBNode(url)

    def kill(self) -> None:
        """Send SIGKILL."""
        self._node.kill()

    def start(self) -> None:
        """Start it again, and wait until it answers."""
        self._node.start()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[CouchDB | NamedServer]:
    if url := os.environ.get("PICAS_TEST_COUCHDB_URL"):
        yield NamedServer(url)
    else:
        with CouchDB(tmp_path / "couchdb") as embedded:
            yield embedded


def connection_to(pool: Pool, url: str) -> str:
    """The connection of a wait, as JSON."""
    host, _, port = url.rpartition(":")
    fields = {"conn_type": "picas", "host": host, "port": int(port), "schema": pool.name}
    return json.dumps({**fields, "login": pool.member, "password": PASSWORD})


def start_wait(pool: Pool, url: str, parents: int, log: Path) -> subprocess.Popen[bytes]:
    """A wait for the chain in a process of its own, which appends to ``log``."""
    with log.open("ab") as file:
        command = [sys.executable, "-m", "tests.chaos.chain_wait", str(parents)]
        environment = {**os.environ, "AIRFLOW_CONN_PICAS_DEFAULT": connection_to(pool, url)}
        return subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)


class Chaos:
    """Pilots for each batch, a wait, and the database, of which any may be killed and started again."""

    def __init__(self, server: CouchDB | NamedServer, pool: Pool, submission: Submission, parents: int) -> None:
        self.server, self.pool, self.submission, self._parents = server, pool, submission, parents
        self._lease = 2 if parents <= MANY else 10
        self.pilots = {name: self._pilot(name) for name in ("b 0", "b 1", "b.s 0", "b.s 1", "b.t 0")}
        self.log = submission.folder / "wait.log"
        self.wait = self._wait()

    def _pilot(self, name: str) -> subprocess.Popen[bytes]:
        batch = name.partition(" ")[0]
        pause = "sleep 0.05" if self._parents <= MANY else ":"
        command = NAME + pause if batch == "b" else pause
        return self.submission.start(command, batch=batch, lease=self._lease, **OPTIONS)

    def _wait(self) -> subprocess.Popen[bytes]:
        return start_wait(self.pool, self.server.url, self._parents, self.log)

    def hurt(self, chance: random.Random) -> str:
        """Kill something, and start it again."""
        what = chance.choices(["pilot", "wait", "database"], [8, 1, 2])[0]
        if what == "pilot":
            name = chance.choice(sorted(self.pilots))
            self.pilots[name].kill()
            self.pilots[name].wait()
            self.pilots[name] = self._pilot(name)
        elif what == "wait":
            self.wait.kill()
            self.wait.wait()
            self.wait = self._wait()
        else:
            self.server.kill()
            self.server.start()
        return what

    def end(self, seconds: float) -> str:
        """The log of the wait, which must end well."""
        try:
            assert self.wait.wait(seconds) == 0, self.log.read_text()[-3000:]
        finally:
            self.wait.kill()
        return self.log.read_text()


def graph(folder: Path, docs: dict[str, dict[str, Any]], parents: int) -> tuple[dict[str, str], dict[str, set[str]]]:
    """What must exist: tokens with their parents, and groups with their members, from the files of accepted attempts."""
    children: dict[str, str] = {}
    groups: dict[str, set[str]] = {}
    for number in range(parents):
        parent = f"b:{number:04d}"
        accepted = folder / f"runs.named.{number}.{docs[parent]['claim']}"
        for line in accepted.read_text().splitlines():
            named = json.loads(line)
            token = f"b.s:{named['key']}"
            assert token not in children
            children[token] = parent
            groups.setdefault(named["group"], set()).add(token)
    return children, groups


def test_every_token_and_group_exists_once_whatever_is_killed(
    server: CouchDB | NamedServer, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    parents = request.config.getoption("--parents")
    seed = request.config.getoption("--seed") or random.randrange(10**6)
    chance = random.Random(seed)
    print(f"--parents {parents} --seed {seed}")
    for member in a_member(server):
        with new_pool(server, member) as pool:
            assert pool.request("PUT", f"_design/{stage_views.STAGES}", stage_views.stages())[0] == 201
            pool.push([{"input": number} for number in range(parents)])
            submission = Submission(tmp_path / "submission", pool)
            try:
                run(server, pool, submission, parents, chance)
            finally:
                submission.close()


def run(server: CouchDB | NamedServer, pool: Pool, submission: Submission, parents: int, chance: random.Random) -> None:
    chaos = Chaos(server, pool, submission, parents)
    done: Counter[str] = Counter()
    faults = max(FAULTS, min(MOST_FAULTS, parents // 10))
    while done.total() < faults and chaos.wait.poll() is None:
        time.sleep(chance.uniform(0.1, 1.0) * max(1, parents / MANY))
        done[chaos.hurt(chance)] += 1
    print(f"killed: {dict(done)}")
    log = chaos.end(120 + parents)
    assert f"'done': {check(pool, submission.folder, parents)}" in log


def check(pool: Pool, folder: Path, parents: int) -> int:
    """Each token and each group that must exist does, once, and no others. Returns the number of all tokens."""
    docs = pool.docs()
    children, groups = graph(folder, docs, parents)
    assert Counter(state_of(doc) for doc in docs.values()) == {State.DONE: parents + len(children) + len(groups)}
    assert {name: doc["parent"] for name, doc in docs.items() if doc.get("stage") == "s"} == children
    made = {doc["group_name"]: doc for doc in docs.values() if doc.get("stage") == "t"}
    assert {name: {member["id"] for member in doc["input"]["members"]} for name, doc in made.items()} == groups
    assert len(docs) == parents + 3 * parents + -(-3 * parents // 10)
    rows = pool.request("GET", "_all_docs?include_docs=true&conflicts=true")[1]["rows"]
    assert [row["id"] for row in rows if row["doc"].get("_conflicts")] == []
    return len(docs)


KINDS = {
    b'"since":': "the documents of the stages",
    b'"new_edits":false': "new tokens",
    b'"group_of"': "a group's token",
    b'"pending":false': "the end of a list",
}


class Killer:
    """Kills the wait at each of its writes: the first time before the database has it, then, when it is repeated, after."""

    def __init__(self) -> None:
        self.wait: BaseProcess | None = None
        self.killed: set[tuple[str, bool]] = set()
        self._stored = True

    def fault(self, request: bytes) -> str:
        """What the proxy does with a request."""
        head, _, body = request.partition(b"\r\n\r\n")
        if self.wait is None or b"/_bulk_docs" not in head.partition(b"\r\n")[0]:
            return ""
        kind = next((name for mark, name in KINDS.items() if mark in body), "other")
        self._stored = not self._stored
        self.killed.add((kind, self._stored))
        self.wait.kill()
        return "drop answer" if self._stored else "refuse"


def test_a_wait_that_is_killed_at_each_write_makes_each_token_once(
    server: CouchDB | NamedServer, tmp_path: Path
) -> None:
    """The pilot of the parents died when it had written their results, so the wait carries out their lists."""
    killer = Killer()
    with (
        contextlib.contextmanager(a_member)(server) as member,
        new_pool(server, member) as pool,
        contextlib.closing(Proxy(server)) as proxy,
        contextlib.closing(Submission(tmp_path / "submission", pool)) as submission,
    ):
        assert pool.request("PUT", f"_design/{stage_views.STAGES}", stage_views.stages())[0] == 201
        for number in range(2):
            parent = {"_id": f"b:{number:04d}", "type": "token", "batch": "b"}
            lines = [{"stage": "s", "key": f"{number}-{part}", "group": f"g{part}"} for part in range(3)]
            pool.put(lives.ended_unmade(parent, lines, STAGES, 1000))
        proxy.fault = killer.fault
        for batch in ("b.s", "b.t"):
            submission.start("true", batch=batch, lease=10, wait_for_work=3600)
        log, starts = tmp_path / "wait.log", 0
        ended: int | None = -signal.SIGKILL
        processes = multiprocessing.get_context("forkserver")
        processes.set_forkserver_preload([chain_wait.__name__])  # it takes longer to import Airflow than to wait
        while ended == -signal.SIGKILL and starts < 20:
            killer.wait = processes.Process(target=chain_wait.run, args=(connection_to(pool, proxy.url), 2, log))
            killer.wait.start()
            killer.wait.join(120)
            ended, starts = killer.wait.exitcode, starts + 1
        assert ended == 0, log.read_text()[-3000:]
        assert killer.killed == {(kind, stored) for kind in KINDS.values() for stored in (False, True)}
        docs = pool.docs()
        assert sorted(docs) == ["b.s:0-0", "b.s:0-1", "b.s:0-2", "b.s:1-0", "b.s:1-1", "b.s:1-2", "b.t:g0", "b.t:g1", "b.t:g2",
                                "b:0000", "b:0001"]  # fmt: skip
        assert {state_of(doc) for doc in docs.values()} == {State.DONE}
        assert {
            name: doc["_rev"].partition("-")[0] for name, doc in docs.items() if name.startswith("b.t")
        } == dict.fromkeys(["b.t:g0", "b.t:g1", "b.t:g2"], "3"), "made, claimed, done"
