"""Slurm's jobs: rows of squeue and sacct, and their meaning for the tokens that the jobs hold."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from airflow_provider_picas.lifecycle.durations import seconds_of
from airflow_provider_picas.slurm.remote import OURS, SACCT, Command, Operation, Output, UnreachableError, quote, whole
from airflow_provider_picas.tokens.progress_line import Pilots
from airflow_provider_picas.tokens.text import one_line

_SQUEUE = "%i|%F|%K|%T|%r|%S|%M|%C|%N"
_SACCT = "JobID,State,ExitCode,Reason,Start,End,ElapsedRaw,AllocCPUS,TotalCPU,NodeList"


QUERY_TIMEOUT = 60.0  # seconds for squeue and sacct together
SACCT_PATIENCE = 15  # seconds after which one check stops running sacct
# Seconds for which the controller must not know a job before it counts as ended, regardless of sacct.
FORGOTTEN_AFTER = 60
_MOST_ASKED = 5_000  # limit on such jobs in one command
MOST_TASKS = 100_000  # limit on tasks that one check expands from rows such as 123_[0-3]
LINGER = 45  # seconds for which the processes of an ended job may still run: Slurm's KillWait is 30


class Phase(Enum):
    """The meaning of a job's state. UNKNOWN is neither success nor death."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"
    UNKNOWN = "unknown"


_WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
_RUNNING = {"RUNNING", "COMPLETING", "SUSPENDED", "STAGE_OUT", "SIGNALING", "STOPPED", "RESIZING"}
_ENDED = {
    "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "BOOT_FAIL", "DEADLINE",
    "LAUNCH_FAILED", "RECONFIG_FAIL", "REVOKED", "FORGOTTEN",
}  # fmt: skip

FORGOTTEN = "FORGOTTEN"
"""Our own state for a runaway job: the controller no longer knows it, and its end was never reported to slurmdbd."""


@dataclass(frozen=True)
class Job:
    """One job, or one task of an array. Times are seconds since 1970 by the cluster's clock, 0 when unknown."""

    id: str  #: ``123``, or ``123_4`` for a task, as in the PiCaS client's ``slurm_job_id``
    state: str  #: as in Slurm, such as TIMEOUT
    exit_code: str = ""  #: ``<code>:<signal>``
    reason: str = ""
    node: str = ""
    started: int = 0
    ended: int = 0
    elapsed: int = 0  #: seconds
    cpus: int = 0
    cpu_seconds: float = 0.0  #: used by the job's processes

    @property
    def phase(self) -> Phase:
        """The meaning of the state."""
        if self.state in _WAITING:
            return Phase.WAITING
        if self.state in _RUNNING:
            return Phase.RUNNING
        return Phase.ENDED if self.state in _ENDED else Phase.UNKNOWN

    @property
    def cause(self) -> str:
        """Why the job ended, for people: the state and its details."""
        if self.state == FORGOTTEN:
            return f"{self.reason} according to sacct, but unknown to Slurm's controller"
        code, _, signal = self.exit_code.partition(":")
        if self.state in ("COMPLETED", "FAILED") and (code not in ("", "0") or signal not in ("", "0")):
            return f"{self.state}, {f'signal {signal}' if signal not in ('', '0') else f'exit code {code}'}"
        return self.state


@dataclass(frozen=True)
class SlurmStatus:
    """Slurm's answer on a submission's jobs, by id. ``at``: seconds since 1970 by the cluster's clock, before the query.

    ``sacct_error`` is sacct's error if it failed: ended jobs are then known only until MinJobAge. ``unqueued``: jobs
    that have not ended according to sacct, but were not in squeue's list.
    """

    jobs: dict[str, Job]
    at: int
    sacct_error: str | None = None
    unqueued: tuple[str, ...] = ()


@dataclass(frozen=True)
class JobsQuery(Command):
    """The command that queries the jobs of a submission. Several can be combined with ``combine``."""

    key: str = ""
    folder: str = ""
    since: int = 0  #: seconds since 1970, before the first of the jobs


