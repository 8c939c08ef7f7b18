"""What a wait does with its pilots at the end: figures, the ends of logs, and what it cleans up. Operations, as in
``watch``."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from airflow_provider_picas.couchdb import counting
from airflow_provider_picas.couchdb.errors import CouchDBError
from airflow_provider_picas.couchdb.pool import Pool
from airflow_provider_picas.lifecycle.json_values import number
from airflow_provider_picas.slurm import jobs, logs, submission_folder, usage
from airflow_provider_picas.slurm.remote import RemoteError
from airflow_provider_picas.slurm.usage import Figures
from airflow_provider_picas.submissions import stop, tidy, watch
from airflow_provider_picas.submissions.submission import Operation, Submission
from airflow_provider_picas.submissions.watch import PilotStatus

log = logging.getLogger(__name__)

END_WAIT = 60.0  # seconds for pilots without work to end; after that their credentials are left in place for now


@dataclass(frozen=True)
class WorkSoFar:
    """How long the pilots have worked, and how many tokens had finished before."""

    seconds: float
    finished_before: int


def work_so_far(submission: Submission, status: PilotStatus) -> Operation[WorkSoFar | None]:
    """Since when the pilots work, for a wait that remembers no earlier check; None if unknown."""
    started = [job.started for job in (status.jobs or {}).values() if job.started]
    if status.slurm is None or not started:
        return None
    try:
        before = yield from submission_folder.finished_before(submission.folder)
    except RemoteError:
        return None
    return WorkSoFar(float(max(0, status.slurm.at - min(started))), before)


def log_updates(submission: Submission, sizes: Mapping[str, int]) -> Operation[list[logs.LogUpdate]]:
    """The pilots' logs that have grown since they had ``sizes`` (bytes by name). Empty if the cluster does not answer."""
    try:
        return (yield from logs.updates(submission.folder, sizes))
    except RemoteError:
        return []  # the next check of the jobs logs this


def log_tails(submission: Submission) -> Operation[str]:
    """The ends of the newest logs."""
    try:
        found = yield from logs.updates(submission.folder, {})
    except RemoteError as error:
        return f"The logs cannot be read. {error}"
    return "\n".join(f"{item.name}:\n  " + "\n  ".join(item.lines) for item in found[:5])


def unknown_holders(pool: Pool, batch: str | None, submission: Submission) -> Operation[tuple[str, ...]]:
    """Tokens whose holders are unknown. Empty while the cluster does not answer."""
    try:
        return (yield from watch.holders(pool, batch, submission)).foreign
    except RemoteError:
        return ()


def remove_credentials(submission: Submission, wait: float = 0.0) -> Operation[bool]:
    """Remove the credentials from the cluster if the pilots end within ``wait`` seconds. True if they have ended."""
    ended = yield from stop.remove_credentials(submission, wait)
    if not ended:
        log.warning("Pilots remain, so their credentials stay in %s. Cancel or drain them.", submission.folder)
    return ended


def end(
    pool: Pool, submission: Submission, tokens: int, *, cancel_pending: bool = False, complete: Collection[str] = ()
) -> Operation[Figures | None]:
    """Clean up after a wait: log the figures, and remove the credentials and leases once the pilots have ended.

    ``tokens``: number of tokens that have finished. ``cancel_pending``: first cancel pilots that have not started,
    unless there is work for them. ``complete``: batches in which no more tokens can appear, so that pilots which wait for
    some are then drained. Returns the figures, or None if the cluster does not answer, which does not fail the wait.
    """
    try:
        patience = yield from _end_unneeded(pool, submission, cancel_pending=cancel_pending, complete=complete)
        ended = yield from remove_credentials(submission, patience)
        yield from _tidy(pool, submission.key if ended else None)
        result = yield from figures(submission, tokens)
    except RemoteError as error:
        log.warning("Could not get the pilots' figures: %s", error)
        return None
    log.info("The pilots of %s:\n%s", submission.key, result.table())
    return result


def end_uncounted(submission: Submission) -> Operation[None]:
    """Clean up after a wait that could not count its tokens: without figures, and without waiting for pilots."""
    try:
        yield from remove_credentials(submission)
    except RemoteError as error:
        log.warning("The pilots' credentials may remain in %s: %s", submission.folder, error)


def figures(submission: Submission, tokens: int) -> Operation[Figures]:
    """What the pilots have used so far. ``tokens`` have finished, some possibly before the pilots were submitted."""
    tokens = max(0, tokens - (yield from submission_folder.finished_before(submission.folder)))
    found = yield from jobs.query(submission.key, submission.folder, submission.since)
    return usage.figures(found.jobs.values(), tokens, time.time() - submission.since)


def _end_unneeded(
    pool: Pool, submission: Submission, *, cancel_pending: bool, complete: Collection[str]
) -> Operation[float]:
    """Cancel or drain pilots that are not needed any more. Returns how many seconds to wait for the others to end.

    This counts the tokens of their own batch, or of the whole pool if they claim any: another task may wait for those.
    """
    options = yield from tidy.pilot_options(submission)
    if options is None:
        return END_WAIT
    waits, batch = number(options.get("wait_for_work")), options.get("batch")
    try:
        if cancel_pending and (not waits or batch in complete):
            counts = yield from counting.count(pool, batch)
            if counts.unfinished:
                return 0.0 if waits > END_WAIT else END_WAIT
            if waits:
                yield from stop.drain(pool, submission.key, finished=True)
                waits = 0.0
            if cancelled := (yield from tidy.cancel_pending(submission)):
                log.info("Cancelled %d pilots that had not started: no tokens remain for them.", cancelled)
    except CouchDBError as error:
        log.info("Pilots that have not started, or that wait for work, may remain: %s", error)
    return 0.0 if waits > END_WAIT else END_WAIT


def _tidy(pool: Pool, key: str | None) -> Operation[None]:
    try:
        yield from tidy.local_documents(pool, key)
    except CouchDBError as error:  # a later wait removes them
        log.info("Leases of pilots that have ended may remain: %s", error)
