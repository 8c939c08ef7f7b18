"""What a push does with a token that exists in the pool."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from airflow_provider_picas.tokens.attachments import digest
from airflow_provider_picas.tokens.documents import new_token
from airflow_provider_picas.tokens.push import Action, OnExisting, PushReport, action_for, of_execution, run_again

TODO: dict[str, Any] = {"lock": 0, "done": 0}
LOCKED: dict[str, Any] = {"lock": 5, "done": 0}
DONE: dict[str, Any] = {"lock": 5, "done": 6, "exit_code": 0}
ERROR: dict[str, Any] = {"lock": 5, "done": 6, "exit_code": 1}
STATELESS: dict[str, Any] = {"lock": 0, "done": 6}
KEEP, RESET, REPLACE, REFUSE = Action.KEEP, Action.RESET, Action.REPLACE, Action.REFUSE
EXECUTION = "1f2e3d4c"


def wanted(push: str = "p", ordinal: int = 3, execution: str = EXECUTION) -> dict[str, Any]:
    return of_execution(new_token({"input": "x"}, batch="b", push=push, ordinal=ordinal, key="k"), execution)


def earlier(**fields: Any) -> dict[str, Any]:
    """A token of another execution of the same push."""
    return {**wanted(execution="0a1b2c3d"), **fields}


@pytest.mark.parametrize("push", ["p", "p#0a1b2c3d", "earlier#1f2e3d4c"])
@pytest.mark.parametrize(
    ("on_existing", "actions"),
    [
        ("keep", [KEEP, KEEP, KEEP, KEEP, KEEP]),
        ("reset", [KEEP, KEEP, KEEP, RESET, RESET]),
        ("replace", [REPLACE, KEEP, REPLACE, REPLACE, REPLACE]),
        ("fail", [REFUSE, REFUSE, REFUSE, REFUSE, REFUSE]),
    ],
)
def test_actions_depend_on_state_and_on_existing(push: str, on_existing: str, actions: list[Action]) -> None:
    found = [
        action_for({**earlier(), "push": push, **state}, wanted(), OnExisting(on_existing))
        for state in (TODO, LOCKED, DONE, ERROR, STATELESS)
    ]
    if push != "earlier#1f2e3d4c":  # its own
        actions = [KEEP] * 5 if on_existing == "fail" else [KEEP, *actions[1:]]
    assert found == actions


@pytest.mark.parametrize("on_existing", list(OnExisting))
@pytest.mark.parametrize("state", [TODO, LOCKED, DONE, ERROR, STATELESS])
def test_what_this_execution_has_written_is_left_whatever_became_of_it(
    on_existing: OnExisting, state: dict[str, Any]
) -> None:
    assert action_for({**wanted(), **state, "output": 1}, wanted(), on_existing) is Action.WRITTEN
    again = run_again({**wanted("q"), **ERROR}, wanted())
    assert action_for({**again, **state}, wanted(), on_existing) is Action.WRITTEN
    assert action_for({**wanted(ordinal=4), **DONE}, wanted(), on_existing) is not Action.WRITTEN  # a duplicate


@pytest.mark.parametrize("on_existing", list(OnExisting))
def test_an_input_that_has_another_place_than_in_an_earlier_try_is_the_same_token(on_existing: OnExisting) -> None:
    assert action_for(earlier(ordinal=4), wanted(), on_existing) is KEEP


def test_a_token_of_ones_own_is_replaced_when_its_input_has_changed() -> None:
    assert action_for(earlier(input="y"), wanted(), OnExisting.REPLACE) is REPLACE
    assert action_for(earlier(output="y"), wanted(), OnExisting.REPLACE) is KEEP


def test_a_token_of_ones_own_is_replaced_when_an_attached_file_has_changed() -> None:
    file = {"content_type": "application/octet-stream", "data": base64.b64encode(b"new").decode()}
    stub = {"content_type": "application/octet-stream", "stub": True, "length": 3, "digest": digest(b"new")}
    now = {**wanted(), "_attachments": {"f": file}}
    assert action_for(earlier(_attachments={"f": stub, "log": stub}), now, OnExisting.REPLACE) is KEEP
    for stubs in ({"f": {**stub, "digest": digest(b"old")}}, {"g": stub}, {}):
        assert action_for(earlier(_attachments=stubs), now, OnExisting.REPLACE) is REPLACE


def test_a_token_that_runs_again_has_what_the_input_says_now_and_keeps_its_logs() -> None:
    logs, config = {"logs.err": {"stub": True}}, {"config": {"data": "eA=="}}
    found = {**wanted("earlier", 7), **ERROR, "_rev": "3-a", "input": "y", "extra": 1, "_attachments": logs}
    again = run_again(found, {**wanted(), "_attachments": config})
    assert (again["push"], again["ordinal"], again["input"], again["extra"]) == (f"p#{EXECUTION}", 3, "x", 1)
    assert (again["_rev"], again["lock"], again["scrub_count"], len(again["attempts"])) == ("3-a", 0, 1, 1)
    assert again["_attachments"] == {**logs, **config}
    assert run_again(found, wanted())["_attachments"] == logs


@pytest.mark.parametrize("on_existing", ["keep", "reset"])
def test_tokens_of_the_picas_client_are_kept(on_existing: str) -> None:
    assert action_for({"_id": "b:k", "type": "token", **DONE}, wanted(), OnExisting(on_existing)) is KEEP


def test_a_report_adds_up_and_names_what_was_done_before() -> None:
    report, part = PushReport(written=2), PushReport(written=1, reset=1)
    for number in range(30):
        part.keep({**wanted("earlier", number), "_id": f"b:{number}", **DONE}, wanted(ordinal=number))
    part.keep(earlier(_id="b:own", **DONE), wanted())
    part.keep(earlier(_id="b:todo", **TODO), wanted())
    report.add(part)
    assert (report.tokens, report.kept, report.done, report.done_before, report.earlier) == (36, 32, 31, 30, 30)
    assert report.done_before_ids == [f"b:{number}" for number in range(20)]
    assert str(report) == "3 written, 1 reset, 32 kept (31 of them already done)"
    (remark,) = report.remarks()
    assert remark.startswith("30 tokens were already done: an earlier run pushed them")
    assert "b:0, b:1, b:2, b:3, b:4 and 25 more" in remark


def test_a_report_names_what_stays_although_its_input_has_changed() -> None:
    report = PushReport()
    report.keep({**wanted(), "_id": "b:1", "input": "y"}, wanted())
    report.keep({**wanted(), "_id": "b:2", "output": "y"}, wanted())
    assert (report.kept, report.differing, report.differing_ids) == (2, 1, ["b:1"])
    assert "1 tokens were not changed although their input differs: b:1" in report.remarks()[0]


def test_a_report_says_little_when_there_is_little_to_say() -> None:
    assert str(PushReport()) == "nothing to do"
    assert str(PushReport(written=2_000)) == "2,000 written"
    assert PushReport(written=2_000).remarks() == []
