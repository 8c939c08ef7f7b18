"""When a chain of stages has finished: decided from counts alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from airflow_provider_picas.submissions.wait import Wait
from airflow_provider_picas.tokens.chain import LOOK_AGAIN, LOOK_EVERY, Chain, ChainCounts, Looks
from airflow_provider_picas.tokens.counts import Counts, ErrorBudget
from airflow_provider_picas.tokens.progress_line import line
from airflow_provider_picas.tokens.waiting import SETTLE_SECONDS, Outcome, Terms, Threshold

STAGES = ("calibration", "imaging")


def chain(stage: str | None = None, tokens: int | None = None) -> Chain:
    return Chain("b", STAGES, stage, tokens)


def terms(stage: str | None = None, tokens: int | None = None, **arguments: Any) -> Terms:
    made = chain(stage, tokens)
    return Terms(made.own[0], None, arguments.pop("budget", ErrorBudget(0)), chain=made, **arguments)


def found(*counts: Counts, **parts: Any) -> ChainCounts:
    return ChainCounts(dict(zip(["b", "b.calibration", "b.imaging"], counts, strict=False)), **parts)


def outcome(of: Terms, seen: ChainCounts) -> Outcome:
    return of.evaluate(of.completeness(seen)).outcome


def test_a_wait_counts_the_batches_that_it_is_for_and_those_that_fill_them() -> None:
    assert chain().own == ("b", "b.calibration", "b.imaging")
    assert list(chain().batches) == ["b", "b.calibration", "b.imaging"]
    assert chain().fillers == chain().own
    assert chain("imaging").fillers == ("b", "b.calibration")
    assert chain("calibration").own == ("b.calibration",)
    assert list(chain("calibration").batches) == ["b", "b.calibration"]
    assert chain().by_stage == {"calibration": "b.calibration", "imaging": "b.imaging"}


def test_a_stage_may_have_a_batch_of_any_name() -> None:
    """As in pools whose scripts make the tokens of the next workflow: after the result of the parent, so the end must last."""
    made = Chain.parse("ddcal", {"imaging": "imaging", "mosaic": ""}, groups={"mosaic": {"of": "imaging"}})
    assert made
    assert list(made.batches) == ["ddcal", "imaging", "ddcal.mosaic"]
    assert made.by_stage == made.as_argument == {"imaging": "imaging", "mosaic": "ddcal.mosaic"}
    assert Chain.parse("ddcal", made.as_argument, groups=made.groups) == replace(made, named=made.by_stage)
    wait = Wait(Terms("ddcal", None, ErrorBudget(0), chain=made), None)
    wait.note_counts(ChainCounts({"ddcal": Counts(done=1), "imaging": Counts(done=1)}, closed=True), 0.0)
    assert wait.decide(0.0) is Outcome.WAITING
    assert wait.decide(SETTLE_SECONDS) is Outcome.COMPLETE
    assert chain().as_argument == list(STAGES)


@pytest.mark.parametrize("stage", [None, "calibration", "imaging"])
def test_a_wait_is_not_over_while_a_parent_is_unfinished_or_its_list_is_pending(stage: str | None) -> None:
    of = terms(stage)
    for parent in (Counts(todo=1, done=2), Counts(locked=1, done=2)):
        assert outcome(of, found(parent, Counts(done=4), Counts(done=2))) is Outcome.WAITING
    finished = (Counts(done=3), Counts(done=4), Counts(done=2))
    assert outcome(of, found(*finished, pending=1)) is Outcome.WAITING
    assert outcome(of, found(*finished)) is Outcome.WAITING, "nobody has looked"
    assert outcome(of, found(*finished, closed=True)) is Outcome.COMPLETE


def test_a_stage_that_no_token_fills_is_complete() -> None:
    of = terms("imaging")
    assert outcome(of, found(Counts(done=3), Counts(done=4))) is Outcome.WAITING
    assert outcome(of, found(Counts(done=3), Counts(done=4), closed=True)) is Outcome.COMPLETE


def test_errors_of_a_stage_fail_the_waits_that_are_for_it() -> None:
    seen = found(Counts(done=3), Counts(done=3, error=1), Counts(done=3), closed=True)
    assert outcome(terms("imaging"), seen) is Outcome.COMPLETE
    assert outcome(terms("calibration"), seen) is Outcome.TOO_MANY_ERRORS
    assert outcome(terms(), seen) is Outcome.TOO_MANY_ERRORS
    assert outcome(terms(budget=ErrorBudget(1)), seen) is Outcome.COMPLETE


def test_a_pushed_token_that_is_missing_fails_the_wait_for_all() -> None:
    seen = found(Counts(done=2), Counts(done=4), closed=True)
    assert outcome(terms(tokens=3), seen) is Outcome.LOST
    assert outcome(terms(tokens=2), seen) is Outcome.COMPLETE
    assert terms(tokens=3).completeness(seen).missing == 1


def test_fractions_wait_until_the_number_of_tokens_is_known() -> None:
    few = found(Counts(done=1, todo=1), Counts(), Counts(done=1, error=1))
    assert outcome(terms("imaging", threshold=Threshold(0.5)), few) is Outcome.WAITING
    assert outcome(terms("imaging", threshold=Threshold(1)), few) is Outcome.ENOUGH
    assert outcome(terms("imaging", budget=ErrorBudget(0.1), fail_fast=True), few) is Outcome.WAITING
    assert outcome(terms("imaging", budget=ErrorBudget(0), fail_fast=True), few) is Outcome.TOO_MANY_ERRORS


def test_pilots_are_missing_only_for_enough_work_while_more_may_come() -> None:
    of = terms("imaging", least_work=10)
    growing = [found(Counts(locked=1), Counts(), Counts(todo=todo)) for todo in (9, 10)]
    assert [of.lacks_pilots(of.completeness(seen)) for seen in growing] == [False, True]
    for parents, expected in ((Counts(locked=1), Outcome.WAITING), (Counts(done=1), Outcome.NO_PILOTS)):
        wait = Wait(of, None)
        wait.no_pilots = True
        wait.note_counts(found(parents, Counts(), Counts(todo=9), closed=parents.done == 1), 0.0)
        assert wait.decide(0.0) is expected


def test_the_end_must_last_where_copies_of_the_database_may_lag() -> None:
    for of in (terms("imaging"), terms("imaging", ready=1)):
        waits = {copies: Wait(of, None) for copies in (1, 3)}
        for copies, wait in waits.items():
            wait.note_counts(found(Counts(done=1), Counts(), Counts(done=1), closed=True, copies=copies), 0.0)
        over = of.evaluate(waits[1].last).outcome
        assert over.success
        assert waits[1].decide(0.0) is over
        assert waits[3].decide(0.0) is Outcome.WAITING
        assert waits[3].decide(SETTLE_SECONDS) is over
        waits[3].note_counts(found(Counts(done=1), Counts(), Counts(done=1), pending=1, copies=3), SETTLE_SECONDS)
        assert waits[3].decide(2 * SETTLE_SECONDS) is Outcome.WAITING


def test_the_line_shows_each_stage() -> None:
    seen = found(Counts(done=3), Counts(done=2, locked=1, error=1), Counts(todo=2), pending=2)
    assert line(terms().completeness(seen)) == (
        "5 of 9 done, 1 in error, 1 running, 2 to do; "
        "[batch 3 of 3; calibration 2 of 4, 1 in error; imaging 0 of 2; new tokens of 2 tokens are being made]"
    )


def test_there_is_progress_while_tokens_of_any_stage_finish() -> None:
    wait = Wait(terms("imaging", no_progress=10), None)
    wait.note_counts(found(Counts(done=1, todo=3)), 0.0)
    wait.note_counts(found(Counts(done=2, todo=2)), 9.0)
    assert wait.decide(18.0) is Outcome.WAITING
    assert wait.decide(20.0) is Outcome.NO_PROGRESS


def test_a_look_is_repeated_soon_after_one_that_found_lists() -> None:
    looks = Looks()
    assert looks.due(5.0)
    looks.note(found(Counts(), looked=True), 5.0)
    assert not looks.due(5.0 + LOOK_EVERY - 1)
    assert looks.due(5.0 + LOOK_EVERY)
    looks.note(found(Counts(), looked=True, pending=1), 50.0)
    assert looks.remaining(50.0) == LOOK_AGAIN
    looks.note(found(Counts(), pending=1), 51.0)
    assert looks.due(50.0 + LOOK_AGAIN)
    looks.note(found(Counts(), looked=True), 60.0)
    looks.note(found(Counts(), pending=1), 61.0)
    assert looks.remaining(61.0) == LOOK_AGAIN - 1


@pytest.mark.parametrize(
    ("stages", "stage", "fault"),
    [
        ("imaging", None, "must be a list"),
        (["a b"], None, "cannot be the name"),
        (["a", "a"], None, "occurs twice"),
        (["a"], "b", "is not one of the stages"),
        ({"a": "b"}, None, "same batch"),
        ({"a": "x", "c": "x"}, None, "same batch"),
        ((), "b", "`stages` is not given"),
    ],
)
def test_stages_that_cannot_be_are_refused(stages: Any, stage: str | None, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        Chain.parse("b", stages, stage)
