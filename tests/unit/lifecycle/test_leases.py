"""The rule by which pilots count as dead that are not heard any more: pilots and waits share it."""

from __future__ import annotations

from dataclasses import dataclass
from email.utils import formatdate
from typing import Any

import pytest

from airflow_provider_picas.lifecycle.causes_of_death import is_from_slurm
from airflow_provider_picas.lifecycle.leases import Reading, Silence
from airflow_provider_picas.lifecycle.transitions import reason_of_reaping
from airflow_provider_picas.pilot.clock import Clock

LEASE = 60.0
NEVER = -1.0


@dataclass(frozen=True)
class Read:
    """One reading of a lease. ``at``: by the observer's clock. ``renewed`` and ``now``: by the database's; None: no lease."""

    at: float
    now: float
    renewals: int
    renewed: float | None


def until_dead(*readings: Read, contact: float = NEVER, lock: float = 0.0) -> float | None:
    """What the last reading makes of the pilot."""
    silence = Silence(LEASE)
    found: float | None = None
    for read in readings:
        shown = None if read.renewed is None else Reading(read.renewals, read.renewed, LEASE)
        silence.note("p", shown, read.at)
        found = silence.seconds_until_dead("p", lock, read.now, read.at, contact)
    return found


@pytest.mark.parametrize(
    ("readings", "dead"),
    [
        ([Read(0, 1000, 1, 990)], False),  # its lease holds
        ([Read(0, 1000, 1, 900)], False),  # over, but one reading proves nothing
        ([Read(0, 1000, 1, 900), Read(29, 1029, 1, 900)], False),  # two, less than half a lease apart
        ([Read(0, 1000, 1, 900), Read(30, 1030, 1, 900)], True),
        ([Read(0, 1000, 1, 990), Read(50, 1050, 1, 990)], False),
        ([Read(0, 1000, 1, 990), Read(52, 1052, 1, 990)], True),  # first read long before its end
        ([Read(0, 1000, 1, 900), Read(29, 1029, 2, 1020), Read(60, 1060, 2, 1020)], False),  # it was heard again
        # The database's clock steps forward: it has until its next renewal.
        ([Read(0, 1000, 1, 990), Read(10, 1210, 1, 990)], False),
        ([Read(0, 1000, 1, 990), Read(10, 1210, 1, 990), Read(20, 1220, 2, 1219)], False),
        # It steps back: renewals show by their number, and a silent pilot is dead a lease later.
        ([Read(0, 1000, 1, 990), Read(30, 830, 2, 829), Read(61, 861, 3, 860)], False),
        ([Read(0, 1000, 1, 990), Read(60, 860, 1, 990)], False),
        ([Read(0, 1000, 1, 990), Read(62, 862, 1, 990)], True),
        # A late write sets the lease back: no sign of life, and none of death.
        ([Read(0, 1000, 5, 990), Read(20, 1020, 2, 900), Read(40, 1040, 6, 1035)], False),
        ([Read(0, 1000, 5, 990), Read(40, 1040, 2, 900)], False),
        ([Read(0, 1000, 5, 990), Read(52, 1052, 2, 900)], True),
        # A pilot that does not count: any other time is news.
        ([Read(0, 1000, 0, 900), Read(31, 1031, 0, 880), Read(60, 1060, 0, 880)], False),
        ([Read(0, 1000, 0, 900), Read(31, 1031, 0, 880), Read(61, 1061, 0, 880)], True),
        # No lease, of one that had one: it is written again at the next renewal.
        ([Read(0, 1000, 1, 990), Read(29, 1200, 0, None)], False),
        ([Read(0, 1000, 1, 990), Read(29, 1200, 0, None), Read(45, 1216, 2, 1210)], False),
        ([Read(0, 1000, 1, 990), Read(31, 1202, 0, None)], True),
        # No lease that was ever seen.
        ([Read(0, 1000, 0, None)], False),
        ([Read(0, 1000, 0, None), Read(59, 1059, 0, None)], False),
        ([Read(0, 1000, 0, None), Read(60, 1060, 0, None)], True),
        ([Read(0, 1000, 0, None), Read(59, 1059, 1, 1058), Read(61, 1061, 1, 1058)], False),
    ],
)
def test_who_is_dead(readings: list[Read], dead: bool) -> None:
    left = until_dead(*readings)
    assert (left is not None and left <= 0) is dead, left


def test_a_token_that_was_just_locked_is_no_orphan() -> None:
    readings = [Read(0, 1000, 0, None), Read(60, 1060, 0, None)]
    assert until_dead(*readings, lock=1060 - 2 * LEASE) is None
    assert until_dead(*readings, lock=1059 - 2 * LEASE) == 0


