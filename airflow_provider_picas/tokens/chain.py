"""A chain of stages, whose tokens make the tokens of later stages: which batches it has, and whether it has finished."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any

from airflow_provider_picas.lifecycle.ids import is_stage, stage_batch
from airflow_provider_picas.tokens.counts import Completeness, Counts
from airflow_provider_picas.tokens.groups import Grouping
from airflow_provider_picas.tokens.ids import batch_id

LOOK_EVERY = 15.0  # seconds between two looks for lists of new tokens, while tokens are unfinished
LOOK_AGAIN = 3.0  # seconds after a look that found some: their pilot makes them, unless it is dead


@dataclass(frozen=True)
class ChainCounts:
    """The tokens of a chain, by batch.

    ``pending``: lists of new tokens that are to be carried out, as far as was looked. ``not_made``: lists with tokens
    that could not be made. ``closed``: no more tokens can appear in the batches that the wait is for: no token of those
    that fill them waits or runs, no list of theirs is pending, and the tokens that the last lists made are counted.
    ``looked``: lists that were pending were carried out. ``copies``: of the database, one of which may lag behind.
    """

    counts: Mapping[str, Counts]
    pending: int = 0
    not_made: int = 0
    closed: bool = False
    looked: bool = False
    copies: int = 1

    @property
    def finished(self) -> int:
        """The number of tokens that have finished, in all batches: while it grows, there is progress."""
        return sum(counts.finished for counts in self.counts.values())


@dataclass(frozen=True)
class Chain:
    """A batch, and the stages that it and its stages fill.

    ``stages``: their names; each is filled by the batch and the stages before it. ``stage``: the one that a wait is for;
    None: the batch and all of its stages together. ``tokens``: the number of tokens pushed to the batch, if known.
    ``groups``: the stages whose tokens are made from groups of others. ``named``: the batches of stages, if they are not
    ``<batch>.<stage>``.
    """

    batch: str
    stages: tuple[str, ...]
    stage: str | None = None
    tokens: int | None = None
    groups: Mapping[str, Grouping] = field(default_factory=dict)
    named: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.stages:
            if not is_stage(name):
                raise ValueError(
                    f"{name!r:.80} cannot be the name of a stage: a letter, then letters, digits, '-' and '_', up to 30."
                )
        if len(set(self.stages)) < len(self.stages):
            raise ValueError(f"A stage occurs twice in {', '.join(self.stages):.200}.")
        if len({self.batch, *self.by_stage.values()}) <= len(self.stages):
            raise ValueError(
                f"Two of {self.batch:.120} and its stages {', '.join(self.stages):.200} have the same batch."
            )
        order = ["", *self.stages]
        for name, grouping in self.groups.items():
            if name not in self.stages or grouping.of not in order[: order.index(name)]:
                raise ValueError(
                    f"Stage {name!r:.80} cannot have groups of {grouping.of!r:.80}, which is not before it."
                )
        if self.stage is not None and self.stage not in self.stages:
            raise ValueError(f"{self.stage!r:.80} is not one of the stages ({', '.join(self.stages):.200}).")

    @classmethod
    def parse(
        cls, batch: str, stages: Any, stage: Any = None, tokens: int | None = None, groups: Any = None
    ) -> Chain | None:
        """A chain from the arguments of an operator; None if there are no stages. Raises ValueError."""
        if stages in (None, "", (), [], {}):
            if stage:
                raise ValueError(f"`stage` is {stage!r:.80}, but `stages` is not given.")
            return None
        if isinstance(stages, str) or not isinstance(stages, Sequence | Mapping):
            raise ValueError(f"`stages` must be a list of names, not {stages!r:.200}.")
        if groups and not isinstance(groups, Mapping):
            raise ValueError(f"`groups` must map stages to their groups, not {groups!r:.200}.")
        grouped = {str(name): Grouping.parse(value) for name, value in (groups or {}).items()}
        given = stages.items() if isinstance(stages, Mapping) else ()
        named = {name: batch_id(value) for name, value in given if isinstance(value, str) and value}
        return cls(batch, tuple(stages), stage or None, tokens, grouped, named)

    def batch_of(self, stage: str) -> str:
        """The batch of a stage; an empty name is the batch that the chain begins with."""
        return (self.named.get(stage) or stage_batch(self.batch, stage)) if stage else self.batch

    @property
    def as_argument(self) -> list[str] | dict[str, str]:
        """The stages in the form that ``parse`` takes."""
        return self.by_stage if self.named else list(self.stages)

    @property
    def by_stage(self) -> dict[str, str]:
        """The batch of each stage, as pilots need it."""
        return {name: self.batch_of(name) for name in self.stages}

    @property
    def own(self) -> tuple[str, ...]:
        """The batches that the wait is for."""
        if self.stage is not None:
            return (self.batch_of(self.stage),)
        return (self.batch, *self.by_stage.values())

    @property
    def fillers(self) -> tuple[str, ...]:
        """The batches whose tokens make those that the wait is for."""
        return tuple(batch for batch in self.batches if self.stage is None or batch not in self.own)

    @property
    def batches(self) -> dict[str, str]:
        """The names of the batches that the wait is for and of those that fill them, in order, by batch."""
        last = len(self.stages) if self.stage is None else self.stages.index(self.stage) + 1
        return {self.batch: "batch", **{self.batch_of(name): name for name in self.stages[:last]}}

    def completeness(self, found: ChainCounts) -> Completeness:
        """The progress of the tokens that the wait is for."""
        counts = reduce(add, (found.counts.get(batch, Counts()) for batch in self.own), Counts())
        expected = None
        if self.stage is None and self.tokens is not None:
            pushed = found.counts.get(self.batch, Counts())
            expected = counts.total - pushed.total + max(self.tokens, pushed.total)
        # Scripts that make tokens themselves do it after they have written the result of the parent.
        lags = found.copies > 1 or bool(self.named)
        return Completeness(counts, expected, growing=not found.closed, further=self._text(found), lags=lags)

    def _text(self, found: ChainCounts) -> str:
        """The state of each batch, for the log."""
        parts = []
        for batch, name in self.batches.items():
            counts = found.counts.get(batch, Counts())
            errors = f", {counts.error:,} in error" if counts.error else ""
            parts.append(f"{name} {counts.done:,} of {counts.total:,}{errors}")
        if found.pending:
            parts.append(f"new tokens of {found.pending:,} tokens are being made")
        if found.not_made:
            parts.append(f"some new tokens of {found.not_made:,} tokens could not be made (see their `new_tokens`)")
        return "; ".join(parts)


@dataclass
class Looks:
    """When a wait looks for lists of new tokens that nobody has carried out. ``now``: seconds, by any one clock."""

    _last: float = field(default=-math.inf)
    _pending: bool = False

    def due(self, now: float) -> bool:
        """True if it is to look, and to carry out what it finds."""
        return now - self._last >= (LOOK_AGAIN if self._pending else LOOK_EVERY)

    def remaining(self, now: float) -> float:
        """Seconds until the next look."""
        return max(0.0, self._last + (LOOK_AGAIN if self._pending else LOOK_EVERY) - now)

    def note(self, found: ChainCounts, now: float) -> None:
        """Record what was found at ``now``."""
        if found.looked:
            self._last = now
        if found.looked or found.pending:
            self._pending = found.pending > 0
