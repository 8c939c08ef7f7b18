"""A submission: all sbatch calls of one operator run, which cannot happen twice.

The submission lives in a folder of its own in the shared home on the cluster, ``<remote folder>/<key>``, where ``key`` is also the
name of its jobs. sbatch is called by a script in that folder that outlives the connection, runs each call once (a folder
``started.<i>`` is its lock) and leaves the answer in files. Whoever comes later reads them, and asks Slurm by job name when they do
not tell. The file ``acknowledged`` says that the operator has reported the submission: without it, the next try adopts the jobs,
even ended ones; with it, and no job left, the next try is a new submission.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field

from airflow_provider_picas.slurm import sbatch
from airflow_provider_picas.slurm.remote import (
    Command,
    Operation,
    Output,
    Pause,
    RemoteError,
    RemoteFile,
    Send,
    Step,
    UnreachableError,
    quote,
)
from airflow_provider_picas.tokens import ids

DEFAULT_FOLDER = "picas-pilots"
"""Where submissions are kept, below the home on the cluster; made when it is missing, unlike a folder that somebody named."""

SUBMIT_SCRIPT = "submit.sh"
CREDENTIALS = "credentials"
"""Folder of a submission, 0700, with ``picasconfig.py``, 0600."""

ANSWER_WAIT = 40.0  # seconds that a try waits for sbatch's answer; sbatch itself gives up after MessageTimeout, 10 s
SBATCH_LIMIT = 120  # seconds after which an sbatch that still tries is ended
SETTLE_WAIT = 600.0  # seconds that a try waits for a controller that does not answer
ASK_EVERY = 2.0  # seconds between two questions
MARGIN = 5.0  # seconds on top of MessageTimeout until a job that nobody has seen does not exist

_KEY_LENGTH = 80  # characters of a job name

# What sbatch says when it does not know whether the job was made. All else is a refusal.
_UNCERTAIN = re.compile(
    r"timed? ?out|contact slurm controller|zero bytes|communication|connection (?:refused|reset|failure)"
    r"|transport endpoint|unexpected message|socket|resource temporarily unavailable|in standby mode",
    re.IGNORECASE,
)


class SubmissionRefusedError(RemoteError):
    """sbatch refused, for a reason that trying again will not mend; the message holds its own words."""


@dataclass(frozen=True)
class Plan:
    """What is to be submitted. The callables get the submission's folder and key, which are known only on the cluster."""

    base_key: str
    files: Callable[[str, str], Sequence[RemoteFile]]
    commands: Callable[[str, str], Sequence[Sequence[str]]]  #: argv of each sbatch call, but for its job name
    folder: str | None = None  #: remote folder, absolute or below the home; None: DEFAULT_FOLDER
    workdir: str | None = None  #: where sbatch runs, absolute or below the home; None: the submission's folder
    environment: Mapping[str, str] = field(default_factory=dict)  #: of sbatch
    python_path: bool = True  #: whether the credentials' folder is put on PYTHONPATH


@dataclass(frozen=True)
class Submission:
    """A submission that stands. ``submitted`` is in seconds since 1970, by the login node's clock."""

    key: str
    folder: str
    job_ids: tuple[str, ...]
    submitted: int
    adopted: bool = False  #: an earlier try had made it


@dataclass(frozen=True)
class _Call:
    """What the folder tells of one sbatch call."""

    started: bool
    code: int | None
    age: int  #: seconds since it was started
    stdout: str
    stderr: str

    @property
    def job_id(self) -> str | None:
        return sbatch.job_id(self.stdout) if self.code == 0 else None

    @property
    def uncertain(self) -> bool:
        """Whether there may be a job that the folder does not know of."""
        if not self.started or self.job_id:
            return False
        return self.code is None or self.code == 0 or self.code > 128 or bool(_UNCERTAIN.search(self.stderr))

    @property
    def refused(self) -> bool:
        return self.started and not self.job_id and not self.uncertain

    @property
    def may_be_running(self) -> bool:
        """Whether sbatch may be under way yet, perhaps from another login node."""
        return self.started and self.code is None and self.age < SBATCH_LIMIT + 10


@dataclass(frozen=True)
class _Folder:
    """What the latest submission's folder tells."""

    base: str  #: the remote folder, absolute
    generation: int  #: 0: there is none yet
    acknowledged: bool = False
    since: int = 0  #: when it was made, seconds since 1970
    calls: tuple[_Call, ...] = ()

    @property
    def refused(self) -> bool:
        return any(call.refused for call in self.calls)


def base_key(name: str, *identity: str) -> str:
    """The part of a submission's key that stays: a readable name and a digest of what identifies the task instance."""
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_-")[:40] or "x"
    return f"picas-{readable}-{ids.digest(name, *identity)}"


