"""What to do with a token whose id is in the pool already, and what a push reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from airflow_provider_picas.tokens import documents
from airflow_provider_picas.tokens.states import State, state_of

SAMPLE = 20
"""How many token ids a report names; the rest is a number."""


class OnExisting(StrEnum):
    """What a push does with a token that is in the pool already."""

    KEEP = "keep"  #: leave it as it is
    RESET = "reset"  #: run it again if it is in error, else leave it
    REPLACE = "replace"  #: write it anew unless a pilot holds it
    FAIL = "fail"  #: fail if it was pushed by another task instance


class Action(StrEnum):
    """What is done with one token that is in the pool already."""

    KEEP = "keep"
    RESET = "reset"
    REPLACE = "replace"
    REFUSE = "refuse"
    DUPLICATE = "duplicate"


def action_for(present: Mapping[str, Any], wanted: Mapping[str, Any], on_existing: OnExisting) -> Action:
    """What to do with ``present``, the document that has the id of ``wanted``."""
    if documents.is_duplicate(present, wanted):
        return Action.DUPLICATE
    if on_existing is OnExisting.FAIL:
        return Action.KEEP if documents.is_resend(present, wanted) else Action.REFUSE
    state = state_of(present)
    if on_existing is OnExisting.RESET and state is State.ERROR:
        return Action.RESET
    if on_existing is OnExisting.REPLACE and state is not State.LOCKED:
        # A resend that nobody has touched is what was wanted already.
        same = documents.is_resend(present, wanted) and state is State.TODO
        return Action.KEEP if same else Action.REPLACE
    return Action.KEEP


@dataclass
class PushReport:
    """What a push did. Numbers of tokens, and a few ids of those that were done already."""

    written: int = 0  #: new in the pool
    reset: int = 0  #: were in error, run again
    replaced: int = 0  #: written anew
    kept: int = 0  #: left as they were
    done_before: int = 0  #: of those kept: done already
    done_before_ids: list[str] = field(default_factory=list)  #: some of them
    earlier: int = 0  #: of those kept: pushed by another task instance

    @property
    def tokens(self) -> int:
        """All tokens of the push, each once."""
        return self.written + self.reset + self.replaced + self.kept

    def add(self, other: PushReport) -> None:
        """Add the report of a part of the push."""
        for name in ("written", "reset", "replaced", "kept", "done_before", "earlier"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.done_before_ids = [*self.done_before_ids, *other.done_before_ids][:SAMPLE]

    def keep(self, present: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        """Count a token that stays as it is."""
        self.kept += 1
        self.earlier += not documents.is_resend(present, wanted)
        if state_of(present) is State.DONE:
            self.done_before += 1
            if len(self.done_before_ids) < SAMPLE:
                self.done_before_ids.append(str(present["_id"]))

    def __str__(self) -> str:
        parts = [f"{self.written} written", f"{self.reset} reset", f"{self.replaced} replaced", f"{self.kept} kept"]
        text = ", ".join(part for part in parts if not part.startswith("0 ")) or "nothing to do"
        if self.done_before:
            text += f" ({self.done_before} were done already: {', '.join(self.done_before_ids[:3])}"
            text += ", …)" if self.done_before > 3 else ")"
        return text
