"""Stops the pilots of a submission: cancel or drain them, release their tokens, remove the credentials.

Operations, as in ``watch``.
"""

from __future__ import annotations

import time
from enum import StrEnum

from airflow_provider_picas.couchdb import errors
from airflow_provider_picas.couchdb.http import Request, json_body
from airflow_provider_picas.couchdb.pool import Pool
from airflow_provider_picas.lifecycle.ids import drain_flag
from airflow_provider_picas.slurm import sbatch_calls, sbatch_record
from airflow_provider_picas.slurm.remote import OURS, Command, Output, Pause, ok, quote
from airflow_provider_picas.slurm.submission_folder import CREDENTIALS
from airflow_provider_picas.submissions.deaths import ObservedLeases
from airflow_provider_picas.submissions.submission import Operation, Submission
from airflow_provider_picas.submissions.watch import PilotStatus, check_pilots

CANCEL_WAIT = 50  # seconds for cancelled pilots to release their tokens: Slurm's KillWait is 30
LONGEST_PAUSE = 120.0  # seconds between two checks of whether the pilots have ended
MOST_CALLS = 200  # limit on the sbatch calls of one submission that a list of names covers


class StopMode(StrEnum):
    """How pilots are stopped."""

    CANCEL = "cancel"  #: at once: scancel, and release their tokens
    DRAIN = "drain"  #: they finish the tokens in hand, then stop
    LEAVE = "leave"  #: not at all

    @classmethod
    def _missing_(cls, value: object) -> None:
        raise ValueError(f"{value!r:.80} is not a way to stop pilots; it takes {', '.join(map(repr, map(str, cls)))}.")


def stop(
    pool: Pool, batch: str | None, submission: Submission, how: StopMode, *, wait: float = CANCEL_WAIT
) -> Operation[PilotStatus | None]:
    """Stop the pilots as ``how`` says. Returns the status after a cancel; None otherwise."""
    if how is StopMode.DRAIN:
        yield from drain(pool, submission.key)
    if how is StopMode.CANCEL:
        return (yield from cancel(pool, batch, submission, wait=wait))
    return None


def drain(pool: Pool, key: str, *, finished: bool = False) -> Operation[None]:
    """Set the flag that our own pilots check when they renew their leases, and while they wait for work.

    ``finished``: because no more tokens can appear, so they may be submitted again if tokens are reset.
    """
    flag = {"drain": True, "raised": int(time.time())}  # the time is used to remove it, long afterwards
    flag |= {"finished": True} if finished else {}
    yield Request("PUT", pool.document_path(drain_flag(key)), body=json_body(flag))


def drained(pool: Pool, key: str) -> Operation[bool]:
    """True if the drain flag is set. One that was set because no more tokens could appear is removed."""
    try:
        flag = yield from pool.get(drain_flag(key))
    except errors.NotFoundError:
        return False
    if flag.get("finished"):
        yield from pool.write([json_body({**flag, "_deleted": True})])
        return False
    return bool(flag.get("drain"))


def cancel(
    pool: Pool, batch: str | None, submission: Submission, *, wait: float = CANCEL_WAIT
) -> Operation[PilotStatus]:
    """Cancel the jobs. Once they have ended, or ``wait`` is over, release the tokens that they did not release themselves."""
    yield from ok(sbatch_calls.cancel(submission.key, MOST_CALLS), "The pilots could not be cancelled")
    waited, earlier, observer = 0.0, PilotStatus(), ObservedLeases()
    while True:
        # The tokens did not cause the cancel: none becomes an error.
        status: PilotStatus = yield from check_pilots(
            pool, batch, submission, max_scrubs=10**6, max_lock_age=None, observer=observer
        )
        status.add_earlier(earlier)
        if status.pilots_remain is False or waited >= wait:
            return status
        earlier = status
        yield Pause(2)
        waited += 2


def remove_credentials(submission: Submission, wait: float = 0.0) -> Operation[bool]:
    """Remove the credentials from the submission's folder if within ``wait`` seconds no pilot remains that may read
    them. True if they were removed."""
    names = quote(",".join(sbatch_record.job_names(submission.key, MOST_CALLS)))
    folder = quote(f"{submission.folder}/{CREDENTIALS}")
    text = f"""
settled() {{
  i=0; while [ -e command.$i ]; do [ -e started.$i/code ] || return; i=$((i+1)); done
}}
cd -- {quote(submission.folder)} 2>/dev/null || exit 0
settled || exit 6  # more pilots are about to be submitted
left=$(squeue --noheader --all {OURS} --name={names} --format=%i) || exit 5
[ -z "$left" ] && settled || exit 6
find {folder} -mindepth 1 -delete 2>/dev/null || true"""
    waited, pause = 0.0, 2.0
    while True:
        output: Output = yield Command(text)
        if output.code == 0 or waited >= wait:
            return output.code == 0
        yield Pause(pause)
        waited, pause = waited + pause, min(LONGEST_PAUSE, pause * 1.2)
