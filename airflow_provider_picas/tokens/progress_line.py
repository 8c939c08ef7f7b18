"""The progress of a wait as a line for its log: counts, rate, time remaining, pilots. Also decides when a line is due."""

from __future__ import annotations

import math
from dataclasses import dataclass

from airflow_provider_picas.tokens.counts import Completeness, Counts
from airflow_provider_picas.tokens.states import State

OFTEN = 10.0  # seconds between two lines at first
OFTEN_FOR = 60.0  # seconds; after that, a line is due whenever the age of the wait has doubled
LONGEST = 300.0  # seconds between two lines, at most

FEWEST = 3  # tokens that must have finished before there is a rate
ENOUGH = 20  # the rate is measured over this number of the latest tokens, if they took RECENT or longer
RECENT = 300.0  # seconds
IDLE = 60.0  # seconds without a running token after which the measurement starts again
_MOST_SAMPLES = 240
_SAMPLE_EVERY = 5.0  # seconds


@dataclass(frozen=True)
class Pilots:
    """The state of the pilots in Slurm. ``text``: for people."""

    waiting: int
    running: int
    ended: int
    text: str


class Rate:
    """The rate at which tokens finish, over the last minutes, or longer if few have finished. ``now``: seconds, by any
    clock."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, int]] = []  # time, and the number of tokens that had finished by then
        self._idle_since: float | None = None

    def begin(self, then: float, finished: int) -> None:
        """For a wait without memory: ``finished`` tokens had finished at ``then``, when the first pilot started."""
        if not self._samples:
            self._samples.append((then, finished))

    def note(self, counts: Counts, now: float) -> None:
        """Record the counts at ``now``."""
        samples, finished = self._samples, counts.finished
        idle = bool(samples) and finished == samples[-1][1] and not counts.locked
        if not idle:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now
        stopped = self._idle_since is not None and (
            finished == samples[0][1] or now - self._idle_since >= IDLE
        )  # no pilot is at work: that time does not count
        if samples and (stopped or finished < samples[-1][1]):  # fewer than before: tokens were reset
            samples.clear()
        if len(samples) >= 2 and samples[-1][0] - samples[-2][0] < _SAMPLE_EVERY:
            samples.pop()
        samples.append((now, finished))
        if len(samples) > _MOST_SAMPLES:
            del samples[1:-1:2]

    def measure(self) -> tuple[float, int] | None:
        """Tokens per second, and the number of tokens in the measurement; None if too few have finished."""
        if not self._samples:
            return None
        now, finished = self._samples[-1]
        then, before = next(
            (
                sample
                for sample in reversed(self._samples)
                if now - sample[0] >= RECENT and finished - sample[1] >= ENOUGH
            ),
            self._samples[0],
        )
        number, seconds = finished - before, now - then
        return (number / seconds, number) if number >= FEWEST and seconds > 0 else None


def line(completeness: Completeness, rate: Rate | None = None, pilots: Pilots | None = None) -> str:
    """Such as ``120 of 500 done, 2 in error, 30 running (12 downloading); 14/min, about 25 min left; 6 pilots running, 2 pending
    (Priority)``.

    Omits the rate if too few tokens have finished, and the time remaining if it cannot be computed from the rate:
    because no token runs, or only the last ones do.
    """
    counts = completeness.counts
    others = (
        (counts.error, f"in error{counts.names_of(State.ERROR)}"),
        (counts.locked, f"running{counts.names_of(State.LOCKED)}"),
        (counts.todo, f"to do{counts.names_of(State.TODO)}"),
        (counts.stateless, "in no state"),
        (completeness.missing, "missing"),
    )
    parts = [
        ", ".join(
            [
                f"{counts.done:,} of {completeness.total:,} done{counts.names_of(State.DONE)}",
                *(f"{number:,} {what}" for number, what in others if number),
            ]
        )
    ]
    if measured := rate.measure() if rate else None:
        per_second, number = measured
        left = time_left(counts, per_second, number)
        parts.append(rate_text(per_second) + (f", {left}" if left else ""))
    if pilots:
        parts.append(pilots.text)
    if completeness.further:
        parts.append(f"[{completeness.further}]")
    return "; ".join(parts)


def rate_text(per_second: float) -> str:
    """A rate per second, minute or hour, such as ``14/min``: the smallest unit with at least one token."""
    for unit, seconds in (("s", 1), ("min", 60), ("h", 3600)):
        if per_second * seconds >= 1:
            return f"{_rounded(per_second * seconds)}/{unit}"
    return f"{_rounded(per_second * 86_400)}/day"


def time_left(counts: Counts, per_second: float, number: int) -> str | None:
    """The time remaining at a rate that was measured over ``number`` tokens; None if unknown."""
    seconds = seconds_left(counts, per_second, number)
    return f"about {_span(*seconds)} left" if seconds else None


def seconds_left(counts: Counts, per_second: float, number: int) -> tuple[float, float] | None:
    """The least and the most seconds remaining at a rate that was measured over ``number`` tokens; None if unknown.

    They differ if it is uncertain: a count of n events has an error of the square root of n.
    """
    if not counts.todo or not counts.locked:
        return None
    seconds, error = counts.unfinished / per_second, 1 / math.sqrt(number)
    return (seconds, seconds) if error <= 0.2 else (seconds / (1 + error), seconds / (1 - error))


def _span(low: float, high: float) -> str:
    for unit, seconds in (("s", 1), ("min", 60), ("h", 3600), ("days", 86_400)):
        if high < 100 * seconds or unit == "days":
            break
    first, last = (_rounded(value / seconds) for value in (low, high))
    return f"{last} {unit}" if first == last else f"{first} to {last} {unit}"


def _rounded(value: float) -> str:
    """A number with two significant digits."""
    return f"{float(f'{value:.2g}'):,g}"


_PILOTS_ENDED = "all pilots have ended"


def _reached(completeness: Completeness, pilots: Pilots | None) -> list[str]:
    """The milestones that are logged at once, in the order in which they happen."""
    counts = completeness.counts
    conditions = (
        ("first token running", counts.locked or counts.finished),
        ("first token done", counts.done),
        ("first error", counts.error),
        ("half finished", 2 * counts.finished >= completeness.total and counts.finished),
        ("last tokens running", counts.locked and not counts.todo),
        (_PILOTS_ENDED, pilots and pilots.ended and not pilots.waiting and not pilots.running),
    )
    return [what for what, true in conditions if true]


class ProgressLines:
    """The lines of one wait: every 10 s in the first minute, then less often, and at once when something happens for the
    first time.

    ``now`` is in seconds, by any one clock.
    """

    def __init__(self) -> None:
        self.rate = Rate()
        self._began = self._due = -math.inf
        self._reached: set[str] = set()
        self._pilots_known = False  #: in the last line

    def next(self, completeness: Completeness, pilots: Pilots | None, now: float) -> str | None:
        """The line to log at ``now``; None if none is due."""
        self.rate.note(completeness.counts, now)
        reached = _reached(completeness, pilots)
        first = self._began == -math.inf
        fresh = [what for what in reached if what not in self._reached and not first]
        if pilots and _PILOTS_ENDED not in reached:
            self._reached.discard(_PILOTS_ENDED)  # more pilots were submitted
        self._reached.update(reached)
        if first:
            self._began = now
        if not first and not fresh and now < self._due and self._pilots_known >= (pilots is not None):
            return None
        self._pilots_known = pilots is not None
        age = now - self._began
        self._due = now + (OFTEN if age < OFTEN_FOR else min(age, LONGEST))
        text = line(completeness, self.rate, pilots)
        return f"{', '.join(fresh).capitalize()}: {text}" if fresh else text

    def remaining(self, now: float) -> float:
        """Seconds until the next line is due; infinity before the first, which comes with the first counts."""
        return math.inf if self._began == -math.inf else max(0.0, self._due - now)