def job_name(key: str, call: int) -> str:
    """The name of the jobs of the n-th sbatch call of a submission, from 0."""
    return key if call == 0 else f"{key}-{call}"


def submit_script(plan: Plan, folder: str, key: str, workdir: str) -> str:
    """The script that calls sbatch, once for each call, whoever starts it and however often."""
    lines = ["#!/bin/bash", "# Calls sbatch once, whoever starts this and however often: the folders started.* are the locks."]
    for name, value in plan.environment.items():
        lines.append(f"export {name}={quote(value)}")
    if plan.python_path:
        lines.append(f'export PYTHONPATH={quote(f"{folder}/{CREDENTIALS}")}"${{PYTHONPATH:+:$PYTHONPATH}}"')
    lines.append(f"cd -- {quote(folder)} || exit")
    for number, command in enumerate(plan.commands(folder, key)):
        lines.append(
            f"if mkdir started.{number} 2>/dev/null; then\n"
            f"  (cd -- {quote(workdir)} && exec timeout --kill-after=5 {SBATCH_LIMIT} {quote(*command)}) \\\n"
            f"    </dev/null >out.{number} 2>err.{number}\n"
            f"  echo $? >code.{number}.new && mv code.{number}.new code.{number}\n"
            f"fi"
        )
    return "\n".join(lines) + "\n"


def submit(plan: Plan) -> Operation[Submission]:
    """Submit, or adopt what an earlier try has submitted.

    Raises SubmissionRefusedError with sbatch's own words; UnreachableError when nothing is known, in which case the next try
    finds out; RemoteError for folders that are missing.
    """
    state = yield from _inspect(plan)
    if state.generation and state.acknowledged:
        if (yield from _active(plan, state)):
            return _submission(plan, state, adopted=True)
        state = yield from _new_generation(plan, state)
    elif not state.generation or state.refused:
        state = yield from _new_generation(plan, state)
    adopted = bool(state.calls) and all(call.job_id for call in state.calls)
    if not adopted:
        state = yield from _carry_out(plan, state)
    yield from _acknowledge(plan, state)
    return _submission(plan, state, adopted=adopted)


def _key(plan: Plan, state: _Folder) -> str:
    return f"{plan.base_key}.{state.generation}"


def _path(plan: Plan, state: _Folder) -> str:
    return f"{state.base}/{_key(plan, state)}"


def _submission(plan: Plan, state: _Folder, *, adopted: bool) -> Submission:
    job_ids = tuple(str(call.job_id) for call in state.calls)
    return Submission(_key(plan, state), _path(plan, state), job_ids, state.since, adopted)


def _inspect(plan: Plan) -> Operation[_Folder]:
    """Read the latest submission's folder."""
    if plan.folder is None:
        enter = f'mkdir -p -m 700 -- "$HOME/{DEFAULT_FOLDER}" && cd -- "$HOME/{DEFAULT_FOLDER}"'
    else:
        enter = f'cd -- "$HOME" && cd -- {quote(plan.folder)}'
    pattern = quote(plan.base_key)
    text = f"""
umask 077
{enter} || exit 3
pwd -P
n=$(ls -d -- {pattern}.* 2>/dev/null | sed 's/.*[.]//' | grep -E '^[0-9]+$' | sort -n | tail -n 1)
[ -n "$n" ] || exit 0
cd -- {pattern}."$n" || exit 4
echo "generation $n"
echo "since $(stat -c %Y made 2>/dev/null || stat -c %Y .)"
[ -e acknowledged ] && echo acknowledged
i=0
while [ -e command.$i ]; do
  age=0; [ -d started.$i ] && age=$(($(date +%s) - $(stat -c %Y started.$i)))
  echo "call $i $([ -d started.$i ] && echo yes || echo no) $(cat code.$i 2>/dev/null || echo -) $age"
  echo "out $(head -c 20000 out.$i 2>/dev/null | base64 -w0)"
  echo "err $(head -c 20000 err.$i 2>/dev/null | base64 -w0)"
  i=$((i+1))
done"""
    output = yield Command(text)
    if output.code == 3:
        raise RemoteError(
            f"The remote folder {plan.folder or DEFAULT_FOLDER!r} cannot be entered on the cluster ({output.said})."
            " Create it there, or name another one."
        )
    if output.code != 0:
        raise RemoteError(f"The submission's folder cannot be read on the cluster: {output.said}.")
    return _parse_folder(output.stdout)


