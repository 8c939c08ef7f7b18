"""Interleaved pairs, their medians, and results that say whether a goal is met."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

PAIRS = 5


@dataclass(frozen=True)
class Goal:
    """The goal for a ratio, or a difference."""

    limit: float
    at_least: bool = False

    def met(self, value: float) -> bool:
        """True if the value reaches the goal."""
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.limit:g}"


@dataclass(frozen=True)
class Result:
    """One line of the table: the comparison, the figures of both sides, and their relation.

    ``value`` is the median of the pairs' ratios, or as explained in ``figures``. ``goal`` None: only for information.
    """

    name: str
    figures: dict[str, str]
    value: float
    goal: Goal | None = None
    unit: str = ""
    pairs: list[tuple[float, float]] = field(default_factory=list)

    @property
    def met(self) -> bool | None:
        """True if the goal is met, or None if there is none."""
        return None if self.goal is None else self.goal.met(self.value)


@dataclass
class Clock:
    """The duration of a ``with`` block in seconds."""

    seconds: float = 0.0


@contextmanager
def clock() -> Iterator[Clock]:
    """Measure the duration of the ``with`` block."""
    taken = Clock()
    started = time.perf_counter()
    yield taken
    taken.seconds = time.perf_counter() - started


def in_pairs(one: Callable[[], float], other: Callable[[], float], pairs: int = PAIRS) -> list[tuple[float, float]]:
    """Measure two things in turns, alternating the order. Returns the seconds of both."""
    found = []
    for number in range(pairs):
        if number % 2:
            second = other()
            found.append((one(), second))
        else:
            found.append((one(), other()))
    return found


def ratio(pairs: list[tuple[float, float]]) -> float:
    """The median of the pairs' ratios, the first to the second."""
    return median(one / other for one, other in pairs)


def medians(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    """The medians of both sides."""
    return median(one for one, _ in pairs), median(other for _, other in pairs)
