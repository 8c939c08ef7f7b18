"""Fan-in: a stage with one token for each group of another stage's tokens, made when enough of its members have finished."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_provider_picas.lifecycle.ids import token_key
from airflow_provider_picas.lifecycle.new_tokens import NEW
from airflow_provider_picas.lifecycle.profile import PICAS, Profile
from airflow_provider_picas.lifecycle.transitions import scrubbed

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
        if not known:
            return self.is_number and finished >= needed
        return finished >= max(1, min(needed, total))

    @property
    def is_number(self) -> bool:
        """True if a group may be due while more members may appear: a number of them is enough."""
        return self.at_least >= 1 and not (isinstance(self.at_least, float) and self.at_least == 1)


def group_id(batch: str, name: str) -> str:
    """The id of a group's token, in the batch of its stage."""
    return f"{batch}:{token_key(name)}"


def group_token(
    name: str, members: Sequence[Mapping[str, Any]], *, batch: str, stage: str, of: str, profile: Profile = PICAS
) -> dict[str, Any]:
    """The token of a group. ``members``: ``{"id", "state", "done"}`` of each, and ``output``. ``of``: their batch."""
    given = {"group": name, "members": list(members)}
    if len(json.dumps(given)) > INPUT_BYTES:
        given["members"] = [_without_output(member) for member in members]
    own = {"batch": batch, "stage": stage, "group_of": of, "group_name": name, "members_ended": ended(members)}
    return {"_id": group_id(batch, name), **NEW, **own, "input": given, **profile.fields_of_new(batch)}


def _without_output(member: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in member.items() if name != "output"}


def _has_finished(member: Mapping[str, Any]) -> bool:
    return member.get("state") in ("done", "error")


def ended(members: Sequence[Mapping[str, Any]]) -> float:
    """The times when members ended, added up: it differs if a member has ended since, or again."""
    return float(sum(member["done"] for member in members if _has_finished(member)))


def updated(
    token: Mapping[str, Any], members: Sequence[Mapping[str, Any]], profile: Profile = PICAS
) -> dict[str, Any] | None:
    """The token of a group as it is to be now; None: unchanged.

    Members that have finished since it was made are listed as late. If one that had finished has finished again, as after a
    rerun of a failed one, the token runs again, with the current members.
    """
    given = token.get("input")
    then = given.get("members") if isinstance(given, dict) else None
    known = {
        member.get("id"): member for member in (then if isinstance(then, list) else ()) if isinstance(member, dict)
    }
    finished = [member for member in members if _has_finished(member)]
    before = {name for name, member in known.items() if _has_finished(member)}
    again = [
        member["id"] for member in finished if member["id"] in before and known[member["id"]] != _as(member, known)
    ]
    if again:
        own = {"batch": token["batch"], "stage": token["stage"], "of": token["group_of"]}
        new = group_token(token["group_name"], members, **own)
        back = scrubbed(token, f"reset: member {again[0]} has run again", profile)
        kept = {name: value for name, value in back.items() if name not in ("late_members", profile.output_field)}
        return {**kept, "input": new["input"], "members_ended": new["members_ended"]}
    late = [{"id": member["id"], "state": member["state"]} for member in finished if member["id"] not in before]
    if late[:MOST_LATE] == token.get("late_members", []):
        return None
    return {**token, "members_ended": ended(members), "late_members": late[:MOST_LATE]}


def _as(member: Mapping[str, Any], known: Mapping[Any, Mapping[str, Any]]) -> Mapping[str, Any]:
    """A member now, in the form in which it was recorded."""
    return {name: value for name, value in member.items() if name in known[member["id"]]}
