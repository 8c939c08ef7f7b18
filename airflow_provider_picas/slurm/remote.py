"""Steps on a login node as data: operations yield them and receive their results, so that hooks only do I/O."""

from __future__ import annotations

import base64
import re
import secrets
import shlex
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from airflow_provider_picas.tokens.text import one_line


class RemoteError(Exception):
    """An error on the cluster's side; the message says where it happened and what to do."""


class LoginError(RemoteError):
    """The login is refused, the host key is not accepted, or the connection cannot be used: trying again does not help."""


class UnreachableError(RemoteError):
    """The login node could not be reached, or the connection broke."""


class NoSessionError(UnreachableError):
    """sshd opens no more sessions on this connection (``MaxSessions``). The connection stays usable."""


@dataclass(frozen=True)
class Command:
    """Shell code to run on the login node under the login profile. ``timeout`` is in seconds."""

    text: str
    timeout: float = 60.0


@dataclass(frozen=True)
class RemoteFile:
    """A file to send; ``content`` never appears in a repr. It is created with ``mode`` before anything is written to it."""

    path: str
    content: bytes = field(repr=False)
    mode: int = 0o600


@dataclass(frozen=True)
class Send:
    """Files to write into existing folders. All are written under temporary names first, so that a full disk changes none."""

    files: Sequence[RemoteFile]


@dataclass(frozen=True)
class Pause:
    """Wait for some seconds."""

    seconds: float


@dataclass(frozen=True)
class Output:
    """The output of a command, and its exit code."""

    code: int
    stdout: str = ""
    stderr: str = ""

    @property
    def message(self) -> str:
        """The error message of the command: stderr, else stdout; at most 1,000 characters."""
        text = (self.stderr.strip() or self.stdout.strip())[-1000:]
        return one_line(" ".join(text.split()), 1000) or f"exit code {self.code} without a message"


OURS = '--user="$UID"'
"""The option of squeue, sacct and scancel that excludes the jobs of other users, which may have the same names."""

SACCT = 'sacct ${SLURM_CLUSTERS:+--clusters="$SLURM_CLUSTERS"} --noheader'
"""Unlike the other commands, sacct ignores SLURM_CLUSTERS, which a login profile may set."""

Step = Command | Send | Pause
Result = TypeVar("Result")
Operation = Generator[Step, Output, Result]
"""Yields steps on the cluster, receives the output of each, and returns its result."""


def quote(*words: str) -> str:
    """Quote words for a shell. All shell code with values in it uses this function."""
    return shlex.join(words)


def new_marker() -> str:
    """A string that no login profile prints."""
    return f"picas-{secrets.token_hex(8)}"


_ACCOUNT = "SBATCH_ACCOUNT"
"""The only input variable of sbatch that is kept: at many sites, the login profile sets the account to charge there."""

_CLEAN = f"""
set +o posix; unset -v CDPATH GLOBIGNORE GREP_OPTIONS
kept=$(declare -p SLURM_CONF SLURM_CONF_SERVER SLURM_CLUSTERS SLURM_JWT {_ACCOUNT} 2>/dev/null)
unset -v "${{!SLURM_@}}" "${{!SBATCH_@}}" "${{!SQUEUE_@}}" "${{!SCANCEL_@}}" "${{!SACCT_@}}" "${{!SCONTROL_@}}"
eval "$kept"; unset -v kept
"""
"""Shell code that removes Slurm's variables of the login profile, except those that locate Slurm.

``SQUEUE_PARTITION`` or ``SACCT_STATE`` would hide jobs from us, ``SBATCH_ARRAY_INX`` would change the number of pilots.
"""

_WORD = 800  # characters; a bsd-csh accepts no word of more than 1,023


def wrap(text: str, marker: str, *, profile: bool = True) -> str:
    """The command line that runs shell code with the environment of a login shell, between two markers.

    ``profile``: False skips the login profile.

    Sites set PATH and modules in profile files. Those may also print a banner, and define aliases, functions and shell
    options: a clean shell replaces the login shell, and inherits only its environment. ``-p`` makes it ignore BASH_ENV,
    exported functions and SHELLOPTS, which jobs may need and still inherit. The code is sent encoded, and in short
    words, since the account's own shell, which reads the line first, may be a csh. The words reach a plain sh, so that
    no profile changes them.
    """
    program = f"{_CLEAN}echo; echo {marker}; (eval {shlex.quote(text)}); code=$?; echo; echo {marker} $code"
    encoded = base64.b64encode(program.encode()).decode()
    stage = f'eval "$(echo {encoded} | base64 -d)"'
    words = [stage[start : start + _WORD] for start in range(0, len(stage), _WORD)]
    if not profile:
        return "exec sh -c 'IFS=; exec bash --noprofile --norc -p -c \"$0$*\"' " + " ".join(
            f"'{word}'" for word in words
        )
    # Quoted, "exec" is not expanded as an alias. $0 is the only parameter that `set --` in a profile does not change.
    login = '"exec" bash --noprofile --norc -p -c "$0"'
    return 'exec sh -c \'IFS=; exec bash -lc "$0" "$*"\' ' + " ".join(f"'{word}'" for word in [login, *words])


def unwrap(stdout: str, stderr: str, marker: str) -> Output:
    """The output between the markers. Raises UnreachableError if the end is missing: the connection broke, and the
    result of the command is unknown. Raises RemoteError if the login shell did not reach the command."""
    start = re.search(rf"^{marker}$\n?", stdout, re.MULTILINE)
    if start is None:
        printed = one_line(" ".join((stderr.strip() or stdout.strip())[-300:].split()), 300) or "nothing"
        raise RemoteError(f"The login shell on the cluster ended before it ran a command. It printed: {printed}")
    end = re.search(rf"\n{marker} ([0-9]+)\n", stdout[start.end() - 1 :])
    if end is None:
        raise UnreachableError("The connection to the cluster broke before the command ended.")
    body = stdout[start.end() - 1 :][: end.start()]
    return Output(whole(end.group(1), default=255), body.removeprefix("\n"), stderr)


def whole(text: str, default: int = 0) -> int:
    """A whole number in a command's output, or the default for anything else.

    Unlike ``str.isdigit`` and ``int``, this accepts only ASCII digits, and no more of them than Slurm's numbers have.
    """
    text = text.strip()
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else default


def ok(step: Step, failure: str) -> Generator[Step, Output, Output]:
    """Carry out a step that has to succeed. Raises RemoteError with ``failure`` and the cluster's error message."""
    output = yield step
    if output.code != 0:
        raise RemoteError(f"{failure} on the cluster: {output.message}.{space_advice(output.message)}")
    return output


_NO_ROOM = re.compile(r"no space left|quota exceeded|file too large", re.IGNORECASE)


def space_advice(message: str) -> str:
    """What to do about a command that found no room for a file, as the end of a message; empty for other failures."""
    if not _NO_ROOM.search(message):
        return ""
    return " Free space there (see the site's `quota`), or set `remote_folder` to another folder."
