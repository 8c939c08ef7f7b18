"""A submission: all sbatch calls of one operator run, which cannot happen twice.

It has its own folder in the shared home on the cluster, ``<remote folder>/<key>``, where ``key`` is also the name of
its jobs. ``docs/development/architecture.md`` lists the folder's content. The folder is filled under another name and
then renamed: if several workers submit the same task, one rename succeeds, and the others continue with that folder.
From then on its files are not replaced or removed. The file ``acknowledged`` means that the operator has reported the submission:
without it, the next try adopts the jobs, even ended ones; with it, and if no jobs remain, the next try is a new
submission.

More pilots are another round of the same calls. ``round.<n>`` holds its commands and is also created by a rename.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from airflow_provider_picas.slurm import credentials, sbatch_calls, sbatch_record
from airflow_provider_picas.slurm.remote import (
    Command,
    Operation,
    RemoteError,
    RemoteFile,
    Send,
    UnreachableError,
    new_marker,
    ok,
    quote,
    space_advice,
    whole,
)
from airflow_provider_picas.slurm.sbatch_calls import SubmissionRefusedError
from airflow_provider_picas.slurm.sbatch_record import Record, job_name
from airflow_provider_picas.slurm.sweep import REMOVED
from airflow_provider_picas.tokens import ids

__all__ = ["Plan", "SubmissionRefusedError", "SubmitResult", "base_key", "job_name", "submit"]

DEFAULT_FOLDER = "picas-pilots"
"""The default folder of submissions, below the home on the cluster. Unlike a folder that the author sets, it is created."""

CREDENTIALS = "credentials"
"""Folder in a submission, mode 0700, with ``picasconfig.py``, mode 0600."""


SENT = "credentials.sent"
"""File in a submission that was sent with credentials: the id of their connection."""


FINISHED_BEFORE = "finished.before"
"""File in a submission: how many tokens of its batch, or of the pool, had finished before it."""


@dataclass(frozen=True)
class Plan:
    """The plan of a submission. The callables get its folder and key, which are known only on the cluster."""

    base_key: str
    files: Callable[[str, str], Sequence[RemoteFile]]
    commands: Callable[[str, str], Sequence[Sequence[str]]]  #: argv of each sbatch call
    folder: str | None = None  #: remote folder, absolute or below the home; None: DEFAULT_FOLDER
    workdir: str | None = None  #: where sbatch runs, absolute or below the home; None: the submission's folder
    environment: Mapping[str, str] = field(default_factory=dict)  #: of sbatch
    python_path: bool = True  #: put the credentials' folder on PYTHONPATH
    #: Instead of commands: makes the command that copies them, from the key and the folder to fill.
    copied: Callable[[str, str], Command] | None = None


@dataclass(frozen=True)
class SubmitResult:
    """A completed submission. ``submitted`` is in seconds since 1970, by the login node's clock."""

    key: str
    folder: str
    job_ids: tuple[str, ...]
    submitted: int
    adopted: bool = False  #: an earlier try made it


@dataclass(frozen=True)
class _Latest:
    """The latest submission under a base key; generation 0: there is none."""

    base: str  #: the remote folder, absolute
    base_key: str
    generation: int
    record: Record

    @property
    def key(self) -> str:
        return f"{self.base_key}.{self.generation}"

    @property
    def folder(self) -> str:
        return f"{self.base}/{self.key}"

    def submission(self, record: Record, *, adopted: bool) -> SubmitResult:
        return SubmitResult(self.key, self.folder, record.job_ids, record.since, adopted)


def base_key(name: str, *identity: str) -> str:
    """The constant part of a submission's key: a readable name and a digest of the task instance's identity."""
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_-")[:40] or "x"
    return f"picas-{readable}-{ids.digest(name, *identity)}"


def task_key(deployment: str, dag_id: str, run_id: str, task_id: str, map_index: int) -> str:
    """The base key of a task instance: DAG, task and run, which `squeue` then shows, shortened to at most 90 characters."""
    task = task_id if map_index < 0 else f"{task_id[-20:]}_{map_index}"
    parts = ((dag_id, 20), (task[-24:], 24), (run_id, 27))
    readable = "-".join(re.sub(r"[^A-Za-z0-9_-]+", "_", part)[:length].strip("_-") or "x" for part, length in parts)
    return f"picas-{readable}-{ids.digest(task_id, deployment, dag_id, run_id, str(map_index))}"


