"""When the token of a group is made, and what it holds."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_picas.lifecycle.profile import PICAS
from airflow_provider_picas.tokens import groups
from airflow_provider_picas.tokens.chain import Chain
from airflow_provider_picas.tokens.groups import Grouping, group_token, with_late_members
from airflow_provider_picas.tokens.states import State, state_of


@pytest.mark.parametrize(
    ("at_least", "needed"), [(1.0, 10), (0.9, 9), (0.29, 3), (0.01, 1), (4, 4), (1, 1), (20, 10), (-2, 8), (-20, 1)]
)
def test_a_group_is_due_when_enough_of_its_members_have_finished(at_least: float, needed: int) -> None:
    due = [finished for finished in range(11) if Grouping("s", at_least).due(finished, 10, known=True)]
    assert due == list(range(needed, 11))


@pytest.mark.parametrize(
    ("at_least", "due"), [(1.0, False), (0.1, False), (-2, False), (4, True), (5, False), (1, True)]
)
def test_only_a_number_of_members_is_enough_while_more_may_appear(at_least: float, due: bool) -> None:
    assert Grouping("s", at_least).due(4, 4, known=False) == due


@pytest.mark.parametrize("at_least", [0, 0.0, 1.5, "half", True, float("nan")])
def test_a_share_that_cannot_be_is_refused(at_least: Any) -> None:
    with pytest.raises(ValueError, match="`at_least`"):
        Grouping("s", at_least)


def test_groups_are_of_a_stage_before() -> None:
    with pytest.raises(ValueError, match="which is not before it"):
        Chain.parse("b", ["a", "c"], groups={"a": {"of": "c"}})
    with pytest.raises(ValueError, match="must be a mapping"):
        Chain.parse("b", ["a", "c"], groups={"c": {"off": "a"}})
    made = Chain.parse("b", ["a", "c"], groups={"c": {"of": "a", "at_least": 3}})
    assert made is not None
    assert made.groups == {"c": Grouping("a", 3)}


MEMBERS: list[dict[str, Any]] = [
    {"id": "b.s:1", "state": "done", "output": {"path": "/1"}}, {"id": "b.s:2", "state": "error"},
    {"id": "b.s:3", "state": "locked"},
]  # fmt: skip


def token() -> dict[str, Any]:
    return group_token("x", MEMBERS, batch="b.t", stage="t", of="b.s", profile=PICAS)


def test_the_input_of_a_group_is_its_members_with_their_outcomes(monkeypatch: pytest.MonkeyPatch) -> None:
    made = token()
    assert (made["_id"], made["input"], made["members_seen"]) == ("b.t:x", {"group": "x", "members": MEMBERS}, 2)
    assert state_of(made) is State.TODO
    monkeypatch.setattr(groups, "INPUT_BYTES", 50)
    assert token()["input"]["members"][0] == {"id": "b.s:1", "state": "done"}, "outputs that do not fit are left out"


def test_members_that_finish_late_are_told() -> None:
    later = [*MEMBERS[:2], {"id": "b.s:3", "state": "done"}, {"id": "b.s:4", "state": "error"}]
    told = with_late_members(token(), [*later, {"id": "b.s:5", "state": "todo"}])
    assert told["late_members"] == [{"id": "b.s:3", "state": "done"}, {"id": "b.s:4", "state": "error"}]
    assert told["members_seen"] == 4
    assert told["input"] == token()["input"]