def query(key: str, folder: str, since: int) -> Operation[SlurmStatus]:
    """All jobs of a submission, in one command: squeue for current jobs, sacct for ended ones.

    ``since``: seconds since 1970, before the first of them. Raises UnreachableError if squeue does not answer.
    """
    step = JobsQuery(
        _text([JobsQuery("", key=key, folder=folder, since=since)]), QUERY_TIMEOUT, key=key, folder=folder, since=since
    )
    output = yield step
    if output.code != 0:
        raise UnreachableError(f"squeue does not answer: {output.message}")
    found = parse(output.stdout.splitlines())
    if not found.unqueued:
        return found
    forgotten = yield from _forgotten(folder, found.unqueued)
    ended = {name: replace(found.jobs[name], state=FORGOTTEN, reason=found.jobs[name].state) for name in forgotten}
    return replace(found, jobs={**found.jobs, **ended})


def _forgotten(folder: str, unqueued: Sequence[str]) -> Operation[list[str]]:
    """The jobs that the controller has not known for ``FORGOTTEN_AFTER``; none while it does not answer.

    They are queried by id, which also finds jobs that were just submitted, or renamed. The time since when they are
    unknown is kept in the submission's folder, for checks without memory.
    """
    ids = ",".join(unqueued[:_MOST_ASKED])
    output = yield Command(f"""
cd -- {quote(folder)} || exit 4
found=$(squeue --noheader --all --array --states=all --jobs={quote(ids)} --format=%i 2>&1) || case $found in
  *"Invalid job id"*) found=;;
  *) exit 5;;
esac
now=$(date +%s)
[ -e unknown.jobs ] || : >unknown.jobs || exit 6
printf '%s\n' "$found" | awk -v now="$now" -v ids={quote(ids)} '
  FILENAME == "unknown.jobs" {{ since[$1] = $2; next }}
  {{ known[$1]; array = $1; if (sub(/_\\[.*/, "", array)) known[array] }}
  END {{
    n = split(ids, id, ",")
    for (i = 1; i <= n; i++) {{
      array = id[i]; sub(/_.*/, "", array)
      if (!(id[i] in known) && !(array in known)) print id[i], (id[i] in since) ? since[id[i]] : now
    }}
  }}' unknown.jobs - >.unknown.jobs.$$ && mv -f .unknown.jobs.$$ unknown.jobs || {{ rm -f .unknown.jobs.$$; exit 6; }}
echo "$now" && cat unknown.jobs""")
    if output.code != 0:
        return []
    now, *rows = output.stdout.split("\n")
    unknown = (row.split() for row in rows)
    since = {row[0]: whole(row[1], default=-1) for row in unknown if len(row) == 2}
    return [name for name in unqueued if since.get(name, -1) >= 0 and whole(now) - since[name] >= FORGOTTEN_AFTER]


def combine(steps: Sequence[JobsQuery]) -> Command:
    """One command for several queries; ``split_output`` divides its output among them."""
    return Command(_text(steps, names=True), QUERY_TIMEOUT)


def split_output(output: Output, steps: Sequence[JobsQuery]) -> list[Output]:
    """Divide the output of ``combine`` into the outputs of the single queries: its rows end with the name of a job."""
    lines: dict[str, list[str]] = {step.key: [] for step in steps}
    for line in output.stdout.splitlines():
        if line.startswith(("Q|", "A|", "E|")):
            row, _, name = line.rpartition("|")
            key = name if name in lines else name.rpartition("-")[0]
            if key in lines:
                lines[key].append(row)
        else:
            for of_key in lines.values():
                of_key.append(line)
    return [replace(output, stdout="\n".join(lines[step.key])) for step in steps]


