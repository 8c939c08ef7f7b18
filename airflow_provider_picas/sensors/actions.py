"""What a waiting task does with the pilots of a submission: check them, submit them again, end and stop them."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

from airflow.providers.common.compat.sdk import Context

from airflow_provider_picas.couchdb.errors import CouchDBError, UnavailableError
from airflow_provider_picas.couchdb.pool import Pool
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.hooks.pilots import PilotsHook, credential_files
from airflow_provider_picas.slurm import submission_folder
from airflow_provider_picas.slurm.remote import RemoteError, UnreachableError
from airflow_provider_picas.slurm.sbatch_calls import SubmissionRefusedError
from airflow_provider_picas.submissions.end import (
    end,
    end_uncounted,
    log_tails,
    log_updates,
    unknown_holders,
    work_so_far,
)
from airflow_provider_picas.submissions.on_kill import end_pilots, is_for_pilots
from airflow_provider_picas.submissions.resubmit import resubmit
from airflow_provider_picas.submissions.stop import CANCEL_WAIT, StopMode
from airflow_provider_picas.submissions.submission import Submission
from airflow_provider_picas.submissions.wait import GONE_AFTER, Wait, check_twice
from airflow_provider_picas.submissions.watch import PilotStatus
from airflow_provider_picas.task_state import task_state
from airflow_provider_picas.tokens.counts import Counts
from airflow_provider_picas.tokens.text import sample


class PilotActions:
    """The actions of one wait. Each opens a connection to the cluster and closes it."""

    def __init__(self, submission: Submission, hook: PicasHook, wait: Wait, log: Any) -> None:
        self.submission = submission
        self._hook = hook
        self._wait = wait
        self._log = log

    @property
    def _scope(self) -> tuple[Pool, str | None, Submission]:
        """The first arguments of operations."""
        return self._hook.pool, self._wait.terms.batch, self.submission

    def _connect(self) -> PilotsHook:
        return PilotsHook(self._hook, self.submission.ssh_conn_id)

    def check(self, max_scrubs: int, *, reschedule: bool) -> None:
        """Check the pilots once; again if none are found, until that is certain or has to wait for a later poke.

        ``reschedule``: the wait remembers no earlier check.
        """
        wait, watched = self._wait, self._wait.watched(self.submission.key)
        shown = watched.pilots_log
        with self._connect() as hooks:
            while True:
                limits: Any = {"max_scrubs": max_scrubs, "max_lock_age": wait.max_lock_age}
                limits["others"] = wait.others(self.submission.key)
                status = hooks.do(check_twice(*self._scope, **limits))
                now = time.monotonic()
                absent_since = now - (time.time() - self.submission.since) if reschedule else None
                key = self.submission.key
                certain_in = wait.note_pilots(status, now, submission=key, absent_since=absent_since)
                self._hook.do(watched.slurm_record.write(self._hook.pool, wait.terms.batch, key, status.slurm))
                if not reschedule and shown.logs_are_due():  # `reschedule` does not remember what was logged
                    shown.report_logs(hooks.do(log_updates(self.submission, shown.sizes)))
                if reschedule and wait.terms.batch is not None:
                    self._begin_rate(hooks, status, now)
                if status.pilots_remain:
                    self._renew_credentials(hooks)
                if wait.no_pilots or math.isinf(certain_in) or not status.jobs:
                    return
                time.sleep(certain_in)

    def _begin_rate(self, hooks: PilotsHook, status: PilotStatus, now: float) -> None:
        if work := hooks.do(work_so_far(self.submission, status)):
            self._wait.lines.rate.begin(now - work.seconds, work.finished_before)

    def _renew_credentials(self, hooks: PilotsHook) -> None:
        """Send pending and running pilots the connection's login, if it has changed."""
        settings, conn_id = self._hook.settings, self._hook.picas_conn_id
        sent = self._wait.watched(self.submission.key).credentials
        if not sent.differ(settings):
            return
        folder = self.submission.folder
        result: bool | Exception
        try:
            files = credential_files(folder, settings)
            result = hooks.do(submission_folder.renew_credentials(folder, files, conn_id))
        except (RemoteError, OSError) as error:
            result = error
        sent.note(settings, conn_id, result)

    def resubmit(self, most: int, finished: int) -> bool:
        """Submit the same pilots again, if ``most`` allows it and they make progress. True if the wait continues."""
        if not most:
            return False
        self._wait.forget_absence()
        with self._connect() as hooks:
            try:
                files = partial(credential_files, self.submission.folder, self._hook.settings)
                again = resubmit(*self._scope, most=most, finished=finished, credentials=files)
                why_not = hooks.do(again)
            except (UnreachableError, UnavailableError) as error:
                self._wait.no_pilots_before = time.monotonic() + GONE_AFTER  # trying a lost cluster takes long
                self._log.warning("%s The wait continues.", error)
                return True
            except SubmissionRefusedError as error:
                if error.for_now:
                    self._wait.no_pilots_before = time.monotonic() + error.retry_in
                    self._log.warning(
                        "%s They will be submitted again in %.0f s. The wait continues.", error, error.retry_in
                    )
                    return True
                why_not = str(error)
            except RemoteError as error:
                why_not = str(error)
        if why_not:
            self._log.warning("Not submitting more pilots. %s", why_not)
        return why_not is None

    def log_tails(self) -> str:
        """Log the tokens that others hold; return the ends of the pilots' logs."""
        with self._connect() as hooks:
            try:
                if foreign := hooks.do(unknown_holders(*self._scope)):
                    self._log.warning(
                        "Locked without a lease, and not by a job of this submission: %s. Whether anything works on them is"
                        " unknown; set `max_lock_age` to release them.", sample(foreign),
                    )  # fmt: skip
            except CouchDBError as error:
                self._log.warning("Could not find out who holds tokens: %s", error)
            return hooks.do(log_tails(self.submission))

    def end(self, counts: Counts | None, *, cancel_pending: bool, complete: Collection[str]) -> dict[str, Any] | None:
        """Remove credentials once the pilots have ended. Returns the figures, unless nothing could be counted."""
        with self._connect() as hooks:
            if counts is None:
                hooks.do(end_uncounted(self.submission))
                return None
            ending = end(
                self._hook.pool, self.submission, counts.finished, cancel_pending=cancel_pending, complete=complete
            )
            figures = hooks.do(ending)
            return figures.as_dict() if figures else None

    def stop(self, task_instance: Any, how: StopMode) -> None:
        """Stop the pilots if a person failed the task; if it was killed for any other reason, they continue."""
        if is_for_pilots(task_state(task_instance), self.submission, how, self._log):
            with self._connect() as hooks:
                hooks.do(end_pilots(*self._scope, how, self._log, wait=CANCEL_WAIT))


