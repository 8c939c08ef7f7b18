"""Parents with three tokens each, in groups of ten, while pilots, the wait and the database are killed at random.

What exists at the end is compared with a graph that is computed from what each attempt has written beside the pool:
commands name other tokens in each attempt. ``--parents`` sets the size, ``--seed`` the order of the faults.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_picas.tokens import stage_views
from airflow_provider_picas.tokens.states import State, state_of
from stack.couchdb import CouchDB
from tests.integration.pilots import PASSWORD, Pool, Submission, new_pool
from tests.integration.pilots import make_member as a_member

STAGES = {"s": "b.s", "t": "b.t"}
NAME = """
for part in 0 1 2; do
  place=$((3 * PICAS_INPUT + part))
  echo '{"stage": "s", "key": "'$PICAS_INPUT-$part-$$'", "group": "g'$((place / 10))'"}'
done > "$PICAS_TOKENS_FILE"
cp "$PICAS_TOKENS_FILE" "$RUNS.named.$PICAS_INPUT.$PICAS_FIELD_CLAIM"
sleep 0.05"""
FAULTS = 12  # before the rest is done in peace
OPTIONS: dict[str, Any] = {"lease": 2, "max_scrubs": 9, "stages": STAGES, "wait_for_work": 600, "outage": 600}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[CouchDB]:
    with CouchDB(tmp_path / "couchdb") as embedded:
        yield embedded


class Chaos:
    """Pilots for each batch, a wait, and the database, of which any may be killed and started again."""

    def __init__(self, server: CouchDB, pool: Pool, submission: Submission, parents: int) -> None:
        self.server, self.submission, self._parents = server, submission, parents
        url = server.url.rpartition(":")
        fields = {"conn_type": "picas", "host": url[0], "port": int(url[2]), "schema": pool.name}
        self._environment = {
            **os.environ,
            "AIRFLOW_CONN_PICAS_DEFAULT": json.dumps({**fields, "login": pool.member, "password": PASSWORD}),
        }
        self.pilots = {name: self._pilot(name) for name in ("b 0", "b 1", "b.s 0", "b.s 1", "b.t 0")}
        self.log = submission.folder / "wait.log"
        self.wait = self._wait()

    def _pilot(self, name: str) -> subprocess.Popen[bytes]:
        batch = name.partition(" ")[0]
        return self.submission.start(NAME if batch == "b" else "sleep 0.01", batch=batch, **OPTIONS)

    def _wait(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "tests.chaos.chain_wait", str(self._parents)]
            return subprocess.Popen(command, env=self._environment, stdout=log, stderr=subprocess.STDOUT)

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
    server: CouchDB, tmp_path: Path, request: pytest.FixtureRequest
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


def run(server: CouchDB, pool: Pool, submission: Submission, parents: int, chance: random.Random) -> None:
    chaos = Chaos(server, pool, submission, parents)
    done: Counter[str] = Counter()
    faults = max(FAULTS, parents // 10)
    while done.total() < faults and chaos.wait.poll() is None:
        time.sleep(chance.uniform(0.1, 1.0))
        done[chaos.hurt(chance)] += 1
    print(f"killed: {dict(done)}")
    log = chaos.end(120 + parents)
    docs = pool.docs()
    children, groups = graph(submission.folder, docs, parents)
    assert Counter(state_of(doc) for doc in docs.values()) == {State.DONE: parents + len(children) + len(groups)}
    assert {name: doc["parent"] for name, doc in docs.items() if doc.get("stage") == "s"} == children
    made = {doc["group_name"]: doc for doc in docs.values() if doc.get("stage") == "t"}
    assert {name: {member["id"] for member in doc["input"]["members"]} for name, doc in made.items()} == groups
    assert len(docs) == parents + 3 * parents + -(-3 * parents // 10)
    rows = pool.request("GET", "_all_docs?include_docs=true&conflicts=true")[1]["rows"]
    assert [row["id"] for row in rows if row["doc"].get("_conflicts")] == []
    assert f"'done': {len(docs)}" in log
