"""Counts of tokens by state, and when a batch is complete."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from airflow_provider_picas.lifecycle.profile import PICAS, Profile
from airflow_provider_picas.tokens.states import State
from airflow_provider_picas.tokens.text import one_line

Named = tuple[tuple[str, str, int], ...]
Key = str | tuple[str, str] | None
"""A state; a state and a further name of it in a profile; or None for no state."""


@dataclass(frozen=True)
class Counts:
    """The number of tokens in each state. ``stateless`` are in none, such as those with ``lock = 0, done > 0``.

    ``named``: numbers of tokens in states that have names of their own in a profile, such as ``("locked", "downloading",
    12)``; they are included in the others. Also takes a mapping, as in ``as_dict``.
    """

    todo: int = 0
    locked: int = 0
    done: int = 0
    error: int = 0
    stateless: int = 0
    named: Named = ()

    def __post_init__(self) -> None:
        if isinstance(self.named, Mapping):
            pairs = [(state, name, n) for state, names in self.named.items() for name, n in names.items()]
            object.__setattr__(self, "named", tuple(pairs))
        if len(self.named) > 1:
            object.__setattr__(self, "named", tuple(sorted(self.named)))

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
        text = ", ".join(f"{self[state]} {state}{self.names_of(state)}" for state in State)
        return text + (f", {self.stateless} in no state" if self.stateless else "")

    def names_of(self, state: State) -> str:
        """The further names of a state with their numbers, such as `` (12 downloading)``; empty if there are none."""
        found = [f"{number:,} {one_line(name, 40)}" for of, name, number in self.named if of == state and number]
        return f" ({', '.join(found)})" if found else ""

    def __add__(self, other: Counts) -> Counts:
        named: dict[tuple[str, str], int] = {}
        for state, name, number in (*self.named, *other.named):
            named[state, name] = named.get((state, name), 0) + number
        numbers = {name: getattr(self, name) + getattr(other, name) for name in (*State, "stateless")}
        return Counts(**numbers, named=tuple((*key, number) for key, number in named.items()))

    def as_dict(self) -> dict[str, Any]:
        """The counts by name, for XCom, events and logs; ``stateless`` and ``named`` only if there are any."""
        found: dict[str, Any] = {str(state): self[state] for state in State}
        found |= {"stateless": self.stateless} if self.stateless else {}
        names: dict[str, dict[str, int]] = {}
        for state, name, number in self.named:
            names.setdefault(state, {})[name] = number
        return found | ({"named": names} if names else {})


def from_rows(rows: Iterable[tuple[Key, int]]) -> Counts:
    """Counts from pairs of a state (None for no state) and a number; a state may occur more than once. Rows of a further
    name are included in those of its state."""
    counts: dict[str, int] = {}
    named: dict[tuple[str, str], int] = {}
    for state, number in rows:
        if isinstance(state, tuple):
            named[state] = named.get(state, 0) + number
            continue
        name = "stateless" if state is None else str(State(state))
        counts[name] = counts.get(name, 0) + number
    return Counts(**counts, named=tuple((*key, number) for key, number in named.items()))


def of_documents(documents: Iterable[Mapping[str, Any]], profile: Profile = PICAS) -> Counts:
    """Count the given tokens, by state and by the further names that the profile has for parts of one."""
    rows = [profile.named_state_of(document) for document in documents]
    states: list[tuple[Key, int]] = [(row.state if row else None, 1) for row in rows]
    return from_rows(states + [((row.state, row.name), 1) for row in rows if row and row.name != row.state])


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
