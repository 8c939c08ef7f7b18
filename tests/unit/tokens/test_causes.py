"""Errors of tokens as text, and grouped by their cause."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_picas.tokens import causes
from airflow_provider_picas.tokens.causes import Groups, cause_of, error_text, message_of

TRACEBACK = """Traceback (most recent call last):
  File "/home/me/pilot.py", line 12, in process_task
    open(token["input"])
FileNotFoundError: [Errno 2] No such file or directory: '/data/run_12/a.fits'
"""


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        ({}, "no exit code and no error"),
        ({"exit_code": ""}, "no exit code and no error"),
        ({"exit_code": 137}, "exit code 137"),
        ({"exit_code": "1"}, "exit code 1"),
        ({"error": []}, "no exit code and no error"),
        ({"error": [{"message": "first"}, {"message": "took 17.5 s of 10"}]}, "took <n> s of <n>"),
        ({"error": [{"message": "exit code 3: no file /d/17.txt"}], "exit_code": 3}, "exit code 3: no file <path>"),
        ({"error": [{"message": "broken"}], "exit_code": 3}, "broken (exit code 3)"),
        ({"error": [{"exception": TRACEBACK}]}, "FileNotFoundError: [Errno <n>] No such file or directory: '<path>'"),
        ({"error": [{"message": "it failed", "exception": "NoneType: None\n"}]}, "it failed"),
        ({"error": [{"message": "cannot run b:17 at 0x7f00aa"}]}, "cannot run <token> at <id>"),
        ({"error": "a text"}, "a text"),
        ({"error": [{"time": 5, "why": "x"}]}, "time: <n>, why: x"),
        ({"error": [None, ["a", 1]]}, "a,<n>"),
        ({"error": [{"message": {"a": 1}}]}, "[object Object]"),
        ({"error": [{"message": "https://host/file?id=7 is gone"}]}, "<path> is gone"),
        ({"error": [{"message": "  \n "}]}, "an empty error"),
    ],
)
def test_an_error_has_a_cause(fields: dict[str, Any], cause: str) -> None:
    assert cause_of({"_id": "b:17", **fields}) == cause


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "no exit code and no error"),
        ({"exit_code": 137}, "exit code 137"),
        ({"error": [{"exception": TRACEBACK}]}, TRACEBACK.splitlines()[-1]),
        ({"error": [{"message": "took 17.5 s of 10"}], "exit_code": 3}, "took 17.5 s of 10 (exit code 3)"),
        ({"error": [{"message": "exit code 3: no file /d/17.txt"}], "exit_code": 3}, "exit code 3: no file /d/17.txt"),
        ({"error": [{"message": "  \n "}]}, "an empty error"),
    ],
)
def test_the_message_of_a_token_keeps_its_numbers_and_paths(fields: dict[str, Any], message: str) -> None:
    assert message_of({"_id": "b:17", **fields}) == message


def test_a_long_message_keeps_the_exit_code() -> None:
    message = message_of({"error": [{"message": "\x1b" * 5_000}], "exit_code": 3})
    assert message.endswith("… (exit code 3)")
    assert message.startswith("\\x1b")
    assert len(message) <= causes.MESSAGE_LENGTH


def test_error_text_holds_code_exception_and_message() -> None:
    token = {"exit_code": 2, "error": [{"message": "one"}, {"message": "two", "exception": "E: three"}]}
    assert error_text(token) == "exit code 2\none\nE: three\ntwo"


def test_a_long_text_is_cut_from_its_beginning() -> None:
    text = error_text({"error": [{"message": "x" * 50_000 + "end"}]})
    assert len(text) == causes.TEXT_LENGTH
    assert text.endswith("end")


def test_errors_are_grouped_by_cause() -> None:
    groups = Groups()
    first = [groups.add({"_id": f"t{n}", "exit_code": n % 3}) for n in range(9)]
    assert first == [True] * 3 + [False] * 6
    groups.add({"_id": "u", "exit_code": 2})
    largest = groups.largest(2)
    assert [(group.cause, group.tokens) for group in largest] == [("exit code 2", 4), ("exit code 0", 3)]
    assert largest[0].ids == ["t2", "t5", "t8", "u"]


def test_memory_of_groups_is_bounded() -> None:
    groups = Groups()
    for number in range(3 * causes.MOST_GROUPS):
        groups.add({"_id": "t", "exit_code": number})
    assert len(groups) == causes.MOST_GROUPS + 1
    assert groups.largest(1)[0].cause == causes.OTHER
