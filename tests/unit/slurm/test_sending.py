"""Files that a shell writes from its standard input, for each login shell that is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from airflow_provider_picas.slurm import remote, sending
from airflow_provider_picas.slurm.remote import Output, RemoteFile

MARKER = "picas-0123456789abcdef"
SHELLS = ("sh", "bash", "dash", "bsd-csh", "tcsh", "zsh", "fish")


def send(files: Sequence[RemoteFile], home: Path, shell: str = "sh", stdin: bytes | None = None) -> Output:
    """As sshd does: the account's own shell is handed the line."""
    ended = subprocess.run(
        [shell, "-c", sending.line(MARKER)],
        input=b"".join(sending.stdin(files, MARKER)) if stdin is None else stdin,
        env={**os.environ, "HOME": str(home)},
        capture_output=True,
        check=False,
    )
    return sending.outcome(remote.unwrap(ended.stdout.decode(), ended.stderr.decode(), MARKER))


@pytest.mark.parametrize("shell", SHELLS)
def test_any_bytes_and_names_arrive(tmp_path: Path, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    (tmp_path / ".bash_profile").write_text("cat\n")  # would take the content
    (tmp_path / "sent").mkdir()
    files = [
        RemoteFile(f"{tmp_path}/sent/{name}", content, mode)
        for name, content, mode in [
            ("a b'c\"$x`!", bytes(range(256)) * 3_000, 0o600),
            ("-é\n\\", b"", 0o700),
            ("*", b"\0", 0o644),
        ]
    ]
    for _ in range(2):
        assert send(files, tmp_path, shell) == Output(0)
    for file in files:
        path = Path(file.path)
        assert (path.read_bytes(), path.stat().st_mode & 0o777) == (file.content, file.mode)
    assert len(list((tmp_path / "sent").iterdir())) == len(files)


def test_nobody_else_sees_a_file_while_it_is_written(tmp_path: Path) -> None:
    file = RemoteFile(f"{tmp_path}/secret", b"x" * 200_000)
    content = b"".join(sending.stdin([file], MARKER))
    program = subprocess.Popen(
        ["sh", "-c", f"umask 000; {sending.line(MARKER)}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert program.stdin is not None
    program.stdin.write(content[:-1])
    program.stdin.flush()
    aside, until = tmp_path / f".secret.{MARKER}", time.monotonic() + 60
    while not (aside.exists() and aside.stat().st_size) and time.monotonic() < until:
        time.sleep(0.01)
    assert [entry.name for entry in tmp_path.iterdir()] == [aside.name]
    assert aside.stat().st_mode & 0o777 == 0o600
    said, _ = program.communicate(timeout=60)  # as when the connection breaks
    assert "did not arrive as it was sent" in said.decode()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "eaten", [slice(1, None), slice(30, None), slice(0, -1), slice(0, 30), slice(0, 0), slice(50, 60)]
)
def test_content_that_does_not_arrive_whole_changes_nothing(tmp_path: Path, eaten: slice) -> None:
    (tmp_path / "b").write_text("old")
    files = [RemoteFile(f"{tmp_path}/{name}", b"0123456789" * 10) for name in "ab"]
    output = send(files, tmp_path, stdin=b"".join(sending.stdin(files, MARKER))[eaten])
    assert output.code == 1
    assert "did not arrive as it was sent" in output.stderr
    assert {entry.name: entry.read_text() for entry in tmp_path.iterdir()} == {"b": "old"}


def test_a_missing_folder_is_reported(tmp_path: Path) -> None:
    files = [RemoteFile(f"{tmp_path}/a", b"1"), RemoteFile(f"{tmp_path}/nowhere/b", b"2")]
    assert send(files, tmp_path) == Output(1, stderr=f"{tmp_path}/nowhere/b: No such file or directory\n")
    assert not list(tmp_path.iterdir())


def test_a_folder_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    output = send([RemoteFile(f"{tmp_path}/a", b"1")], tmp_path)
    assert (output.code, output.stderr[: len(f"{tmp_path}/a: ")]) == (1, f"{tmp_path}/a: ")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_the_command_line_holds_nothing_of_the_files() -> None:
    assert sending.line(MARKER) == sending.line(MARKER)
    assert max(len(word) for word in sending.line(MARKER).split("'")) < 1_000
