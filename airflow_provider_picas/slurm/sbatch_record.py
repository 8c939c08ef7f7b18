"""The record of the sbatch calls of one submission: files in its folder on the cluster.

``command.<i>`` is the i-th call. ``started.<i>`` is a folder and the call's lock, since only one process can create it.
It contains ``out``, ``err`` and ``code``: sbatch's output. A call that created no job is given up by moving that folder
to ``given-up.<i>.<n>``, and can then be started again.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from airflow_provider_picas.slurm import sbatch
from airflow_provider_picas.slurm.remote import Command, Operation, RemoteError, ok, quote, whole

SUBMIT_SCRIPT = "submit.sh"
SBATCH_LIMIT = 120  # seconds after which an sbatch that is still trying is killed
RETRY_AFTER = 60.0  # seconds until pilots that are refused for now are submitted again; it doubles
LONGEST_RETRY = 900.0  # seconds

_NOT_RUN = (126, 127)  # exit codes of `timeout` if sbatch is missing or not executable

# sbatch's messages when it does not know whether the job was created. All others are refusals.
_UNCERTAIN = re.compile(
    r"timed? ?out|contact slurm controller|zero bytes|communication|connection (?:refused|reset|failure)"
    r"|transport endpoint|unexpected message|socket|resource temporarily unavailable|in standby mode",
    re.IGNORECASE,
)

# sbatch's own messages: a wrapper may print numbers with them
_FAILED = re.compile("submission failed|allocation failure", re.IGNORECASE)

_NOT_NOW = re.compile(
    r"partition not available|configuration not available now|required node not available|reservation.* not usable"
    r"|error writing script|no space left|quota exceeded|temporarily unable to accept|maximum number of jobs",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Call:
    """The record of one sbatch call."""

    started: bool
    code: int | None
    age: int  #: seconds since it was started
    stdout: str
    stderr: str
    given_up: int = 0  #: number of times that it was given up before

    @property
    def job_id(self) -> str | None:
        """The job that the call created, if known."""
        return sbatch.job_id(self.stdout) if self._accepted else None

    @property
    def printed_ids(self) -> list[str]:
        """The candidates for the id of the created job, if several numbers were printed."""
        return sbatch.job_ids(self.stdout) if self._accepted else []

    @property
    def _accepted(self) -> bool:
        """True if a printed id is a job's: after ``#SBATCH --wait``, sbatch exits with the exit code of the job."""
        return (
            self.code is not None and self.code not in _NOT_RUN and (self.code == 0 or not _FAILED.search(self.stderr))
        )

    @property
    def uncertain(self) -> bool:
        """True if there may be a job that is not in the record."""
        if not self.started or self.job_id or self.code in _NOT_RUN:
            return False
        # From 124: `timeout` or a signal has ended it. sbatch itself exits with 1, or 255 for an invalid option.
        cut_off = self.code is None or self.code == 0 or 124 <= self.code < 255
        return cut_off or bool(_UNCERTAIN.search(self.stderr))

    @property
    def refused(self) -> bool:
        """True if sbatch refused the call."""
        return self.started and not self.job_id and not self.uncertain

    @property
    def may_be_running(self) -> bool:
        """True if sbatch may still be running, possibly on another login node."""
        return self.started and self.code is None and self.age < SBATCH_LIMIT + 10


@dataclass(frozen=True)
class Record:
    """The record in a submission's folder. ``since``: seconds since 1970 by the login node's clock.

    ``first``: number of the first call of interest, such as the first of a round.
    """

    since: int
    acknowledged: bool
    calls: tuple[Call, ...]
    first: int = 0

    @property
    def job_ids(self) -> tuple[str, ...]:
        """The known jobs."""
        return tuple(call.job_id for call in self.calls if call.job_id)

    @property
    def open(self) -> list[int]:
        """Numbers of the calls whose job is unknown."""
        return [number for number in range(self.first, len(self.calls)) if not self.calls[number].job_id]

    @property
    def refused(self) -> bool:
        """True if sbatch refused any of the calls."""
        return any(call.refused for call in self.of_round)

    @property
    def refused_for_now(self) -> bool:
        """True if sbatch refused calls, and always for a temporary reason."""
        return self.refused and all(refused_for_now(call.stderr) for call in self.of_round if call.refused)

    @property
    def retry_in(self) -> float:
        """Seconds until calls that were refused for now are tried again."""
        waits = (RETRY_AFTER * 2 ** min(call.given_up, 10) for call in self.of_round if call.refused)
        age = min((call.age for call in self.of_round if call.refused), default=0)
        return max(0.0, min(LONGEST_RETRY, max(waits, default=0.0)) - age)

    @property
    def settled(self) -> bool:
        """True if the result of every call is known. A record without calls is not settled: nothing was submitted."""
        if self.refused:
            return not any(call.may_be_running for call in self.of_round)
        return bool(self.calls) and not self.open

    @property
    def of_round(self) -> tuple[Call, ...]:
        """The calls from ``first`` on."""
        return self.calls[self.first :]


def job_name(key: str, call: int) -> str:
    """The name of the jobs of the n-th sbatch call of a submission, from 0."""
    return key if call == 0 else f"{key}-{call}"


def job_names(key: str, calls: int) -> list[str]:
    """The names of all jobs of a submission."""
    return [job_name(key, number) for number in range(max(1, calls))]


