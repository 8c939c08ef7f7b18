"""Results are written in the request of the next claim, and none is lost with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from airflow_provider_picas.lifecycle.transitions import Change, Ended, Token, conclude
from airflow_provider_picas.pilot.claims import Claims
from airflow_provider_picas.pilot.conflicts import Conflicts
from airflow_provider_picas.pilot.errors import Unreachable
from airflow_provider_picas.pilot.outbox import Outbox
from airflow_provider_picas.pilot.reporter import Reporter
from airflow_provider_picas.pilot.session import Session
from airflow_provider_picas.tokens.states import State
from stack import couchdb
from tests.integration import faults
from tests.integration.pilots import Pool, session_of_a_pilot


@pytest.fixture
def proxy(server: couchdb.CouchDBAdmin) -> Iterator[faults.Proxy]:
    with faults.Proxy(server.url) as proxy:
        yield proxy


class Claimer:
    """Claims, and a reporter whose results wait to be gathered. Its thread is not started."""

    def __init__(self, session: Session, folder: Path) -> None:
        self.config = session.config
        self.settled: list[tuple[str, str]] = []
        conflicts, database = Conflicts(session), session.database
        self.reporter = Reporter(database, Outbox(str(folder), "x"), self._settle, conflicts)
        self.claims = Claims(session, False, conflicts, self.reporter)

    def _settle(self, change: Change, decision: str) -> None:
        self.settled.append((change.token, decision))

    def take(self, wanted: int) -> list[Token]:
        return self.claims.take(wanted, lambda doc: True, 9)

    def finish(self, tokens: list[Token]) -> None:
        for token in tokens:
            self.reporter.put(conclude(token, Ended("exit", 0, 0.1), self.config, token.doc["lock"]), more=True)


def test_results_are_written_in_the_request_of_the_next_claim(pool: Pool, proxy: faults.Proxy, tmp_path: Path) -> None:
    pool.push([{}] * 6)
    with session_of_a_pilot(pool, proxy.url) as session:
        claimer = Claimer(session, tmp_path)
        first = claimer.take(3)
        claimer.finish(first)
        proxy.requests.clear()
        second = claimer.take(3)
    assert len([request for request in proxy.requests if "_bulk_docs" in request]) == 1
    assert sorted(claimer.settled) == [(token.id, "landed") for token in sorted(first, key=lambda token: token.id)]
    assert claimer.reporter.pending() == 0
    assert pool.states() == {State.DONE: 3, State.LOCKED: len(second)} == {State.DONE: 3, State.LOCKED: 3}


@pytest.mark.parametrize("fault", [faults.Fault.LOSE, faults.Fault.DROP, 400])
def test_no_result_is_lost_with_the_request_of_a_claim(
    pool: Pool, proxy: faults.Proxy, tmp_path: Path, fault: faults.Fault | int
) -> None:
    """Whether the database has written them shows when they are read again."""
    pool.push([{}] * 6)
    with session_of_a_pilot(pool, proxy.url) as session:
        claimer = Claimer(session, tmp_path)
        first = claimer.take(3)
        pool.put({**pool.get(first[0].id), "comment": "by hand"})
        claimer.finish(first)
        proxy.hurt(fault, on="_bulk_docs")
        with suppress(Unreachable):
            claimer.take(3)
        assert not claimer.settled
        assert claimer.reporter.claims() == {token.claim for token in first}
        claimer.reporter._send()
    assert sorted(claimer.settled) == sorted((token.id, "landed") for token in first)
    assert pool.states()[State.DONE] == 3
    assert pool.get(first[0].id)["comment"] == "by hand"


def test_a_claim_that_fails_keeps_the_results(pool: Pool, proxy: faults.Proxy, tmp_path: Path) -> None:
    """Also if the failure is a bug."""
    pool.push([{}] * 6)
    with session_of_a_pilot(pool, proxy.url) as session:
        claimer = Claimer(session, tmp_path)
        first = claimer.take(3)
        claimer.finish(first)
        bulk = session.database.bulk
        session.database.bulk = None  # type: ignore[assignment, method-assign]
        with pytest.raises(TypeError):
            claimer.take(3)
        session.database.bulk = bulk  # type: ignore[method-assign]
        claimer.reporter._send()
    assert pool.states()[State.DONE] == 3
