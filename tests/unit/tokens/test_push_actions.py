"""What is done with a token that is in the pool already."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_picas.tokens.documents import new_token
from airflow_provider_picas.tokens.push import Action, OnExisting, PushReport, action_for

TODO: dict[str, Any] = {"lock": 0, "done": 0}
LOCKED: dict[str, Any] = {"lock": 5, "done": 0}
DONE: dict[str, Any] = {"lock": 5, "done": 6, "exit_code": 0}
ERROR: dict[str, Any] = {"lock": 5, "done": 6, "exit_code": 1}
STATELESS: dict[str, Any] = {"lock": 0, "done": 6}
KEEP, RESET, REPLACE, REFUSE = Action.KEEP, Action.RESET, Action.REPLACE, Action.REFUSE


def wanted(push: str = "p", ordinal: int = 3) -> dict[str, Any]:
    return new_token({"input": "x"}, batch="b", push=push, ordinal=ordinal, key="k")


@pytest.mark.parametrize("push", ["p", "earlier"])
@pytest.mark.parametrize(
    ("on_existing", "actions"),
    [
        ("keep", [KEEP, KEEP, KEEP, KEEP, KEEP]),
        ("reset", [KEEP, KEEP, KEEP, RESET, KEEP]),
        ("replace", [REPLACE, KEEP, REPLACE, REPLACE, REPLACE]),
        ("fail", [REFUSE, REFUSE, REFUSE, REFUSE, REFUSE]),
    ],
)
def test_actions(push: str, on_existing: str, actions: list[Action]) -> None:
    found = [
        action_for({**wanted(push), **state}, wanted(), OnExisting(on_existing))
        for state in (TODO, LOCKED, DONE, ERROR, STATELESS)
    ]
    if push == "p":  # a resend
        actions = [KEEP] * 5 if on_existing == "fail" else [KEEP, *actions[1:]]
    assert found == actions


@pytest.mark.parametrize("on_existing", list(OnExisting))
def test_another_ordinal_of_the_same_push_is_a_duplicate(on_existing: OnExisting) -> None:
    assert action_for(wanted(ordinal=4), wanted(), on_existing) is Action.DUPLICATE


@pytest.mark.parametrize("on_existing", ["keep", "reset"])
def test_tokens_of_the_picas_client_are_kept(on_existing: str) -> None:
    assert action_for({"_id": "b:k", "type": "token", **DONE}, wanted(), OnExisting(on_existing)) is KEEP


def test_a_report_adds_up_and_names_what_was_done_before() -> None:
    report, part = PushReport(written=2), PushReport(written=1, reset=1)
    for number in range(30):
        part.keep({"_id": f"b:{number}", **DONE, "push": "earlier", "ordinal": number}, wanted(ordinal=number))
    part.keep({"_id": "b:todo", **TODO, "push": "p", "ordinal": 3}, wanted())
    report.add(part)
    assert (report.tokens, report.kept, report.done_before, report.earlier) == (35, 31, 30, 30)
    assert report.done_before_ids == [f"b:{number}" for number in range(20)]
    assert "3 written, 1 reset, 31 kept (30 were done already: b:0, b:1, b:2, …)" in str(report)
    assert str(PushReport()) == "nothing to do"
    assert str(PushReport(written=20)) == "20 written"
