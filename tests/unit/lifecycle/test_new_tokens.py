"""The lines of a command that makes tokens, and how their list is carried out."""

from __future__ import annotations

import base64
import itertools
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_picas.lifecycle import new_tokens
from airflow_provider_picas.lifecycle.exit_codes import EXIT_BAD_OUTPUT
from airflow_provider_picas.lifecycle.ids import stage_batch
from airflow_provider_picas.lifecycle.pilot_config import Config
from airflow_provider_picas.lifecycle.transitions import Change, Ended, Token, conclude
from airflow_provider_picas.tokens import ids, stage_views
from airflow_provider_picas.tokens.states import State, state_of
from stack import couchdb

CLAIM = "0123456789abcdef-1000"
PARENT: dict[str, Any] = {
    "_id": "b:1", "_rev": "2-x", "type": "token", "batch": "b", "lock": 1000, "done": 0, "claim": CLAIM, "pilot": "p",
}  # fmt: skip


def read(*lines: Any, stages: dict[str, str] | None = None, parent: dict[str, Any] = PARENT) -> new_tokens.Made:
    data = b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    return new_tokens.read_list(data, parent, stages)


def test_a_line_becomes_a_token_of_the_stage() -> None:
    made = read({"stage": "imaging", "key": "sb1", "input": [1], "priority": 3}, b"", {"stage": "x", "key": 7})
    assert made.fault is None
    first, second = made.tokens
    assert (first["_id"], first["batch"], first["input"], first["priority"]) == ("b.imaging:sb1", "b.imaging", [1], 3)
    assert (first["parent"], first["parent_claim"], first["stage"]) == ("b:1", CLAIM, "imaging")
    assert state_of(first) is State.TODO
    assert second["_id"] == "b.x:7"


def test_stages_have_the_batches_that_they_are_given() -> None:
    stages = {"imaging": "root.imaging"}
    assert read({"stage": "imaging", "key": "a"}, stages=stages).tokens[0]["_id"] == "root.imaging:a"
    assert "unknown stage 'images': the stages are imaging" in str(
        read({"stage": "images", "key": "a"}, stages=stages).fault
    )


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"{", "is not valid JSON"),
        (b'{"stage": "s", "key": "k", "x": NaN}', "is not valid JSON"),
        (b'{"stage": "s", "key": "k", "x": "\\ud800"}', "is not valid JSON"),
        (b'{"stage": "s", "key": "k", "x": ' + b"[" * 600 + b"]" * 600 + b"}", "is nested more than 500 deep"),
        (b'{"stage": "s", "key": "k", "x": 1' + b"0" * 400 + b"}", "holds a number beyond"),
        (b"[]", "is not a JSON object"),
        ({"key": "k"}, "has the stage None"),
        ({"stage": "a b", "key": "k"}, "has the stage 'a b'"),
        ({"stage": "s"}, "has the key None"),
        ({"stage": "s", "key": True}, "has the key True"),
        ({"stage": "s", "key": ""}, "has the key ''"),
        ({"stage": "s", "key": "k", "lock": 1}, "has the field 'lock'"),
        ({"stage": "s", "key": "k", "_rev": "1-x"}, "has the field '_rev'"),
        ({"stage": "s", "key": "k", "parent": "x"}, "has the field 'parent'"),
        ({"stage": "s", "key": "k", "priority": "high"}, "has the priority 'high'"),
        ({"stage": "s", "key": "first"}, "names the same token as line 1"),
        ({"stage": "s", "key": "k", "x": "a" * 1_000_000}, "has more than 1,000,000 bytes"),
    ],
)
def test_a_line_that_is_invalid_is_named_with_its_reason(line: Any, fault: str) -> None:
    made = read({"stage": "s", "key": "first"}, line, {"stage": "s", "key": "third"})
    assert made.tokens == ()
    assert str(made.fault).startswith(f"line 2 of tokens.jsonl {fault}")