def submit(plan: Plan) -> Operation[SubmitResult]:
    """Submit, or adopt the submission of an earlier try.

    Raises SubmissionRefusedError with sbatch's message; UnreachableError if the result is unknown, in which case the
    next try finds out; RemoteError for missing folders.
    """
    latest = yield from _find(plan.base_key, plan.folder)
    standing = yield from _adopt(latest)
    if standing:
        return standing
    if latest.record.refused:
        # Repeat this: the try that was refused may have been killed before.
        yield from ok(
            sbatch_calls.cancel(latest.key, len(latest.record.calls)), "Jobs of a refused submission may still exist"
        )
        yield from remove_credentials(latest.folder)
    made, ours = yield from _make(plan, latest)
    record = yield from _settle(made)
    yield from sbatch_record.acknowledge(made.folder)
    return made.submission(record, adopted=not ours)


def adopt(base_key: str, folder: str | None) -> Operation[SubmitResult | None]:
    """The submission of an earlier try, even an incomplete one; None if there is none. Call this before computing the
    number of pilots: the earlier try's pilots hold tokens, and count towards the limits.

    Raises as ``submit``.
    """
    return (yield from _adopt((yield from _find(base_key, folder))))


def _adopt(latest: _Latest) -> Operation[SubmitResult | None]:
    record = latest.record
    if not latest.generation or not record.calls or (record.refused and not record.acknowledged):
        return None
    if record.acknowledged and (record.settled or record.refused):
        running = yield from sbatch_calls.active(latest.key, len(record.calls))
        return latest.submission(record, adopted=True) if running else None
    adopted = record.settled
    if not adopted:
        record = yield from _settle(latest)
    yield from sbatch_record.acknowledge(latest.folder)
    return latest.submission(record, adopted=adopted)


def _settle(latest: _Latest) -> Operation[Record]:
    """``sbatch_calls.settle``. A submission that is refused leaves no credentials behind."""
    try:
        return (yield from sbatch_calls.settle(latest.folder, latest.key))
    except SubmissionRefusedError as error:
        if not error.jobs_remain:
            yield from remove_credentials(latest.folder)
        raise


def remove_credentials(folder: str) -> Operation[None]:
    """Remove the credentials that were sent with a submission."""
    yield Command(f"find {quote(f'{folder}/{CREDENTIALS}')} -mindepth 1 -delete 2>/dev/null || true")


def rounds(folder: str, scope: str) -> Operation[tuple[int, int]]:
    """The number of times a submission was repeated, and the tokens of ``scope`` that had finished the last time; -1:
    unknown.

    Completes a round whose worker was killed.
    """
    output = yield from ok(
        Command(f"cd -- {quote(folder)} || exit 4\n{_PLACE}\n{_LAST_ROUND}"), "The submission's folder cannot be read"
    )
    number, _, note = output.stdout.strip().partition(" ")
    finished, _, of_scope = note.partition(" ")
    if whole(number, default=-1) < 0:
        raise RemoteError(
            f"The number of rounds in {folder} cannot be read: the cluster answered {output.message!r:.200}."
        )
    return whole(number), whole(finished, default=-1) if of_scope == ids.digest(scope) else -1


_PLACE = """
n=0; while [ -e command.$n ]; do n=$((n+1)); done
while file=$(ls -d round.*/command.$n 2>/dev/null) && [ -n "$file" ]; do
  cp -- "$file" .command.$n.$$ && mv -f -- .command.$n.$$ command.$n || { rm -f -- .command.$n.$$; exit 1; }
  n=$((n+1))
done"""
"""Shell code that puts the commands of all rounds into the submission's folder. It can be repeated, even at the same time."""

_LAST_ROUND = """
n=0; while [ -d round.$((n+1)) ]; do n=$((n+1)); done
echo "$n $(cat round.$n/finished 2>/dev/null || echo -1)"
"""


