"""When the token of a group is made, and what it holds."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_picas.lifecycle.profile import PICAS, SHIPPED
from airflow_provider_picas.tokens import groups
from airflow_provider_picas.tokens.chain import Chain
from airflow_provider_picas.tokens.groups import Grouping, group_token, updated
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
    {"id": "b.s:1", "state": "done", "done": 10, "output": {"path": "/1"}}, {"id": "b.s:2", "state": "error", "done": 11},
    {"id": "b.s:3", "state": "locked", "done": 0},
]  # fmt: skip


def token() -> dict[str, Any]:
    return group_token("x", MEMBERS, batch="b.t", stage="t", of="b.s", profile=PICAS)


def test_the_input_of_a_group_is_its_members_with_their_outcomes(monkeypatch: pytest.MonkeyPatch) -> None:
    made = token()
    assert (made["_id"], made["input"], made["members_ended"]) == ("b.t:x", {"group": "x", "members": MEMBERS}, 21)
    assert state_of(made) is State.TODO
    monkeypatch.setattr(groups, "INPUT_BYTES", 50)
    assert token()["input"]["members"][0] == {"id": "b.s:1", "state": "done", "done": 10}, (
        "outputs that do not fit are left out"
    )


def test_members_that_finish_late_are_told() -> None:
    three, four = {"id": "b.s:3", "state": "done", "done": 12}, {"id": "b.s:4", "state": "error", "done": 13}
    told = updated(token(), [*MEMBERS[:2], three, four, {"id": "b.s:5", "state": "todo", "done": 0}])
    assert told is not None
    assert told["late_members"] == [{"id": "b.s:3", "state": "done"}, {"id": "b.s:4", "state": "error"}]
    assert told["members_ended"] == 46
    assert told["input"] == token()["input"]
    assert updated(told, [*MEMBERS[:2], three, four]) is None


def test_a_group_runs_again_when_one_of_its_members_has() -> None:
    made = {**token(), "_rev": "3-x", "lock": 20, "done": 21, "exit_code": 0, "output": "old", "claim": "c-20"}
    waiting = [MEMBERS[0], {"id": "b.s:2", "state": "todo", "done": 0}, MEMBERS[2]]
    assert updated(made, waiting) is None, "it was reset, and has not finished"
    later = [MEMBERS[0], {"id": "b.s:2", "state": "done", "done": 30}, MEMBERS[2]]
    again = updated(made, later)
    assert again is not None
    assert (state_of(again), again["_rev"], again["input"]["members"]) == (State.TODO, "3-x", later)
    assert "output" not in again
    assert again["attempts"][-1]["reason"] == "reset: member b.s:2 has run again"
    assert again["members_ended"] == 40
    assert updated(again, later) is None


def test_a_group_that_runs_again_keeps_the_output_that_its_profile_writes() -> None:
    """In GRID_LRT's pools, ``output`` is an exit code, and what the command wrote is in ``result``."""
    profile = SHIPPED["grid_lrt"]
    made = {**token(), "type": "t", "lock": 20, "done": 21, "status": "done", "output": 0, "result": "old"}
    again = updated(made, [MEMBERS[0], {"id": "b.s:2", "state": "done", "done": 30}, MEMBERS[2]], profile)
    assert again is not None
    assert (again["output"], "result" in again) == (profile.writes["release"]["output"], False)
