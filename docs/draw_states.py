"""Draws the states and transitions of a token into docs/explanation/lifecycle.md, from the tables of the lifecycle."""

from __future__ import annotations

import re
from pathlib import Path

from airflow_provider_picas.lifecycle.states import CONDITIONS, Condition
from airflow_provider_picas.lifecycle.transitions import TRANSITIONS

PAGE = Path(__file__).with_name("explanation") / "lifecycle.md"
_PLACE = re.compile(r"(<!-- states: [^\n]* -->\n).*(<!-- end of states -->)", re.DOTALL)


def drawn(page: str) -> str:
    """The page with the table and the diagram as they must be."""
    return _PLACE.sub(lambda match: f"{match[1]}\n{_table()}\n\n{_diagram()}\n\n{match[2]}", page)


def _table() -> str:
    rows = [f"| {state} | {' and '.join(map(_words, conditions))} |" for state, conditions in CONDITIONS.items()]
    return "\n".join(["| state | condition |", "|---|---|", *rows])


def _words(condition: Condition) -> str:
    field = f"parseInt({condition.field})" if condition.parsed else condition.field
    return f"`{field} {condition.operator} 0`"


def _diagram() -> str:
    lines = [
        f"    {before or '[*]'} --> {transition.after or '[*]'}: {transition.name}"
        for transition in TRANSITIONS
        for before in transition.before
    ]
    names = [f"| {transition.name} | {transition.when} |" for transition in TRANSITIONS]
    return "\n".join(["```text", "stateDiagram-v2", *lines, "```", "", "| transition | when |", "|---|---|", *names])


if __name__ == "__main__":
    PAGE.write_text(drawn(PAGE.read_text()))