def test_the_number_of_tokens_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(new_tokens, "MOST_TOKENS", 2)
    assert read(*({"stage": "s", "key": key} for key in "abc")).fault == "tokens.jsonl names more than 2 tokens"


def test_a_parent_in_no_batch_makes_no_tokens() -> None:
    assert "its parent is in no batch" in str(read({"stage": "s", "key": "k"}, parent={**PARENT, "_id": "alone"}).fault)


def test_the_batch_of_a_stage_is_never_too_long() -> None:
    first, second = (stage_batch("b" * 119 + end, "imaging") for end in "xy")
    assert first != second
    assert len(first) <= ids.BATCH_LENGTH
    assert first.endswith(".imaging")


def ended(*lines: Any, **parts: Any) -> Ended:
    return Ended("exit", 0, 1.0, made=read(*lines), **parts)


def concluded(result: Ended, doc: dict[str, Any] = PARENT, **config: Any) -> Change:
    return conclude(Token(doc), result, Config("true", "s", **config), 1010)


def test_the_list_is_part_of_the_result() -> None:
    doc = concluded(ended({"stage": "s", "key": "k"})).apply()
    assert doc["new_tokens"] == {"pending": True, "tokens": 1, "claim": CLAIM, "batch": "b"}
    assert new_tokens.is_pending(doc)
    data = base64.b64decode(doc["_attachments"]["tokens.jsonl"]["data"])
    (token,) = new_tokens.read_attachment(data, doc)
    assert token["_id"] == "b.s:k"
    assert not new_tokens.is_pending(new_tokens.carried_out(doc, {}))
    assert not new_tokens.is_pending(dict(doc, lock=2000)), "a PiCaS client ran it after a reset"
    assert not new_tokens.is_pending(dict(doc, lock=0, done=0))


def test_an_invalid_line_fails_the_attempt() -> None:
    change = concluded(ended({"stage": "s", "key": "k"}, b"{"))
    assert (change.kind, change.set["exit_code"]) == ("failed", EXIT_BAD_OUTPUT)
    assert "line 2 of tokens.jsonl is not valid JSON" in (change.error or {})["message"]
    assert "new_tokens" not in change.apply()
    assert concluded(ended(b"{"), max_retries=1).kind == "retried"


def test_an_attempt_that_failed_or_is_to_run_again_has_no_list() -> None:
    for result in (
        ended({"stage": "s", "key": "k"}, has_output=True, fault="output.json is bad"),
        ended({"stage": "s", "key": "k"})._replace(code=1),
        ended({"stage": "s", "key": "k"})._replace(how="the pilot was stopped"),
    ):
        doc = concluded(result).apply()
        assert "new_tokens" not in doc
        assert "tokens.jsonl" not in doc.get("_attachments", {})


def test_the_list_of_an_earlier_attempt_does_not_pass_for_that_of_this_one() -> None:
    earlier = concluded(ended({"stage": "s", "key": "k"})).apply()
    reset = dict(earlier, lock=1000, done=0, exit_code="", claim="fedcba9876543210-1000")
    doc = concluded(ended(), reset).apply()
    assert "new_tokens" not in doc
    assert "tokens.jsonl" not in doc["_attachments"]


def test_a_field_of_that_name_that_a_user_has_pushed_stays() -> None:
    assert concluded(ended(), {**PARENT, "new_tokens": "mine"}).apply()["new_tokens"] == "mine"


def test_a_result_that_the_database_refuses_loses_its_logs_first_and_fails_without_its_list() -> None:
    change = concluded(ended({"stage": "s", "key": "k"}, out=b"log"))
    assert change.shrink()
    assert set(change.attachments) == {"tokens.jsonl"}
    assert change.kind == "done"
    assert change.shrink()
    assert (change.kind, change.set["exit_code"]) == ("failed", EXIT_BAD_OUTPUT)
    assert "new_tokens" not in change.apply()
    assert not change.shrink()


def test_a_result_in_a_file_keeps_its_list() -> None:
    change = concluded(ended({"stage": "s", "key": "k"}))
    again = Change.from_json(json.loads(json.dumps(change.to_json())))
    again.doc = change.doc
    assert again.apply() == change.apply()


