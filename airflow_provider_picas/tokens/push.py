"""What a push does with a token whose id already exists in the pool, and the report of a push."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

from airflow_provider_picas.lifecycle import transitions
from airflow_provider_picas.lifecycle.profile import PICAS, Profile
from airflow_provider_picas.tokens import attachments, documents
from airflow_provider_picas.tokens.states import State, state_of
from airflow_provider_picas.tokens.text import sample

SAMPLE = 20
"""Limit on the token ids in a report."""


class DuplicateTokenError(ValueError):
    """Two inputs of one push have the same id."""

    def __init__(self, one: int, other: int, token_id: str | None = None) -> None:
        """``one`` and ``other`` are the inputs' positions, from 0."""
        named = f" {token_id!r}" if token_id else ""
        super().__init__(
            f"Inputs {one:,} and {other:,} (counted from 0) have the same token id{named}."
            " Give each input its own key, or omit `key`."
        )


class OnExisting(StrEnum):
    """What a push does with a token that already exists in the pool."""

    KEEP = "keep"  #: skip it
    RESET = "reset"  #: run it again, with the current input, if it is in error or in no state; else skip it
    REPLACE = "replace"  #: overwrite it unless a pilot holds it
    FAIL = "fail"  #: fail if it was pushed by another task instance


class MayDiffer(StrEnum):
    """Which tokens a push with ``OnExisting.RESET`` may keep although their input now differs."""

    ALL = "all"
    OWN = "own"  #: those that an earlier execution of the same push wrote: this is a retry, or follows a clear
    NONE = "none"  #: this is the push's first execution, so others wrote the existing tokens

    def forbids(self, present: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
        """True if it is an error to keep ``present``."""
        if self is MayDiffer.ALL or present.get("push") == wanted["push"]:
            return False
        if self is MayDiffer.OWN and pushed_by(present) == pushed_by(wanted):
            return False
        return documents.input_differs(present, wanted)


class Action(StrEnum):
    """The action for a token that already exists in the pool."""

    WRITTEN = "written"  #: nothing: this execution of the push wrote it, and the response was lost
    KEEP = "keep"
    RESET = "reset"
    REPLACE = "replace"
    REFUSE = "refuse"


def of_execution(token: Mapping[str, Any], execution: str) -> dict[str, Any]:
    """The new token with a mark of this execution of the push, by which the execution recognizes it in any state."""
    return {**token, "push": f"{token['push']}#{execution}"}


def pushed_by(token: Mapping[str, Any]) -> str:
    """The push that wrote a token, without its execution."""
    return str(token.get("push", "")).partition("#")[0]


def action_for(
    present: Mapping[str, Any], wanted: Mapping[str, Any], on_existing: OnExisting, profile: Profile = PICAS
) -> Action:
    """What to do with ``present``, the existing document with the id of ``wanted``."""
    if all(present.get(name) == wanted[name] for name in ("push", "ordinal")):
        return Action.WRITTEN  # since then pilots may have finished it, or failed
    own = pushed_by(present) == pushed_by(wanted)
    if on_existing is OnExisting.FAIL:
        return Action.KEEP if own else Action.REFUSE
    state = state_of(present, profile)
    if on_existing is OnExisting.RESET and state in (State.ERROR, None):  # older PiCaS clients wrote lock = done = -1
        return Action.RESET
    if on_existing is OnExisting.REPLACE and state is not State.LOCKED:
        # The push's own unchanged token is already as wanted.
        same = own and state is State.TODO and not documents.differs(present, wanted) and _has_files(present, wanted)
        return Action.KEEP if same else Action.REPLACE
    return Action.KEEP


def _has_files(present: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """True if the wanted files are attached. Uncertain for text files: CouchDB compresses them and stores that digest."""
    stubs = attachments.stubs_of(present)
    return all(
        stubs.get(name, {}).get("digest") == attachments.digest(base64.b64decode(file["data"]))
        for name, file in attachments.stubs_of(wanted).items()
    )


def run_again(present: Mapping[str, Any], wanted: Mapping[str, Any], profile: Profile = PICAS) -> dict[str, Any]:
    """A token in error, todo again: it now belongs to the push that runs it again, and has the current input."""
    again = {**transitions.scrubbed(present, "pushed again", profile), **documents.authors_fields(wanted)}
    again.update({name: wanted[name] for name in ("batch", "push", "ordinal")})
    if "_attachments" in wanted:
        again["_attachments"] = {**present.get("_attachments", {}), **wanted["_attachments"]}
    return again


@dataclass
class PushReport:
    """The result of a push: numbers of tokens, and some ids of tokens that need attention."""

    written: int = 0  #: new in the pool
    reset: int = 0  #: were in error, run again
    replaced: int = 0  #: overwritten
    kept: int = 0  #: unchanged
    done: int = 0  #: kept, already done
    earlier: int = 0  #: kept, pushed by another task instance
    done_before: int = 0  #: kept, pushed by another task instance, and already done
    differing: int = 0  #: kept, with other fields than the current input
    done_before_ids: list[str] = field(default_factory=list)  #: some of them
    differing_ids: list[str] = field(default_factory=list)  #: some of them

    @property
    def tokens(self) -> int:
        """The number of tokens of the push."""
        return self.written + self.reset + self.replaced + self.kept

    def add(self, other: PushReport) -> None:
        """Add the report of a part of the push."""
        for each in fields(self):
            mine, others = getattr(self, each.name), getattr(other, each.name)
            setattr(self, each.name, mine + others if isinstance(mine, int) else [*mine, *others][:SAMPLE])

    def write(self, action: Action) -> None:
        """Count a token that is written. ``action``: ``RESET`` or ``REPLACE``, or ``WRITTEN`` for a new one."""
        self.written += action is Action.WRITTEN
        self.reset += action is Action.RESET
        self.replaced += action is Action.REPLACE

    def keep(self, present: Mapping[str, Any], wanted: Mapping[str, Any], profile: Profile = PICAS) -> None:
        """Count a token that is kept."""
        token_id = str(present["_id"])
        done, earlier = state_of(present, profile) is State.DONE, pushed_by(present) != pushed_by(wanted)
        self.kept += 1
        self.done += done
        self.earlier += earlier
        if done and earlier:
            self.done_before += 1
            self.done_before_ids = [*self.done_before_ids, token_id][:SAMPLE]
        if documents.differs(present, wanted):
            self.differing += 1
            self.differing_ids = [*self.differing_ids, token_id][:SAMPLE]

    def __str__(self) -> str:
        named = ("written", "reset", "replaced", "kept")
        parts = [f"{getattr(self, name):,} {name}" for name in named if getattr(self, name)]
        return (", ".join(parts) or "nothing to do") + (f" ({self.done:,} of them already done)" if self.done else "")

    def remarks(self) -> list[str]:
        """Remarks for readers who might assume that all tokens of the push are new."""
        remarks = []
        if self.done_before:
            named = sample(self.done_before_ids, total=self.done_before)
            remarks.append(
                f"{self.done_before:,} tokens were already done: an earlier run pushed them to the same batch: {named}."
            )
        if self.differing:
            named = sample(self.differing_ids, total=self.differing)
            remarks.append(
                f"{self.differing:,} tokens were not changed although their input differs: {named}."
                " Set on_existing='replace' to overwrite those that no pilot holds."
            )
        return remarks
