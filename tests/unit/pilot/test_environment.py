"""What a command sees in its environment, and what is read of the files that it writes."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_picas.pilot.environment import job_environment, read_json, token_environment


def test_the_fields_of_a_token_become_variables() -> None:
    doc = {"_id": "a b", "_rev": "1-x", "input": [1, "x"], "n": 2, "f": 0.5, "yes": False, "none": None, "list": [1]}
    doc |= {"Same": 1, "same": 2, "with space": 1, "ümlaut": 1, "nul": "a\0b", "big": "x" * 65537, "path": "p"}
    doc["n\n"] = 1
    assert token_environment(doc) == {
        "PICAS_TOKEN_ID": "a b",
        "PICAS_INPUT": '[1,"x"]',
        "PICAS_FIELD_N": "2",
        "PICAS_FIELD_F": "0.5",
        "PICAS_FIELD_YES": "false",
        "PICAS_FIELD_PATH": "p",
        "PICAS_OMITTED": "PICAS_FIELD_BIG PICAS_FIELD_NUL",
    }


def test_all_fields_together_are_bounded() -> None:
    doc = {"_id": "a", "input": "i" * 60_000, **{f"f{n}": "x" * 60_000 for n in range(20)}}
    env = token_environment(doc)
    assert sum(len(value) for name, value in env.items() if name != "PICAS_OMITTED") <= 512 * 1024
    assert "PICAS_INPUT" in env
    assert len(env["PICAS_OMITTED"].split()) == 13


def test_the_jobs_environment_is_passed_on_without_credentials(tmp_path: Path) -> None:
    base = {"HOME": "/h", "PICAS_PASSWORD": "x", "PICAS_FIELD_A": "x", "PICAS_INPUT": "x", "PICAS_MINE": "kept"}
    path = f"/a{os.pathsep}{tmp_path}/.{os.pathsep}/b"
    env = job_environment({**base, "PYTHONPATH": path}, str(tmp_path))
    assert env == {"HOME": "/h", "PICAS_MINE": "kept", "PYTHONPATH": f"/a{os.pathsep}/b"}
    assert "PYTHONPATH" not in job_environment({"PYTHONPATH": str(tmp_path)}, str(tmp_path))


@pytest.mark.parametrize(
    ("content", "value", "fault"),
    [
        (b'{"a": [1, 2.5, null]}', {"a": [1, 2.5, None]}, None),
        (b" \n", None, None),
        (b"nonsense", None, "not valid JSON"),
        (b"\xff", None, "not valid JSON"),
        (b"NaN", None, "not valid JSON"),
        (b"1e999", None, "not valid JSON"),
        (b'"\\ud800"', None, "not valid JSON"),
        (b"[" * 5000, None, "not valid JSON"),
        (b"[" * 499 + b"{}" + b"]" * 499, functools.reduce(lambda value, _: [value], range(499), {}), None),
        (b"[" * 500 + b"{}" + b"]" * 500, None, "nested more than 500 deep"),
        (b'{"a":' * 700 + b"[]" + b"}" * 700, None, "nested more than 500 deep"),
        (b'"' + b"x" * 9999 + b'"', None, "more than 10,000 bytes"),
    ],
)
def test_what_a_command_writes_is_read_or_named(tmp_path: Path, content: bytes, value: Any, fault: str | None) -> None:
    (tmp_path / "out.json").write_bytes(content)
    got = read_json(str(tmp_path / "out.json"), 10_000)
    assert got[:2] == (value, value is not None)
    assert (fault or "") in (got[2] or "")
    assert (got[2] is None) is (fault is None)


def test_what_a_command_leaves_instead_of_a_file_is_refused(tmp_path: Path) -> None:
    assert read_json(str(tmp_path / "none"), 10) == (None, False, None)
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        assert "not a regular file" in str(read_json(str(tmp_path / name), 10)[2])
    (tmp_path / "loop").symlink_to("loop")
    assert "cannot be read" in str(read_json(str(tmp_path / "loop"), 10)[2])
