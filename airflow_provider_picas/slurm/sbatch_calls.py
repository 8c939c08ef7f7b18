"""The sbatch calls of one submission: files in its folder on the cluster record each call and its result.

``command.<i>`` is the i-th call. ``started.<i>`` is a folder and the call's lock, since only one process can create it.
It contains ``out``, ``err`` and ``code``: sbatch's output. If these do not show whether there is a job, Slurm is
queried by its name. A call that created no job is given up by moving that folder to ``given-up.<i>.<n>``, and can then
be started again.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from airflow_provider_picas.slurm import sbatch
from airflow_provider_picas.slurm.remote import (
    OURS,
    SACCT,
    Command,
    Operation,
    Pause,
    RemoteError,
    UnreachableError,
    ok,
    quote,
    whole,
)
from airflow_provider_picas.tokens.text import one_line

SUBMIT_SCRIPT = "submit.sh"
ANSWER_WAIT = 40.0  # seconds that a try waits for sbatch; sbatch itself gives up after MessageTimeout, 10 s
SBATCH_LIMIT = 120  # seconds after which an sbatch that is still trying is killed
SETTLE_WAIT = 600.0  # seconds that a try waits for a controller that does not answer
ASK_EVERY = 2.0  # seconds between two queries
MARGIN = 5.0  # seconds in addition to MessageTimeout after which an unseen job does not exist

RETRY_AFTER, RETRY_AT_MOST = (
    60.0,
    900.0,
)  # seconds until pilots that are refused for now are submitted again; it doubles

_NOT_RUN = (126, 127)  # exit codes of `timeout` if sbatch is missing or not executable

# sbatch's messages when it does not know whether the job was created. All others are refusals.
_UNCERTAIN = re.compile(
    r"timed? ?out|contact slurm controller|zero bytes|communication|connection (?:refused|reset|failure)"
    r"|transport endpoint|unexpected message|socket|resource temporarily unavailable|in standby mode",
    re.IGNORECASE,
)

_FAILED = re.compile(
    "submission failed|allocation failure", re.IGNORECASE
)  # sbatch's own words; a wrapper may print numbers

_NOT_NOW = re.compile(
    r"partition not available|configuration not available now|required node not available|reservation.* not usable"
    r"|error writing script|no space left|quota exceeded|temporarily unable to accept|maximum number of jobs",
    re.IGNORECASE,
)


class SubmissionRefusedError(RemoteError):
    """sbatch refused; the message holds its own words.

    ``jobs_remain``: jobs of the submission were accepted, and could not be cancelled. ``for_now``: the same submission
    may be accepted later; a wait tries that in ``retry_in`` seconds.
    """

    def __init__(
        self, message: str, *, jobs_remain: bool = False, for_now: bool = False, retry_in: float = 0.0
    ) -> None:
        super().__init__(message)
        self.jobs_remain = jobs_remain
        self.for_now = for_now
        self.retry_in = retry_in


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
        return any(call.refused for call in self.asked)

    @property
    def refused_for_now(self) -> bool:
        """True if sbatch refused calls, and always for a temporary reason."""
        return self.refused and all(refused_for_now(call.stderr) for call in self.asked if call.refused)

    @property
    def retry_in(self) -> float:
        """Seconds until calls that were refused for now are tried again."""
        waits = (RETRY_AFTER * 2 ** min(call.given_up, 10) for call in self.asked if call.refused)
        age = min((call.age for call in self.asked if call.refused), default=0)
        return max(0.0, min(RETRY_AT_MOST, max(waits, default=0.0)) - age)

    @property
    def settled(self) -> bool:
        """True if the result of every call is known. A record without calls is not settled: nothing was submitted."""
        if self.refused:
            return not any(call.may_be_running for call in self.asked)
        return bool(self.calls) and not self.open

    @property
    def asked(self) -> tuple[Call, ...]:
        """The calls from ``first`` on."""
        return self.calls[self.first :]


def job_name(key: str, call: int) -> str:
    """The name of the jobs of the n-th sbatch call of a submission, from 0."""
    return key if call == 0 else f"{key}-{call}"


def job_names(key: str, calls: int) -> list[str]:
    """The names of all jobs of a submission."""
    return [job_name(key, number) for number in range(max(1, calls))]


def submit_script(folder: str, workdir: str, environment: Mapping[str, str], python_path: str | None) -> str:
    """The script that runs each ``command.<i>`` of the folder once, even if several workers start it repeatedly."""
    lines = ["#!/bin/bash", "# Runs each command.<i> once, whoever starts this and however often."]
    lines += [f"export {name}={quote(value)}" for name, value in environment.items()]
    if python_path is not None:
        lines.append(f'export PYTHONPATH={quote(python_path)}"${{PYTHONPATH:+:$PYTHONPATH}}"')
    lines.append(f"""cd -- {quote(folder)} || exit
