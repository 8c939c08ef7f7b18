"""New tokens, what authors may put in them, and how tokens change when they are given back."""

from __future__ import annotations

import json
import sys
from collections import OrderedDict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_picas.lifecycle.attempts import MAX_ATTEMPTS
from airflow_provider_picas.lifecycle.transitions import Token, errored, release, scrubbed
from airflow_provider_picas.tokens import documents
from airflow_provider_picas.tokens.documents import BadTokenError, encode, new_token
from airflow_provider_picas.tokens.states import State, state_of
from tests.odd_tokens import odd_tokens


def new(**fields: Any) -> dict[str, Any]:
    return new_token(fields, batch="b", push="p", ordinal=7)


def test_a_new_token_is_what_picas_expects() -> None:
    assert new(input="x", priority=3) == {
        "_id": "b:00000007",
        "type": "token",
        "lock": 0,
        "done": 0,
        "hostname": "",
        "scrub_count": 0,
        "exit_code": "",
        "batch": "b",
        "push": "p",
        "ordinal": 7,
        "input": "x",
        "priority": 3,
    }
    assert new_token({}, batch="b", push="p", ordinal=7, key="genome-5")["_id"] == "b:genome-5"
    assert state_of(new()) is State.TODO
    assert documents.is_token(new())


@pytest.mark.parametrize("field", ["_id", "_rev", "_attachments", "_x", "_"])
def test_fields_of_couchdb_are_refused(field: str) -> None:
    with pytest.raises(BadTokenError, match=rf"Token 7 has the field '{field}': CouchDB reserves"):
        new(**{field: "x"})


@pytest.mark.parametrize("field", sorted(documents.OWNED_FIELDS | {"seconds"}))
def test_owned_fields_are_refused(field: str) -> None:
    with pytest.raises(BadTokenError, match=rf"Token 7 has the field '{field}', which PiCaS or this provider"):
        new(**{field: "x"})


def test_a_field_that_is_not_a_string_is_refused() -> None:
    with pytest.raises(BadTokenError, match="not a string: 5"):
        new_token({5: "x"}, batch="b", push="p", ordinal=7)  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (float("nan"), "input is nan"),
        (float("inf"), "input is inf"),
        ({"a": [1, {"b": float("-inf")}]}, r"input.a\[1\].b is -inf"),
        (b"bytes", "input is of type bytes"),
        ({1, 2}, "input is of type set"),
        ([object()], r"input\[0\] is of type object"),
        ("\ud800", "lone surrogate"),
        ({"a": "x\udfff"}, "input.a contains a lone surrogate"),
        (complex(1, 2), "type complex"),
    ],
)
def test_what_is_not_json_is_named_by_its_path(value: Any, fault: str) -> None:
    with pytest.raises(BadTokenError, match=f"Token 7 is not JSON: .*{fault}"):
        encode(new(input=value))


def test_a_value_that_holds_itself_is_not_json() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(BadTokenError, match="Token 7 is not JSON"):
        encode(new(input=loop))


def test_a_key_that_is_a_lone_surrogate_is_not_json() -> None:
    with pytest.raises(BadTokenError, match="Token 7 is not JSON"):
        encode(new(input={"\ud800": 1}))


def test_nesting_that_python_cannot_write_is_not_json() -> None:
    deep: Any = 0
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(BadTokenError, match="Token 7 is not JSON"):
        encode(new(input=deep))


def nested(depth: int) -> Any:
    deep: Any = 0
    for place in range(depth):
        deep = [deep] if place % 2 else {"a": deep}
    return deep


def test_nesting_that_pilots_cannot_read_is_refused() -> None:
    assert encode(new(input=nested(500), other=[[1]] * 1000))
    with pytest.raises(BadTokenError, match="Token 7 is nested more than 500 deep"):
        encode(new(input=nested(501)))
    with pytest.raises(BadTokenError, match="nested too deeply"):
        documents.check_update({"input": nested(501)})
    assert encode({**new(input=nested(501)), "_rev": "1-a"}), "what is in the pool can still be reset"


def test_a_token_that_is_too_large_is_refused_with_its_size() -> None:
    frame = len(encode(new(input="")))
    assert len(encode(new(input="x" * (documents.MAX_BYTES - frame)))) == documents.MAX_BYTES
    with pytest.raises(BadTokenError, match=r"Token 7 has 8,000,001 bytes; CouchDB accepts 8,000,000"):
        encode(new(input="x" * (documents.MAX_BYTES - frame + 1)))
    with pytest.raises(BadTokenError, match="bytes"):
        encode(new(input="é" * (documents.MAX_BYTES // 2)))


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
)


@given(JSON)
def test_what_is_json_is_encoded_as_it_is(value: Any) -> None:
    assert json.loads(encode(new(input=value)))["input"] == value


def test_tuples_and_other_mappings_are_json() -> None:
    assert json.loads(encode(new(input=(1, OrderedDict(a=2)))))["input"] == [1, {"a": 2}]


def test_a_token_differs_when_its_author_gives_other_fields_now() -> None:
    wanted = new(input="x", priority=3)
    for same in ({}, {"lock": 5}, {"output": "o"}, {"push": "q", "ordinal": 8}, {"progress": 1}):
        assert not documents.differs({**wanted, **same}, wanted)
    assert documents.differs({**wanted, "input": "y"}, wanted)
    assert documents.differs({"_id": "b:1", "priority": 3}, wanted)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (1, 1.0, True), (0.0, -0.0, True), ((1, [2]), [1, (2,)], True), ({"a": [1]}, OrderedDict(a=(1,)), True),
        (1, True, False), (0, False, False), ([0], [False], False), ({"a": 1}, {"a": True}, False), ([1], [1, 2], False),
        ({"a": 1}, {"b": 1}, False), ([], {}, False), ("1", 1, False), (None, False, False), ("ab", ["a", "b"], False),
    ],
)  # fmt: skip
def test_values_are_compared_as_json(one: Any, other: Any, same: bool) -> None:
    assert documents.has({"x": one, "y": 1}, {"x": other}) is same
    assert documents.has({"x": other, "y": 1}, {"x": one}) is same


