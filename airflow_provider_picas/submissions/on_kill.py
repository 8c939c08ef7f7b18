"""What happens to the pilots when a waiting task ends by hand, the same for the trigger and for the sensor that pokes."""

from __future__ import annotations

from typing import Any

from airflow_provider_picas.couchdb.errors import CouchDBError
from airflow_provider_picas.couchdb.pool import Pool
from airflow_provider_picas.slurm.remote import Output, RemoteError
from airflow_provider_picas.submissions import stop
from airflow_provider_picas.submissions.report import PilotsLog
from airflow_provider_picas.submissions.stop import StopMode
from airflow_provider_picas.submissions.submission import Operation, Submission
from airflow_provider_picas.submissions.watch import PilotStatus


def is_for_pilots(state: str | None, submission: Submission, how: StopMode, log: Any) -> bool:
    """True if the pilots are stopped: a person failed the task, whose ``state`` this is. Otherwise they continue."""
    if state != "failed":
        log.info("The task is %s, not failed: the pilots of %s continue.", state, submission.key)
        return False
    log.info("The task was marked failed: %s the pilots of %s.", how, submission.key)
    return True


def end_pilots(
    pool: Pool, batch: str | None, submission: Submission, how: StopMode, log: Any, *, wait: float
) -> Operation[None]:
    """Stop the pilots and remove their credentials once they have ended.

    ``wait``: seconds for them to end; after that the credentials stay. Raises CouchDBError or RemoteError.
    """
    if status := (yield from stop_for_good(pool, batch, submission, how, log)):
        PilotsLog(log).report_cancelled(status)
    # squeue shows cancelled pilots until they have ended.
    if not (yield from _patient(stop.remove_credentials(submission, wait))):
        log.warning("Some pilots have not ended yet; their credentials stay in %s.", submission.folder)
    log.info("The pilots of %s: %s has finished.", submission.key, how)


def stop_for_good(
    pool: Pool, batch: str | None, submission: Submission, how: StopMode, log: Any
) -> Operation[PilotStatus | None]:
    """Cancel or drain the pilots, and keep waits from submitting them again. Returns the status after a cancel."""
    if how is StopMode.CANCEL:
        try:
            yield from stop.drain(pool, submission.key)
        except CouchDBError as error:  # cancel the jobs anyway
            log.warning("A wait may submit the pilots of %s again: %s", submission.key, error)
    return (yield from stop.stop(pool, batch, submission, how))


def _patient(operation: Operation[bool]) -> Operation[bool]:
    """An operation in which a step on an unreachable cluster fails like a command, so that it is tried again."""
    try:
        step = next(operation)
        while True:
            try:
                output: Any = yield step
            except RemoteError as error:
                output = Output(1, stderr=str(error))
            step = operation.send(output)
    except StopIteration as end:
        return bool(end.value)