def test_silence_counts_only_while_the_observer_was_in_contact() -> None:
    readings = [Read(0, 1000, 1, 900), Read(40, 1040, 1, 900)]
    assert until_dead(*readings, contact=15) == 5
    assert until_dead(*readings, contact=10) == 0


def test_what_was_asked_before_a_pause_proves_nothing_after_it() -> None:
    """The observer was stopped after it had asked: the answer was there at once, and is old when it is read."""
    silence = Silence(LEASE)
    silence.note("p", Reading(1, 900, LEASE), 0)
    silence.note("p", Reading(1, 900, LEASE), 500)
    assert silence.seconds_until_dead("p", 0, 1001, asked=1, contact=NEVER) == 29


def test_a_lease_that_is_missing_is_taken_for_as_long_as_the_longest_one_seen() -> None:
    silence = Silence(LEASE)
    silence.note("other", Reading(1, 900, 600), 0)
    silence.note("p", None, 0)
    assert silence.seconds_until_dead("p", 0, 10_000, asked=500, contact=NEVER) == 100


def test_who_holds_nothing_any_more_is_forgotten() -> None:
    silence = Silence(LEASE)
    for pilot in ("p", "q"):
        silence.note(pilot, Reading(1, 900, LEASE), 0)
    silence.keep(["q", "r"])
    silence.note("p", Reading(1, 900, LEASE), 100)
    assert silence.seconds_until_dead("p", 0, 1100, asked=100, contact=NEVER) == 30
    assert silence.seconds_until_dead("q", 0, 1100, asked=100, contact=NEVER) == -70


@pytest.mark.parametrize(
    ("doc", "shown"),
    [
        ({"renewals": 3, "renewed": 1000, "lease": 30}, Reading(3, 1000, 30)),
        ({"renewals": "3", "renewed": None, "lease": True}, Reading(0, 0, 120)),
        ({}, Reading(0, 0, 120)),
    ],
)
def test_what_a_lease_shows(doc: dict[str, Any], shown: Reading) -> None:
    assert Reading.of(doc, 120) == shown


DATE = "Thu, 01 Jan 2026 00:00:{:02d} GMT"
ZERO = 1767225600.0


def test_a_date_counts_within_the_time_of_its_request() -> None:
    clock = Clock()
    clock.record(DATE.format(10), sent=110.0, received=110.2)
    assert clock.at(110.0) == pytest.approx(ZERO + 10.5, abs=0.6)
    clock.record(DATE.format(10), sent=110.0, received=150.0)  # delayed: it says no more than the first
    assert clock.at(150.0) == pytest.approx(ZERO + 50.5, abs=0.6)
    clock.record(DATE.format(59), sent=130.0, received=160.0)
    assert clock.at(160.0) == pytest.approx(ZERO + 60.5, abs=0.6), "sent long before"


@pytest.mark.parametrize("step", [200, -200, 3])
def test_a_step_of_the_databases_clock_is_followed(step: int) -> None:
    clock = Clock()
    clock.record(DATE.format(0), sent=100.0, received=100.1)
    assert clock.at(100.0) == pytest.approx(ZERO + 0.5, abs=0.6)
    later = 300.0
    clock.record(formatdate(ZERO + 200 + step, usegmt=True), sent=later, received=later + 0.1)
    assert clock.at(later) == pytest.approx(ZERO + 200 + step + 0.5, abs=0.6)


def test_many_dates_tell_the_time_better_than_one() -> None:
    """The header has whole seconds, and a server may keep it for another."""
    clock = Clock()
    for tenth in range(100):
        moment = 100 + tenth / 10
        late = 1 if tenth % 7 == 0 else 0
        clock.record(formatdate(int(ZERO + tenth / 10) - late, usegmt=True), sent=moment, received=moment + 0.01)
    assert clock.at(100) == pytest.approx(ZERO, abs=0.6)


@pytest.mark.parametrize(
    ("reason", "slurms"),
    [
        ("reaped: pilot p (job 1 on n) did not renew its lease for 70 s", False),
        ("reaped: pilot p has no lease", False),
        ("reaped: pilot p (job 1 on n) has ended", False),
        ("reaped: pilot p (job 1 on n) has ended: NODE_FAIL", True),
        ("reaped: pilot p (job 1 on n) was requeued", True),
        ("", False),
    ],
)
def test_whose_word_a_token_was_reaped_by(reason: str, slurms: bool) -> None:
    attempts = [{"claim": "a-1", "reason": "failed: x"}, None, {"claim": "b-2", "reason": reason}]
    assert reason_of_reaping({"attempts": attempts}, "b-2") == reason
    assert reason_of_reaping({"attempts": attempts}, "a-1") == ""
    assert reason_of_reaping({}, "b-2") == ""
    assert is_from_slurm(reason) is slurms
