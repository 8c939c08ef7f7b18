"""Counts of tokens by state, and when a batch is complete."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from airflow_provider_picas.lifecycle.profile import PICAS, Profile
from airflow_provider_picas.tokens.states import State, state_of


@dataclass(frozen=True)
class Counts:
    """The number of tokens in each state. ``stateless`` are in none, such as those with ``lock = 0, done > 0``."""

    todo: int = 0
    locked: int = 0
    done: int = 0
    error: int = 0
    stateless: int = 0

    @property
    def total(self) -> int:
        """The number of all tokens that were counted."""
        return self.todo + self.locked + self.done + self.error + self.stateless

    @property
    def finished(self) -> int:
        """The number of tokens that are done or in error."""
        return self.done + self.error

    @property
    def unfinished(self) -> int:
        """The number of tokens that wait or run."""
        return self.todo + self.locked

    def __getitem__(self, state: State) -> int:
        return int(getattr(self, state))

    def __str__(self) -> str:
        text = ", ".join(f"{self[state]} {state}" for state in State)
        return text + (f", {self.stateless} in no state" if self.stateless else "")

    def as_dict(self) -> dict[str, int]:
        """The counts by name, for XCom, events and logs; ``stateless`` only if there are any."""
        counts = {field.name: int(getattr(self, field.name)) for field in fields(self)}
        return counts if self.stateless else {str(state): counts[state] for state in State}


def from_rows(rows: Iterable[tuple[str | None, int]]) -> Counts:
    """Counts from pairs of a state (None for no state) and a number; a state may occur more than once."""
    counts: dict[str, int] = {}
    for state, number in rows:
        name = "stateless" if state is None else str(State(state))
        counts[name] = counts.get(name, 0) + number
    return Counts(**counts)


def of_documents(documents: Iterable[Mapping[str, Any]], profile: Profile = PICAS) -> Counts:
    """Count the given tokens."""
    return from_rows((state_of(document, profile), 1) for document in documents)


@dataclass(frozen=True)
class ErrorBudget:
    """The number of tokens that may end in error: 0 or more, or a fraction of the batch (below 1)."""

    limit: float = 0

    def __post_init__(self) -> None:
        number = isinstance(self.limit, int | float) and not isinstance(self.limit, bool)
        if not number or not math.isfinite(self.limit) or self.limit < 0:
            raise ValueError(f"max_errors must be a number of tokens or a fraction below 1, not {self.limit!r}.")
        if self.limit > 1 and self.limit != int(self.limit):
            raise ValueError(f"max_errors is {self.limit}; above 1 it must be a whole number of tokens.")

    @classmethod
    def parse(cls, value: Any) -> ErrorBudget:
        """A budget from an author's argument, or a rendered template. Raises ValueError."""
        if isinstance(value, str):
            try:
                value = float(value) if "." in value else int(value)
            except ValueError:
                raise ValueError(
                    f"max_errors must be a number of tokens or a fraction below 1, not {value!r:.80}."
                ) from None
        return cls(value)

    def allowed(self, total: int) -> int:
        """The number of errors that are still within the budget, of ``total`` tokens."""
        if isinstance(self.limit, float) and self.limit < 1:
            # 0.29 of 100 is 29, but 28.999999999999996 in binary.
            return math.floor(round(self.limit * total, 6))
        return int(self.limit)

    def spent(self, counts: Counts, total: int) -> bool:
        """True if more tokens are in error than allowed."""
        return counts.error > self.allowed(total)


@dataclass(frozen=True)
class Completeness:
    """The progress of a batch, or a pool. ``expected`` is the number of tokens pushed; None: all that exist.

    ``growing``: other tokens may still make some; None: no others can. ``further``: on these others, for the log.
    ``lags``: the counts and ``growing`` may be from different copies of a cluster's database.
    """

    counts: Counts
    expected: int | None = None
    growing: bool | None = None
    further: str = ""
    lags: bool = False

    @property
    def total(self) -> int:
        """The number of tokens that there should be."""
        return self.counts.total if self.expected is None else self.expected

    @property
    def missing(self) -> int:
        """The number of pushed tokens that no longer exist."""
        return max(0, self.total - self.counts.total)

    @property
    def complete(self) -> bool:
        """True if done + error >= the number pushed, and no tokens remain to run.

        A named batch may have done tokens of earlier runs: these must not count in place of waiting ones.
        """
        return not self.growing and self.counts.finished >= self.total and not self.counts.unfinished

    @property
    def stuck(self) -> bool:
        """True if it can never be complete: every token that can still change has finished, and these are too few."""
        return not self.growing and not self.complete and not self.counts.unfinished
