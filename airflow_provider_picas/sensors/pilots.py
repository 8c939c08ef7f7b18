"""Finds the pilots that a wait watches when its author has not named them: those that were submitted for its batch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from airflow.providers.common.compat.sdk import AirflowException

from airflow_provider_picas.couchdb import batch_pilots
from airflow_provider_picas.couchdb.errors import CouchDBError
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.hooks.pilots import PilotsHook
from airflow_provider_picas.slurm import earlier_submission
from airflow_provider_picas.slurm.remote import RemoteError, UnreachableError
from airflow_provider_picas.submissions.submission import Submission
from airflow_provider_picas.tokens.text import one_line

PATIENCE = 600.0
"""Seconds to try to reach the cluster, to check whose the pilots are."""

PAUSE = 30.0
"""Seconds between two tries."""


def find_pilots(hook: PicasHook, batch: str, log: Any, patience: float = PATIENCE) -> dict[str, Any] | None:
    """The output of the task that submitted pilots for the batch; None if there is none, or more than one."""
    try:
        named = hook.do(batch_pilots.find(hook.pool, batch))
    except CouchDBError as error:
        log.warning("Could not find out which pilots were submitted for batch %s. %s", batch, error)
        return None
    found = []
    for pilots in named:
        if why := _objection(pilots, hook, batch, log, patience):
            log.warning("Not watching pilots that the pool lists for batch %s. %s", batch, one_line(why, 500))
        else:
            found.append(pilots)
    if len(found) > 1:
        log.info(
            "%d tasks have submitted pilots for batch %s. Pass the output of one as `pilots` to watch its pilots.",
            len(found), batch,
        )  # fmt: skip
    if len(found) != 1:
        return None
    log.info("Watching the pilots of batch %s: submission %s.", batch, found[0]["submission"])
    return found[0]


def forget_pilots(hook: PicasHook, batch: str, pilots: Mapping[str, Any], log: Any) -> None:
    """Record that the wait for these pilots is over: a later wait for a batch of that name is for other pilots."""
    try:
        hook.do(batch_pilots.note(hook.pool, batch, pilots, ended=True))
    except CouchDBError as error:
        log.info("Could not record that the wait for the pilots of batch %s is over. %s", batch, error)


def _objection(pilots: Mapping[str, Any], hook: PicasHook, batch: str, log: Any, patience: float) -> str | None:
    """Why these pilots were not submitted by the account of their connection; None if they were.

    Others may write to the pool, and a wait sends credentials to the folder and may submit the script in it.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            submission = Submission.parse(pilots)
            if submission is None:
                return "Nothing was submitted."
            with PilotsHook(hook, submission.ssh_conn_id) as hooks:
                return hooks.do(earlier_submission.objection(submission.key, submission.folder, batch))
        except UnreachableError as error:
            if time.monotonic() + PAUSE > deadline:
                return str(error)
            log.warning("%s Trying again in %.0f s.", error, PAUSE)
            time.sleep(PAUSE)
        except (RemoteError, ValueError, AirflowException) as error:
            return str(error)
