"""The database fails while pilots work and a wait watches them: both go on, nothing is lost, and nothing is run twice."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from stack import native
from stack.cluster import Cluster
from stack.couchdb import CouchDB
from stack.pool import Pool
from tests.chaos.run import Run, tell
from tests.conftest import set_connection
from tests.integration.faults import Fault, Proxy

TOKENS = 40
WORK = "sleep 0.5"


@pytest.fixture
def own_couchdb(run_folder: Path) -> Iterator[CouchDB]:
    """A server that may be killed: the embedded one, whatever the other tests use."""
    with CouchDB(run_folder / f"couchdb-{random.randrange(10**6)}") as server:
        yield server


@pytest.fixture
def own_run(own_couchdb: CouchDB, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, spider: str) -> Iterator[Run]:
    """A run on that server."""
    made = Pool(own_couchdb.url, f"faults_{secrets.token_hex(4)}", "user", "s3cret")
    own_couchdb.create_user(made.user, made.password)
    own_couchdb.create_database(made.database, members=[made.user], admins=[made.user])
    set_connection(monkeypatch, "picas_default", native.picas_connection(made))
    run = Run(cluster, made, f"own-{random.randrange(10**9)}")
    yield run
    run.close()


def test_the_database_is_killed_and_comes_back(own_run: Run, own_couchdb: CouchDB) -> None:
    own_run.push(TOKENS)
    own_run.submit(WORK, 3, pilot={"max_claim": 2})
    own_run.wait()
    for begun in (6, 20):
        own_run.running(begun)
        before = own_run.said_by_each("does not answer")
        own_couchdb.kill()

        # A pilot that pauses until its next try has not noticed yet that the database was back in between.
        def noticed(before: list[int] = before) -> bool:
            return sum(own_run.said_by_each("does not answer")) > sum(before)

        own_run.until(noticed, "The notice of a pilot")
        own_couchdb.start()
    assert own_run.result()["done"] == TOKENS
    own_run.check_done_once()


def test_the_database_is_away_for_longer_than_a_lease(own_run: Run, own_couchdb: CouchDB) -> None:
    """Pilots stop what runs, since others may take it, and nobody may until the database is back."""
    own_run.push([{"input": 300, "priority": 1}, *[{"input": 0.5}] * TOKENS])
    own_run.submit('[ "$PICAS_INPUT" = 300 ] && [ "$PICAS_ATTEMPT" != 1 ] || sleep "$PICAS_INPUT"', 3)
    own_run.wait()
    long, _ = own_run.long_token()
    own_run.running(10)
    own_couchdb.kill()
    own_run.until(lambda: sum(own_run.said_by_each("Stopping " + long)), "The stop of the long token")
    began = time.time()
    own_couchdb.start()
    assert own_run.result()["done"] == TOKENS + 1
    last = max(line.at for line in own_run.lines())
    tell(f"away for longer than a lease: all done {last - began:.1f} s after it came back")
    own_run.check_done_once([long])


@pytest.fixture
def proxy(pool: Pool) -> Iterator[Proxy]:
    """Between the database and everybody."""
    with Proxy(pool.url) as between:
        yield between


@pytest.fixture
def behind_proxy(
    pool: Pool, proxy: Proxy, cluster: Cluster, spider: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Run]:
    """A run whose operators, wait and pilots all reach the database through the proxy."""
    set_connection(monkeypatch, "picas_default", native.picas_connection(replace(pool, url=proxy.url)))
    run = Run(cluster, pool, "proxy")
    yield run
    run.close()


@pytest.mark.parametrize("fault", [500, 503, Fault.DROP, Fault.LOSE, Fault.CUT])
def test_answers_that_are_of_no_use(behind_proxy: Run, proxy: Proxy, fault: Fault | int) -> None:
    """One in five requests of pilots and wait, whatever they ask."""
    run = behind_proxy
    run.push(TOKENS)
    run.submit(WORK, 3, pilot={"max_claim": 1})  # so that there are enough requests
    before = len(proxy.requests)
    dice = random.Random(str(fault))
    judge = proxy.fault_of
    hurt = 0

    def sometimes(request: str) -> Fault | int | None:
        nonlocal hurt
        judge(request)
        if dice.random() < 0.2:
            hurt += 1
            return fault
        return None

    proxy.fault_of = sometimes  # type: ignore[method-assign]
    run.wait()
    assert run.result()["done"] == TOKENS
    tell(f"{fault}: {hurt} of {len(proxy.requests) - before} requests")
    assert hurt >= 5
    run.check_done_once()
    assert not run.files("unsent")
    assert not run.files("refused")