def finished_before(folder: str) -> Operation[int]:
    """The number of tokens that had finished before a submission was made; 0 if unknown."""
    output = yield Command(f"cat -- {quote(f'{folder}/{FINISHED_BEFORE}')}")
    return whole(output.stdout)


def had_credentials(folder: str) -> Operation[bool]:
    """True if credentials were sent with a submission; they may have been removed since."""
    output = yield Command(f"[ -e {quote(folder)}/{SENT} ]")
    return output.code == 0


def renew_credentials(folder: str, files: Sequence[RemoteFile], conn_id: str) -> Operation[bool]:
    """Replace the credentials of a submission with ``files`` if they differ. True if this was done.

    Replaces only credentials that still exist, are for the same database, and were sent from the connection ``conn_id``.
    """
    by_name = {file.path.rpartition("/")[2]: file for file in files}
    text = f"""
cd -- {quote(f"{folder}/{CREDENTIALS}")} 2>/dev/null || exit 0
echo "$(head -c 1000 ../{SENT} 2>/dev/null)"
grep '^PICAS_DATABASE = ' {credentials.FILE} 2>/dev/null || exit 0
sha256sum -- {quote(*by_name)} 2>/dev/null
exit 0"""
    output = yield from ok(Command(text), "The pilots' credentials cannot be read")
    conn_id_then, database, *digests = [*output.stdout.splitlines(), "", ""]
    if conn_id_then not in ("", conn_id) or database.encode() not in by_name[credentials.FILE].content.splitlines():
        return False
    there = {name: digest for digest, _, name in (line.partition("  ") for line in digests)}
    changed = [
        file
        for name, file in by_name.items()
        if name in there and there[name] != hashlib.sha256(file.content).hexdigest()
    ]
    if changed:
        yield from ok(Send(changed), "The pilots' credentials could not be replaced")
    return bool(changed)


def prepare_round(folder: str, key: str, count: int, number: int, finished: int, scope: str) -> Operation[None]:
    """Prepare round ``number``, from 1: the first ``count`` sbatch calls of a submission under new job names.
    ``sbatch_calls.settle`` submits them. If another wait has already prepared the round, that one is used.

    Records that ``finished`` tokens of ``scope`` had finished, so that the next round can check whether these pilots
    made progress.
    """
    old, new = f"s/--job-name={quote(key)}\\(-[0-9]*\\)\\{{0,1\\}}\\>/", f"--job-name={quote(key)}-$n/"
    staging = f".round.{number}.{new_marker()}"
    text = f"""
umask 077
cd -- {quote(folder)} && mkdir {staging} || exit 4
trap 'rm -rf -- {staging}' EXIT
i=0; n={number * count}
while [ $i -lt {count} ]; do
  sed "{old}{new}" command.$i >{staging}/command.$n || exit 1
  i=$((i+1)); n=$((n+1))
done
echo {quote(str(finished), ids.digest(scope))} >{staging}/finished || exit 1
mv -T -- {staging} round.{number} 2>/dev/null
[ -d round.{number} ] || exit 1
{_PLACE}"""
    yield from ok(Command(text), "More pilots could not be prepared")


def _find(base_key: str, folder: str | None) -> Operation[_Latest]:
    """Read the latest submission's folder."""
    if folder is None:
        enter = f'mkdir -p -m 700 -- "$HOME/{DEFAULT_FOLDER}" && cd -- "$HOME/{DEFAULT_FOLDER}"'
    else:
        enter = f'cd -- "$HOME" && cd -- {quote(folder)}'
    text = f"""
umask 077
case ${{SLURM_CLUSTERS-}} in all|*,*) echo "$SLURM_CLUSTERS" >&2; exit 7;; esac
{enter} || exit 3
pwd -P
n=$({{
  ls -d -- {quote(base_key)}.* 2>/dev/null | sed 's/.*[.]//'
  awk -v key={quote(base_key)} '$1 == key {{ print $2 }}' {REMOVED} 2>/dev/null
}} | grep -E '^[0-9]+$' | sort -n | tail -n 1)
echo "${{n:-0}}"
[ -n "$n" ] && [ -d {quote(base_key)}."$n" ] || exit 0
cd -- {quote(base_key)}."$n" || exit 4
{sbatch_record.READ}"""
    output = yield Command(text)
    if output.code == 7:
        raise SubmissionRefusedError(
            f"The login profile on the cluster sets SLURM_CLUSTERS to several clusters ({output.message}), so the jobs could not"
            " be found again. Remove it there, or name one cluster; for each further cluster, use a separate SSH connection."
        )
    if output.code == 3:
        raise RemoteError(
            f"The remote folder {folder or DEFAULT_FOLDER!r} cannot be entered on the cluster ({output.message})."
            + (space_advice(output.message) or " Create it there, or name another one.")
        )
    if output.code != 0:
        raise RemoteError(f"The submission's folder cannot be read on the cluster: {output.message}.")
    base, generation, *lines = [*output.stdout.splitlines(), "", ""]
    if whole(generation, default=-1) < 0:
        raise RemoteError(f"The submission's folder cannot be read: the cluster answered {output.message!r:.200}.")
    return _Latest(base, base_key, whole(generation), sbatch_record.parse_record(lines))


