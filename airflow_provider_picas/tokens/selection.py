"""Which tokens of a pool an operation selects, and why it skips the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_picas.lifecycle.profile import PICAS, Profile
from airflow_provider_picas.parameters import optional_seconds, optional_whole_number
from airflow_provider_picas.tokens import ids
from airflow_provider_picas.tokens.counts import Counts
from airflow_provider_picas.tokens.states import State, state_of, to_number
from airflow_provider_picas.tokens.text import one_line

SAMPLE = 5
"""Limit on the token ids in a report for each reason."""

_FIRST_TIME = 1_000_000_000  # 2001: smaller numbers are not times


class UnknownBatchError(LookupError):
    """A batch that has no tokens in the pool."""


@dataclass(frozen=True)
class Selection:
    """Selects tokens for which all conditions hold.

    ``states`` None: all, including tokens in no state. ``ids``: only these. ``error_pattern``: searched in
    ``causes.error_text``; the reader of the tokens does the matching, since it may take forever. ``older_than``:
    seconds since the lock, which a waiting token does not have. ``min_scrubs``, ``max_scrubs``: released at least, and
    fewer than, this number of times.
    """

    batch: str | None = None
    states: frozenset[State] | None = None
    ids: tuple[str, ...] | None = None
    error_pattern: str | None = None
    older_than: float | None = None
    min_scrubs: int = 0
    max_scrubs: int | None = None

    @classmethod
    def parse(
        cls,
        batch: str | None = None,
        *,
        states: Any = None,
        keys: Any = None,
        error_pattern: str | None = None,
        older_than: Any = None,
        min_scrubs: Any = None,
        max_scrubs: Any = None,
    ) -> Selection:
        """A selection from an author's arguments, or rendered templates. Empty strings and None set no condition.

        ``keys`` are ids of tokens or, in a batch, the parts of the ids after the batch. Raises ValueError.
        """
        return cls(
            batch=batch,
            states=_states(states),
            ids=_ids(keys, batch),
            error_pattern=error_pattern or None,
            older_than=optional_seconds("older_than", older_than),
            min_scrubs=optional_whole_number("min_scrubs", min_scrubs) or 0,
            max_scrubs=optional_whole_number("max_scrubs", max_scrubs),
        )

    @property
    def where(self) -> str:
        """The name of the batch, or the pool, in messages."""
        return f"batch {self.batch}" if self.batch else "the pool"

    @property
    def ordered_states(self) -> list[State]:
        """The states, in the order of a token's life."""
        return [state for state in State if self.states is None or state in self.states]

    def worth_reading_all(self, counts: Counts) -> bool:
        """True if it is faster to read all tokens of the batch, or pool, than to find the selected ones through views.

        CouchDB 3.5 reads a range of documents two to four times as fast as documents by id, or through a view.
        """
        if self.ids is not None:
            return False
        return self.states is None or 3 * sum(counts[state] for state in self.states) >= counts.total

    def others(self, counts: Counts) -> EditReport:
        """The tokens that are skipped because of their state, by the counts of the batch or pool."""
        report = EditReport()
        if self.states is not None and self.ids is None:
            for state in [*State, None]:
                number = counts.stateless if state is None else counts[state]
                if number and state not in self.states:
                    report.skip(in_state(state), tokens=number)
        return report

    def objection(
        self, token: Mapping[str, Any], now: float, matches: bool = True, profile: Profile = PICAS
    ) -> str | None:
        """Why a token is not selected, or None. ``now``: the database's time. ``matches``: True if it matches the pattern."""
        state = state_of(token, profile)
        if not profile.is_token(token):
            return "is not a token"
        if self.batch is not None and profile.batch_field is not None and profile.batch_of(token) != self.batch:
            return f"is not in batch {self.batch}"
        if self.states is not None and state not in self.states:
            return in_state(state)
        if self.older_than is not None:
            locked = None if state is State.TODO else _locked(token)
            if locked is None:
                return "does not say when it was locked"
            if now - locked < self.older_than:
                return f"was locked less than {self.older_than:g} s ago"
        scrubs = scrubs_of(token)
        if scrubs < self.min_scrubs:
            return f"was released fewer than {self.min_scrubs} times"
        if self.max_scrubs is not None and scrubs >= self.max_scrubs:
            return f"was released {self.max_scrubs} times or more"
        return None if matches else "has a different error"


def in_state(state: State | None) -> str:
    """The reason to skip a token whose state is not selected."""
    return f"is {state}" if state else "is in no state"


