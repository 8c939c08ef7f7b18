"""How many tokens a pilot claims, and when it stops."""

from __future__ import annotations

import time

import pytest

from airflow_provider_picas.lifecycle.transitions import Token
from airflow_provider_picas.pilot.work import DRAIN, STOP, Work
from tests.unit.lifecycle.claimed import CONFIG, claimed


def test_as_many_are_claimed_as_can_start_until_tokens_are_known_to_be_short() -> None:
    work = Work(CONFIG._replace(slots=2, max_claim=50))
    assert work.wanted() == 2
    work.add([Token(claimed())])
    assert work.wanted() == 1
    work.learn(0.2)
    assert work.wanted() == 2 * 40 - 1
    work.add([Token(claimed()) for _ in range(20)])
    assert work.wanted() == 0
    for _ in range(20):
        work.learn(60.0)
    assert work.wanted() == 0
    assert len(work.stale(all_of_them=True)) == 21
    assert work.wanted() == 2
    assert work.expected() == 60.0


@pytest.mark.parametrize(("lease", "seconds"), [(120.0, 20), (15.0, 7)])
def test_tokens_that_wait_are_given_back_before_idle_pilots_end(
    lease: float, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, token = Work(CONFIG._replace(lease=lease)), Token(claimed())
    work.add([token])
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + seconds - 1)
    assert not work.stale(all_of_them=False)
    monkeypatch.setattr(time, "monotonic", lambda: now + seconds + 1)
    assert work.stale(all_of_them=False) == [token]


def test_one_claim_is_bounded() -> None:
    work = Work(CONFIG._replace(max_claim=7))
    work.learn(0.0)
    assert work.wanted() == 7


def test_a_token_that_killed_a_pilot_runs_alone() -> None:
    work = Work(CONFIG)
    assert work.deaths_allowed(pending=0) > 3
    assert work.deaths_allowed(pending=1) == 0
    work.add([Token(claimed())])
    assert work.deaths_allowed(pending=0) == 0


def test_a_stop_goes_before_a_drain() -> None:
    work = Work(CONFIG)
    work.stop(DRAIN, "nothing is left", 0)
    work.stop(DRAIN, "again", 5)
    assert (work.level, work.why, work.code) == (DRAIN, "nothing is left", 0)
    work.stop(STOP, "told to")
    work.stop(DRAIN, "late")
    assert (work.level, work.why) == (STOP, "told to")
    assert work.stopping.is_set()
