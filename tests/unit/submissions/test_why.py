"""Why a token or a batch does not run, in sentences."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_picas.submissions import seen
from airflow_provider_picas.submissions.why import Known, of_batch, of_token
from airflow_provider_picas.tokens.counts import Counts

NOW = 1_763_820_000
TOKEN = {"_id": "b:1", "type": "token", "lock": 0, "done": 0}
ALIVE = {"pilot": "p", "submission": "s.1", "renewed": NOW, "lease": 60, "state": "working"}
SILENT = {**ALIVE, "renewed": NOW - 1_000}
RECORD = {"at": NOW, "running": 0, "waiting": 3, "ended": 0, "reasons": [["ReqNodeNotAvail,_UnavailableNodes:n1", 3]]}


def known(*leases: Any, todo: int = 2, records: Any = (), submissions: Any = ("s.1",), **more: Any) -> Known:
    return Known(Counts(todo=todo, done=1), leases, NOW, seen.summary(leases, NOW, records), submissions, **more)


@pytest.mark.parametrize(
    ("of", "sentences"),
    [
        (known(todo=0), ["No tokens are waiting: 0 running, 1 done, 0 in error."]),
        (known(submissions=()), ["The provider has no record of pilots submitted for this batch."]),
        (
            known(),
            ["No pilot has started yet. Pilots pending in Slurm are shown only while a DAG run's wait watches them."],
        ),
        (
            known(records=[{**RECORD, "waiting": 0, "reasons": []}]),
            ["No pilots are pending or running: all that were submitted have ended. Submit more."],
        ),
        (
            known(records=[RECORD]),
            [
                "3 pilots are pending in Slurm.",
                "3 of them: Nodes that it needs are down, drained or reserved, often before maintenance.",
            ],
        ),
        (known(ALIVE), ["1 pilots are taking tokens: each takes the next when it has finished one."]),
        (
            known(SILENT),
            ["1 pilots have not renewed their leases. If they are dead, a wait releases their tokens."],
        ),
        (
            known({**ALIVE, "classes": ["//"]}, classes={"8//": 4, "//": 1}),
            [
                "1 pilots are taking tokens: each takes the next when it has finished one.",
                "4 tokens request 8 cores, which no running pilot offers.",
            ],
        ),
        (
            known({**ALIVE}, drained=["s.1"], records=[{**RECORD, "waiting": 0, "reasons": []}]),
            [
                "No pilots are pending or running: all that were submitted have ended. Submit more.",
                "The pilots of s.1 are drained or cancelled, and take no more tokens.",
            ],
        ),
    ],
)  # fmt: skip
def test_a_batch(of: Known, sentences: list[str]) -> None:
    assert of_batch(of) == sentences


@pytest.mark.parametrize(
    ("fields", "ahead", "leases", "first"),
    [
        ({"lock": NOW, "pilot": "p7"}, 0, (), "It is held by p7."),
        ({"lock": NOW, "done": NOW, "exit_code": 0}, 0, (), "It has finished: it is done."),
        (
            {"done": NOW},
            0,
            (),
            "It is in no valid state: its lock and done contradict each other. Reset it.",
        ),
        ({}, 12, (ALIVE,), "12 waiting tokens that request the same resources have a higher priority."),
        (
            {"cores": 8},
            0,
            ({**ALIVE, "classes": ["//", "1//"]},),
            "No running pilot offers the resources it requests (8 cores). They offer no resources, 1 cores.",
        ),
        (
            {"attempts": [{"reason": "reaped: x"}, {"reason": "reaped: x"}]},
            0,
            (ALIVE,),
            "2 pilots died or fell silent while running it, so it is claimed later, to run alone on a pilot.",
        ),
        (
            {"time": 90},
            0,
            (ALIVE,),
            "It requests 90 minutes: a pilot takes it only if its job has that much time left.",
        ),
    ],
)
def test_a_token(fields: dict[str, Any], ahead: int, leases: tuple[Any, ...], first: str) -> None:
    assert of_token({**TOKEN, **fields}, known(*leases), ahead)[0] == first
