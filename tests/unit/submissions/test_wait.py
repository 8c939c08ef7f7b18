"""The decisions of a wait, which the sensor and the trigger share."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest

from airflow_provider_picas.slurm.jobs import Job, SlurmStatus
from airflow_provider_picas.submissions import wait as waits
from airflow_provider_picas.submissions.deaths import Holders
from airflow_provider_picas.submissions.wait import CheckInterval, Wait
from airflow_provider_picas.submissions.watch import PilotStatus
from airflow_provider_picas.tokens.counts import Counts, ErrorBudget
from airflow_provider_picas.tokens.waiting import SETTLE_SECONDS, Outcome, Terms


def wait(no_progress: float | None = None, **options: Any) -> Wait:
    terms = Terms("b", 4, ErrorBudget(0), no_progress=no_progress)
    return Wait(terms, logging.getLogger(__name__), **options)


def check(*states: str, held: int = 0) -> PilotStatus:
    return PilotStatus(
        SlurmStatus({str(i): Job(str(i), state) for i, state in enumerate(states)}, at=0), holders=Holders(held)
    )


def test_errors_count_once_they_have_lasted() -> None:
    one = wait()
    one.note_counts(Counts(done=3, error=1), 0.0)
    assert one.decide(0.0) is Outcome.WAITING
    assert one.settled_in(4.0) == one.decide_again_in(4.0) == SETTLE_SECONDS - 4
    assert one.decide(SETTLE_SECONDS) is Outcome.TOO_MANY_ERRORS


def test_a_decision_that_changes_meanwhile_settles_anew() -> None:
    one = wait()
    one.note_counts(Counts(done=3, error=1), 0.0)
    one.decide(0.0)
    one.note_counts(Counts(done=3, todo=1), 5.0)
    assert one.decide(SETTLE_SECONDS) is Outcome.WAITING
    assert math.isinf(one.settled_in(SETTLE_SECONDS))
    one.note_counts(Counts(done=3, error=1), 12.0)
    assert one.decide(12.0) is Outcome.WAITING


def test_the_deadline_takes_what_has_not_settled() -> None:
    one = wait(deadline=5.0)
    assert one.decide(5.0) is Outcome.TIMED_OUT
    one.note_counts(Counts(done=3, error=1), 5.0)
    assert one.decide(5.0) is Outcome.TOO_MANY_ERRORS


def test_no_progress_does_not_hide_a_decision_that_settles() -> None:
    one = wait(no_progress=3.0)
    one.note_counts(Counts(done=3, todo=1), 0.0)
    assert one.decide(3.0) is Outcome.NO_PROGRESS
    one.note_counts(Counts(done=3), 3.0)  # one is gone
    assert one.decide(3.0) is Outcome.WAITING
    assert one.decide_again_in(3.0) == SETTLE_SECONDS
    assert one.decide(3.0 + SETTLE_SECONDS) is Outcome.LOST


@pytest.mark.parametrize(("jobs", "seconds"), [(("COMPLETED",), waits.ENDED_AFTER), ((), waits.GONE_AFTER)])
def test_pilots_are_absent_once_that_is_certain(jobs: tuple[str, ...], seconds: float) -> None:
    one = wait()
    one.note_counts(Counts(done=3, todo=1), 0.0)
    assert one.note_pilots(check(*jobs), 0.0) == seconds
    assert one.decide(0.0) is Outcome.WAITING
    assert one.note_pilots(check(*jobs), seconds) == 0
    assert one.decide(seconds) is Outcome.NO_PILOTS
    one.note_pilots(check("PENDING"), seconds + 1)
    assert one.decide(seconds + 1) is Outcome.WAITING


@pytest.mark.parametrize(
    "status", [PilotStatus(outage="Slurm does not answer."), check("RUNNING"), check("COMPLETED", held=1)]
)
def test_pilots_that_may_remain_are_not_absent(status: PilotStatus) -> None:
    one = wait()
    assert one.note_pilots(status, 0.0) == one.note_pilots(status, 100.0) == math.inf
    assert not one.no_pilots


def test_pilots_are_not_missed_before_they_can_be_submitted_again() -> None:
    one = wait(no_pilots_before=10.0)
    assert math.isinf(one.note_pilots(check("COMPLETED"), 9.0))
    assert one.note_pilots(check("COMPLETED"), 10.0) == waits.ENDED_AFTER


def test_a_wait_without_memory_takes_the_time_of_the_submission() -> None:
    one = wait()
    assert one.note_pilots(check(), 1000.0, absent_since=1000.0 - waits.GONE_AFTER) == 0
    assert one.no_pilots


def test_pilots_are_checked_less_often_while_nothing_changes() -> None:
    interval = CheckInterval(None)
    pauses = [interval.after(check("RUNNING"), absent=False) for _ in range(10)]
    assert pauses[0] <= waits.FIRST_INTERVAL < pauses[2] < pauses[-1] <= waits.LONGEST_INTERVAL
    assert interval.after(check("COMPLETED"), absent=False) <= waits.FIRST_INTERVAL
    assert interval.after(check("COMPLETED"), absent=True) <= waits.FIRST_INTERVAL
    assert CheckInterval(0.2).after(check("RUNNING"), absent=False) <= 0.2


def test_pilots_of_several_submissions_are_gone_when_all_are() -> None:
    """Unknown is not gone: while one cluster does not answer, its pilots may be there."""
    one = wait()
    for key in ("a.1", "b.1"):
        one.watched(key)
    assert one.others("a.1") == {"b.1"}
    assert math.isinf(one.note_pilots(check("COMPLETED"), 0.0, submission="a.1")), "nobody has asked the other cluster"
    lost = PilotStatus(outage="the cluster does not answer")
    assert math.isinf(one.note_pilots(lost, 1.0, submission="b.1"))
    assert one.others("a.1") == set()
    assert math.isinf(one.note_pilots(check("COMPLETED"), 100.0, submission="a.1"))
    assert one.note_pilots(check("FAILED"), 101.0, submission="b.1") == waits.ENDED_AFTER
    assert one.note_pilots(check("COMPLETED"), 101.0 + waits.ENDED_AFTER, submission="a.1") == 0
    assert one.no_pilots
    one.note_refusal("b.1", "no login")
    one.note_refusal("a.1", None)
    assert one.refusal == "no login"
    one.note_refusal("b.1", None)
    assert one.refusal is None


def lost(lease_holds: bool = False, held: int = 0) -> PilotStatus:
    """A check of a cluster that does not answer."""
    return PilotStatus(outage="no answer", lease_holds=lease_holds, longest_lease=30.0, holders=Holders(held))


def two_clusters(**options: Any) -> Wait:
    one = wait(**options)
    one.note_counts(Counts(done=3, todo=1), 0.0)
    for key in ("near.1", "far.1"):
        one.watched(key)
    one.note_pilots(check("COMPLETED"), 0.0, submission="near.1")
    return one


def test_a_lost_cluster_does_not_keep_pilots_from_being_submitted_again() -> None:
    """Once no lease of its pilots has held for longer than a lease, which all checks have to find."""
    one = two_clusters(resubmits=True)
    one.note_pilots(lost(), 1.0, submission="far.1")
    one.note_pilots(lost(lease_holds=True), 20.0, submission="far.1")
    one.note_pilots(lost(), 21.0, submission="far.1")
    assert math.isinf(one.note_pilots(check("COMPLETED"), 51.0, submission="near.1"))
    assert one.note_pilots(lost(), 52.0, submission="far.1") == waits.ENDED_AFTER
    assert one.note_pilots(check("COMPLETED"), 54.0, submission="near.1") == 0
    assert one.decide(54.0) is Outcome.NO_PILOTS
    one.note_pilots(check("RUNNING"), 55.0, submission="near.1")
    assert one.decide(55.0) is Outcome.WAITING


@pytest.mark.parametrize("far", [lost(held=1), PilotStatus(outage="CouchDB does not answer.")])
def test_a_lost_cluster_whose_pilots_may_live_is_waited_for(far: PilotStatus) -> None:
    one = two_clusters(resubmits=True)
    for now in (1.0, 1_000.0):
        one.note_pilots(far, now, submission="far.1")
        assert math.isinf(one.note_pilots(check("COMPLETED"), now, submission="near.1"))


def test_a_lost_cluster_is_waited_for_if_nobody_submits_again_or_none_answers() -> None:
    one = two_clusters()
    for now in (1.0, 1_000.0):
        one.note_pilots(lost(), now, submission="far.1")
        assert math.isinf(one.note_pilots(check("COMPLETED"), now, submission="near.1"))
    one = two_clusters(resubmits=True)
    for now in (1.0, 1_000.0):
        one.note_pilots(lost(), now, submission="far.1")
        assert math.isinf(one.note_pilots(lost(), now, submission="near.1"))