def test_the_view_shows_the_lists_that_are_pending(tmp_path: Path) -> None:
    doc = concluded(ended({"stage": "s", "key": "k"})).apply()
    lists: list[Any] = [None, 1, "x", {}, doc["new_tokens"], {**doc["new_tokens"], "pending": False}]
    lists += [{**doc["new_tokens"], "pending": False, "not_made": 2}, {**doc["new_tokens"], "claim": "x-1000"}]
    fields = itertools.product(lists, [CLAIM, "x-1000", None], [1000, 0, "1000"], [1010, 0, "1", None])
    docs = [
        {**doc, "new_tokens": found, "claim": claim, "lock": lock, "done": done} for found, claim, lock, done in fields
    ]
    script = tmp_path / "run.js"
    maps = stage_views.stages()["views"]["lists"]["map"]
    script.write_text(
        f"const rows = []; let row; const emit = (key) => row.push(key);"
        f"for (const doc of {json.dumps(docs)}) {{ row = []; ({maps})(doc); rows.push(row); }}"
        "console.log(JSON.stringify(rows));"
    )
    rows = json.loads(subprocess.run([couchdb.node(), str(script)], capture_output=True, check=True).stdout)
    assert [row == [["pending", "b"]] for row in rows] == [new_tokens.is_pending(doc) for doc in docs]
    assert [["not_made", "b"]] in rows


def parent_and_list(claim: str = CLAIM, name: str = "b:1") -> tuple[dict[str, Any], list[dict[str, Any]]]:
    parent = {**PARENT, "claim": claim, "_id": name}
    return parent, list(read({"stage": "s", "key": "k"}, parent=parent).tokens)


def test_what_exists_is_left_alone_and_what_an_earlier_attempt_made_is_replaced() -> None:
    _, tokens = parent_and_list()
    (new,) = new_tokens.Plan(tokens, {}).new
    assert new["_rev"] == new_tokens.first_revision(tokens[0]) == new_tokens.Plan(tokens, {}).new[0]["_rev"]
    there = dict(tokens[0], _rev="3-x", lock=5)
    plan = new_tokens.Plan(tokens, {"b.s:k": there})
    assert (plan.new, plan.replaced, plan.not_made) == ([], [], [])
    _, later = parent_and_list("0123456789abcdef-2000")
    assert new_tokens.first_revision(later[0]) != new["_rev"]
    (replaced,) = new_tokens.Plan(later, {"b.s:k": there}).replaced
    assert (replaced["_rev"], replaced["lock"], replaced["parent_claim"]) == ("3-x", 0, "0123456789abcdef-2000")
    plan = new_tokens.Plan(tokens, {"b.s:k": replaced})
    assert (plan.new, plan.replaced) == ([], []), "an earlier list that is carried out late changes nothing"


def test_a_token_that_another_parent_or_a_push_made_stays() -> None:
    _, mine = parent_and_list()
    _, others = parent_and_list(name="b:2")
    plan = new_tokens.Plan(mine, {"b.s:k": dict(others[0], _rev="1-x")})
    assert (plan.new, plan.replaced) == ([], [])
    assert plan.not_made == [(mine[0], "it exists already, from b:2")]
    plan = new_tokens.Plan([*mine, *others], {})
    assert [token["parent"] for token in plan.new] == ["b:1"]
    assert plan.not_made == [(others[0], "it exists already, from b:1")]


@pytest.mark.parametrize(
    "change", [{"_id": 5}, {"_id": "x:k"}, {"_rev": "1-x"}, {"parent": "b:2"}, {"lock": 7}, {"parent_claim": "x"}]
)
def test_a_list_that_no_pilot_wrote_is_refused(change: dict[str, Any]) -> None:
    parent, (token,) = parent_and_list()
    with pytest.raises(ValueError, match=r"tokens\.jsonl of b:1"):
        new_tokens.read_attachment(json.dumps({**token, **change}).encode(), parent)