def test_a_field_that_is_not_there_is_not_null() -> None:
    assert not documents.has({}, {"x": None})
    assert documents.has({"x": nested(500)}, {"x": nested(500)})


@pytest.mark.parametrize("priority", ["5", None, True, [5]])
def test_a_priority_that_is_not_a_number_is_refused(priority: Any) -> None:
    with pytest.raises(BadTokenError, match=r"Token 7 has the priority .* not a number"):
        new(priority=priority)
    with pytest.raises(BadTokenError, match=r"The priority .* cannot be set: it is not a number"):
        documents.check_update({"priority": priority})
    documents.check_update({"priority": -1.5})
    assert new(priority=-1.5)["priority"] == -1.5


def test_a_scrub_keeps_the_attempt_and_carries_the_rest() -> None:
    token = {
        **new(input="x"), "_rev": "3-a", "_attachments": {"log": {"stub": True}}, "lock": 5, "done": 6, "exit_code": 3,
        "hostname": "wn1", "slurm_job_id": "77_1", "pilot": "pl", "claim": "c-5", "seconds": 1.5, "output": "o",
        "error": [{"time": 1, "message": "m1"}, {"message": "m2"}],
    }  # fmt: skip
    again = scrubbed(token, "because")
    assert state_of(again) is State.TODO
    assert again["scrub_count"] == 1
    assert again["attempts"] == [
        {"lock": 5, "done": 6, "exit_code": 3, "hostname": "wn1", "slurm_job_id": "77_1", "pilot": "pl",
         "claim": "c-5", "seconds": 1.5, "error": '{"message": "m2"}', "reason": "because"}
    ]  # fmt: skip
    assert not {"slurm_job_id", "pilot", "claim", "seconds"} & set(again)
    assert (again["_rev"], again["_attachments"], again["input"], again["error"]) == (
        "3-a",
        {"log": {"stub": True}},
        "x",
        [],
    )
    assert token["lock"] == 5  # the document given is left alone


def test_what_an_earlier_attempt_left_is_not_taken_for_this_ones() -> None:
    """PiCaS clients scrub and lock a token, and leave what they do not know."""
    again = scrubbed({**new(), "lock": 7, "done": 8, "pilot": "pl", "claim": "c-5", "seconds": 1.5}, "because")
    assert again["attempts"] == [{"lock": 7, "done": 8, "reason": "because"}]
    assert not {"pilot", "claim", "seconds"} & set(again)


def test_a_token_released_unstarted_is_not_counted() -> None:
    claimed = {**new(), "_id": "b:1", "lock": 5, "pilot": "pl", "claim": "c-5", "scrub_count": 2}
    again = release(Token(claimed)).apply()
    assert (state_of(again), again["scrub_count"], "attempts" in again) == (State.TODO, 2, False)


def test_attempts_are_capped_and_the_oldest_go() -> None:
    token = new()
    for number in range(MAX_ATTEMPTS + 3):
        token = scrubbed({**token, "lock": 5, "done": 6, "exit_code": number}, f"try {number}")
    assert [attempt["reason"] for attempt in token["attempts"]] == [f"try {number}" for number in range(3, 13)]
    assert token["scrub_count"] == 13


def test_a_long_error_is_cut() -> None:
    again = scrubbed({**new(), "lock": 5, "done": 6, "error": ["x" * 100_000]}, "r")
    assert len(again["attempts"][0]["error"]) == 2_000


def test_every_odd_token_can_be_scrubbed_and_failed() -> None:
    for token in odd_tokens(3_000):
        assert state_of(scrubbed(token, "r")) is State.TODO
        assert state_of(errored(token, "m", 5)) is State.ERROR


@pytest.mark.parametrize("strange", [None, "x", 5, {"a": 1}, []])
def test_strange_fields_do_not_stop_a_scrub(strange: Any) -> None:
    again = scrubbed({**new(), "lock": 5, "attempts": strange, "scrub_count": strange, "error": strange}, "r")
    assert again["scrub_count"] == (6 if strange == 5 else 1)
    assert len(again["attempts"]) == 1


@pytest.mark.parametrize("value", [10**400, -(10**309), int(sys.float_info.max) * 2])
def test_numbers_that_couchdb_does_not_store_are_refused_by_name(value: int) -> None:
    for fields, path in (({"priority": value}, "priority"), ({"input": {"a": [1, value]}}, r"input\.a\[1\]")):
        said = rf"cannot be stored: {path} is a number beyond 1.8e308"
        with pytest.raises(BadTokenError, match=f"Token 7 {said}"):
            documents.encode(documents.new_token(fields, batch="b", push="p", ordinal=7))
        with pytest.raises(BadTokenError, match=f"`fields` {said}"):
            documents.check_update(fields)


def test_large_numbers_that_couchdb_stores_are_not_refused() -> None:
    fields = {"a": int(sys.float_info.max), "b": -int(sys.float_info.max), "c": "9" * 400, "d": 1.7e308}
    documents.encode(documents.new_token(fields, batch="b", push="p", ordinal=7))
    documents.check_update(fields)
