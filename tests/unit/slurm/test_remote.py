"""Remote commands between markers, run by a real shell."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_picas.slurm import remote
from airflow_provider_picas.slurm.remote import Output, RemoteError, UnreachableError

MARKER = "picas-0123456789abcdef"


def run(text: str, home: Path, profile: str = "") -> Output:
    """As sshd does: the account's own shell is handed the line."""
    (home / ".bash_profile").write_text(profile)
    ended = subprocess.run(
        ["sh", "-c", remote.wrap(text, MARKER)],
        env={**os.environ, "HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    return remote.unwrap(ended.stdout, ended.stderr, MARKER)


@pytest.mark.parametrize(
    ("text", "output"),
    [
        ("echo hi", Output(0, "hi\n")),
        ("printf hi", Output(0, "hi")),
        ("true", Output(0)),
        ("exit 7", Output(7)),
        ("echo out; echo err >&2; false", Output(1, "out\n", "err\n")),
        ("echo 'one\ntwo'\necho three", Output(0, "one\ntwo\nthree\n")),
        ("printf '\\n\\n'", Output(0, "\n\n")),
        (f"echo {MARKER}", Output(0, f"{MARKER}\n")),
        ("cd /nowhere || exit 3; echo not reached", Output(3, "", "x")),
        ("echo \"$HOME\" '!' `echo a` $'b'", Output(0, "x")),
    ],
)
def test_output_and_exit_code(tmp_path: Path, text: str, output: Output) -> None:
    got = run(text, tmp_path)
    assert got.code == output.code
    if output.stdout != "x":
        assert got.stdout == output.stdout
    assert bool(got.stderr) == bool(output.stderr)


@pytest.mark.parametrize(
    "profile", ["echo Welcome", "printf 'no newline'", "cat <<E\n****\npicas-\n1 2\nE", "echo err >&2"]
)
def test_a_banner_is_left_out(tmp_path: Path, profile: str) -> None:
    assert run("echo hi", tmp_path, profile).stdout == "hi\n"


def test_the_login_profile_is_read(tmp_path: Path) -> None:
    assert run("echo $SITE", tmp_path, "export SITE=spider").stdout == "spider\n"


def test_a_profile_that_ends_the_shell_is_told_with_its_words(tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match=r"ended before it ran a command[.] It said: Your password has expired"):
        run("echo hi", tmp_path, "echo Your password has expired; exit 1")


@settings(max_examples=25)
@given(
    words=st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=20), max_size=4
    )
)
def test_quoted_words_arrive_as_they_are(tmp_path_factory: pytest.TempPathFactory, words: list[str]) -> None:
    quoted = remote.quote(*words)
    got = run(f"for word in {quoted}; do printf '<%s>' \"$word\"; done", tmp_path_factory.mktemp("home"))
    assert got == Output(0, "".join(f"<{word}>" for word in words))


def test_what_the_accounts_own_shell_sees_is_one_line_without_its_special_characters() -> None:
    # A csh expands ! and reads $, " and ` even in some quotes; sh and csh agree on single quotes, if no ' or ! is in them.
    line = remote.wrap("echo 'it''s' \"$HOME\" `date` !! \\\n# \n", MARKER)
    head, inner, tail = line.split("'")
    assert (head, tail) == ("exec bash -lc ", "")
    assert not set("'!\n\\") & set(inner)


def cut(stdout: str) -> None:
    remote.unwrap(stdout, "", MARKER)


@pytest.mark.parametrize("rest", ["", "hi\n", f"hi\n\n{MARKER}", f"hi\n\n{MARKER} ", f"hi\n\n{MARKER} 12"])
def test_an_end_that_is_missing_is_a_broken_connection(rest: str) -> None:
    with pytest.raises(UnreachableError, match="broke before the command had ended"):
        cut(f"banner\n\n{MARKER}\n{rest}")


def test_a_marker_is_new_each_time() -> None:
    assert len({remote.new_marker() for _ in range(100)}) == 100


def test_what_a_failure_said() -> None:
    assert Output(1, "out\n", "err\n").said == "err"
    assert Output(1, "out\n", " \n").said == "out"
    assert Output(7).said == "exit code 7, and no message"
    assert len(Output(1, stderr="x" * 5_000).said) == 1_000


def test_content_is_in_no_repr() -> None:
    assert "s3cret" not in repr(remote.Send([remote.RemoteFile("/x", b"s3cret")]))
