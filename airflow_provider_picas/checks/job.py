"""Checks a compute node with a job of at most one minute, which is submitted and queried in the same way as pilots."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

from airflow_provider_picas.checks import node
from airflow_provider_picas.checks.finding import Finding, failed, ok
from airflow_provider_picas.checks.node import Probe
from airflow_provider_picas.checks.wanted import Wanted
from airflow_provider_picas.hooks.slurm import SlurmHook
from airflow_provider_picas.slurm import jobs, pilot_job, sbatch, sbatch_calls, submission_folder
from airflow_provider_picas.slurm.jobs import Phase
from airflow_provider_picas.slurm.remote import RemoteError, RemoteFile, quote
from airflow_provider_picas.tokens.text import one_line

WHAT = "compute node"
SCRIPT = "check.sh"
LOG = "check.log"
EVERY = 2.0  # seconds between two queries of the job
LATE = 10.0  # seconds after the job's end within which its files must appear on the login node

Note = Callable[[str], None]


def check(slurm: SlurmHook, probe: Probe, wanted: Wanted, note: Note) -> Iterator[Finding]:
    """Submit the job, wait until it has run, and yield its findings. At the end, cancel it and remove its folder."""
    base_key = submission_folder.base_key("check", secrets.token_hex(8))
    try:
        made = slurm.do(submission_folder.submit(plan(base_key, probe, wanted)))
        yield from _outcome(slurm, made, probe, wanted, note)
    except (submission_folder.SubmissionRefusedError, sbatch.OptionError) as error:
        yield failed("sbatch", str(error))
    except RemoteError as error:
        yield failed(WHAT, str(error))
    finally:
        _clean_up(slurm, base_key, wanted.remote_folder, note)


def _clean_up(slurm: SlurmHook, base_key: str, remote_folder: str | None, note: Note) -> None:
    try:
        slurm.perform(sbatch_calls.cancel(f"{base_key}.1", 1))
        folder = submission_folder.DEFAULT_FOLDER if remote_folder is None else remote_folder
        slurm.run(f'cd -- "$HOME" && cd -- {quote(folder)} && rm -rf -- {quote(base_key)}.*')
    except RemoteError as error:
        note(f"The job and the folder {base_key}.1 may remain on the cluster. {error}")


def plan(base_key: str, probe: Probe, wanted: Wanted) -> submission_folder.Plan:
    """The submission. It contains no secrets. Raises OptionError."""
    options = {"time": "00:01:00", **wanted.sbatch}

    def script(folder: str) -> bytes:
        return pilot_job.batch_script(folder, node.CONFIG, wanted.setup, node.PROGRAM)

    def files(folder: str, key: str) -> list[RemoteFile]:
        return [*probe.files(folder, to_file=True), RemoteFile(f"{folder}/{SCRIPT}", script(folder), 0o700)]

    def commands(folder: str, key: str) -> list[list[str]]:
        given = {"output": f"{folder}/{LOG}", **options}
        return [sbatch.command_line(key, given, None, f"{folder}/{SCRIPT}", script(folder))]

    commands("", "")  # raises for a bad option before anything is sent
    return submission_folder.Plan(base_key, files, commands, folder=wanted.remote_folder, python_path=False)


def _outcome(
    slurm: SlurmHook, made: submission_folder.SubmitResult, probe: Probe, wanted: Wanted, note: Note
) -> Iterator[Finding]:
    report = yield from _wait(slurm, made, wanted.wait, note)
    if report is None:
        return
    python, host = one_line(str(report.get("python"))), one_line(str(report.get("host")))
    yield ok(WHAT, f"Job {made.job_ids[0]} ran on {host} and can read the shared home.")
    yield ok(f"{WHAT}, Python", python)
    yield from node.scratch(f"{WHAT}, scratch", report)
    if probe.url is None:
        return
    if (why := probe.reaches(report)) is None:
        yield ok(f"{WHAT}, database", f"{probe.url} answers.")
    else:
        yield failed(
            f"{WHAT}, database",
            f"{probe.url} does not answer from {host} ({why}), so no pilot there can work. Ask the site to let compute nodes"
            " reach it, choose another partition, or use an address of the database that they can reach.",
        )
    yield from node.clock(WHAT, report)


def _wait(
    slurm: SlurmHook, made: submission_folder.SubmitResult, seconds: float, note: Note
) -> Generator[Finding, None, Mapping[str, Any] | None]:
    """Wait for the job's report; None, and the error, if there is none."""
    deadline, reported, state = time.monotonic() + seconds, "", ""
    ended: float | None = None
    while True:
        output = slurm.run(f"cat -- {quote(f'{made.folder}/{node.RESULT}')} 2>/dev/null")
        if (report := node.read_report(output.stdout)) is not None:
            return report
        now = time.monotonic()
        if ended is not None and now > ended + LATE:
            yield failed(WHAT, f"Job {made.job_ids[0]} ended without a report ({state}). {_log(slurm, made)}")
            return None
        job = next(iter(slurm.do(jobs.query(made.key, made.folder, made.submitted)).jobs.values()), None)
        state = (
            f"{job.cause}{f' ({one_line(job.reason)})' if job.reason not in ('', 'None') else ''}" if job else "unknown"
        )
        if state != reported:
            note(f"Job {made.job_ids[0]}: {state}")
            reported = state
        if job is not None and job.phase is Phase.ENDED:
            ended = ended or now
        elif now > deadline:
            yield failed(
                WHAT,
                f"Job {made.job_ids[0]} has not run within {seconds:.0f} s: {state}. It was cancelled. Choose another partition"
                " (--partition, --sbatch key=value), or wait longer (--wait).",
            )
            return None
        time.sleep(EVERY)


def _log(slurm: SlurmHook, made: submission_folder.SubmitResult) -> str:
    """The end of the job's log, for a message."""
    log = quote(f"{made.folder}/{LOG}")
    output = slurm.run(f"[ -e {log} ] && tail -n 5 -- {log} | tail -c 1000")
    if output.code != 0:
        return f"There is no log in {made.folder} either: compute nodes and login nodes must share the home."
    end = one_line(" ".join(output.stdout.split()), 500)
    return f"Its log ends: {end}" if end else "Its log is empty."
