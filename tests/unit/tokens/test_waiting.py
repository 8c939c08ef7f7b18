"""When a wait ends, and the message it ends with."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_picas.tokens.counts import Completeness, Counts, ErrorBudget
from airflow_provider_picas.tokens.waiting import Outcome, Progress, Threshold, advice, evaluate, explain


@pytest.mark.parametrize(
    ("found", "expected", "limit", "outcome", "settling"),
    [
        (Counts(done=10), 10, 0, Outcome.COMPLETE, False),
        (Counts(done=9, error=1), 10, 0, Outcome.TOO_MANY_ERRORS, True),
        (Counts(done=9, error=1), 10, 1, Outcome.COMPLETE, True),
        (Counts(done=9, error=1), 10, 0.1, Outcome.COMPLETE, True),
        (Counts(done=8, error=2), 10, 0.1, Outcome.TOO_MANY_ERRORS, True),
        (Counts(error=5, todo=5), 10, 0, Outcome.WAITING, False),  # the others' results are wanted
        (Counts(done=9, locked=1), 10, 0, Outcome.WAITING, False),
        (Counts(done=8, todo=1), 10, 0, Outcome.WAITING, False),  # one is gone, but another runs
        (Counts(done=9), 10, 0, Outcome.LOST, True),
        (Counts(done=8, error=1), 10, 0, Outcome.LOST, True),
        (Counts(done=9, stateless=1), 10, 0, Outcome.LOST, True),
        (Counts(done=10, stateless=1), 10, 0, Outcome.LOST, True),
        (Counts(done=10, stateless=1, todo=1), 10, 0, Outcome.WAITING, False),
        (Counts(), 10, 0, Outcome.LOST, True),
        (Counts(), 0, 0, Outcome.COMPLETE, False),
        (Counts(done=3, stateless=1), None, 0, Outcome.LOST, True),
        (Counts(done=3, error=1), None, 1, Outcome.COMPLETE, True),
        (Counts(), None, 0, Outcome.COMPLETE, False),
    ],
)
def test_outcomes_are_evaluated(
    found: Counts, expected: int | None, limit: float, outcome: Outcome, settling: bool
) -> None:
    decision = evaluate(Completeness(found, expected), ErrorBudget(limit))
    assert (decision.outcome, decision.settling) == (outcome, settling)
    assert decision.over == (outcome is not Outcome.WAITING)


@pytest.mark.parametrize(
    ("found", "limit", "outcome", "settling"),
    [
        (Counts(error=2, todo=8), 1, Outcome.TOO_MANY_ERRORS, True),
        (Counts(error=1, todo=9), 1, Outcome.WAITING, False),
        (Counts(error=2, locked=8), 0.1, Outcome.TOO_MANY_ERRORS, True),
        (Counts(error=1, done=9), 1, Outcome.COMPLETE, True),
        (Counts(done=9), 0, Outcome.LOST, True),
    ],
)
def test_fail_fast_fails_at_the_first_excess(found: Counts, limit: float, outcome: Outcome, settling: bool) -> None:
    decision = evaluate(Completeness(found, 10), ErrorBudget(limit), fail_fast=True)
    assert (decision.outcome, decision.settling) == (outcome, settling)


@pytest.mark.parametrize(
    ("found", "limit", "fast", "outcome"),
    [
        (Counts(done=8, todo=2), 8, False, Outcome.ENOUGH),
        (Counts(done=7, error=3), 7, False, Outcome.COMPLETE),  # errors do not matter then
        (Counts(done=8, locked=2), 0.8, False, Outcome.ENOUGH),
        (Counts(done=7, todo=3), 0.75, False, Outcome.WAITING),
        (Counts(done=7, error=3), 0.75, False, Outcome.TOO_FEW_DONE),
        (Counts(done=5, error=3, todo=2), 0.75, False, Outcome.WAITING),
        (Counts(done=5, error=3, todo=2), 0.75, True, Outcome.TOO_FEW_DONE),
        (Counts(done=5, error=2, todo=3), 0.75, True, Outcome.WAITING),  # may still be reached
        (Counts(done=9, todo=1), 1.0, False, Outcome.WAITING),
        (Counts(done=1, todo=9), 1, False, Outcome.ENOUGH),
        (Counts(done=8), 8, False, Outcome.ENOUGH),  # two are gone, and not needed
        (Counts(done=7), 8, False, Outcome.LOST),
        (Counts(done=7, stateless=3), 7, False, Outcome.ENOUGH),
    ],
)
def test_a_success_threshold_is_enough(found: Counts, limit: float, fast: bool, outcome: Outcome) -> None:
    decision = evaluate(Completeness(found, 10), ErrorBudget(0), fail_fast=fast, threshold=Threshold(limit))
    assert decision.outcome is outcome


@pytest.mark.parametrize("threshold", [None, Threshold(0.5), Threshold(1)])
@pytest.mark.parametrize("fast", [False, True])
def test_a_named_batch_without_tokens_is_unknown(threshold: Threshold | None, fast: bool) -> None:
    options: dict[str, Any] = {"named": True, "threshold": threshold, "fail_fast": fast}
    decision = evaluate(Completeness(Counts()), ErrorBudget(0), **options)
    assert (decision.outcome, decision.settling) == (Outcome.UNKNOWN, True)
    assert evaluate(Completeness(Counts(stateless=1)), ErrorBudget(0), **options).outcome is not Outcome.UNKNOWN
    assert evaluate(Completeness(Counts(), 1), ErrorBudget(0), **options).outcome is not Outcome.UNKNOWN
    if threshold is None:
        assert evaluate(Completeness(Counts(), 0), ErrorBudget(0), **options).outcome is Outcome.COMPLETE


@pytest.mark.parametrize("limit", [0, -1, 0.0, 1.5, 2.5, True, "3", float("nan"), float("inf")])
def test_an_invalid_threshold_is_refused(limit: float) -> None:
    with pytest.raises(ValueError, match="success_threshold"):
        Threshold(limit)


def test_a_fraction_is_not_rounded_down() -> None:
    assert Threshold(0.29).needed(100) == 29
    assert Threshold(0.291).needed(100) == 30
    assert Threshold(1.0).needed(7) == 7
    assert Threshold(1).needed(7) == 1


def test_progress_is_a_token_that_finishes() -> None:
    progress = Progress(60)
    progress.note(Counts(todo=10), 1_000)
    progress.note(Counts(todo=9, locked=1), 1_050)  # a claim is none
    assert progress.remaining(1_050) == 10
    progress.note(Counts(todo=9, error=1), 1_055)
    assert progress.remaining(1_055) == 60
    assert Progress(None).remaining(1e12) == float("inf")


def test_progress_is_not_evaluated_before_the_first_counts() -> None:
    progress = Progress(60)
    assert progress.remaining(1e6) == float("inf")
    progress.note(Counts(todo=10), 1e6)
    assert progress.remaining(1e6) == 60


def said(outcome: Outcome, found: Counts, expected: int | None = 10, **samples: list[str]) -> str:
    return explain(outcome, Completeness(found, expected), ErrorBudget(0), where="batch b", **samples)


def test_explanations_begin_with_the_numbers() -> None:
    """Airflow's pages cut an exception after some 70 characters."""
    assert said(Outcome.TOO_MANY_ERRORS, Counts(done=2, error=8)) == "8 of 10 tokens failed (0 allowed) in batch b."
    few = explain(
        Outcome.TOO_FEW_DONE,
        Completeness(Counts(done=2, error=8), 10),
        ErrorBudget(0),
        where="batch b",
        threshold=Threshold(0.5),
    )
    assert few.startswith("2 of 10 tokens are done (5 needed) in batch b: ")
    assert said(Outcome.NO_PILOTS, Counts(todo=8)).startswith("8 tokens are waiting and no pilots remain")