class AllPilots:
    """The actions on the pilots of all submissions of one wait, which may be on several clusters."""

    def __init__(self, submissions: Sequence[Submission], hook: PicasHook, wait: Wait, log: Any) -> None:
        self._wait = wait
        self._each = [PilotActions(submission, hook, wait, log) for submission in submissions]
        for submission in submissions:
            wait.watched(submission.key)

    def check(self, max_scrubs: int, *, reschedule: bool) -> None:
        """Check the pilots of each submission. If a cluster does not answer, another one's check is repeated, which then
        evaluates the leases of the lost one's pilots."""
        answering = []
        for pilots in self._each:
            pilots.check(max_scrubs, reschedule=reschedule)
            status = self._wait.watched(pilots.submission.key).status
            answering += [pilots] if status is not None and status.outage is None else []
        if answering and len(answering) < len(self._each):
            answering[0].check(max_scrubs, reschedule=reschedule)

    def resubmit(self, most: int, finished: int) -> bool:
        """Submit the same pilots again, first where the cluster answers. True if the wait continues."""
        statuses = {pilots: self._wait.watched(pilots.submission.key).status for pilots in self._each}
        order = sorted(self._each, key=lambda pilots: bool((status := statuses[pilots]) and status.outage))
        return any([pilots.resubmit(most, finished) for pilots in order])

    def log_tails(self) -> str:
        """Log the tokens that others hold; return the ends of the pilots' logs."""
        return "\n".join(tails for pilots in self._each if (tails := pilots.log_tails()))

    def end(self, context: Context, counts: Counts | None, *, cancel_pending: bool, complete: Collection[str]) -> None:
        """Push figures to XCom, unless nothing could be counted, and remove credentials once the pilots have ended.

        ``cancel_pending``, ``complete``: as in ``submissions.end.end``. The figures of several submissions are a mapping by
        their keys.
        """
        ended = {
            pilots.submission.key: pilots.end(counts, cancel_pending=cancel_pending, complete=complete)
            for pilots in self._each
        }
        found = {key: figures for key, figures in ended.items() if figures}
        if found:
            context["ti"].xcom_push("figures", found if len(self._each) > 1 else next(iter(found.values())))

    def stop(self, task_instance: Any, how: StopMode) -> None:
        """Stop the pilots if a person failed the task; if it was killed for any other reason, they continue."""
        problems: list[Exception] = []
        for pilots in self._each:
            try:
                pilots.stop(task_instance, how)
            except Exception as error:  # from Airflow's API, the pool or the cluster: the others are still stopped
                problems.append(error)
        if problems:
            raise problems[0]
