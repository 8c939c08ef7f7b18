"""When a wait is over, and what it says then."""

from __future__ import annotations

import pytest

from airflow_provider_picas.tokens.counts import Completeness, Counts, ErrorBudget
from airflow_provider_picas.tokens.waiting import Outcome, explain, judge


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
        (Counts(done=9), 10, 0, Outcome.LOST, False),
        (Counts(done=8, error=1), 10, 0, Outcome.LOST, True),
        (Counts(done=9, stateless=1), 10, 0, Outcome.LOST, False),
        (Counts(done=10, stateless=1), 10, 0, Outcome.LOST, False),
        (Counts(done=10, stateless=1, todo=1), 10, 0, Outcome.WAITING, False),
        (Counts(), 10, 0, Outcome.LOST, False),
        (Counts(), 0, 0, Outcome.COMPLETE, False),
        (Counts(done=3, stateless=1), None, 0, Outcome.LOST, False),
        (Counts(done=3, error=1), None, 1, Outcome.COMPLETE, True),
        (Counts(), None, 0, Outcome.COMPLETE, False),
    ],
)
def test_judge(found: Counts, expected: int | None, limit: float, outcome: Outcome, settling: bool) -> None:
    verdict = judge(Completeness(found, expected), ErrorBudget(limit))
    assert (verdict.outcome, verdict.settling) == (outcome, settling)
    assert verdict.over == (outcome is not Outcome.WAITING)


def said(outcome: Outcome, found: Counts, expected: int | None = 10, **samples: list[str]) -> str:
    return explain(outcome, Completeness(found, expected), ErrorBudget(0), where="batch b", **samples)


def test_errors_are_named_up_to_five() -> None:
    text = said(Outcome.TOO_MANY_ERRORS, Counts(done=2, error=8), in_error=[f"b:{n}" for n in range(5)])
    assert "8 of 10 tokens of batch b are in error, and 0 may be: b:0, b:1, b:2, b:3, b:4 and 3 more." in text
    assert "Clear the push task" in text


def test_lost_tokens_are_named_by_kind() -> None:
    text = said(Outcome.LOST, Counts(done=7, stateless=1), missing=["b:3", "b:4"], stateless=["b:5"])
    assert "2 tokens that were pushed are gone (b:3, b:4) and 1 tokens are in no state (b:5) in batch b" in text


def test_foreign_ids_stay_on_one_line() -> None:
    text = said(Outcome.TOO_MANY_ERRORS, Counts(error=10), in_error=["a\nERROR forged\x1b[31m", "x" * 5_000])
    assert "\n" not in text
    assert "\x1b" not in text
    assert len(text) < 600


def test_every_outcome_has_words() -> None:
    texts = {said(outcome, Counts(done=1, todo=9)) for outcome in Outcome}
    assert len(texts) == len(Outcome)
    assert "did not finish in time" in said(Outcome.TIMED_OUT, Counts(done=1, todo=9))
    assert "All 10 tokens of batch b have finished" in said(Outcome.COMPLETE, Counts(done=10))
