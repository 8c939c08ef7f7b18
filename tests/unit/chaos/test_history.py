"""The checker of the random rounds finds faults planted in a history."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.history import OF_COMMANDS, Claimed, History, Hurt, Kept, Overlap, Run, Write, check

DONE = {"lock": 100, "done": 160, "exit_code": 0}


def healthy() -> History:
    """Two tokens: one is done at once; the other failed, was reaped, and is then done."""
    attempts = [
        {"claim": "b1", "exit_code": 3, "reason": "failed: exit code 3"},
        {"claim": "b2", "reason": "reaped: pilot x did not renew its lease"},
    ]
    return History(
        tokens=["a", "b"],
        documents={"a": {"_id": "a", "claim": "a1", **DONE}, "b": {"_id": "b", "claim": "b3", "attempts": attempts, **DONE}},
        runs=[
            Run("a", "a1", "0.0", 10, 11, 0),
            Run("b", "b1", "0.0", 12, 13, 3),
            Run("b", "b2", "0.0", 14),
            Run("b", "b3", "1.0", 30, 31, 0),
        ],
        hurts=[Hurt("killed", "0.0", 15, 15, commands=True)],
        writes=[Write("a", "a1", "accepted", 11.1, 0), Write("b", "b3", "accepted", 31.1, 0)],
        claims=[
            Claimed("a", "a1", "accepted", 9.9),
            Claimed("b", "b1", "accepted", 11.9),
            Claimed("b", "b2", "unknown", 13.9),
            Claimed("b", "b3", "accepted", 29.9),
        ],
        exits={"1.0": 0},
        waits=["complete"],
    )  # fmt: skip


def test_a_healthy_history_has_no_violation() -> None:
    assert check(healthy()) == []


def found(history: History) -> set[str]:
    """The rules that were broken."""
    return {violation.partition(":")[0] for violation in check(history)}


def with_document(history: History, token: str, **fields: Any) -> History:
    return replace(history, documents={**history.documents, token: {**history.documents[token], **fields}})


def test_a_lost_token_is_a_violation() -> None:
    assert "lost" in found(with_document(healthy(), "a", lock=0, done=0))
    assert "lost" in found(with_document(healthy(), "a", done=0))
    history = healthy()
    del history.documents["a"]
    assert "lost" in found(history)


def test_a_result_accepted_twice_is_a_violation() -> None:
    history = healthy()
    history.writes.append(Write("a", "a2", "accepted", 12))
    assert found(history) == {"accepted_once"}


def test_a_result_that_was_accepted_and_undone() -> None:
    """The token is done again, by another claim whose answer was lost."""
    history = with_document(healthy(), "a", claim="a2", attempts=[{"claim": "a1", "reason": "reaped: x"}])
    history.writes.append(Write("a", "a2", "unknown", 12))
    assert found(history) == {"accepted_once"}


def test_a_result_that_nobody_sent_is_a_violation() -> None:
    history = healthy()
    del history.writes[0]
    assert found(history) == {"accepted_once"}
    history.writes.append(Write("a", "a1", "unknown", 11.1, 0))
    assert found(history) == set(), "the answer was lost"


def test_a_claim_that_is_run_twice_is_a_violation() -> None:
    history = healthy()
    history.runs.append(Run("a", "a1", "1.0", 20, 21, 0))
    assert found(history) == {"begun_once"}


@pytest.mark.parametrize(
    "claim",
    [
        None,
        Claimed("b", "b2", "refused", 13.9),
        Claimed("b", "b2", "accepted", 20),
        Claimed("a", "b2", "accepted", 13.9),
    ],
    ids=["never", "refused", "later", "of another token"],
)
def test_a_run_without_a_claim_is_a_violation(claim: Claimed | None) -> None:
    history = healthy()
    history.claims[2:3] = [claim] if claim else []
    assert found(history) == {"claimed_first"}


def test_without_recorded_requests_commands_are_still_checked() -> None:
    history = replace(healthy(), writes=[], claims=[])
    assert check(history, OF_COMMANDS) == []
    history.runs.append(Run("b", "b4", "1.0", 40, 41, 0))
    history.runs.append(Run("a", "a1", "1.0", 40, 41, 0))
    history.documents["b"]["done"] = 0
    assert {rule.partition(":")[0] for rule in check(history, OF_COMMANDS)} == {
        "lost",
        "begun_once",
        "attempts_complete",
    }


def test_a_run_that_shows_nowhere_is_a_violation() -> None:
    history = with_document(healthy(), "b", attempts=[{"claim": "b1", "exit_code": 3, "reason": "failed: x"}])
    assert found(history) == {"attempts_complete"}
    history.kept.append(Kept("refused", "b", "b2"))
    assert found(history) == set()


def test_of_more_than_ten_attempts_the_oldest_may_be_missing() -> None:
    ten = [{"claim": f"c{number}", "reason": "reaped: x"} for number in range(10)]
    assert found(with_document(healthy(), "b", attempts=ten)) == set()


OVERLAP = Overlap("b", "b3", "b2", 30)


@pytest.mark.parametrize(
    ("hurt", "allowed"),
    [
        (None, False),
        (Hurt("frozen", "0.0", 15, 28, commands=False), True),
        (Hurt("frozen", "0.0", 15, 20, commands=False), False),
        (Hurt("frozen", "0.0", 31, 40, commands=False), False),
        (Hurt("frozen", "1.0", 15, 28, commands=False), False),
        (Hurt("killed", "0.0", 15, 15, commands=False), True),
        (Hurt("killed", "0.0", 15, 15, commands=True), False),
    ],
    ids=["nothing", "frozen", "long ago", "later", "the other pilot", "killed alone", "killed with its commands"],
)
def test_overlapping_runs_are_a_violation(hurt: Hurt | None, allowed: bool) -> None:
    history = replace(healthy(), overlaps=[OVERLAP], hurts=[hurt] if hurt else [])
    assert ("never_at_once" in found(history)) is not allowed


def test_an_overlap_that_only_the_times_show() -> None:
    history = with_document(healthy(), "b", attempts=[{"claim": "b2", "exit_code": 1, "reason": "failed: x"}])
    history.runs[1:3] = [Run("b", "b2", "0.0", 14, 30.5, 1)]
    history.hurts.clear()
    assert found(history) == {"never_at_once"}


def test_a_finished_result_that_is_thrown_away() -> None:
    history = healthy()
    history.hurts.clear()
    assert found(history) == set()
    history.runs[2] = replace(history.runs[2], ended=14.5, code=0)
    assert found(history) == {"results_kept"}
    kept = replace(history, kept=[Kept("refused", "b", "b2")])
    killed = replace(history, hurts=[Hurt("killed", "0.0", 15, 15, commands=False)])
    assert found(kept) == found(killed) == set()
    frozen = replace(history, hurts=[Hurt("frozen", "0.0", 13, 29, commands=False)])
    assert found(frozen) == {"results_kept"}, "a pilot that wakes up has the result"


def test_a_failure_that_counts_as_something_else() -> None:
    history = with_document(healthy(), "b", attempts=[
        {"claim": "b1", "reason": "given back: the pilot lost its lease"}, {"claim": "b2", "reason": "reaped: x"}
    ])  # fmt: skip
    history.hurts.clear()
    assert found(history) == {"results_kept"}


def test_a_conflict_that_hides_a_result_is_a_violation() -> None:
    history = with_document(healthy(), "a", lock=0, done=0)
    history.leaves["a"] = [{"_id": "a", "claim": "a1", **DONE}]
    assert found(history) == {"lost", "accepted_once", "conflicts"}


@pytest.mark.parametrize("code", [None, 70])
def test_a_pilot_that_does_not_end_well(code: int | None) -> None:
    assert found(replace(healthy(), exits={"1.0": code})) == {"ends"}


def test_a_wait_that_ends_with_a_wrong_verdict() -> None:
    assert found(replace(healthy(), waits=["unknown"])) == {"ends"}


def test_records_can_be_kept(tmp_path: Path) -> None:
    history = replace(healthy(), overlaps=[OVERLAP], kept=[Kept("refused", "b", "b2")])
    history.save(tmp_path / "history.json")
    assert History.load(tmp_path / "history.json") == history