def _text(steps: Sequence[JobsQuery], *, names: bool = False) -> str:
    """Shell code that runs squeue and sacct, once each. ``names``: each row ends with the name of its job.

    Times are seconds since 1970 (``uts``): local time repeats an hour when clocks are set back, and sacct then refuses
    it. A site may limit how far back sacct answers (slurmdbd's MaxQueryTimeRange). If sacct refuses, a few more queries
    find out for how many of the newest submissions it answers: an old one must not hide how the pilots of all others
    ended.
    """
    squeue, sacct, key = (f"{_SQUEUE}|%j", f"{_SACCT},JobName", "|$key") if names else (_SQUEUE, _SACCT, "")
    newest_first = sorted(steps, key=lambda step: -step.since)
    listed = "\n".join(f"add {quote(step.key, step.folder, str(step.since - 300))}" for step in newest_first)
    return f"""
all=() starts=() keys=()
add() {{
  local names=$1 i=1
  while [ -e "$2/command.$i" ]; do names=$names,$1-$i; i=$((i+1)); done
  all+=("$names") starts+=("$3") keys+=("$1")
}}
newest() {{ local IFS=,; names="${{all[*]:0:$1}}"; }}
account() {{
  newest "$1"
  {SACCT} --parsable2 {OURS} --starttime="uts${{starts[$1-1]}}" --name="$names" --format={sacct} 2>&1
}}
{listed}
export SLURM_TIME_FORMAT=%s
date '+T|%s'
newest ${{#all[@]}}
squeue --noheader --all --array --states=all {OURS} --name="$names" --format={quote("Q|" + squeue)} || exit 5
answered=0 refused=${{#all[@]}} rows=
if response=$(account $refused); then
  answered=$refused rows=$response
fi
while [ $((refused-answered)) -gt 1 ] && [ $SECONDS -lt {SACCT_PATIENCE} ]; do
  tried=$(((answered+refused)/2))
  if found=$(account $tried); then answered=$tried rows=$found; else refused=$tried; fi
done
[ -z "$rows" ] || printf '%s\n' "$rows" | sed 's/^/A|/'
for key in "${{keys[@]:answered}}"; do
  echo "E|$(printf '%s\n' "$response" | tail -n 1){key}"
done
true"""


def count_pilots() -> Operation[tuple[int, int]]:
    """The numbers of pending and running pilots of this package for the current user: their job names begin with
    ``picas-``."""
    output = yield Command(f"squeue --noheader --array {OURS} --format='%T|%j' || exit 5")
    if output.code != 0:
        raise UnreachableError(f"squeue does not answer: {output.message}")
    states = [
        state for state, _, name in (line.partition("|") for line in output.stdout.split()) if name.startswith("picas-")
    ]
    waiting = sum(state in _WAITING for state in states)
    return waiting, len(states) - waiting


def parse(lines: Iterable[str]) -> SlurmStatus:
    """Parse the output of ``query``. squeue is newer than sacct, except for a job that has ended according to sacct."""
    rows: dict[str, list[list[str]]] = {kind: [] for kind in "TQAE"}
    budget = _TaskBudget()
    for line in lines:
        kind, *cells = line.rstrip("\n").split("|")
        if kind in rows:
            rows[kind].append(cells)
    at = whole(rows["T"][0][0]) if rows["T"] else 0
    jobs = {job.id: job for cells in rows["A"] if len(cells) == 10 for job in _accounted(cells, budget)}
    listed: set[str] = set()
    for job in (job for cells in rows["Q"] if len(cells) == 9 for job in _queued(cells, budget)):
        listed.add(job.id)
        known = jobs.get(job.id)
        if known is None or known.phase is not Phase.ENDED or known.started < job.started or _lingers(job, known, at):
            jobs[job.id] = job
    return SlurmStatus(
        jobs,
        at=at,
        sacct_error=one_line("|".join(rows["E"][0])) or "no reason given" if rows["E"] else None,
        unqueued=tuple(
            name
            for name, job in jobs.items()
            if job.phase is not Phase.ENDED and name not in listed and "[" not in name
        ),
    )


