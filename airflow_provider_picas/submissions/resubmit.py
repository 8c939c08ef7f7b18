"""Submits the pilots of a submission again, as another round of the same sbatch calls. An operation, as in ``watch``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from airflow_provider_picas.couchdb.pool import Pool
from airflow_provider_picas.slurm import jobs, sbatch_calls, sbatch_record, submission_folder
from airflow_provider_picas.slurm.jobs import Phase
from airflow_provider_picas.slurm.remote import RemoteFile, Send, ok
from airflow_provider_picas.submissions.stop import drained
from airflow_provider_picas.submissions.submission import Operation, Submission

log = logging.getLogger(__name__)


def resubmit(
    pool: Pool,
    batch: str | None,
    submission: Submission,
    *,
    most: int,
    finished: int,
    credentials: Callable[[], Sequence[RemoteFile]],
) -> Operation[str | None]:
    """Submit the same pilots again, unless this was done ``most`` times, or the last ones finished no token.

    ``finished``: number of tokens that have finished. ``credentials``: reads the files that pilots with credentials get.

    Returns the reason if not, or None if pilots were submitted, by this wait or by another one of the same pilots.
    Raises SubmissionRefusedError. One that is ``for_now`` does not count: the same round is submitted again after
    ``retry_in``.
    """
    folder, key, count = submission.folder, submission.key, submission.calls
    scope = batch or ""
    if (yield from drained(pool, key)):
        return "They were drained or cancelled."
    done, before = yield from submission_folder.rounds(folder, scope)
    record = yield from sbatch_record.read(folder, done * count)
    if record.settled:
        found = yield from jobs.query(key, folder, submission.since)
        if any(job.phase is not Phase.ENDED for job in found.jobs.values()):
            log.info("Pilots of %s are pending or running: another wait has submitted them again.", key)
            return None
        if done and record.refused_for_now:
            if record.retry_in:
                raise sbatch_calls.refusal(record)
            yield from sbatch_record.give_up(folder, record)
        elif done >= most:
            return f"They were submitted again {done} times, the limit set by `resubmit`."
        elif finished <= before:
            return "The pilots that were submitted again have not finished any token."
        else:
            done += 1
            yield from submission_folder.prepare_round(folder, key, count, done, finished, scope)
    # The round may belong to another wait, or to a worker that was killed: continue it in any case.
    if (yield from submission_folder.had_credentials(folder)) and (files := credentials()):
        yield from ok(Send(tuple(files)), "The credentials could not be sent")
    record = yield from sbatch_calls.settle(folder, key, done * count)
    job_ids = ", ".join(str(call.job_id) for call in record.of_round)
    log.info("No pilots remained, so the same ones were submitted again: job %s.", job_ids)
    return None
