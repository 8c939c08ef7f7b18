"""Which tokens are selected, why others are skipped, and what the report says about them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from airflow_provider_picas.tokens import selection
from airflow_provider_picas.tokens.counts import Counts
from airflow_provider_picas.tokens.selection import EditReport, Selection
from airflow_provider_picas.tokens.states import State

NOW = 1_800_000_000


def token(**fields: Any) -> dict[str, Any]:
    return {
        "_id": "b:1",
        "type": "token",
        "lock": NOW - 100,
        "done": NOW - 50,
        "exit_code": 1,
        "scrub_count": 0,
        **fields,
    }


@pytest.mark.parametrize(
    ("asked", "fields", "objection"),
    [
        ({}, {}, None),
        ({}, {"type": "other"}, "is not a token"),
        ({"states": "error"}, {}, None),
        ({"states": "error"}, {"exit_code": 0}, "is done"),
        ({"states": "done error"}, {"exit_code": 0}, None),
        ({"states": "error"}, {"lock": 0}, "is in no state"),
        ({"older_than": 100}, {}, None),
        ({"older_than": 101}, {}, "was locked less than 101 s ago"),
        ({"older_than": 0}, {"lock": 0, "done": 0}, "does not say when it was locked"),
        ({"older_than": 0}, {"lock": 0, "done": 0, "error": [{"time": NOW - 100}]}, "does not say when it was locked"),
        ({"older_than": 0}, {"lock": 99, "done": 99}, "does not say when it was locked"),
        ({"older_than": 100}, {"lock": 99, "done": 99, "error": [{"time": NOW - 100}]}, None),
        (
            {"older_than": 101},
            {"lock": 99, "done": 99, "error": [{"time": NOW - 100}]},
            "was locked less than 101 s ago",
        ),
        ({"older_than": 0}, {"lock": "soon"}, "does not say when it was locked"),
        ({"min_scrubs": 1}, {}, "was released fewer than 1 times"),
        ({"min_scrubs": 1}, {"scrub_count": 1}, None),
        ({"max_scrubs": 2}, {"scrub_count": 1}, None),
        ({"max_scrubs": 2}, {"scrub_count": 2}, "was released 2 times or more"),
        ({"max_scrubs": 1}, {"scrub_count": "many"}, None),
    ],
)
def test_objections_say_why_a_token_is_skipped(
    asked: dict[str, Any], fields: dict[str, Any], objection: str | None
) -> None:
    assert Selection.parse("b", **asked).objection(token(**fields), NOW) == objection


def test_a_pattern_that_does_not_match_skips_a_token() -> None:
    assert Selection(error_pattern="x").objection(token(), NOW, matches=False) == "has a different error"


@pytest.mark.parametrize("states", [["error", "locked"], "error,locked", "error locked", {State.ERROR, State.LOCKED}])
def test_states_are_parsed(states: Any) -> None:
    assert Selection.parse(states=states).states == {State.ERROR, State.LOCKED}


@pytest.mark.parametrize("nothing", [None, ""])
def test_what_a_template_rendered_to_nothing_is_not_a_condition(nothing: Any) -> None:
    names = ("states", "keys", "error_pattern", "older_than", "min_scrubs", "max_scrubs")
    assert Selection.parse("b", **dict.fromkeys(names, nothing)) == Selection("b")


def test_keys_become_ids() -> None:
    asked = Selection.parse("b", keys=["1", 2, "b:3", "a key", "1"])
    assert asked.ids is not None
    assert asked.ids[:3] == ("b:1", "b:2", "b:3")
    assert asked.ids[3].startswith("b:a_key-")
    assert len(asked.ids) == 4
    assert Selection.parse(keys="token_0 token_1").ids == ("token_0", "token_1")


def test_numbers_from_templates_are_parsed() -> None:
    asked = Selection.parse("b", older_than="60", min_scrubs="1", max_scrubs="3")
    assert (asked.older_than, asked.min_scrubs, asked.max_scrubs) == (60, 1, 3)
    assert Selection.parse(older_than=timedelta(minutes=2)).older_than == 120


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"states": "errors"}, "`states` is 'errors'"),
        ({"states": []}, "`states`"),
        ({"states": 5}, "`states`"),
        ({"keys": {"a": 1}}, "`keys` must be a list"),
        ({"keys": [""]}, "not the id of a token"),
        ({"keys": [5]}, "not the id of a token"),
        ({"older_than": "soon"}, "`older_than`"),
        ({"older_than": -1}, "`older_than`"),
        ({"older_than": "nan"}, "`older_than`"),
        ({"max_scrubs": 1.5}, "`max_scrubs`"),
        ({"max_scrubs": -1}, "`max_scrubs`"),
        ({"min_scrubs": True}, "`min_scrubs`"),
        ({"min_scrubs": float("inf")}, "`min_scrubs`"),
    ],
)
def test_invalid_conditions_are_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Selection.parse(**asked)


def test_others_are_counted_by_state() -> None:
    counts = Counts(todo=1, locked=2, done=3, error=4, stateless=5)
    left = Selection.parse("b", states="error").others(counts).skipped
    assert {reason: part.tokens for reason, part in left.items()} == {
        "is todo": 1,
        "is locked": 2,
        "is done": 3,
        "is in no state": 5,
    }
    assert Selection.parse("b", keys=["1"], states="error").others(counts).skipped == {}


def test_few_tokens_of_many_are_not_looked_for_in_all() -> None:
    errors = Selection.parse("b", states="error")
    assert not errors.worth_reading_all(Counts(done=1000, error=5))
    assert errors.worth_reading_all(Counts(done=1000, error=1000))
    assert Selection("b").worth_reading_all(Counts(done=1))
    assert not Selection.parse("b", keys=["1"]).worth_reading_all(Counts(done=1))


def test_report_adds_up_and_names_a_few() -> None:
    total = EditReport()
    for part in range(3):
        report = EditReport()
        for number in range(4):
            report.change(f"c{part}{number}")
            report.skip("is done", f"d{part}{number}")
        total.add(report)
    total.skip("is todo", tokens=7)
    assert (total.changed, len(total.changed_ids)) == (12, selection.SAMPLE)
    assert total.skipped_dict()["is done"] == {"tokens": 12, "ids": ["d00", "d01", "d02", "d03", "d10"]}
    assert total.lines("reset") == [
        "12 tokens reset (c00, c01, c02, c03, c10, …).",
        "12 skipped: is done (d00, d01, d02, d03, d10, …).",
        "7 skipped: is todo.",
    ]


@pytest.mark.parametrize(
    ("fields", "news"),
    [
        ({}, NOW - 50),
        ({"done": 0}, NOW - 100),
        ({"lock": 99, "done": 99}, None),
        ({"lock": 99, "done": 99, "error": [{"time": NOW - 7}]}, NOW - 7),
        ({"lock": 99, "done": 99, "error": ["text"]}, None),
        ({"lock": "x", "done": None, "error": {}}, None),
    ],
)
def test_the_last_activity_is_found(fields: dict[str, Any], news: float | None) -> None:
    assert selection.last_activity(token(**fields)) == news
