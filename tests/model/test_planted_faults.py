"""The exploration finds faults that are planted in the pilot's code or in the database: otherwise its silence shows nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import pytest

from airflow_provider_picas.lifecycle import leases
from airflow_provider_picas.lifecycle.conflicts import Merger
from airflow_provider_picas.lifecycle.transitions import Change
from airflow_provider_picas.pilot import claims, conflicts, lease, outbox, reporter
from tests.model import couchdb, operations
from tests.model.operations import Done, Memory, Requests
from tests.model.pilots import Pilots
from tests.model.test_pilots import SCENARIOS, explored


def _write_without_fence(
    database: couchdb.Cluster, side: int | None, docs: Sequence[dict[str, Any]], salt: str = ""
) -> Any:
    """Writes replace what is there, as a client does that fetches the current revision before it saves."""
    fenced = []
    for doc in docs:
        current = couchdb.current(database.copies[0], doc["_id"]) or doc
        fenced.append(dict(doc, _rev=current.get("_rev", "")))
    return REAL_WRITE(database, side, fenced, salt)


REAL_WRITE = couchdb.write


def _claim_as_the_picas_client(database: Requests, memory: Memory) -> Done:
    """The PiCaS client fetches the document of a row, and saves its lock without a look at the one that is there."""
    session = operations._session(database, memory, operations.DOCUMENTS_NOW + memory.claim)
    operations._Time.number = memory.claim
    made = claims.Claims(session, memory.cluster, conflicts.Conflicts(session))
    rows = [doc["_id"] for doc in database.todo()]
    docs = [doc for doc in database.read(rows).values() if doc] if rows else []
    won = made._claim(docs) if docs else []
    return Done(tuple(operations.freeze(token.doc) for token in won))


def _expired_is_dead(silence: Any, pilot: str, lock: float, now: float, asked: float, contact: float) -> float | None:
    """One reading of a lease is believed."""
    newest = silence._seen[pilot][0]
    return None if newest is None or now <= newest.renewed + newest.lease else 0.0


def _delete_losers(branches: Sequence[dict[str, Any]], may_run: Callable[..., bool]) -> Merger:
    return Merger(None, None, list(branches[1:]))


REAL_BULK = Requests.bulk


def _believe_accepted(database: Requests, docs: Sequence[dict[str, Any]]) -> Any:
    """An answer 202 counts as 201."""
    _, rows = REAL_BULK(database, docs)
    return 201, {name: {key: value for key, value in row.items() if key != "accepted"} for name, row in rows.items()}


PLANTED: dict[str, tuple[Any, str, Any, str]] = {
    "no fence": (couchdb, "write", _write_without_fence, "a pilot that is cut off"),
    "a late result is applied": (Change, "decide", lambda change, doc: "apply", "a pilot that is cut off"),
    "the PiCaS client's claim": (operations.OPERATIONS, "claim", _claim_as_the_picas_client, "claims"),
    "reap after one reading": (leases.Silence, "seconds_until_dead", _expired_is_dead, "a clock that steps"),
    "commands outlive the lease": (lease.Lease, "valid", lambda own: True, "a pilot that is cut off"),
    "a late renewal secures nothing": (lease.Lease, "_write_tokens_again", lambda own: None, "a frozen pilot"),
    "losing results are deleted": (conflicts, "merge", _delete_losers, "a node that is cut off"),
    "202 counts as 201": (Requests, "bulk", _believe_accepted, "a node that is cut off"),
    "a lease of a node that is cut off is believed": (
        lease.Lease, "stored", lambda own: None, "a node that is cut off, and a pilot that reaps",
    ),
    "two results in one request": (
        reporter.Reporter, "_one_of_each_token", staticmethod(list), "a pilot that is cut off",
    ),
    "unsent results are removed": (outbox.Outbox, "_send_one", staticmethod(lambda *_: "landed"), "a stopped pilot"),
    "a killed pilot's file is removed": (
        outbox.Outbox, "_send_one", staticmethod(lambda *_: "landed"), "a killed pilot with a result in a file",
    ),
}  # fmt: skip


@pytest.fixture
def planted(request: pytest.FixtureRequest) -> Iterator[str]:
    """The scenario in which a planted fault must be found."""
    where, name, wrong, scenario = PLANTED[request.param]
    patch = mock.patch.dict(where, {name: wrong}) if isinstance(where, dict) else mock.patch.object(where, name, wrong)
    with patch:
        yield scenario


@pytest.mark.parametrize("planted", PLANTED, indirect=True)
def test_a_planted_fault_is_found(planted: str) -> None:
    result = explored(SCENARIOS[planted], liveness=False)
    print(f"\n{result}")
    assert result.violation, result


def test_work_that_cannot_be_completed_is_found() -> None:
    """Nobody reaps, so the token of a killed pilot stays locked."""
    with mock.patch.object(Pilots, "_may_reap", return_value=False):
        assert "cannot be completed" in explored(SCENARIOS["a killed pilot"]).violation
