"""Waits for ten minutes, while the database and the process that waits are killed again and again.

``PICAS_SOAK_SECONDS`` makes it shorter. No event may be lost, none may come twice, and nothing may grow.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_picas.tokens import documents, views
from stack import native, paths, processes
from stack.couchdb import CouchDB
from stack.pool import Pool
from tests.chaos.triggerer import DATABASE, add, lines

SECONDS = float(os.environ.get("PICAS_SOAK_SECONDS", "600"))
WAITS = 50  # that are open at any time
FINISH_EVERY = 0.3  # seconds
DATABASE_LIFE = (8.0, 30.0)  # seconds between two kills of the database
DATABASE_AWAY = (0.0, 4.0)
WAITER_LIFE = (40.0, 120.0)
SETTLED = 15.0  # seconds after which a process has its size
GROWTH = 15_000  # kB that it may grow from then on


@pytest.fixture
def database(tmp_path: Path) -> Iterator[CouchDB]:
    """A server of this test's own, with a pool."""
    with CouchDB(tmp_path / "couchdb") as server:
        server.create_database(DATABASE)
        for name, design in views.design_documents().items():
            assert server.request("PUT", f"/{DATABASE}/_design/{name}", design)[0] == 201
        yield server


class Waiter:
    """The process with the waits."""

    def __init__(self, folder: Path, database: CouchDB) -> None:
        self._folder = folder
        pool = Pool(database.url, DATABASE, database.admin, database.password)
        self._env = {"AIRFLOW_CONN_PICAS_SOAK": json.dumps(native.picas_connection(pool))}
        self.start()

    def start(self) -> None:
        program = [sys.executable, "-m", "tests.chaos.triggerer", str(self._folder)]
        self.process = processes.start(program, folder=self._folder, name="waiter", env=self._env, cwd=paths.PROJECT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def put(database: CouchDB, document: dict[str, Any]) -> bool:
    """Write a document; False when the database is away. A conflict means that it was written before."""
    try:
        return database.request("PUT", f"/{DATABASE}/{document['_id']}", document)[0] in (201, 409)
    except OSError:
        return False


class Batches:
    """Batches of one token each, which are announced and finished one after the other."""

    def __init__(self, folder: Path, database: CouchDB) -> None:
        self._folder, self._database = folder, database
        self.begun: list[str] = []
        self.finished: list[str] = []

    def begin(self) -> None:
        """Push one more batch, and have it waited for."""
        batch = f"b{len(self.begun):06d}"
        token = documents.new_token({"input": 0}, batch=batch, push=batch, ordinal=0)
        if put(self._database, token):
            self.begun.append(batch)
            add(self._folder / "batches", batch)

    def finish(self) -> None:
        """Finish one of those that wait."""
        batch = random.choice([batch for batch in self.begun[-2 * WAITS :] if batch not in self.finished])
        now = int(time.time())
        try:
            status, token = self._database.request("GET", f"/{DATABASE}/{batch}:00000000")
        except OSError:
            return
        if status == 200 and put(self._database, {**token, "lock": now, "done": now, "exit_code": 0}):
            self.finished.append(batch)

    def finish_all(self) -> None:
        """Finish those that are left."""
        for batch in [batch for batch in self.begun if batch not in self.finished]:
            _, token = self._database.request("GET", f"/{DATABASE}/{batch}:00000000")
            now = int(time.time())
            assert put(self._database, {**token, "lock": now, "done": now, "exit_code": 0})
            self.finished.append(batch)


@pytest.mark.timeout(SECONDS + 180)
def test_nothing_is_lost_or_reported_twice(tmp_path: Path, database: CouchDB) -> None:
    folder = tmp_path / "waits"
    folder.mkdir()
    batches, waiter = Batches(folder, database), Waiter(folder, database)
    begin = now = time.monotonic()
    kill_database = begin + random.uniform(*DATABASE_LIFE)
    kill_waiter = begin + random.uniform(*WAITER_LIFE)
    kills = Counter[str]()
    try:
        while now < begin + SECONDS:
            while len(batches.begun) - len(batches.finished) < WAITS:
                batches.begin()
            batches.finish()
            assert waiter.process.poll() is None, processes.tail(processes.log_path(folder, "waiter"))
            time.sleep(FINISH_EVERY)
            now = time.monotonic()
            if now > kill_database:
                database.kill()
                time.sleep(random.uniform(*DATABASE_AWAY))
                database.start()
                kills["database"] += 1
                kill_database = time.monotonic() + random.uniform(*DATABASE_LIFE)
            if now > kill_waiter:
                waiter.kill()
                waiter.start()
                kills["waiter"] += 1
                kill_waiter = time.monotonic() + random.uniform(*WAITER_LIFE)
        batches.finish_all()
        processes.wait_for(lambda: len(events(folder)) >= len(batches.begun), what="The last events", seconds=90)
        time.sleep(2)  # in which one might come twice
    finally:
        waiter.kill()
    print(f"\n{len(batches.begun)} batches; killed: {dict(kills)}")
    told = Counter(batch for batch, _ in events(folder))
    assert set(told) == set(batches.begun)
    assert [batch for batch, times in told.items() if times > 1] == []
    assert {outcome for _, outcome in events(folder)} == {"complete"}
    check_growth(folder)


def events(folder: Path) -> list[tuple[str, str]]:
    """Batch and outcome of each event."""
    split = (line.partition(" ") for line in lines(folder / "events"))
    return [(batch, json.loads(payload)["outcome"]) for batch, _, payload in split]


def check_growth(folder: Path) -> None:
    """Each process keeps its size once it has it."""
    rows = [tuple(map(int, line.split())) for line in lines(folder / "sizes")]
    for pid, of_process in groupby(rows, key=lambda row: row[0]):
        life = list(of_process)[int(SETTLED) :]
        if len(life) < 5:
            continue
        memory, sockets, tasks = ([row[column] for row in life] for column in (1, 2, 3))
        print(
            f"process {pid}: {memory[0]:,} to {memory[-1]:,} kB, at most {max(sockets)} sockets and {max(tasks)} tasks"
        )
        assert memory[-1] - memory[0] < GROWTH
        assert max(sockets) <= 10
        assert max(row[4] for row in life) <= 1