def scrubs_of(token: Mapping[str, Any]) -> int:
    """The number of times a token was released, which is the number of its earlier attempts."""
    count = token.get("scrub_count")
    return count if isinstance(count, int) and not isinstance(count, bool) else 0


def last_activity(token: Mapping[str, Any]) -> float | None:
    """When a token was last claimed, ended or in error, in seconds since 1970; None if unknown.

    ``Task.error`` of the PiCaS client writes 99 for lock and done, and the time with the error.
    """
    times = [token.get("lock"), token.get("done"), _error_time(token)]
    known = [time for time in map(to_number, times) if time >= _FIRST_TIME]
    return max(known, default=None)


def _locked(token: Mapping[str, Any]) -> float | None:
    """When a token that does not wait was locked, or else went into error. The errors of a waiting one belong to earlier
    attempts."""
    times = map(to_number, (token.get("lock"), _error_time(token)))
    return next((time for time in times if time >= _FIRST_TIME), None)


def _error_time(token: Mapping[str, Any]) -> Any:
    errors = token.get("error")
    last = errors[-1] if isinstance(errors, list) and errors else None
    return last.get("time") if isinstance(last, Mapping) else None


@dataclass
class Skipped:
    """Tokens that were skipped for one reason: their number, and some of their ids."""

    tokens: int = 0
    ids: list[str] = field(default_factory=list)


@dataclass
class EditReport:
    """The result of changing some tokens."""

    changed: int = 0
    changed_ids: list[str] = field(default_factory=list)  #: some of them
    skipped: dict[str, Skipped] = field(default_factory=dict)  #: by reason

    def change(self, token_id: str) -> None:
        """Count a token that was changed."""
        self.changed += 1
        if len(self.changed_ids) < SAMPLE:
            self.changed_ids.append(token_id)

    def skip(self, reason: str, token_id: str | None = None, tokens: int = 1) -> None:
        """Count tokens that were skipped."""
        skipped = self.skipped.setdefault(reason, Skipped())
        skipped.tokens += tokens
        if token_id is not None and len(skipped.ids) < SAMPLE:
            skipped.ids.append(token_id)

    def add(self, other: EditReport) -> None:
        """Add the report of a part."""
        self.changed += other.changed
        self.changed_ids = [*self.changed_ids, *other.changed_ids][:SAMPLE]
        for reason, skipped in other.skipped.items():
            mine = self.skipped.setdefault(reason, Skipped())
            mine.tokens += skipped.tokens
            mine.ids = [*mine.ids, *skipped.ids][:SAMPLE]

    def lines(self, done: str) -> list[str]:
        """The report for a log, with one line per reason. ``done``: what happened to the changed ones, such as ``reset``."""
        lines = [f"{self.changed:,} tokens {done}{_named(self.changed, self.changed_ids)}."]
        by_number = sorted(self.skipped.items(), key=lambda item: -item[1].tokens)
        lines += [
            f"{skipped.tokens:,} skipped: {reason}{_named(skipped.tokens, skipped.ids)}."
            for reason, skipped in by_number
        ]
        return lines

    def skipped_dict(self) -> dict[str, dict[str, Any]]:
        """The skipped tokens, for XCom."""
        return {reason: {"tokens": skipped.tokens, "ids": skipped.ids} for reason, skipped in self.skipped.items()}


def _named(tokens: int, sample: Sequence[str]) -> str:
    if not sample:
        return ""
    return f" ({', '.join(one_line(token_id) for token_id in sample)}{', …' if tokens > len(sample) else ''})"


def _states(value: Any) -> frozenset[State] | None:
    if value is None or value == "":
        return None
    names = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(names, Iterable) or not names:
        raise ValueError(f"`states` is {value!r:.80}; it takes one or more of {', '.join(State)}.")
    try:
        return frozenset(State(name) for name in names)
    except ValueError:
        raise ValueError(f"`states` is {value!r:.200}; it takes one or more of {', '.join(State)}.") from None


def _ids(keys: Any, batch: str | None) -> tuple[str, ...] | None:
    if keys is None or keys == "":
        return None
    if isinstance(keys, str):
        keys = keys.split()
    if isinstance(keys, Mapping) or not isinstance(keys, Iterable):
        raise ValueError(f"`keys` must be a list of keys or ids of tokens, not {keys!r:.200}.")
    return tuple(dict.fromkeys(_token_id(key, batch) for key in keys))


def _token_id(key: Any, batch: str | None) -> str:
    if isinstance(key, str) and key and (batch is None or ids.in_batch(key, batch)):
        return key
    if batch is None:
        raise ValueError(f"{key!r:.80} is not the id of a token. Set a batch to use keys within it.")
    return ids.token_id(batch, ids.token_key(key))
