"""The table of transitions, against the code that makes each of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from airflow_provider_picas.lifecycle.pilot_config import Config
from airflow_provider_picas.lifecycle.states import state_of
from airflow_provider_picas.lifecycle.transitions import (
    TRANSITIONS,
    Ended,
    Token,
    Transition,
    claim,
    conclude,
    reap,
    release,
    scrubbed,
)
from airflow_provider_picas.tokens.documents import new_token
from airflow_provider_picas.tokens.push import run_again
from docs import draw_states

Doc = dict[str, Any]
CONFIG = Config(command="true", submission="s")


def todo() -> Doc:
    return new_token({"input": 1}, batch="b", push="p", ordinal=0) | {"_rev": "1-a"}


def locked() -> Doc:
    return claim(todo(), 1000, "pilot", "node", "7_1")


def ended(code: int, how: str = "exit", config: Config = CONFIG, doc: Doc | None = None) -> Doc:
    return conclude(Token(doc or locked()), Ended(how, code, 1.5), config, 1010).apply()


STATES: dict[str, Callable[[], Doc]] = {
    "todo": todo,
    "locked": locked,
    "done": lambda: ended(0),
    "error": lambda: ended(1),
}

CODE: dict[str, Callable[[Doc], Doc]] = {
    "claim": lambda doc: claim(doc, 1000, "pilot", "node", None),
    "finish": lambda doc: ended(0, doc=doc),
    "fail": lambda doc: ended(3, doc=doc),
    "retry": lambda doc: ended(3, config=CONFIG._replace(max_retries=1), doc=doc),
    "release": lambda doc: release(Token(doc)).apply(),
    "reap": lambda doc: reap(doc, "it died", 1, 1010).apply(),
    "give up": lambda doc: reap(doc, "it died", 0, 1010).apply(),
    "push again": lambda doc: run_again(doc, todo()),
    "reset": lambda doc: scrubbed(doc, "reset"),
}


@pytest.mark.parametrize("transition", TRANSITIONS, ids=lambda transition: transition.name)
def test_each_transition_of_the_table_is_made(transition: Transition) -> None:
    if transition.name == "push":
        assert state_of(todo()) == transition.after
    elif transition.after:
        for before in transition.before:
            doc = STATES[before]()
            assert state_of(doc) == before
            assert state_of(CODE[transition.name](doc)) == transition.after


def test_a_pilot_that_is_stopped_gives_its_token_back() -> None:
    assert state_of(ended(143, how="received SIGTERM")) == "todo"


def test_the_diagram_is_drawn_from_the_tables() -> None:
    page = draw_states.PAGE.read_text()
    assert page == draw_states.drawn(page), "run make diagrams"
