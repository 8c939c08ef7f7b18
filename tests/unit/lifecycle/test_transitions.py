"""The table of transitions, against the code that makes each of them, and the changes that a pilot writes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import pytest

from airflow_provider_picas.lifecycle.pilot_config import Config
from airflow_provider_picas.lifecycle.transitions import (
    TRANSITIONS,
    Change,
    Ended,
    Token,
    Transition,
    claim,
    conclude,
    held_by_pilot,
    reap,
    release,
    scrubbed,
)
from airflow_provider_picas.tokens.documents import new_token
from airflow_provider_picas.tokens.push import run_again
from airflow_provider_picas.tokens.states import State, state_of
from stack.paths import PROJECT
from tests.unit.lifecycle.claimed import CONFIG, claimed, failed

sys.path.append(str(PROJECT / "docs"))  # as for a script there

import draw_states

Doc = dict[str, Any]


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
    assert draw_states.PICTURE.read_text() == draw_states.picture(), "run make diagrams"


def test_a_lock_of_somebody_else_is_recognised() -> None:
    assert held_by_pilot(claimed())
    assert not held_by_pilot(claimed(lock=2000)), "reset by hand, then locked by a PiCaS client"
    assert not held_by_pilot(claimed(pilot=""))
    assert not held_by_pilot({"lock": 1000})


def test_a_success_is_written() -> None:
    doc = claimed(_attachments={"x": {"stub": True}}, error=[])
    change = conclude(Token(doc), Ended("exit", 0, 1.25, b"out", b"", {"a": 1}, True), CONFIG, 1010)
    new = change.apply()
    assert state_of(new) is State.DONE
    assert (change.kind, new["done"], new["lock"], new["output"], new["seconds"]) == (
        "done",
        1010,
        1000,
        {"a": 1},
        1.25,
    )
    assert "pilot" not in new
    assert new["_rev"] == "2-x"
    assert new["error"] == []
    assert new["_attachments"] == {"x": {"stub": True}, "attempt-1.out": {"content_type": "text/plain", "data": "b3V0"}}
    assert doc["pilot"] == "p", "the document at hand was changed"


def test_the_output_of_an_earlier_attempt_does_not_stay() -> None:
    """A token that was done, and was reset, still has it."""
    for ended in (Ended("exit", 0, 1.0), failed(3)):
        assert "output" not in conclude(Token(claimed(output="earlier")), ended, CONFIG, 1010).apply()
    kept = conclude(Token(claimed(output="earlier")), Ended("exit", 0, 1.0, b"", b"", "new", True), CONFIG, 1010)
    assert kept.apply()["output"] == "new"
    while kept.shrink():
        pass
    assert "output" not in kept.apply()


def test_a_failure_for_good_is_an_error() -> None:
    ended = failed(3, err=b"first\nlast \xff line\n", output=5, has_output=True)
    new = conclude(Token(claimed(error="odd")), ended, CONFIG, 1010).apply()
    assert state_of(new) is State.ERROR
    assert (new["exit_code"], new["output"]) == (3, 5)
    assert new["error"] == [{"time": 1010, "message": "exit code 3: last \ufffd line"}]
    assert "attempts" not in new


@pytest.mark.parametrize(
    ("earlier", "own", "codes", "retried"),
    [
        (0, None, [], True),
        (1, None, [], True),
        (2, None, [], False),
        (0, 0, [], False),
        (2, 5, [], True),
        (0, None, [1], False),
        (0, "nonsense", [], True),
    ],
)
def test_a_failure_is_retried_as_often_as_allowed(earlier: int, own: Any, codes: list[int], retried: bool) -> None:
    doc = claimed(attempts=[{"reason": "failed: x"}] * earlier, scrub_count=earlier, error=[{"message": "old"}])
    if own is not None:
        doc["max_retries"] = own
    config = CONFIG._replace(max_retries=2, no_retry_exit_codes=codes)
    change = conclude(Token(doc), failed(), config, 1010)
    new = change.apply()
    assert state_of(new) is (State.TODO if retried else State.ERROR)
    if retried:
        assert (change.kind, new["scrub_count"], new["exit_code"], new["error"]) == ("retried", earlier + 1, "", [])
        kept = {"lock": 1000, "hostname": "n1", "pilot": "p", "claim": "abc-1000", "slurm_job_id": "5_1", "done": 1010}
        kept.update(exit_code=1, error="exit code 1", reason="failed: exit code 1", seconds=1.25)
        assert new["attempts"][-1] == kept
        assert not {"pilot", "claim", "slurm_job_id"} & set(new)


def test_a_token_stopped_by_its_pilot_has_not_failed() -> None:
    change = conclude(Token(claimed()), failed(143, "received SIGTERM"), CONFIG, 1010)
    new = change.apply()
    assert state_of(new) is State.TODO
    assert (new["scrub_count"], new["attempts"][0]["reason"]) == (1, "given back: received SIGTERM")


def test_a_stop_exit_code_gives_back_until_it_is_the_tokens_fault() -> None:
    config = CONFIG._replace(stop_exit_codes=[9], max_scrubs=2)
    once = claimed(attempts=[{"reason": "given back: exit code 9 stops the pilot"}])
    twice = claimed(attempts=once["attempts"] * 2)
    assert state_of(conclude(Token(once), failed(9), config, 1).apply()) is State.TODO
    assert state_of(conclude(Token(twice), failed(9), config, 1).apply()) is State.ERROR


@pytest.mark.parametrize(
    ("ended", "code"),
    [
        (Ended("time limit", 143, 5.0), 124),
        (Ended("time limit", 0, 5.0), 124),
        (Ended("exit", 0, 5.0, fault="output.json is not valid JSON"), 65),
        (Ended("exit", 2, 5.0, fault="output.json is not valid JSON"), 2),
    ],
)
def test_bad_output_and_time_limits_have_exit_codes(ended: Ended, code: int) -> None:
    new = conclude(Token(claimed()), ended, CONFIG, 1010).apply()
    assert new["exit_code"] == code
    assert state_of(new) is State.ERROR


def test_unstarted_tokens_go_back_as_they_were() -> None:
    before = {"_id": "b:1", "_rev": "2-x", "type": "token", "lock": 0, "done": 0, "hostname": "", "attempts": [1]}
    token = Token(claimed(attempts=[1]))
    del token.doc["scrub_count"], token.doc["exit_code"]
    assert release(token).apply() == before


def test_a_reaped_token_goes_back_or_into_error() -> None:
    doc = claimed(attempts=[{"reason": "failed: x"}, {"reason": "reaped: y"}])
    new = reap(doc, "pilot p fell silent", 2, 1010).apply()
    assert state_of(new) is State.TODO
    assert new["attempts"][-1]["reason"] == "reaped: pilot p fell silent"
    final = reap(new | claimed(attempts=new["attempts"]), "it died", 2, 1020).apply()
    assert state_of(final) is State.ERROR
    assert "3 pilots died" in final["error"][-1]["message"]
    assert "it died" in final["error"][-1]["message"]
    assert state_of(reap(claimed(exit_code=0), "it died", 0, 1020).apply()) is State.ERROR


DONE = conclude(Token(claimed()), Ended("exit", 0, 1.0), CONFIG, 1010)
RETRY = conclude(Token(claimed()), failed(), CONFIG._replace(max_retries=1), 1010)
RELEASE = release(Token(claimed()))
EDITED = claimed(_rev="3-y", comment="by hand")
RESET = {**claimed(_rev="3-y", lock=0)}
GIVEN_BACK = {name: value for name, value in RESET.items() if name not in ("pilot", "claim")}
ELSEWHERE = claimed(_rev="4-z", claim="def-1005", lock=1005, pilot="q")


@pytest.mark.parametrize(
    ("change", "doc", "verdict"),
    [
        (DONE, None, "refused"),
        (DONE, claimed(), "apply"),
        (DONE, EDITED, "apply"),
        (DONE, DONE.apply(), "landed"),
        (DONE, {**DONE.apply(), "comment": "by hand"}, "landed"),
        # A PiCaS client took it and ended in the same second; then it began in the same one, too.
        (DONE, claimed(lock=1009, done=1010, exit_code=0), "refused"),
        (DONE, claimed(done=1010, exit_code=0), "refused"),
        (DONE, RESET, "refused"),
        (DONE, GIVEN_BACK, "refused"),
        (DONE, ELSEWHERE, "refused"),
        (DONE, claimed(lock=2000), "refused"),  # reset by hand and locked by a PiCaS client
        (DONE, claimed(lock=99, done=99), "refused"),
        (RETRY, EDITED, "apply"),
        (RETRY, RETRY.apply(), "landed"),
        (RETRY, {**RETRY.apply(), "lock": 1005, "claim": "def-1005", "pilot": "q"}, "landed"),
        (RETRY, ELSEWHERE, "refused"),
        (RELEASE, claimed(), "apply"),
        (RELEASE, RELEASE.apply(), "landed"),
        (RELEASE, ELSEWHERE, "refused"),
    ],
)
def test_what_the_current_document_says_of_a_change(change: Change, doc: dict[str, Any] | None, verdict: str) -> None:
    assert change.decide(doc) == verdict
    again = Change.from_json(json.loads(json.dumps(change.to_json())))
    assert again.decide(doc) == verdict


def test_a_change_fits_a_later_revision() -> None:
    again = Change.from_json(json.loads(json.dumps(RETRY.to_json())))
    again.doc = {**EDITED, "scrub_count": 4}
    new = again.apply()
    assert (new["_rev"], new["comment"], new["scrub_count"]) == ("3-y", "by hand", 5)
    assert new["attempts"] == [RETRY.attempt]


@pytest.mark.parametrize(
    "content",
    [[], {}, {"kind": "done"}, *({**DONE.to_json(), name: 7.5} for name in [*vars(DONE), "x"] if name != "lock")],
)
def test_a_file_without_a_change_is_refused(content: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        Change.from_json(content)


def test_what_the_database_refuses_gets_smaller() -> None:
    change = conclude(Token(claimed()), Ended("exit", 0, 1.0, b"x", b"", "big", True), CONFIG, 1010)
    assert change.shrink()
    assert "_attachments" not in change.apply()
    assert change.shrink()
    assert "output" not in change.apply()
    assert state_of(change.apply()) is State.ERROR
    assert not change.shrink()
