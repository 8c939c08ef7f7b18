"""Tokens as a person sees them. Whole answers are tested on a real API server."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_provider_picas.lifecycle.profile import SHIPPED, read
from airflow_provider_picas.tokens import table

NOW = 1_763_820_000
TOKEN = {"_id": "b:1", "_rev": "1-a", "type": "token", "lock": NOW, "done": NOW + 60, "exit_code": 3, "scrub_count": 0}


def test_what_is_shown_of_a_token_is_bounded() -> None:
    much = "x" * 1_000_000
    stubs = {f"attempt-{n}.err": {"content_type": "text/plain", "length": 1, "revpos": n} for n in range(5_000)}
    token: dict[str, Any] = {
        **TOKEN,
        "input": much, "output": much, "error": [{"message": much}] * 10, "hostname": much, "slurm_job_id": much,
        "attempts": [{"error": much, "reason": much, "hostname": much, "lock": NOW}] * 1_000,
        "_attachments": stubs,
        **{f"field-{n}": much for n in range(200)},
    }  # fmt: skip
    assert len(json.dumps(table.details_of(token, "b"))) < 1_500_000
    assert len(json.dumps(table.row_of(token, "b"))) < 2_000


def test_a_single_token_has_its_own_message_and_a_row_the_cause_of_its_group() -> None:
    token = {**TOKEN, "error": [{"message": "exit code 3: [Errno 2] No such file: '/data/17.txt'"}]}
    details = table.details_of(token, "b")
    assert details["cause"] == details["attempts"][-1]["error"] == "exit code 3: [Errno 2] No such file: '/data/17.txt'"
    assert table.row_of(token, "b")["cause"] == "exit code 3: [Errno <n>] No such file: '<path>'"


@pytest.mark.parametrize(
    ("fields", "attempts"),
    [
        ({}, 1),
        ({"lock": 0, "done": 0}, 0),
        ({"scrub_count": 2}, 3),
        ({"attempts": [{"earlier": {"failed": 5}}, {}]}, 8),
        ({"attempts": "odd", "scrub_count": "odd"}, 1),
    ],
)
def test_attempts_are_counted_with_those_that_were_dropped(fields: dict[str, Any], attempts: int) -> None:
    assert table.row_of({**TOKEN, **fields}, "b")["attempts"] == attempts


@pytest.mark.parametrize(
    ("name", "kind", "shown"),
    [
        ("a.png", "image/png", "picture"),
        ("a.png", "image/svg+xml", "download"),
        ("a.html", "text/html; charset=utf-8", "text"),
        ("attempt-1.err", "application/octet-stream", "text"),
        ("logs_b:1.out", "application/octet-stream", "text"),
        ("data.bin", "application/octet-stream", "download"),
        ("a.pdf", "application/pdf", "download"),
        ("a", 7, "download"),
    ],
)
def test_how_an_attachment_may_be_shown(name: str, kind: Any, shown: str) -> None:
    assert table.how_to_show(name, {"content_type": kind, "length": 3}) == shown


@pytest.mark.parametrize(
    ("fields", "state", "name"),
    [
        ({"lock": NOW, "done": 0, "status": "downloading"}, "locked", "downloading"),
        ({"lock": NOW, "done": 0, "status": "other"}, "locked", None),
        ({"lock": 0, "done": 0, "status": "downloading"}, "todo", None),
        ({"lock": 0, "done": NOW, "status": ["downloading"]}, "stateless", None),
    ],
)
def test_a_row_has_the_name_that_the_pool_gives_to_the_state(
    fields: dict[str, Any], state: str, name: str | None
) -> None:
    token = {**TOKEN, "type": "SKSP", **fields}
    for shown in (
        table.row_of(token, "SKSP", SHIPPED["grid_lrt"]),
        table.details_of(token, "SKSP", SHIPPED["grid_lrt"]),
    ):
        assert (shown["state"], shown["name"]) == (state, name)
    assert table.row_of(token, "SKSP")["name"] is None, "a plain pool has no names of its own"


def test_a_filter_by_name_reads_tokens_and_tells_states_of_the_same_name_apart() -> None:
    rows = [
        {"state": "todo", "when": "lock == 0"},
        {"state": "locked", "name": "staging", "when": 'lock > 0 && done == 0 && step == "a"'},
        {"state": "locked", "when": "lock > 0 && done == 0"},
        {"state": "done", "when": "exit_code == 0"},
        {"state": "error", "name": "staging", "when": "done > 0"},
    ]
    profile = read({"name": "steps", "states": rows})
    chosen = table.Filter("b", name="staging")
    assert chosen.reads
    tokens = [TOKEN, {**TOKEN, "exit_code": 0}, {**TOKEN, "done": 0, "step": "a"}, {**TOKEN, "done": 0}]
    found = [table.row_of(token, "b", profile) for token in tokens]
    assert [row["state"] for row in found if chosen.matches(row)] == ["error", "locked"]
