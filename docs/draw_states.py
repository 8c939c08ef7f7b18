"""Draws the states and transitions of a token from the tables of the lifecycle: docs/images/states.svg, and the tables in
docs/explanation/lifecycle.md."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from generated import table

from airflow_provider_picas.lifecycle.states import CONDITIONS, Condition
from airflow_provider_picas.lifecycle.transitions import TRANSITIONS

PAGE = Path(__file__).with_name("explanation") / "lifecycle.md"
PICTURE = Path(__file__).with_name("images") / "states.svg"
_PLACE = re.compile(r"(<!-- states: [^\n]* -->\n).*(<!-- end of states -->)", re.DOTALL)

# Where the picture has a state: its centre and colour.
_STATES = {
    "todo": (190, 130, "#ffffff"),
    "locked": (480, 130, "#bfdbfe"),
    "done": (710, 60, "#bbf7d0"),
    "error": (710, 200, "#fecaca"),
}
# Where it has an arrow from a state to another: the path, and the place of the labels.
_ARROWS = {
    ("", "todo"): ("M40 130H132", 84, 120),
    ("todo", "locked"): ("M246 118H422", 335, 108),
    ("locked", "todo"): ("M424 142H248", 335, 166),
    ("locked", "done"): ("M536 118C600 112 610 66 652 62", 578, 74),
    ("locked", "error"): ("M536 142C600 148 610 194 652 198", 570, 196),
    ("done", "todo"): ("M654 46C520 24 290 24 206 104", 400, 30),
    ("error", "todo"): ("M654 214C520 252 290 252 206 156", 400, 262),
}


def drawn(page: str) -> str:
    """The page with the tables as they must be."""
    return _PLACE.sub(lambda match: f"{match[1]}\n{_states()}\n\n{_transitions()}\n\n{match[2]}", page)


def picture() -> str:
    """The picture as it must be."""
    return "\n".join([_HEAD, *_arrows(), *_boxes(), "</svg>", ""])


def _states() -> str:
    rows = ((state, " and ".join(map(_words, conditions))) for state, conditions in CONDITIONS.items())
    return "\n".join(table(("state", "condition"), rows))


def _words(condition: Condition) -> str:
    field = f"parseInt({condition.field})" if condition.parsed else condition.field
    return f"`{field} {condition.operator} 0`"


def _transitions() -> str:
    picture = "![The states of a token, and the transitions between them](../images/states.svg)"
    rows = (
        (transition.name, ", ".join(transition.before).strip(), transition.after, transition.when)
        for transition in TRANSITIONS
    )
    return "\n".join([picture, "", *table(("transition", "from", "to", "when"), rows)])


_HEAD = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 320" role="img"
     font-family="system-ui, sans-serif" fill="#1f2937">
  <title>The states of a token, and the transitions between them</title>
  <defs>
    <marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" orient="auto-start-reverse">
      <path d="M0 0 10 5 0 10z" fill="#475569"/>
    </marker>
  </defs>
  <rect width="800" height="320" rx="12" fill="#ffffff"/>
  <circle cx="32" cy="130" r="8" fill="#475569"/>"""


def _arrows() -> Iterator[str]:
    names: dict[tuple[str, str], list[str]] = {}
    ends: dict[str, list[str]] = {}
    for transition in TRANSITIONS:
        for before in transition.before:
            if transition.after:
                names.setdefault((before, transition.after), []).append(transition.name)
            else:
                ends.setdefault(transition.name, []).append(before)
    for arrow, labels in names.items():
        path, x, y = _ARROWS[arrow]
        yield f'  <path d="{path}" fill="none" stroke="#475569" stroke-width="1.6" marker-end="url(#tip)"/>'
        yield f'  <text x="{x}" y="{y}" font-size="13" text-anchor="middle" fill="#475569">{", ".join(labels)}</text>'
    for name, states in ends.items():
        text = f"{name}: from {', '.join(states)}"
        yield f'  <text x="400" y="305" font-size="13" text-anchor="middle" fill="#475569">{text}</text>'


def _boxes() -> Iterator[str]:
    for state in CONDITIONS:
        x, y, colour = _STATES[state]
        place = f'x="{x - 56}" y="{y - 24}" width="112" height="48"'
        yield f'  <rect {place} rx="8" fill="{colour}" stroke="#64748b" stroke-width="1.5"/>'
        yield f'  <text x="{x}" y="{y + 6}" font-size="17" font-weight="600" text-anchor="middle">{state}</text>'


if __name__ == "__main__":
    PAGE.write_text(drawn(PAGE.read_text()))
    PICTURE.write_text(picture())
