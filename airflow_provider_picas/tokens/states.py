"""The states of a token, from one table of conditions that is evaluated in Python and compiled to view JavaScript.

The table and its evaluation are in ``lifecycle.states``, which the pilot also uses on the cluster. The conditions
compare as JavaScript does, so that Python and the views agree on every document, including odd ones (``"lock": "0"``, a
missing ``exit_code``, ``null``).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from airflow_provider_picas.lifecycle import conditions, states
from airflow_provider_picas.lifecycle.conditions import Condition
from airflow_provider_picas.lifecycle.javascript import parse_int, to_number, to_string
from airflow_provider_picas.lifecycle.profile import PICAS, Profile

__all__ = [
    "CONDITIONS",
    "Condition",
    "State",
    "javascript_condition",
    "javascript_name",
    "javascript_state",
    "parse_int",
    "state_of",
    "to_number",
    "to_string",
]


class State(StrEnum):
    """The state of a token."""

    TODO = "todo"  #: waits for a pilot
    LOCKED = "locked"  #: a pilot holds it
    DONE = "done"  #: finished with exit code 0
    ERROR = "error"  #: finished with another exit code, or without one


CONDITIONS: dict[State, tuple[Condition, ...]] = {State(name): parts for name, parts in states.CONDITIONS.items()}
"""The table of states: a token is in a state if all its conditions hold. At most one state fits."""

_STATES: dict[str | None, State | None] = {None: None, **{str(state): state for state in State}}


def state_of(document: Mapping[str, Any], profile: Profile = PICAS) -> State | None:
    """The state of a token, or None for one in no state (such as ``lock = 0, done > 0``)."""
    return _STATES[states.state_of(document) if profile is PICAS else profile.state_of(document)]


def javascript_condition(state: State) -> str:
    """The condition of a state as one JavaScript expression on ``doc``."""
    return conditions.javascript(CONDITIONS[state])


def javascript_state(profile: Profile) -> str:
    """The state of ``doc`` as one JavaScript expression; null for a token in no state."""
    rows = (f"({conditions.javascript(row.conditions)}) ? '{row.state}'" for row in profile.states)
    return f"{' : '.join(rows)} : null"


def javascript_name(profile: Profile) -> str:
    """The number of the further name of ``doc``'s state, from 1, as one JavaScript expression; 0 if it has none."""
    numbers = {pair: number for number, pair in enumerate(profile.further_names, 1)}
    rows = (
        f"({conditions.javascript(row.conditions)}) ? {numbers.get((row.state, row.name), 0)}" for row in profile.states
    )
    return f"{' : '.join(rows)} : 0"
