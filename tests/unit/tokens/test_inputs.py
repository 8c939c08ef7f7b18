"""Files of inputs: what a line must contain, and which line an error names."""

from __future__ import annotations

import csv
import gzip
import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_picas.tokens import inputs
from airflow_provider_picas.tokens.documents import MAX_BYTES, BadTokenError
from airflow_provider_picas.tokens.inputs import Lines


def json_values(content: bytes) -> list[Any]:
    return list(inputs.json_lines(Lines(io.BytesIO(content))))


def rows(content: bytes) -> list[dict[str, Any]]:
    return list(inputs.csv_rows(Lines(io.BytesIO(content))))


def fault(read: Any, content: bytes) -> tuple[int, int, str]:
    """The number of good values before the fault, its line, and what is said of it."""
    lines, good = Lines(io.BytesIO(content)), list[Any]()
    with pytest.raises(BadTokenError) as caught:
        good.extend(read(lines))
    return len(good), lines.record, str(caught.value)


def test_json_lines_are_read() -> None:
    assert json_values(b'{"a": 1}\n\n"x"\r\n  \n[1]\n5\nnull') == [{"a": 1}, "x", [1], 5, None]
    assert json_values('\ufeff"é"\n'.encode()) == ["é"]
    assert json_values(b"") == json_values(b"\n") == []


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        (b'1\n\n{"a": 1, "b', 3, "not valid JSON (Unterminated string starting at: character 10)"),
        (b'1\n{"a": 1\n{"b": 2}\n', 2, "not valid JSON (Expecting ',' delimiter"),
        (b"1\n12", 2, "ends with a number without a newline: it may be truncated"),
        (b"1\ntru", 2, "may be truncated"),
        (b'1\n"\xc3\n', 2, "not valid UTF-8"),
        (b"1\n" + b"[" * 100_000 + b"\n", 2, "not valid JSON"),
        (b"1\n" + b"x" * (MAX_BYTES + 1), 2, "longer than 8,000,000 bytes"),
    ],
)
def test_invalid_json_lines_are_named(content: bytes, line: int, words: str) -> None:
    good, where, said = fault(inputs.json_lines, content)
    assert (good, where) == (1, line)
    assert words in said


def test_csv_rows_are_read() -> None:
    content = b'\xef\xbb\xbfname,priority,cores,note\r\na,5,,"x, ""y""\nz"\r\n\r\nb,-1.5,4,\r\n'
    assert rows(content) == [
        {"name": "a", "priority": 5, "note": 'x, "y"\nz'},
        {"name": "b", "priority": -1.5, "cores": 4, "note": ""},
    ]
    assert rows(b"name,time\n007,1e3\n") == [{"name": "007", "time": 1000.0}]
    assert rows(b"name\n") == []


def test_a_csv_cell_may_be_large() -> None:
    assert len(rows(b"name\n" + b"x" * 2_000_000 + b"\n")[0]["name"]) == 2_000_000


@pytest.mark.parametrize(
    ("content", "good", "line", "words"),
    [
        (b"", 0, 1, "The file is empty"),
        (b"a,b\n1,2\n3\n", 1, 3, "The row has 1 cells, but the header has 2"),
        (b"a,b\n1,2,3\n", 0, 2, "The row has 3 cells, but the header has 2"),
        (b"a,b\n1,2\n3,4", 1, 3, "does not end with a newline: it may be truncated"),
        (b'a,b\n1,2\n3,"4\n5\n6\n', 1, 3, "Invalid CSV row (unexpected end of data)"),
        (b'a,b\n1,"2"3\n', 0, 2, "Invalid CSV row"),
        (b'a,b\n"1\n1",2\n3\n', 1, 4, "The row has 1 cells"),
        (b"a;b\n1;2\n", 0, 1, "separated by commas"),
        (b"a,b,a\n1,2,3\n", 0, 1, "two columns named 'a'"),
        (b"a,,c\n1,2,3\n", 0, 1, "a column without a name"),
        (b"a,b\n\xff,2\n", 0, 2, "not valid UTF-8"),
    ],
)
def test_invalid_csv_rows_are_named(content: bytes, good: int, line: int, words: str) -> None:
    found = fault(inputs.csv_rows, content)
    assert found[:2] == (good, line)
    assert words in found[2]


@pytest.mark.parametrize("cut", [5, 15, -20, -9, -1])
def test_a_compressed_file_that_was_cut_off_is_reported(cut: int) -> None:
    packed = gzip.compress(b'{"a": 1}\n' * 1_000)[:cut]
    with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file, pytest.raises(BadTokenError, match="truncated"):
        list(inputs.json_lines(Lines(file)))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3)
    ),
)


@given(st.lists(JSON), st.data())
def test_json_lines_that_are_cut_anywhere_give_whole_values_only(values: list[Any], data: Any) -> None:
    content = "".join(json.dumps(value) + "\n" for value in values).encode()
    assert json_values(content) == values
    cut = data.draw(st.integers(0, len(content)))
    found = []
    try:
        for value in inputs.json_lines(Lines(io.BytesIO(content[:cut]))):
            found.append(value)
    except BadTokenError:
        pass
    assert found == values[: len(found)]


CELL = st.text(st.characters(codec="utf-8", exclude_characters="\x00\r"), min_size=1, max_size=5)


@given(st.lists(st.tuples(CELL, CELL)), st.data())
def test_csv_that_is_cut_anywhere_gives_whole_rows_only(cells: list[tuple[str, str]], data: Any) -> None:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([("a", "b"), *cells])
    content = file.getvalue().encode()
    wanted = [{"a": one, "b": two} for one, two in cells]
    assert rows(content) == wanted
    cut = data.draw(st.integers(0, len(content)))
    found = []
    try:
        for row in inputs.csv_rows(Lines(io.BytesIO(content[:cut]))):
            found.append(row)
    except BadTokenError:
        pass
    assert found == wanted[: len(found)]


def test_attachments_say_what_they_are() -> None:
    assert inputs.inline_attachment("a.txt", b"hi") == {"content_type": "text/plain", "data": "aGk="}
    assert inputs.inline_attachment("a.tar.gz", b"")["content_type"] == "application/octet-stream"
    assert inputs.inline_attachment("a.unknown-kind", b"")["content_type"] == "application/octet-stream"
    for name in ("", "_x", 5, None):
        with pytest.raises(BadTokenError, match="cannot be named"):
            inputs.inline_attachment(name, b"")


def test_the_key_is_a_field_of_the_token_or_of_its_input() -> None:
    assert inputs.find_key({"a": 1, "input": {"a": 2, "b": 3}}, "a") == 1
    assert inputs.find_key({"input": {"b": 3}}, "b") == 3
    for fields in ({}, {"input": "a"}, {"input": None}):
        with pytest.raises(KeyError):
            inputs.find_key(fields, "a")
