"""Names of attachments: safe on any disk, and which of them are logs."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_picas.lifecycle.attempts import attempt_number
from airflow_provider_picas.tokens import attachments

NAMES = st.text(st.sampled_from("aAbB./\\\0: ~$éÉ-_\n0") | st.characters(), max_size=200)
SAFE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,139}")


def with_stubs(**stubs: tuple[int, int]) -> dict[str, Any]:
    """A token with attachments: revision and length by name."""
    return {
        "_id": "b:1",
        "_attachments": {name: {"revpos": revpos, "length": size} for name, (revpos, size) in stubs.items()},
    }


@given(st.sets(NAMES, max_size=8))
def test_file_names_are_plain_and_differ_by_more_than_case(names: set[str]) -> None:
    files = attachments.file_names(names)
    assert set(files) == names
    assert all(SAFE.fullmatch(file) and not file.endswith(".") for file in files.values())
    assert len({file.lower() for file in files.values()}) == len(names)


def test_a_name_that_is_what_another_was_changed_to() -> None:
    changed = attachments.file_names(["a/b"])["a/b"]
    for names in (["a/b", changed], [changed, "a/b"], ["a/b", changed.upper(), changed]):
        files = attachments.file_names(names)
        assert files["a/b"] == changed
        assert len({file.lower() for file in files.values()}) == len(names)


@given(st.sets(NAMES, max_size=8), NAMES)
def test_folder_names_are_plain_and_differ_by_more_than_case(token_ids: set[str], batch: str) -> None:
    folders = {attachments.folder_name(token_id) for token_id in token_ids}
    assert all(SAFE.fullmatch(folder) for folder in folders)
    assert len({folder.lower() for folder in folders}) == len(token_ids)


@pytest.mark.parametrize(
    "name", ["..", ".", "", "../../etc/passwd", "/etc/passwd", "a/b", "a\0b", "con", "NUL.txt", ".bashrc"]
)
def test_a_name_that_is_not_safe_is_changed(name: str) -> None:
    (file,) = attachments.file_names([name]).values()
    assert SAFE.fullmatch(file)
    assert file != name
    assert attachments.file_names([name, "other"])[name] == file


def test_names_that_differ_by_case_only_are_both_changed() -> None:
    files = attachments.file_names(["Log.txt", "log.txt", "other"])
    assert files["other"] == "other"
    assert files["Log.txt"].startswith("Log-")
    assert files["log.txt"].startswith("log-")
    assert len({file.lower() for file in files.values()}) == 3


def test_names_that_are_safe_stay() -> None:
    names = ["logs_b:1.out", "attempt-1.err", "a.tar.gz", "Result.csv"]
    assert list(attachments.file_names(names).values()) == [attachments.file_names(names)["logs_b:1.out"], *names[1:]]
    assert attachments.file_names(names)["logs_b:1.out"].startswith("logs_b_1-")
    assert attachments.folder_name("b:00000001", "b") == "00000001"
    assert attachments.folder_name("token_1") == "token_1"


def test_logs_the_latest_first_and_stderr_before_stdout() -> None:
    token = with_stubs(**{
        "attempt-1.out": (3, 5), "attempt-1.err": (3, 5), "attempt-2.out": (6, 5), "attempt-2.err": (6, 0), "result.csv": (6, 9),
    })  # fmt: skip
    assert attachments.log_names(token) == ["attempt-2.out", "attempt-1.err", "attempt-1.out"]


@pytest.mark.parametrize(
    ("stubs", "copies"),
    [
        ({}, {}),
        ({"logs_b:1.out": (3, 9)}, {"attempt-1.out": "logs_b:1.out"}),
        (
            {"logs_b:1.out": (3, 9), "logs_b:1.err": (3, 0)},
            {"attempt-1.out": "logs_b:1.out", "attempt-1.err": "logs_b:1.err"},
        ),
        ({"logs_other.out": (3, 9)}, {}),
        # Copied already, and not written anew since.
        ({"logs_b:1.out": (3, 9), "attempt-1.out": (4, 9)}, {}),
        ({"logs_b:1.out": (6, 9), "attempt-1.out": (4, 9)}, {"attempt-2.out": "logs_b:1.out"}),
    ],
)
def test_logs_to_copy_are_found(stubs: dict[str, tuple[int, int]], copies: dict[str, str]) -> None:
    assert attachments.logs_to_copy(with_stubs(**stubs)) == copies


def test_a_log_that_is_too_large_to_copy() -> None:
    much = attachments.MAX_LOG_BYTES + 1
    assert attachments.too_large_to_copy(with_stubs(**{"logs_b:1.out": (3, 1), "logs_b:1.err": (3, much)}))
    assert not attachments.too_large_to_copy(with_stubs(**{"logs_b:1.out": (3, much - 1), "data": (3, much)}))
    assert not attachments.too_large_to_copy(with_stubs(**{"logs_b:1.out": (3, much), "attempt-1.out": (4, much)}))


def test_the_number_of_an_attempt_is_above_all_that_is_kept() -> None:
    assert attempt_number(with_stubs()) == 1
    assert attempt_number({**with_stubs(), "attempts": [{}, {}]}) == 3
    assert attempt_number(with_stubs(**{"attempt-7.out": (1, 1)})) == 8


def test_logs_of_attempts_that_are_not_kept_any_more() -> None:
    token = {**with_stubs(**{f"attempt-{n}.out": (n, 1) for n in range(1, 13)}), "attempts": [{}] * 10}
    assert attachments.outdated_logs(token) == ["attempt-1.out", "attempt-2.out", "attempt-3.out"]
