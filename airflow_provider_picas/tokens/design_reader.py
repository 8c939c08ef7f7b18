"""Reads the views of a pool's own design documents as states: the way from a pool to its profile.

Known are views as PiCaS's and GRID_LRT's scripts write them: ``if`` statements around ``emit``, without variables.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_picas.lifecycle import conditions
from airflow_provider_picas.lifecycle.conditions import Condition, Conditions, UnreadableError
from airflow_provider_picas.lifecycle.profile import PICAS, NamedState, Profile
from airflow_provider_picas.tokens.states import State
from airflow_provider_picas.tokens.text import one_line

_LONGEST = 20_000  # characters of a view
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_FUNCTION = re.compile(r"\s*function\s*\w*\s*\(\s*doc\s*\)\s*", re.ASCII)
_ORDER = (
    "todo",
    "done",
    "error",
    "locked",
)  # a waiting token is claimed by others, whatever its status; see profile.py


@dataclass
class Reading:
    """What was read of a pool's design documents."""

    profile: Profile | None = None
    remarks: list[str] = field(default_factory=list)  #: what could not be read, or needs a decision


class _Reader:
    """Reads the statements of a map function. Raises UnreadableError."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._place = 0

    def _next(self, pattern: str) -> str | None:
        match = re.compile(rf"\s*({pattern})", re.ASCII).match(self._text, self._place)
        if match is None:
            return None
        self._place = match.end()
        return match[1]

    def error(self) -> UnreadableError:
        rest = self._text[self._place :].strip()
        return UnreadableError(f"it cannot be read at {one_line(rest[:60])!r}" if rest else "it ends too early")

    def program(self) -> list[Conditions]:
        """The conditions of a function's ``emit`` calls, one for each alternative."""
        found = list(self._statement([()]))
        if self._text[self._place :].strip(" \t\r\n;"):
            raise self.error()
        return found

    def _statement(self, given: list[Conditions]) -> Iterator[Conditions]:
        if self._next(r"\{"):
            while not self._next(r"\}"):
                if not self._text[self._place :].strip():
                    raise self.error()
                yield from self._statement(given)
        elif self._next(r"if\s*(?=\()"):
            inner = conditions.parse(self._parenthesis())
            yield from self._statement([one + other for one in given for other in inner])
            if self._next(r"else\b"):
                raise UnreadableError("it has an `else`")
        elif self._next(r"emit\s*(?=\()"):
            self._parenthesis()
            self._next(";")
            yield from given
        elif not self._next(";"):
            raise self.error()

    def _parenthesis(self) -> str:
        """The text between the parenthesis here and its partner."""
        begin = self._text.index("(", self._place)
        depth, place = 0, begin
        for match in re.compile(r"""[()]|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'""").finditer(self._text, begin):
            depth += {"(": 1, ")": -1}.get(match[0], 0)
            place = match.end()
            if not depth:
                self._place = place
                return self._text[begin + 1 : place - 1]
        raise self.error()


def conditions_of(source: Any) -> list[Conditions]:
    """When a map function emits a row: alternatives of conditions. Raises UnreadableError."""
    if not isinstance(source, str) or len(source) > _LONGEST:
        raise UnreadableError("it is not a function of usual size")
    text = source if _has_text_with_slashes(source) else _COMMENT.sub(" ", source)
    match = _FUNCTION.match(text)
    if match is None:
        raise UnreadableError("it is not a function of `doc`")
    return _Reader(text[match.end() :]).program()


def _has_text_with_slashes(source: str) -> bool:
    return bool(re.search(r"""["'][^"'\n]*(//|/\*)""", source))


def profile_of(design: Mapping[str, Any], name: str) -> Reading:
    """The profile of the tokens in a design document's views ``todo``, ``locked``, ``done`` and ``error``."""
    reading, views = Reading(), design.get("views")
    found: dict[str, list[Conditions]] = {}
    for state in State:
        view = views.get(state) if isinstance(views, Mapping) else None
        if not isinstance(view, Mapping):
            reading.remarks.append(f"It has no view {str(state)!r}.")
            continue
        try:
            found[state] = conditions_of(view.get("map"))
        except UnreadableError as error:
            reading.remarks.append(f"View {str(state)!r}: {error}.")
    if len(found) == len(State):
        reading.profile = _profile(found, name, reading)
    return reading


def _profile(found: Mapping[str, list[Conditions]], name: str, reading: Reading) -> Profile | None:
    types = {_only(parts, "type") for alternatives in found.values() for parts in alternatives}
    if len(types) != 1 or None in types:
        reading.remarks.append("Its views do not all ask for the same `type`.")
        return None
    common = _common(found)
    rows = [
        NamedState(state, state, tuple(one for one in parts if one.field != "type" and one not in common))
        for state in _ORDER
        for parts in found[state]
    ]
    if not all(row.conditions for row in rows):
        reading.remarks.append("A view lists all tokens, so that its state says nothing.")
        return None
    selecting = [one for one in common if one.operator in ("==", "===") and isinstance(one.value, str)]
    if len(selecting) != len(common) or len(selecting) > 1:
        reading.remarks.append(
            f"All views also ask for {conditions.text_of(common)}, which is not the value of one field."
        )
        return None
    kind = str(types.pop())
    profile = PICAS._replace(name=name, types=(kind,), states=_in_order(rows))
    if selecting:
        field_name, batch = selecting[0].field, selecting[0].value
        reading.remarks.append(f"Its tokens are the batch {batch!r}: the views ask for {selecting[0]}.")
        return profile._replace(batch_field=field_name)
    return profile


def _in_order(rows: list[NamedState]) -> tuple[NamedState, ...]:
    """PiCaS's own order where the states are PiCaS's own, so that the profile equals a shipped one."""
    return PICAS.states if set(rows) == set(PICAS.states) else tuple(rows)


def _only(parts: Conditions, name: str) -> str | None:
    """The one string that a field must equal; None if there is none, or more than one."""
    values = {one.value for one in parts if one.field == name and one.operator in ("==", "===")}
    others = [one for one in parts if one.field == name and one.operator not in ("==", "===")]
    value = values.pop() if len(values) == 1 and not others else None
    return value if isinstance(value, str) else None


def _common(found: Mapping[str, list[Conditions]]) -> Conditions:
    """The conditions that all views have, without the type: they select the tokens."""
    every = [set(parts) for alternatives in found.values() for parts in alternatives]
    shared: set[Condition] = set.intersection(*every)
    first = found[State.TODO][0]
    return tuple(one for one in first if one in shared and one.field != "type")