def _make(plan: Plan, latest: _Latest) -> Operation[tuple[_Latest, bool]]:
    """Create the next submission's folder with its content. True if it is ours: another worker may have been faster."""
    wanted = _Latest(latest.base, plan.base_key, latest.generation + 1, sbatch_record.parse_record(()))
    staging = f"{wanted.base}/.{wanted.key}.{new_marker()}"
    failure: RemoteError | None = None
    try:
        yield from _send(plan, wanted, staging)
        others = f"{quote(wanted.base)}/{quote(f'.{wanted.key}.')}*"
        yield from ok(
            Command(f"mv -T -- {quote(staging, wanted.folder)} && rm -rf -- {others}"),
            f"The submission's folder {wanted.folder} could not be created",
        )
    except UnreachableError:
        raise
    except RemoteError as error:  # also if a worker was faster
        failure = error
        yield Command(f"rm -rf -- {quote(staging)}")
    found = yield from _find(plan.base_key, plan.folder)
    if failure and found.generation < wanted.generation:
        raise failure
    return found, failure is None


def _send(plan: Plan, wanted: _Latest, staging: str) -> Operation[None]:
    """Send the files of a submission into the folder ``staging``, which will become the submission's."""
    folder, key = wanted.folder, wanted.key
    made = Command(f"umask 077; mkdir -p -- {quote(f'{staging}/{CREDENTIALS}')}")
    files = list(plan.files(folder, key))
    if plan.copied:
        files.append(RemoteFile(f"{folder}/made", b""))
        yield from ok(made, "The submission's folder could not be created")
        yield from ok(plan.copied(key, staging), "The earlier submission could not be copied")
    else:
        files += yield from _calls(plan, folder, key)
        yield from ok(made, "The submission's folder could not be created")
    moved = [replace(file, path=staging + file.path.removeprefix(folder)) for file in files]
    yield from ok(Send(moved), "The submission's files could not be sent")


def _calls(plan: Plan, folder: str, key: str) -> Operation[list[RemoteFile]]:
    """The files with the sbatch calls, and the script that runs them."""
    workdir = yield from _workdir(plan, folder)
    python_path = f"{folder}/{CREDENTIALS}" if plan.python_path else None
    script = sbatch_record.submit_script(folder, workdir, plan.environment, python_path)
    commands = [quote(*command).encode() for command in plan.commands(folder, key)]
    return [
        RemoteFile(f"{folder}/{sbatch_record.SUBMIT_SCRIPT}", script.encode(), 0o700),
        RemoteFile(f"{folder}/made", b""),
        *(RemoteFile(f"{folder}/command.{number}", command) for number, command in enumerate(commands)),
    ]


def _workdir(plan: Plan, folder: str) -> Operation[str]:
    if plan.workdir is None:
        return folder
    output = yield Command(f'cd -- "$HOME" && cd -- {quote(plan.workdir)} && pwd -P')
    if output.code != 0:
        raise RemoteError(
            f"The folder {plan.workdir!r} (workdir) cannot be entered on the cluster ({output.message})."
            " Create it there, or name another one."
        )
    return output.stdout.strip()