def _parse_folder(text: str) -> _Folder:
    lines = [line for line in text.splitlines() if line.strip()]
    base, generation, since, acknowledged = lines[0], 0, 0, False
    calls: list[list[str]] = []
    for line in lines[1:]:
        word, _, rest = line.partition(" ")
        if word == "generation":
            generation = int(rest)
        elif word == "since":
            since = int(rest)
        elif word == "acknowledged":
            acknowledged = True
        elif word == "call":
            calls.append(rest.split())
        elif word in ("out", "err"):
            calls[-1].append(base64.b64decode(rest).decode("utf-8", "replace"))
    parsed = tuple(
        _Call(started == "yes", int(code) if code.isdigit() else None, int(age), out, err)
        for _, started, code, age, out, err in calls
    )
    return _Folder(base, generation, acknowledged, since, parsed)


def _new_generation(plan: Plan, state: _Folder) -> Operation[_Folder]:
    """Make the next submission's folder. When somebody else just did, theirs is taken."""
    fresh = _Folder(state.base, state.generation + 1)
    folder = _path(plan, fresh)
    yield Command(f"umask 077; mkdir -- {quote(folder)} && mkdir -m 700 -- {quote(f'{folder}/{CREDENTIALS}')}")
    state = yield from _inspect(plan)
    if state.generation < fresh.generation:
        raise RemoteError(f"The submission's folder {folder} could not be made on the cluster. Check its rights and the quota.")
    return state


def _carry_out(plan: Plan, state: _Folder) -> Operation[_Folder]:
    """Send the files, start the script that submits, and find out what became of it."""
    folder, key = _path(plan, state), _key(plan, state)
    if not any(call.started for call in state.calls):
        workdir = yield from _workdir(plan, folder)
        commands = plan.commands(folder, key)
        script = submit_script(plan, folder, key, workdir)
        files = [
            *plan.files(folder, key),
            RemoteFile(f"{folder}/{SUBMIT_SCRIPT}", script.encode(), 0o700),
            RemoteFile(f"{folder}/made", b""),
            *(RemoteFile(f"{folder}/command.{i}", quote(*command).encode()) for i, command in enumerate(commands)),
        ]
        yield from _ok(Send(files), "The submission's files could not be sent")
    state = yield from _start(plan, state)
    resubmitted = False
    asked_since: float | None = None
    waited = 0.0  # seconds, without the time that the questions took: so at least
    while True:
        if state.refused:
            raise SubmissionRefusedError(_refusal(state))
        open_calls = [number for number, call in enumerate(state.calls) if not call.job_id]
        if not open_calls:
            break
        # The folder does not tell, so Slurm is asked by name, for as long as a job may still appear.
        found = yield from _find_jobs(plan, state)
        if found is None:
            asked_since = None  # a controller that did not answer may be holding the request back
        elif any(number in found for number in open_calls):
            yield from _record(plan, state, {number: found[number] for number in open_calls if number in found})
            state = yield from _inspect(plan)
            continue
        elif not any(state.calls[number].may_be_running for number in open_calls):
            asked_since = waited if asked_since is None else asked_since
            if waited - asked_since >= (yield from _message_timeout()) + MARGIN:
                yield from _give_up(plan, state, open_calls)
                state = yield from _start(plan, state)
                resubmitted, asked_since = True, None
                continue
        if waited >= SETTLE_WAIT:
            raise UnreachableError(
                f"sbatch gave no clear answer for {key}, and Slurm's controller does not answer since. The next try finds out"
                " whether the jobs exist; nothing is submitted twice."
            )
        yield Pause(ASK_EVERY)
        waited += ASK_EVERY
        state = yield from _inspect(plan)
    if resubmitted:
        yield from _cancel_others(plan, state)
    return state


def _workdir(plan: Plan, folder: str) -> Operation[str]:
    if plan.workdir is None:
        return folder
    output = yield Command(f'cd -- "$HOME" && cd -- {quote(plan.workdir)} && pwd -P')
    if output.code != 0:
        raise RemoteError(
            f"The folder {plan.workdir!r} (workdir) cannot be entered on the cluster ({output.said})."
            " Create it there, or name another one."
        )
    return output.stdout.strip()


def _start(plan: Plan, state: _Folder) -> Operation[_Folder]:
    """Start the script, unless it has run, and wait a while for its answer."""
    folder = quote(_path(plan, state))
    text = f"""
cd -- {folder} || exit 3
setsid -f bash ./{SUBMIT_SCRIPT} </dev/null >/dev/null 2>&1
t=0
while [ $t -lt {int(ANSWER_WAIT * 5)} ]; do
  i=0; missing=
  while [ -e command.$i ]; do [ -e code.$i ] || missing=1; i=$((i+1)); done
  [ -n "$missing" ] || break
  sleep 0.2; t=$((t+1))
done"""
    yield from _ok(Command(text, timeout=ANSWER_WAIT + 30), "The submission could not be started")
    return (yield from _inspect(plan))