def test_explanations_say_what_to_do() -> None:
    assert "Clear the push task" in str(advice(Outcome.TOO_MANY_ERRORS))
    assert "Clear the push task" in str(advice(Outcome.TOO_FEW_DONE))
    assert "clear the task that submits them" in str(advice(Outcome.NO_PILOTS))
    assert advice(Outcome.LOST) is None


def test_lost_tokens_are_named_by_kind() -> None:
    text = said(Outcome.LOST, Counts(done=7, stateless=1), missing=["b:3", "b:4"], stateless=["b:5"])
    assert "2 pushed tokens are missing (b:3, b:4) and 1 tokens are in no state (b:5) in batch b" in text


def test_foreign_ids_stay_on_one_line() -> None:
    text = said(Outcome.LOST, Counts(done=8, stateless=2), stateless=["a\nERROR forged\x1b[31m", "x" * 5_000])
    assert "\n" not in text
    assert "\x1b" not in text
    assert len(text) < 600


def test_every_outcome_is_explained() -> None:
    texts = {said(outcome, Counts(done=1, todo=9)) for outcome in Outcome}
    assert len(texts) == len(Outcome)
    assert "did not finish in time" in said(Outcome.TIMED_OUT, Counts(done=1, todo=9))
    assert "There are no tokens in batch b. Check the batch name" in said(Outcome.UNKNOWN, Counts(), None)
    assert "All 10 tokens of batch b have finished" in said(Outcome.COMPLETE, Counts(done=10))