def pilots(jobs: Iterable[Job]) -> Pilots:
    """The numbers of pilots by Slurm's states, and why they wait, for people."""
    jobs = list(jobs)
    phases = Counter(job.phase for job in jobs)
    ended = phases[Phase.ENDED]
    waiting, running = phases[Phase.WAITING], phases[Phase.RUNNING] + phases[Phase.UNKNOWN]
    states = Counter(job.state for job in jobs if job.phase is not Phase.ENDED)
    parts = []
    for state, number in sorted(states.items(), key=lambda item: (item[0] != "RUNNING", -item[1], item[0])):
        why = Counter(job.reason for job in jobs if job.state == state and job.phase is Phase.WAITING)
        reasons = [one_line(reason, 60) for reason, _ in why.most_common(3) if reason not in ("", "None")]
        parts.append(f"{number:,} {one_line(state, 30).lower()}" + (f" ({', '.join(reasons[:2])})" if reasons else ""))
    if not jobs:
        text = "no pilots in Slurm"
    elif not parts:
        text = f"all {ended:,} pilots have ended" if ended > 1 else "the pilot has ended"
    else:
        first, _, state = parts[0].partition(" ")
        noun = "pilot" if first == "1" else "pilots"
        text = ", ".join([f"{first} {noun} {state}", *parts[1:], *([f"{ended:,} ended"] if ended else [])])
    return Pilots(waiting, running, ended, text)


def _lingers(queued: Job, accounted: Job, at: int) -> bool:
    """True if the processes of an ended job may still run: until Slurm has killed them, they release tokens.

    This does not wait for the processes of a lost node.
    """
    return queued.state == "COMPLETING" and accounted.state != "NODE_FAIL" and at < accounted.ended + LINGER


class _TaskBudget:
    """The number of array tasks that may still be expanded into jobs: one row can name millions of them."""

    def __init__(self) -> None:
        self.remaining = MOST_TASKS


def _queued(cells: Sequence[str], budget: _TaskBudget) -> Iterable[Job]:
    identifier, base, task, state, reason, start, elapsed, cpus, node = cells
    state, reason, node = (one_line(text.strip()) for text in (state, reason, node))
    for name in _task_ids(identifier, base, task, budget):
        yield Job(
            id=name, state=state, reason=reason, node=node, started=whole(start),
            elapsed=int(seconds_of(elapsed) or 0), cpus=whole(cpus),
        )  # fmt: skip


def _accounted(cells: Sequence[str], budget: _TaskBudget) -> Iterable[Job]:
    """Parse rows of jobs, and skip those of their steps."""
    identifier, state, code, reason, start, end, elapsed, cpus, cpu, node = cells
    word = state.split()[0] if state.split() else ""  # "CANCELLED by 1000"
    word, code, reason, node = (one_line(text) for text in (word, code, reason, node))
    base, _, task = identifier.partition("_")
    for name in _task_ids(identifier, base.partition("+")[0], task or "N/A", budget) if "." not in identifier else []:
        yield Job(
            id=name, state=word, exit_code=code, reason=reason, node=node, started=whole(start),
            ended=whole(end), elapsed=whole(elapsed), cpus=whole(cpus), cpu_seconds=seconds_of(cpu) or 0.0,
        )  # fmt: skip


def _task_ids(identifier: str, base: str, task: str, budget: _TaskBudget) -> list[str]:
    """``123_4``, or each task of ``123_[0-3,7%2]``: a just submitted array is one row.

    An array with more tasks than there is room for stays one job, with the id of the row. The first part of a
    heterogeneous job is ``123``, and the others are ``123+1``, ...: squeue has a separate number for each of them,
    sacct does not.
    """
    leader, _, part = identifier.partition("+")
    if part:
        return [one_line(leader if part == "0" else identifier)]
    match = re.search(r"\[([^\]]*)\]", identifier)
    if not match:
        return [f"{base}_{task}"] if re.fullmatch("[0-9]+", task) else [base]
    tasks: list[range] = []
    for part in match.group(1).partition("%")[0].split(","):
        found = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9})(?::([1-9][0-9]{0,8}))?)?", part)
        if not found:
            return [base]
        first, last, step = (int(number or 0) for number in found.groups())
        tasks.append(range(first, max(first, last) + 1, step or 1))
    number = sum(map(len, tasks))
    if number > budget.remaining:
        return [one_line(identifier)]
    budget.remaining -= number
    return [f"{base}_{n}" for part in tasks for n in part]
