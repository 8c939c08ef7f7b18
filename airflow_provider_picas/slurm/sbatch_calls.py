"""The sbatch calls of one submission: start them, find out the result of each, cancel their jobs.

``sbatch_record`` describes the files that record the calls. If these do not show whether there is a job, Slurm is
queried by its name.
"""

from __future__ import annotations

import re
from dataclasses import replace

from airflow_provider_picas.slurm import sbatch, sbatch_record
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
from airflow_provider_picas.slurm.sbatch_record import READ, SUBMIT_SCRIPT, Record, job_name, job_names, parse_record
from airflow_provider_picas.tokens.text import one_line

ANSWER_WAIT = 40.0  # seconds that a try waits for sbatch; sbatch itself gives up after MessageTimeout, 10 s
SETTLE_WAIT = 600.0  # seconds that a try waits for a controller that does not answer
POLL_INTERVAL = 2.0  # seconds between two queries
MARGIN = 5.0  # seconds in addition to MessageTimeout after which an unseen job does not exist


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


def settle(folder: str, key: str, first: int = 0) -> Operation[Record]:
    """Run the calls that were not run yet, and find out the result of each. ``first``: of the calls of this round.

    Raises SubmissionRefusedError with sbatch's message, once the accepted jobs are cancelled: the next try submits
    all of them again. Raises UnreachableError if the result is unknown; then the next try finds out.
    """
    record = yield from _start(folder, first)
    if not record.calls:
        raise RemoteError(
            f"The submission's folder {folder} on the cluster contains no sbatch calls: its files were removed."
        )
    waited = 0.0  # seconds, without the duration of the queries: a lower bound
    none_since: float | None = None  # when Slurm first reported that there is no such job
    attempts = _attempts(record)
    while not record.settled:
        found = yield from find_jobs(key, record)
        before, attempts = attempts, _attempts(record)
        if found is None or attempts != before or any(record.calls[number].may_be_running for number in record.open):
            # A controller that does not answer may still process the request later, and another try may have called again.
            none_since = None
        elif not found.keys() & set(record.open):
            none_since = waited if none_since is None else none_since
            # A job may still appear some time after Slurm has reported that there is none.
            if waited - none_since >= (yield from _message_timeout()) + MARGIN:
                record = yield from _restart(folder, record)
                none_since = None
                continue
        if found and (yield from sbatch_record.record_ids(folder, record, found)):
            record = yield from sbatch_record.read(folder, first)
            continue
        if waited >= SETTLE_WAIT:
            raise UnreachableError(
                f"sbatch gave no clear result for {key}, and Slurm's controller has not answered since. The next try checks"
                " whether the jobs exist; nothing is submitted twice."
            )
        yield Pause(POLL_INTERVAL)
        waited += POLL_INTERVAL
        record = yield from sbatch_record.read(folder, first)
    if record.refused:
        yield from _refuse(key, record)
    yield from _refuse_other_clusters(folder, key, record)
    if any(call.given_up for call in record.of_round):
        yield from _cancel_others(key, record)
    return record


def active(key: str, calls: int) -> Operation[bool]:
    """True if a job of the submission is pending or running. Raises UnreachableError if Slurm does not answer."""
    output = yield Command(
        f"squeue --noheader --all {OURS} --name={quote(','.join(job_names(key, calls)))} --format='%F|%T'"
    )
    if output.code != 0:
        raise UnreachableError(
            f"squeue does not report whether the pilots of {key} are still running: {output.message}"
        )
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


def _attempts(record: Record) -> list[tuple[int, bool]]:
    """Which attempt of each call the record shows, and whether it was started."""
    return [(call.given_up, call.started) for call in record.calls]


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
    if any(call.job_id or call.uncertain for call in record.of_round):
        jobs_remain = (yield cancel(key, len(record.calls))).code != 0
    raise refusal(record, jobs_remain=jobs_remain)


def _refuse_other_clusters(folder: str, key: str, record: Record) -> Operation[None]:
    """Cancel jobs that the site has sent to another cluster than squeue's: they would count as gone while they
    run. Raises SubmissionRefusedError.
    """
    sent = {call.job_id: name for call in record.of_round if call.job_id and (name := sbatch.cluster(call.stdout))}
    if not sent:
        return
    output = yield Command(_CLUSTER_NAME)
    here = output.stdout.strip()
    elsewhere = {job: name for job, name in sent.items() if name != here}
    if not (here and elsewhere):
        return
    yield from sbatch_record.give_up(folder, record)
    cancels = [f"scancel {quote(f'--clusters={name}', job)} || failed=1" for job, name in elsewhere.items()]
    done = yield Command("\n".join([*cancels, '[ -z "$failed" ]']))
    yield cancel(key, len(record.calls))  # the jobs of the other calls, which were sent to this cluster
    names = ", ".join(sorted(set(elsewhere.values())))
    result = "was cancelled" if done.code == 0 else "could not be cancelled: cancel it"
    raise SubmissionRefusedError(
        f"sbatch sent job {', '.join(elsewhere)} to the cluster {names}, where it would not be found again, so it {result}. Set"
        " SLURM_CLUSTERS to it in the account's login profile, or use an SSH connection to one of its own login nodes.",
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


def _refusal(record: Record, jobs_remain: bool) -> str:
    call = next(call for call in record.of_round if call.refused)
    message = " ".join(
        line.removeprefix("sbatch: ").removeprefix("error: ") for line in call.stderr.strip().splitlines()
    )
    fate = "could not be cancelled: cancel it" if jobs_remain else "was cancelled"
    accepted = [call.job_id for call in record.of_round if call.job_id]
    also = f" Job {', '.join(accepted)} had been accepted and {fate}." if accepted else ""
    message = one_line(message or call.stdout.strip() or f"exit code {call.code}", 1000)
    return f"sbatch refused the pilots: {message}{also}"


def _message_timeout() -> Operation[float]:
    """Slurm's MessageTimeout in seconds: how long sbatch waits for the controller."""
    output = yield Command("scontrol show config | sed -n 's/^MessageTimeout *= *\\([0-9]*\\).*/\\1/p'")
    return float(whole(output.stdout, default=60))


def _restart(folder: str, record: Record) -> Operation[Record]:
    """Give up the calls that created no job, and run them again."""
    # sbatch has created these jobs, but printed several numbers, and Slurm has forgotten their names: use the first number.
    made = {number: ids[0] for number in record.open if (ids := record.calls[number].printed_ids)}
    yield from sbatch_record.record_ids(folder, record, made)
    yield from sbatch_record.give_up(folder, record, [number for number in record.open if number not in made])
    return (yield from _start(folder, record.first))


def _cancel_others(key: str, record: Record) -> Operation[None]:
    """Cancel jobs that appeared after all and are not in the record."""
    for number, call in enumerate(record.of_round, start=record.first):
        name, keep = quote(job_name(key, number)), quote(str(call.job_id))
        yield Command(
            f"squeue --noheader --all {OURS} --name={name} --format=%F | sort -u | grep -vx {keep}"
            ' | while read -r job; do scancel "$job"; done'
        )