def _refusal(state: _Folder) -> str:
    call = next(call for call in state.calls if call.refused)
    said = " ".join(line.removeprefix("sbatch: ").removeprefix("error: ") for line in call.stderr.strip().splitlines())
    others = [str(call.job_id) for call in state.calls if call.job_id]
    also = f" Of the same submission, job {', '.join(others)} was accepted: cancel it, or let it run." if others else ""
    return f"sbatch refused the pilots: {said or call.stdout.strip() or f'exit code {call.code}'}{also}"


def _find_jobs(plan: Plan, state: _Folder) -> Operation[dict[int, str] | None]:
    """Jobs that bear the submission's names, by number of the sbatch call; None when Slurm does not answer.

    Of two with the same name the earlier one counts.
    """
    key = _key(plan, state)
    names = {job_name(key, number): number for number in range(len(state.calls))}
    listed = quote(",".join(names))
    since = f"$(date -d @{state.since - 60} +%Y-%m-%dT%H:%M:%S)"
    text = f"""
squeue --noheader --all --states=all --name={listed} --format='%F|%j' || exit 5
sacct --noheader --parsable2 --allocations --starttime={since} --name={listed} --format=JobID,JobName 2>/dev/null || true"""
    output = yield Command(text)
    if output.code != 0:
        return None
    found: dict[int, str] = {}
    for line in output.stdout.splitlines():
        job, _, name = line.strip().partition("|")
        number = names.get(name)
        base = re.match(r"[0-9]+", job)
        if number is not None and base:
            earlier = found.get(number)
            found[number] = base.group() if earlier is None or int(base.group()) < int(earlier) else earlier
    return found


def _active(plan: Plan, state: _Folder) -> Operation[bool]:
    """Whether a job of the submission waits or runs. Raises UnreachableError when Slurm does not answer: unknown is not ended."""
    key = _key(plan, state)
    names = quote(",".join(job_name(key, number) for number in range(max(1, len(state.calls)))))
    output = yield Command(f"squeue --noheader --all --name={names} --format='%F|%T'")
    if output.code != 0:
        raise UnreachableError(f"squeue does not tell whether the pilots of {key} still run: {output.said}")
    return bool(output.stdout.strip())


def _message_timeout() -> Operation[float]:
    """Slurm's MessageTimeout in seconds: how long sbatch waits for the controller."""
    output = yield Command("scontrol show config | sed -n 's/^MessageTimeout *= *\\([0-9]*\\).*/\\1/p'")
    return float(output.stdout.strip()) if output.stdout.strip().isdigit() else 60.0


def _record(plan: Plan, state: _Folder, jobs: Mapping[int, str]) -> Operation[None]:
    """Write down the ids of jobs that were found by name."""
    folder = _path(plan, state)
    for number, job in jobs.items():
        out, code = quote(f"{folder}/out.{number}"), quote(f"{folder}/code.{number}")
        yield from _ok(Command(f"echo {job} >{out} && echo 0 >{code}"), "The job's id could not be written down")


def _give_up(plan: Plan, state: _Folder, calls: Sequence[int]) -> Operation[None]:
    """Unlock sbatch calls that made no job. Only one of two tries succeeds in moving a lock away."""
    folder = _path(plan, state)
    for number in calls:
        lock, aside = quote(f"{folder}/started.{number}"), quote(f"{folder}/given-up.{number}")
        answers = quote(f"{folder}/code.{number}", f"{folder}/out.{number}", f"{folder}/err.{number}")
        yield Command(f"mv -T -- {lock} {aside}.$$ 2>/dev/null && rm -f -- {answers}")


def _cancel_others(plan: Plan, state: _Folder) -> Operation[None]:
    """Should a job have appeared after all, the one that is not on record is cancelled."""
    key = _key(plan, state)
    for number, call in enumerate(state.calls):
        name = quote(job_name(key, number))
        keep = quote(str(call.job_id))
        yield Command(
            f"squeue --noheader --all --name={name} --format=%F | sort -u | grep -vx {keep} | while read -r job; do scancel \"$job\"; done"
        )


def _acknowledge(plan: Plan, state: _Folder) -> Operation[None]:
    yield from _ok(Command(f": >{quote(f'{_path(plan, state)}/acknowledged')}"), "The submission could not be acknowledged")


def _ok(step: Step, failure: str) -> Generator[Step, Output, Output]:
    output = yield step
    if output.code != 0:
        raise RemoteError(f"{failure} on the cluster: {output.said}.")
    return output
