"""Fan-in: a stage with one token for each group of another stage's tokens, made when enough of its members have finished."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_provider_picas.lifecycle.ids import token_key
from airflow_provider_picas.lifecycle.new_tokens import NEW
from airflow_provider_picas.lifecycle.profile import Profile

INPUT_BYTES = 1_000_000  # of a group's input; outputs of members are left out if they do not fit
MOST_LATE = 1_000  # late members that a group's token lists


@dataclass(frozen=True)
class Grouping:
    """How the tokens of a stage are made from groups of other tokens, which name their group in the field ``group``.

    ``of``: the stage of the members; empty: the batch that the chain begins with. ``at_least``: the members that must
    have finished: a fraction up to 1.0, a number from 1, or ``-2`` for all but two.
    """

    of: str = ""
    at_least: float = 1.0

    def __post_init__(self) -> None:
        value = self.at_least
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        fraction = number and isinstance(value, float) and 0 < value <= 1
        if not fraction and not (number and value == int(value) and value != 0):
            raise ValueError(
                f"`at_least` is {value!r:.80}; it takes a fraction up to 1.0, a number of members from 1, or a negative"
                " number for all but that many."
            )

    @classmethod
    def parse(cls, value: Any) -> Grouping:
        """From an argument of an operator. Raises ValueError."""
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping) or not set(value) <= {"of", "at_least"}:
            raise ValueError(f"A group must be a mapping with `of` and `at_least`, not {value!r:.200}.")
        return cls(str(value.get("of") or ""), value.get("at_least", 1.0))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"of": self.of, "at_least": self.at_least}

    def due(self, finished: int, total: int, *, known: bool) -> bool:
        """True if a group's token is to be made. ``known``: no more members can appear."""
        if isinstance(self.at_least, float) and self.at_least <= 1:
            needed = math.ceil(round(self.at_least * total, 6))
        else:
            needed = int(self.at_least) if self.at_least > 0 else total + int(self.at_least)
        absolute = self.at_least >= 1 and not (isinstance(self.at_least, float) and self.at_least == 1)
        if not known:
            return absolute and finished >= needed
        return finished >= max(1, min(needed, total))


def group_id(batch: str, name: str) -> str:
    """The id of a group's token, in the batch of its stage."""
    return f"{batch}:{token_key(name)}"


def group_token(
    name: str, members: Sequence[Mapping[str, Any]], *, batch: str, stage: str, of: str, profile: Profile
) -> dict[str, Any]:
    """The token of a group. ``members``: ``{"id", "state"}`` of each, and ``output``. ``of``: their batch."""
    given = {"group": name, "members": list(members)}
    if len(json.dumps(given)) > INPUT_BYTES:
        given["members"] = [{"id": member["id"], "state": member["state"]} for member in members]
    own = {"batch": batch, "stage": stage, "group_of": of, "group_name": name, "members_seen": finished_of(members)}
    return {"_id": group_id(batch, name), **NEW, **own, "input": given, **profile.fields_of_new(batch)}


def finished_of(members: Sequence[Mapping[str, Any]]) -> int:
    """The number of members that have finished."""
    return sum(member["state"] in ("done", "error") for member in members)


def with_late_members(token: Mapping[str, Any], members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The token of a group, with the members that have finished since it was made."""
    given = token.get("input")
    then = given.get("members") if isinstance(given, dict) else None
    seen = {
        member.get("id")
        for member in (then if isinstance(then, list) else ())
        if isinstance(member, dict) and member.get("state") in ("done", "error")
    }
    late = [{"id": member["id"], "state": member["state"]} for member in members if member["id"] not in seen]
    late = [member for member in late if member["state"] in ("done", "error")]
    return {**token, "members_seen": finished_of(members), "late_members": late[:MOST_LATE]}
