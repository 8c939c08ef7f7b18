"""What a waiting task does with the pilots of a submission: check them, submit them again, end and stop them."""

from __future__ import annotations

import math
import time
from typing import Any

from airflow.providers.common.compat.sdk import Context

from airflow_provider_picas.couchdb.errors import CouchDBError, UnavailableError
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.hooks.submission import WatchedSubmission
from airflow_provider_picas.slurm.remote import RemoteError, UnreachableError
from airflow_provider_picas.slurm.sbatch_calls import SubmissionRefusedError
from airflow_provider_picas.submissions.on_kill import is_for_pilots
from airflow_provider_picas.submissions.stop import StopMode
from airflow_provider_picas.submissions.submission import Watched
from airflow_provider_picas.submissions.wait import Wait
from airflow_provider_picas.task_state import task_state
from airflow_provider_picas.tokens.counts import Counts
from airflow_provider_picas.tokens.text import sample


class PilotActions:
    """The actions of one wait. Each opens a connection to the cluster and closes it."""

    def __init__(self, watched: Watched, hook: PicasHook, wait: Wait, log: Any) -> None:
        self.watched = watched
        self._hook = hook
        self._wait = wait
        self._log = log

    def _submission(self) -> WatchedSubmission:
        return WatchedSubmission(self.watched, self._hook, self._wait.terms.batch)

    def check(self, max_scrubs: int, *, reschedule: bool) -> None:
        """Check the pilots once; again if none are found, until that is certain or has to wait for a later poke.

        ``reschedule``: the wait remembers no earlier check.
        """
        wait, shown = self._wait, self._wait.pilots_log
        with self._submission() as submitted:
            while True:
                news = submitted.look(max_scrubs, wait.max_lock_age)
                now = time.monotonic()
                absent_since = now - (time.time() - self.watched.since) if reschedule else None
                certain_in = wait.note_pilots(news, now, absent_since=absent_since)
                if not reschedule and shown.logs_are_due():  # `reschedule` does not remember what was logged
                    shown.report_logs(submitted.log_news(shown.sizes))
                if reschedule and wait.terms.batch is not None and (work := submitted.work_so_far(news)):
                    wait.lines.rate.begin(now - work.seconds, work.finished_before)
                if news.pilots_remain:
                    submitted.renew_credentials(wait.credentials)
                if wait.no_pilots or math.isinf(certain_in) or not news.jobs:
                    return
                time.sleep(certain_in)

    def resubmit(self, most: int, finished: int) -> bool:
        """Submit the same pilots again, if ``most`` allows it and they make progress. True if the wait continues."""
        if not most:
            return False
        self._wait.forget_absence()
        with self._submission() as submitted:
            try:
                why_not = submitted.resubmit(most, finished)
            except (UnreachableError, UnavailableError) as error:
                self._log.warning("%s The wait goes on.", error)
                return True
            except SubmissionRefusedError as error:
                if error.for_now:
                    self._wait.no_pilots_before = time.monotonic() + error.retry_in
                    self._log.warning("%s They are submitted again in %.0f s. The wait goes on.", error, error.retry_in)
                    return True
                why_not = str(error)
            except RemoteError as error:
                why_not = str(error)
        if why_not:
            self._log.warning("No more pilots are submitted. %s", why_not)
        return why_not is None

    def log_tails(self) -> str:
        """Log the tokens that others hold; return the ends of the pilots' logs."""
        with self._submission() as submitted:
            try:
                if foreign := submitted.foreign():
                    self._log.warning(
                        "Held without a lease, by no job of this submission: %s. Whether anybody works on them cannot be known;"
                        " `max_lock_age` has them given back.", sample(foreign),
                    )  # fmt: skip
            except CouchDBError as error:
                self._log.warning("Who holds tokens cannot be told: %s", error)
            return submitted.log_tails()

    def end(self, context: Context, counts: Counts | None, *, cancel_pending: bool) -> None:
        """Push figures to XCom, unless nothing could be counted, and remove credentials once the pilots have ended."""
        with self._submission() as submitted:
            finished = counts.finished if counts else None
            if figures := submitted.end(finished, cancel_pending=cancel_pending):
                context["ti"].xcom_push("figures", figures)

    def stop(self, task_instance: Any, how: StopMode) -> None:
        """Stop the pilots if a person failed the task; if it was killed for any other reason, they continue."""
        if is_for_pilots(task_state(task_instance), self.watched, how, self._log):
            with self._submission() as submitted:
                submitted.stop_after_kill(how, self._log)
