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
        (known(todo=0), ["No token waits: 0 run, 1 are done, 0 are in error."]),
        (known(submissions=()), ["No pilots are known to have been submitted for this batch by the provider."]),
        (
            known(),
            ["No pilot has begun to work. Whether some wait in Slurm is known while a wait of a DAG run watches them."],
        ),
        (
            known(records=[{**RECORD, "waiting": 0, "reasons": []}]),
            ["No pilot waits or runs: all that were submitted have ended. Submit more."],
        ),
        (
            known(records=[RECORD]),
            [
                "3 pilots wait in Slurm.",
                "3 of them: Nodes that it needs are down, drained or reserved, often before a maintenance.",
            ],
        ),
        (known(ALIVE), ["1 pilots take tokens; each takes the next when it has finished one."]),
        (
            known(SILENT),
            ["1 pilots have not renewed their leases. If they are dead, a wait releases their tokens."],
        ),
        (
            known({**ALIVE, "classes": ["//"]}, classes={"8//": 4, "//": 1}),
            [
                "1 pilots take tokens; each takes the next when it has finished one.",
                "4 tokens ask for 8 cores, which no pilot serves.",
            ],
        ),
        (
            known({**ALIVE}, drained=["s.1"], records=[{**RECORD, "waiting": 0, "reasons": []}]),
            [
                "No pilot waits or runs: all that were submitted have ended. Submit more.",
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
        ({"lock": NOW, "done": NOW, "exit_code": 0}, 0, (), "It has ended: it is done."),
        (
            {"done": NOW},
            0,
            (),
            "It is in no state that pilots know: its lock and done contradict each other. Reset it.",
        ),
        ({}, 12, (ALIVE,), "12 waiting tokens that ask for the same resources have a higher priority."),
        (
            {"cores": 8},
            0,
            ({**ALIVE, "classes": ["//", "1//"]},),
            "No pilot serves its resources (8 cores). The pilots serve no resources, 1 cores.",
        ),
        (
            {"attempts": [{"reason": "reaped: x"}, {"reason": "reaped: x"}]},
            0,
            (ALIVE,),
            "2 pilots died or fell silent with it, so it is claimed later, to run alone on a pilot.",
        ),
        ({"time": 90}, 0, (ALIVE,), "It asks for 90 minutes: a pilot takes it only if its job has so much time left."),
    ],
)
def test_a_token(fields: dict[str, Any], ahead: int, leases: tuple[Any, ...], first: str) -> None:
    assert of_token({**TOKEN, **fields}, known(*leases), ahead)[0] == first
