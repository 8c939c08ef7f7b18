"""Remote commands between markers, run by a real shell."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_picas.slurm import remote
from airflow_provider_picas.slurm.remote import Output, RemoteError, UnreachableError

MARKER = "picas-0123456789abcdef"


def run(text: str, home: Path, profile: str = "", shell: str = "sh") -> Output:
    """As sshd does: the account's own shell is handed the line."""
    (home / ".bash_profile").write_text(profile)
    ended = subprocess.run(
        [shell, "-c", remote.wrap(text, MARKER)],
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


@pytest.mark.parametrize(
    "profile",
    [
        "shopt -s expand_aliases; alias ls='ls -l' echo='echo -e' exec='exec -a x' eval=true",
        "set -euo pipefail",
        "set -f; set -x; set -- a b c; trap 'echo bye' EXIT; IFS=0123456789",
        "export CDPATH=$HOME",
        "export SHELLOPTS; set -u; set -o noglob",
        "export BASH_ENV=$HOME/.bash_env ENV=$HOME/.bash_env; echo 'echo hello; cd() { echo cd; }; set -e' >$HOME/.bash_env",
        "ls() { command ls -l; }; cd() { echo; }; export -f ls cd",
        "export POSIXLY_CORRECT=1",
    ],
)
def test_shell_code_of_the_profile_does_not_reach_ours(tmp_path: Path, profile: str) -> None:
    (tmp_path / "pilots").mkdir()
    (tmp_path / "pilots" / "a.1").touch()
    text = f"""
cd -- {tmp_path} && cd -- pilots; false | true && echo "$?"; ls -d a.*; echo "[$NO_SUCH]" "$#"; a=12; echo $a
bash -p -c "ls; cd /"
"""
    got = run(text, tmp_path, profile)
    assert (got.code, got.stdout) == (0, "0\na.1\n[] 0\n12\na.1\n")


def test_a_job_gets_the_functions_and_bash_env_of_the_profile(tmp_path: Path) -> None:
    """Sites hand on ``module`` by these, and sbatch passes the environment to the job."""
    profile = "module() { echo loaded; }; export -f module; export BASH_ENV=$HOME/init; echo 'echo init' >$HOME/init"
    assert run('bash -c "module load python"', tmp_path, profile).stdout == "init\nloaded\n"


def test_slurms_input_variables_do_not_reach_its_commands(tmp_path: Path) -> None:
    names = (
        "SQUEUE_PARTITION", "SQUEUE_STATES", "SACCT_FORMAT", "SBATCH_EXPORT", "SBATCH_ARRAY_INX", "SCANCEL_STATE",
        "SCANCEL_INTERACTIVE", "SLURM_TIME_FORMAT", "SLURM_BITSTR_LEN", "SCONTROL_ALL",
    )  # fmt: skip
    kept = {"SLURM_CONF": "/etc/x y'\"z", "SLURM_CLUSTERS": "a,b", "SBATCH_ACCOUNT": "we"}
    profile = "\n".join(
        f"export {name}={shlex.quote(value)}" for name, value in {**dict.fromkeys(names, "1"), **kept}.items()
    )
    said = run("env -0 | tr '\\n' ' ' | tr '\\0' '\\n' | grep -E '^(S[A-Z]+_)'", tmp_path, profile).stdout.splitlines()
    found = dict(line.split("=", 1) for line in said)
    assert not set(names) & set(found)
    assert kept.items() <= found.items()


def test_a_profile_that_ends_the_shell_is_reported_with_its_words(tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match=r"ended before it ran a command[.] It printed: Your password has expired"):
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
    quoted = line.split("'")
    assert (quoted[0], {text.strip() for text in quoted[2::2]}) == ("exec sh -c ", {""})
    assert not set("!\n\\") & set(line)


def test_no_word_is_longer_than_a_bsd_csh_takes() -> None:
    line = remote.wrap("scancel " + " ".join(str(job) for job in range(20_000)), MARKER)
    assert max(len(word) for word in line.split("'")) < 1_000


CSH = shutil.which("bsd-csh") or shutil.which("tcsh") or shutil.which("csh")


@pytest.mark.skipif(CSH is None, reason="no csh here")
def test_a_long_text_for_an_account_with_a_csh(tmp_path: Path) -> None:
    names = [f"picas-{number:040}" for number in range(400)]
    assert run(f"printf '%s\\n' {' '.join(names)}", tmp_path, shell=str(CSH)).stdout.split() == names


def cut(stdout: str) -> None:
    remote.unwrap(stdout, "", MARKER)


@pytest.mark.parametrize("rest", ["", "hi\n", f"hi\n\n{MARKER}", f"hi\n\n{MARKER} ", f"hi\n\n{MARKER} 12"])
def test_an_end_that_is_missing_is_a_broken_connection(rest: str) -> None:
    with pytest.raises(UnreachableError, match="broke before the command ended"):
        cut(f"banner\n\n{MARKER}\n{rest}")


def test_a_marker_is_new_each_time() -> None:
    assert len({remote.new_marker() for _ in range(100)}) == 100


def test_a_failure_has_the_commands_message() -> None:
    assert Output(1, "out\n", "err\n").message == "err"
    assert Output(1, "out\n", " \n").message == "out"
    assert Output(7).message == "exit code 7 without a message"
    assert len(Output(1, stderr="x" * 5_000).message) == 1_000


def test_content_is_in_no_repr() -> None:
    assert "s3cret" not in repr(remote.Send([remote.RemoteFile("/x", b"s3cret")]))