i=0
while [ -e command.$i ]; do
  if mkdir started.$i 2>/dev/null; then
    command=$(cat command.$i)
    (
      cd started.$i || exit  # whoever gives the call up moves this folder, and a late answer with it
      (cd -- {quote(workdir)} && eval "exec timeout --kill-after=5 {SBATCH_LIMIT} $command") </dev/null >out 2>err
      # A code that is there stays: it was written for a job that was found meanwhile. Some file systems have no hard links.
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
  age=0; [ -d started.$i ] && age=$(($(date +%s) - $(stat -c %Y started.$i)))
  given_up=$(ls -d given-up.$i.* 2>/dev/null | wc -l)
  echo "call $([ -d started.$i ] && echo yes || echo no) $(cat started.$i/code 2>/dev/null || echo -) $age $given_up"
  echo "out $(head -c 20000 started.$i/out 2>/dev/null | base64 -w0)"
  echo "err $(head -c 20000 started.$i/err 2>/dev/null | base64 -w0)"
  i=$((i+1))
done
true"""
"""Shell text that prints what the folder it runs in tells, for ``parse_record``."""


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


def settle(folder: str, key: str, first: int = 0) -> Operation[Record]:
    """Run the calls that were not run yet, and find out the result of each. ``first``: of the calls of this round.

    Raises SubmissionRefusedError with sbatch's message, once the accepted jobs are cancelled: the next try submits
    all of them again. Raises UnreachableError if the result is unknown; then the next try finds out.
    """
    record = yield from _start(folder, first)
    if not record.calls:
        raise RemoteError(
            f"The submission's folder {folder} on the cluster holds no sbatch call: its files were removed."
        )
    waited = 0.0  # seconds, without the duration of the queries: a lower bound
    none_since: float | None = None  # when Slurm first reported that there is no such job
    while not record.settled:
        found = yield from find_jobs(key, record)
        if found is None or any(record.calls[number].may_be_running for number in record.open):
            none_since = None  # a controller that does not answer may still process the request later
        elif not found.keys() & set(record.open):
            none_since = waited if none_since is None else none_since
            # A job may still appear some time after Slurm has reported that there is none.
            if waited - none_since >= (yield from _message_timeout()) + MARGIN:
                record = yield from _start_again(folder, record)
                none_since = None
                continue
        if found and (yield from _write_down(folder, record, found)):
            record = yield from read(folder, first)
            continue
        if waited >= SETTLE_WAIT:
            raise UnreachableError(
                f"sbatch gave no clear answer for {key}, and Slurm's controller does not answer since. The next try finds out"
                " whether the jobs exist; nothing is submitted twice."
            )
        yield Pause(ASK_EVERY)
        waited += ASK_EVERY
        record = yield from read(folder, first)
    if record.refused:
        yield from _refuse(key, record)
    yield from _refuse_elsewhere(folder, key, record)
    if any(call.given_up for call in record.asked):
        yield from _cancel_others(key, record)
    return record


def acknowledge(folder: str) -> Operation[None]:
    """Record that the operator has reported the submission."""
    yield from ok(Command(f": >{quote(f'{folder}/acknowledged')}"), "The submission could not be acknowledged")


def active(key: str, calls: int) -> Operation[bool]:
    """True if a job of the submission is pending or running. Raises UnreachableError if Slurm does not answer."""
    output = yield Command(
        f"squeue --noheader --all {OURS} --name={quote(','.join(job_names(key, calls)))} --format='%F|%T'"
    )
    if output.code != 0:
        raise UnreachableError(f"squeue does not tell whether the pilots of {key} still run: {output.message}")
    return bool(output.stdout.strip())


def cancel(key: str, calls: int) -> Command:
    """The command that cancels the jobs of a submission. Its exit code is 0 if all were cancelled."""
    names = quote(",".join(job_names(key, calls)))
    # By id: unlike squeue, scancel treats a list of names as one name, and cancels nothing.
    return Command(f"""
jobs=$(squeue --noheader --all {OURS} --name={names} --format=%F) || exit 5
[ -z "$jobs" ] || scancel $(printf '%s\\n' "$jobs" | sort -u)""")


def find_jobs(key: str, record: Record) -> Operation[dict[int, str] | None]:
    """Jobs with the submission's names, by number of the call; None if Slurm does not answer.

    Of two jobs with the same name, the earlier one counts.
    """
    names = {name: number for number, name in enumerate(job_names(key, len(record.calls)))}
    listed = quote(",".join(names))
    text = f"""
squeue --noheader --all --states=all {OURS} --name={listed} --format='%F|%j' || exit 5
{SACCT} --parsable2 {OURS} --allocations --starttime=uts{record.since - 60} --name={listed} --format=JobID,JobName \
  2>/dev/null || true"""
    output = yield Command(text)
    if output.code != 0:
        return None
    found: dict[int, str] = {}
    for line in output.stdout.splitlines():
        job, _, name = line.strip().partition("|")
        number, base = names.get(name), re.match(r"[0-9]+", job)
        if number is not None and base and int(base.group()) < int(found.get(number, "9" * 30)):
            found[number] = base.group()
    return found


def _start(folder: str, first: int) -> Operation[Record]:
    """Start the script and wait some time for sbatch. The script outlives the connection."""
    text = f"""
cd -- {quote(folder)} || exit 3
setsid -f bash -p ./{SUBMIT_SCRIPT} </dev/null >/dev/null 2>&1
t=0
while [ $t -lt {int(ANSWER_WAIT * 5)} ]; do
  i=0; missing=
  while [ -e command.$i ]; do [ -e started.$i/code ] || missing=1; i=$((i+1)); done
  [ -n "$missing" ] || break
  sleep 0.2; t=$((t+1))
done
{READ}"""
    output = yield from ok(Command(text, timeout=ANSWER_WAIT + 30), "The submission could not be started")
    return replace(parse_record(output.stdout.splitlines()), first=first)


def _refuse(key: str, record: Record) -> Operation[None]:
    """Cancel the jobs that were accepted. Raises SubmissionRefusedError."""
    jobs_remain = False
    if any(call.job_id or call.uncertain for call in record.asked):
        jobs_remain = (yield cancel(key, len(record.calls))).code != 0
    raise refusal(record, jobs_remain=jobs_remain)


def _refuse_elsewhere(folder: str, key: str, record: Record) -> Operation[None]:
    """Cancel jobs that the site has sent to another cluster than squeue's: they would count as gone while they
    run. Raises SubmissionRefusedError.
    """
    sent = {call.job_id: name for call in record.asked if call.job_id and (name := sbatch.cluster(call.stdout))}
    if not sent:
        return
    output = yield Command(_CLUSTER_NAME)
    here = output.stdout.strip()
    elsewhere = {job: name for job, name in sent.items() if name != here}
    if not (here and elsewhere):
        return
    yield from give_up(folder, record)
    cancels = [f"scancel {quote(f'--clusters={name}', job)} || failed=1" for job, name in elsewhere.items()]
    done = yield Command("\n".join([*cancels, '[ -z "$failed" ]']))
    yield cancel(key, len(record.calls))  # the jobs of the other calls, which were sent to this cluster
    names = ", ".join(sorted(set(elsewhere.values())))
    fate = "was cancelled" if done.code == 0 else "could not be cancelled: cancel it"
    raise SubmissionRefusedError(
        f"sbatch sent job {', '.join(elsewhere)} to the cluster {names}, where it would not be found again, so it {fate}. Name"
        " the cluster as SLURM_CLUSTERS in the account's login profile, or use an SSH connection to one of its own login nodes.",
        jobs_remain=done.code != 0,
    )


_CLUSTER_NAME = "echo ${SLURM_CLUSTERS:-$(scontrol show config | sed -n 's/^ClusterName *= *//p')}"


def refusal(record: Record, *, jobs_remain: bool = False) -> SubmissionRefusedError:
    """The error that says why sbatch refused."""
    for_now = record.refused_for_now
    retry_in = record.retry_in if for_now else 0.0
    return SubmissionRefusedError(
        _refusal(record, jobs_remain), jobs_remain=jobs_remain, for_now=for_now, retry_in=retry_in
    )


def give_up(folder: str, record: Record) -> Operation[None]:
    """Discard the results of the calls from ``record.first`` on, so that ``settle`` repeats them: some were refused for
    now, and the jobs of the others have been cancelled."""
    yield from _give_up(folder, record, range(record.first, len(record.calls)))


def refused_for_now(said: str) -> bool:
    """True if sbatch's message names a temporary state of the site, and no error in the job.

    "Job violates accounting/QOS policy" may mean either: the line before it names the limit, such as
    QOSMaxSubmitJobPerUserLimit.
    """
    if "accounting/QOS policy" in said:
        limits = re.findall(r"\b(?:QOS|Assoc)\w*(?:Limit|PerUser|PerAccount|PerJob)\w*", said)
        return all("Submit" in limit for limit in limits)
    return bool(_NOT_NOW.search(said))


def _refusal(record: Record, jobs_remain: bool) -> str:
    call = next(call for call in record.asked if call.refused)
    said = " ".join(line.removeprefix("sbatch: ").removeprefix("error: ") for line in call.stderr.strip().splitlines())
    done = "could not be cancelled: cancel it" if jobs_remain else "was cancelled"
    accepted = [call.job_id for call in record.asked if call.job_id]
    also = f" Job {', '.join(accepted)} of it was accepted, and {done}." if accepted else ""
    said = one_line(said or call.stdout.strip() or f"exit code {call.code}", 1000)
    return f"sbatch refused the pilots: {said}{also}"


def _message_timeout() -> Operation[float]:
    """Slurm's MessageTimeout in seconds: how long sbatch waits for the controller."""
    output = yield Command("scontrol show config | sed -n 's/^MessageTimeout *= *\\([0-9]*\\).*/\\1/p'")
    return float(whole(output.stdout, default=60))


def _write_down(folder: str, record: Record, found: Mapping[int, str]) -> Operation[bool]:
    """Record the ids of jobs that were found by name. True if there were any."""
    news = {number: found[number] for number in record.open if number in found}
    for number, job in news.items():
        text = (
            f"cd -- {quote(folder)} && mkdir -p started.{number} && cd started.{number}"
            f" && echo {quote(job)} >out.$$ && mv out.$$ out && echo 0 >code.$$ && mv code.$$ code"
        )
        yield from ok(Command(text), "The job's id could not be written down")
    return bool(news)


def _start_again(folder: str, record: Record) -> Operation[Record]:
    """Give up the calls that created no job, and run them again."""
    # sbatch has created these jobs, but printed several numbers, and Slurm has forgotten their names: use the first number.
    made = {number: ids[0] for number in record.open if (ids := record.calls[number].printed_ids)}
    yield from _write_down(folder, record, made)
    yield from _give_up(folder, record, [number for number in record.open if number not in made])
    return (yield from _start(folder, record.first))


def _give_up(folder: str, record: Record, numbers: Iterable[int]) -> Operation[None]:
    """Give up calls. If several tries do this, only one succeeds for each call: the moved folder is not empty, so it
    cannot replace the folder of a faster try that has started the call again."""
    for number in numbers:
        yield Command(
            f"cd -- {quote(folder)} && touch started.{number}/given-up"
            f" && mv -T -- started.{number} given-up.{number}.{record.calls[number].given_up}"
        )


def _cancel_others(key: str, record: Record) -> Operation[None]:
    """Cancel jobs that appeared after all and are not in the record."""
    for number, call in enumerate(record.asked, start=record.first):
        name, keep = quote(job_name(key, number)), quote(str(call.job_id))
        yield Command(
            f"squeue --noheader --all {OURS} --name={name} --format=%F | sort -u | grep -vx {keep}"
            ' | while read -r job; do scancel "$job"; done'
        )
