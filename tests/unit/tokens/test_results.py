"""Rows of results, as JSON, as CSV, and the types of their columns."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest

from airflow_provider_picas.tokens.results import ColumnTypes, as_type, csv_cells, json_line, parse_fields, row_of

TOKEN = {
    "_id": "b:1", "type": "token", "lock": 5, "done": 7, "exit_code": 0, "output": {"words": 3, "lines": None}, "a.b": 1,
}  # fmt: skip


def test_a_token_becomes_a_row() -> None:
    row = row_of(TOKEN, ["output", "output.words", "output.lines", "a.b", "output.words.x", "none"])
    assert row == {
        "id": "b:1", "state": "done", "exit_code": 0, "lock": 5, "done": 7,
        "output": {"words": 3, "lines": None}, "output.words": 3, "output.lines": None, "a.b": 1, "output.words.x": None,
        "none": None,
    }  # fmt: skip
    assert row_of({**TOKEN, "exit_code": ""}, [])["exit_code"] is None
    assert json.loads(json_line(row)) == row


@pytest.mark.parametrize(
    ("given", "fields"), [("output, x.y", ["output", "x.y"]), (["a", "b", "a"], ["a", "b"]), ([], [])]
)
def test_fields_are_parsed(given: Any, fields: list[str]) -> None:
    assert parse_fields(given) == fields


@pytest.mark.parametrize("given", [5, [5], ["state"], "a,,b", None, {"a"}])
def test_invalid_fields_are_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="`fields`"):
        parse_fields(given)


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (None, ""), (5, "5"), (-5, "-5"), (0.5, "0.5"), (True, "true"), ("text", "text"), ("a,b\n\"c\"", "a,b\n\"c\""),
        ({"a": [1]}, '{"a":[1]}'), ("=1+1", "'=1+1"), ("+cmd|x", "'+cmd|x"), ("-cmd", "'-cmd"), ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"), ("\r=1", "'\r=1"), ("-5", "-5"), ("+1.5e-3", "+1.5e-3"), ("-5+cmd|x", "'-5+cmd|x"), ("-5\n", "'-5\n"),
        ("a;=1+1", "a;'=1+1"), ("a;-5", "a;-5"), ("a;\t@x;+1", "a;'\t@x;+1"), ("=1;=2", "'=1;'=2"), ("a;=", "a;'="), (";", ";"),
        ("\uff1d1+1", "'\uff1d1+1"), ({"a": "x;=1"}, '{"a":"x\\u003b=1"}'), (["=1"], '["=1"]'),
    ],
)  # fmt: skip
def test_values_become_cells(value: Any, cell: str) -> None:
    assert csv_cells({"x": value}) == [cell]
    file = io.StringIO(newline="")
    csv.writer(file).writerow([cell, "end"])
    file.seek(0)
    assert next(csv.reader(file)) == [cell, "end"]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([], "string"), ([None], "string"), ([True, None], "bool"), ([1, None], "int64"), ([1, 0.5], "double"), ([0.5], "double"),
        (["a"], "string"), (["a", 1], "json"), ([True, 1], "json"), ([[1]], "json"), ([2**63], "json"), ([-(2**63)], "int64"),
    ],
)  # fmt: skip
def test_columns_have_types(values: list[Any], kind: str) -> None:
    types = ColumnTypes(["x"])
    for value in values:
        types.add({"x": value})
    assert types.types() == {"x": kind}
    for value in values:
        stored = as_type(value, kind)
        assert stored is None if value is None else (json.loads(stored) == value if kind == "json" else stored == value)