def refused_for_now(message: str) -> bool:
    """True if sbatch's message names a temporary state of the site, and no error in the job.

    "Job violates accounting/QOS policy" may mean either: the line before it names the limit, such as
    QOSMaxSubmitJobPerUserLimit.
    """
    if "accounting/QOS policy" in message:
        limits = re.findall(r"\b(?:QOS|Assoc)\w*(?:Limit|PerUser|PerAccount|PerJob)\w*", message)
        return all("Submit" in limit for limit in limits)
    return bool(_NOT_NOW.search(message))


def submit_script(folder: str, workdir: str, environment: Mapping[str, str], python_path: str | None) -> str:
    """The script that runs each ``command.<i>`` of the folder once, even if several workers start it repeatedly."""
    lines = ["#!/bin/bash", "# Runs each command.<i> once, even if several workers start this script repeatedly."]
    lines += [f"export {name}={quote(value)}" for name, value in environment.items()]
    if python_path is not None:
        lines.append(f'export PYTHONPATH={quote(python_path)}"${{PYTHONPATH:+:$PYTHONPATH}}"')
    lines.append(f"""cd -- {quote(folder)} || exit
i=0
while [ -e command.$i ]; do
  if mkdir started.$i 2>/dev/null; then
    command=$(cat command.$i)
    (
      cd started.$i || exit  # giving up the call moves this folder, and with it a late result
      (cd -- {quote(workdir)} && eval "exec timeout --kill-after=5 {SBATCH_LIMIT} $command") </dev/null >out 2>err
      # Keep an existing code: it was written for a job that was found meanwhile. Some file systems have no hard links.
      echo $? >code.new && {{ ln code.new code || [ -e code ] || mv code.new code; }}
    )
  fi
  i=$((i+1))
done""")
    return "\n".join(lines) + "\n"


READ = """
echo "since $(stat -c %Y made 2>/dev/null || stat -c %Y .)"
[ -e acknowledged ] && echo acknowledged
i=0
while [ -e command.$i ]; do
  given_up=$(ls -d given-up.$i.* 2>/dev/null | wc -l)  # first: if the call is given up meanwhile, this number is already taken
  age=0; [ -d started.$i ] && age=$(($(date +%s) - $(stat -c %Y started.$i)))
  echo "call $([ -d started.$i ] && echo yes || echo no) $(cat started.$i/code 2>/dev/null || echo -) $age $given_up"
  echo "out $(head -c 20000 started.$i/out 2>/dev/null | base64 -w0)"
  echo "err $(head -c 20000 started.$i/err 2>/dev/null | base64 -w0)"
  i=$((i+1))
done
true"""
"""Shell code that prints the record in the current folder, for ``parse_record``."""


def parse_record(lines: Sequence[str]) -> Record:
    """Parse the output of ``READ``. Raises RemoteError if the files of the record are invalid."""
    try:
        return _parse_record(lines)
    except ValueError:
        raise RemoteError(
            "The record of the submission on the cluster cannot be read: somebody has changed files in its folder. Remove the"
            " folder once its jobs have ended, and run the task again."
        ) from None


def _parse_record(lines: Sequence[str]) -> Record:
    since, acknowledged = 0, False
    calls: list[Call] = []
    parts: list[str] = []
    for line in lines:
        word, _, rest = line.partition(" ")
        if word == "since":
            since = int(rest)
        elif word == "acknowledged":
            acknowledged = True
        elif word == "call":
            parts = rest.split()
        elif word == "out":
            parts.append(_decoded(rest))
        elif word == "err":
            started, code, age, given_up, out = parts
            number = whole(code, default=-1)
            calls.append(
                Call(started == "yes", None if number < 0 else number, int(age), out, _decoded(rest), int(given_up))
            )
    return Record(since, acknowledged, tuple(calls))


def _decoded(text: str) -> str:
    return base64.b64decode(text).decode("utf-8", "replace")


def read(folder: str, first: int = 0) -> Operation[Record]:
    """Read the current record, of the calls from ``first`` on."""
    output = yield from ok(
        Command(f"cd -- {quote(folder)} || exit 4\n{READ}"), "The submission's folder cannot be read"
    )
    return replace(parse_record(output.stdout.splitlines()), first=first)


def acknowledge(folder: str) -> Operation[None]:
    """Record that the operator has reported the submission."""
    yield from ok(Command(f": >{quote(f'{folder}/acknowledged')}"), "The submission could not be acknowledged")


def record_ids(folder: str, record: Record, found: Mapping[int, str]) -> Operation[bool]:
    """Record the ids of jobs that were found by name. True if there were any."""
    found_now = {number: found[number] for number in record.open if number in found}
    for number, job in found_now.items():
        text = (
            f"cd -- {quote(folder)} && mkdir -p started.{number} && cd started.{number}"
            f" && echo {quote(job)} >out.$$ && mv out.$$ out && echo 0 >code.$$ && mv code.$$ code"
        )
        yield from ok(Command(text), "The job's id could not be recorded")
    return bool(found_now)


def give_up(folder: str, record: Record, numbers: Iterable[int] | None = None) -> Operation[None]:
    """Discard the results of calls, by default of all from ``record.first`` on, so that ``sbatch_calls.settle`` repeats
    them. Their jobs must not exist, or have been cancelled.

    If several tries do this, only one succeeds for each call: the moved folder is not empty, so it cannot replace the
    folder of a faster try that has started the call again. A call that was not started has nothing to discard: another
    try may have given it up, and be about to start it.
    """
    for number in range(record.first, len(record.calls)) if numbers is None else numbers:
        if not record.calls[number].started:
            continue
        yield Command(
            f"cd -- {quote(folder)} && touch started.{number}/given-up"
            f" && mv -T -- started.{number} given-up.{number}.{record.calls[number].given_up}"
        )
