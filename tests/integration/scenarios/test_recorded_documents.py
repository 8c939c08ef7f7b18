"""Tokens, leases and unsent results that an earlier version of the pilot has left, as they were recorded then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_picas.lifecycle.attempts import attempts_by_kind
from airflow_provider_picas.lifecycle.states import state_of
from airflow_provider_picas.lifecycle.transitions import for_display, held_by_pilot
from airflow_provider_picas.submissions.deaths import Lease
from airflow_provider_picas.tokens.states import State
from tests.integration import pilots
from tests.integration.pilots import Pool, Submission

pool, submission = pilots.pool, pilots.submission

RECORDED = Path(__file__).parent.with_name("recorded") / "pilot-0.1.0.json"
"""Made by the pilot while it was one file: a token that is done, one in error, one that is done at its second attempt, and one
that is held by a pilot that was killed; the lease of that pilot; and a result that was kept in a file while the database was
away."""


@pytest.fixture
def recorded() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RECORDED.read_text())
    return found


def fill(pool: Pool, documents: dict[str, dict[str, Any]]) -> None:
    for document in documents.values():
        pool.put({name: value for name, value in document.items() if name not in ("_rev", "_attachments")})


def test_tokens_are_read_as_they_were_meant(recorded: dict[str, Any]) -> None:
    tokens = recorded["tokens"].values()
    assert [state_of(token) for token in tokens] == ["done", "error", "done", "locked"]
    assert [held_by_pilot(token) for token in tokens] == [False, False, False, True]
    assert attempts_by_kind(recorded["tokens"]["b:0002"]) == {"failed": 1}


def test_the_token_of_a_pilot_that_was_killed_is_run_again(
    pool: Pool,
    submission: Submission,
    recorded: dict[str, Any],
) -> None:
    fill(pool, recorded["tokens"])
    assert pool.states() == {State.DONE: 2, State.ERROR: 1, State.LOCKED: 1}
    (lease,) = recorded["leases"]
    path = "_local/" + lease["_id"].removeprefix("_local/")
    assert (
        pool.request("PUT", path, {name: value for name, value in lease.items() if name not in ("_id", "_rev")})[0]
        == 201
    )
    assert (Lease.parse(lease).pilot, Lease.parse(lease).shown.lease) == (recorded["tokens"]["b:0003"]["pilot"], 6)
    assert submission.run('eval "$PICAS_INPUT"', lease=6) == 0, submission.log()
    assert pool.states() == {State.DONE: 3, State.ERROR: 1}
    assert [attempt["reason"].split(":")[0] for attempt in pool.get("b:0003")["attempts"]] == ["reaped"]


def test_a_result_in_a_file_is_sent(pool: Pool, submission: Submission, recorded: dict[str, Any]) -> None:
    fill(pool, {**recorded["tokens"], "b:0003": recorded["claimed"]})
    ((name, unsent),) = recorded["unsent"].items()
    (submission.folder / "unsent").mkdir()
    (submission.folder / "unsent" / name).write_text(json.dumps({**unsent, "database": pool.name}))
    assert submission.run("false") == 0, submission.log()
    assert pool.get("b:0003")["output"] == "late"
    assert pool.states() == {State.DONE: 3, State.ERROR: 1}
    assert submission.files("unsent") == submission.files("refused") == []


RELEASED = RECORDED.with_name("released-0.1.0.json")
"""Made by the pilot while released tokens were still called "given back": one that was released three times, by an exit code of
`stop_exit_codes` and twice by SIGTERM, and one that was released once."""


def test_tokens_that_earlier_pilots_gave_back_count_as_released(pool: Pool, submission: Submission) -> None:
    tokens = json.loads(RELEASED.read_text())["tokens"]
    assert [attempts_by_kind(token) for token in tokens.values()] == [{"released": 3}, {"released": 1}]
    shown = [attempt["reason"] for attempt in for_display(tokens["b:0000"])["attempts"]]
    assert shown == ["released: exit code 42 stops the pilot", *["released: told to by SIGTERM"] * 2]
    fill(pool, {**tokens, "b:0000": {**tokens["b:0000"], "priority": 1}})
    for _ in range(2):
        assert submission.run("exit 42", stop_exit_codes=[42], max_scrubs=3) == 42, submission.log()
    assert pool.states() == {State.ERROR: 1, State.TODO: 1}
    assert pool.get("b:0000")["exit_code"] == 42
    again = pool.get("b:0001")
    # Pilots of the version before work on the same pool. They count a word that they do not know as a death.
    assert again["attempts"][-1]["reason"] == "given back: exit code 42 stops the pilot"
    assert attempts_by_kind(again) == {"released": 2}
    assert "b:0001 requeued after" in submission.log()
