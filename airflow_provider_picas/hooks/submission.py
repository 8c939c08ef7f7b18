"""A watched submission, with both hooks: the actions of a task on its pilots."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_provider_picas.couchdb.errors import CouchDBError
from airflow_provider_picas.couchdb.settings import Settings
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.hooks.slurm import SlurmHook
from airflow_provider_picas.sansio import drive
from airflow_provider_picas.slurm import credentials, jobs, logs, resubmission, sbatch_calls, sbatch_record, submission
from airflow_provider_picas.slurm.jobs import Phase
from airflow_provider_picas.slurm.remote import RemoteError, RemoteFile, Send, ok
from airflow_provider_picas.slurm.usage import Figures, figures
from airflow_provider_picas.submissions import stop as stopping
from airflow_provider_picas.submissions import tidy, watch
from airflow_provider_picas.submissions.deaths import Observer
from airflow_provider_picas.submissions.on_kill import end_pilots, stop_for_good
from airflow_provider_picas.submissions.submission import Operation, Result, Watched, performer
from airflow_provider_picas.submissions.wait import SentCredentials
from airflow_provider_picas.submissions.watch import PilotStatus, check_pilots

log = logging.getLogger(__name__)

END_WAIT = 60.0  # seconds for pilots without work to end; after that their credentials are left in place for now


@dataclass(frozen=True)
class WorkSoFar:
    """How long the pilots have worked, and how many tokens had finished before."""

    seconds: float
    finished_before: int


class WatchedSubmission:
    """Acts on a submission with both hooks. The end of the ``with`` block closes the connection to the cluster."""

    def __init__(self, watched: Watched, picas: PicasHook, batch: str | None) -> None:
        self.watched = watched
        self._picas = picas
        self._batch = batch
        self._slurm = SlurmHook(watched.ssh_conn_id)

    def __enter__(self) -> WatchedSubmission:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._slurm.close()

    def do(self, operation: Operation[Result]) -> Result:
        """Run an operation: its steps go to CouchDB and to the cluster."""
        return drive(operation, performer(self._picas.send, self._slurm.perform))

    def look(self, max_scrubs: int, max_lock_age: float | None) -> PilotStatus:
        """Check jobs and locked tokens, and release the tokens of dead pilots. Checks twice if a pilot is silent."""
        observer = Observer()
        news = self._look(max_scrubs, max_lock_age, observer)
        if news.outage is None and (patience := news.holders.patience) > 0:
            log.info("Pilots were not heard in time. They are looked at again in %.0f s.", patience)
            time.sleep(patience + 0.1)
            later = self._look(max_scrubs, max_lock_age, observer)
            later.add_earlier(news)
            return later
        return news

    def _look(self, max_scrubs: int, max_lock_age: float | None, observer: Observer) -> PilotStatus:
        pool = self._picas.pool
        limits: Any = {"max_scrubs": max_scrubs, "max_lock_age": max_lock_age}
        return self.do(check_pilots(pool, self._batch, self.watched, observer=observer, **limits))

    def objection(self, batch: str) -> str | None:
        """Why this account did not make the submission for the batch; None if it did. Raises RemoteError."""
        return self.do(resubmission.objection(self.watched.key, self.watched.folder, batch))

    def foreign(self) -> tuple[str, ...]:
        """Tokens whose holders are unknown. Empty while the cluster does not answer."""
        try:
            return self.do(watch.holders(self._picas.pool, self._batch, self.watched)).foreign
        except RemoteError:
            return ()

    def log_news(self, sizes: Mapping[str, int]) -> list[logs.LogUpdate]:
        """The pilots' logs that have grown since they had ``sizes`` (bytes by name). Empty if the cluster does not answer."""
        try:
            return self.do(logs.updates(self.watched.folder, sizes))
        except RemoteError:
            return []  # the next check of the jobs logs this

    def resubmit(self, most: int, finished: int) -> str | None:
        """Submit the same pilots again, unless this was done ``most`` times, or the last ones finished no token.

        Returns the reason if not, or None if pilots were submitted, by this wait or by another one of the same pilots.
        Raises SubmissionRefusedError. One that is ``for_now`` does not count: the same round is submitted again after
        ``retry_in``.
        """
        folder, key, count = self.watched.folder, self.watched.key, self.watched.calls
        scope = self._batch or ""
        if self.do(stopping.drained(self._picas.pool, key)):
            return "Somebody has drained or cancelled them."
        done, before = self.do(submission.rounds(folder, scope))
        record = self.do(sbatch_record.read(folder, done * count))
        if record.settled:
            if any(job.phase is not Phase.ENDED for job in self._jobs().values()):
                log.info("Pilots of %s wait or run: somebody else has submitted them again.", key)
                return None
            if done and record.refused_for_now:
                if record.retry_in:
                    raise sbatch_calls.refusal(record)
                self.do(sbatch_record.give_up(folder, record))
            elif done >= most:
                return f"They were submitted again {done} times, as often as `resubmit` allows."
            elif finished <= before:
                return "The pilots that were submitted again have finished no token."
            else:
                done += 1
                self.do(submission.prepare_round(folder, key, count, done, finished, scope))
        # The round may belong to another wait, or to a worker that was killed: continue it in any case.
        if files := self._credentials():
            self.do(ok(Send(files), "The credentials could not be sent"))
        record = self.do(sbatch_calls.settle(folder, key, done * count))
        jobs = ", ".join(str(call.job_id) for call in record.of_round)
        log.info("No pilot was left, so the same ones were submitted again: job %s.", jobs)
        return None

    def _jobs(self) -> dict[str, jobs.Job]:
        """The submission's jobs by id."""
        return self.do(jobs.query(self.watched.key, self.watched.folder, self.watched.since)).jobs

    def _credentials(self) -> list[RemoteFile]:
        """The files of credentials that were sent with the submission, and may have been removed."""
        if not self.do(submission.had_credentials(self.watched.folder)):
            return []
        return credential_files(self.watched.folder, self._picas.settings)

    def renew_credentials(self, sent: SentCredentials) -> None:
        """Send pending and running pilots the connection's login, if it has changed. ``sent``: the last one."""
        settings, conn_id = self._picas.settings, self._picas.picas_conn_id
        if not sent.differ(settings):
            return
        result: bool | Exception
        try:
            files = credential_files(self.watched.folder, settings)
            result = self.do(submission.renew_credentials(self.watched.folder, files, conn_id))
        except (RemoteError, OSError) as error:
            result = error
        sent.note(settings, conn_id, result)

    def work_so_far(self, news: PilotStatus) -> WorkSoFar | None:
        """Since when the pilots work, for a wait that remembers no earlier check; None if unknown."""
        started = [job.started for job in (news.jobs or {}).values() if job.started]
        if news.slurm is None or not started:
            return None
        try:
            before = self.do(submission.finished_before(self.watched.folder))
        except RemoteError:
            return None
        return WorkSoFar(float(max(0, news.slurm.at - min(started))), before)

    def figures(self, tokens: int) -> Figures:
        """What the pilots have used so far. ``tokens`` have finished, some possibly before the pilots were submitted."""
        tokens = max(0, tokens - self.do(submission.finished_before(self.watched.folder)))
        return figures(self._jobs().values(), tokens, time.time() - self.watched.since)

    def log_tails(self) -> str:
        """The ends of the newest logs."""
        try:
            found = self.do(logs.updates(self.watched.folder, {}))
        except RemoteError as error:
            return f"They cannot be read. {error}"
        return "\n".join(f"{item.name}:\n  " + "\n  ".join(item.lines) for item in found[:5])

    def stop(self, how: stopping.StopMode) -> PilotStatus | None:
        """Cancel or drain the pilots, and keep waits from submitting them again. Returns the status after a cancel."""
        return self.do(stop_for_good(self._picas.pool, self._batch, self.watched, how, log))

    def stop_after_kill(self, how: stopping.StopMode, task_log: Any) -> None:
        """Stop the pilots because the waiting task was failed by hand, and remove their credentials."""
        self.do(end_pilots(self._picas.pool, self._batch, self.watched, how, task_log, wait=stopping.CANCEL_WAIT))

    def remove_credentials(self, wait: float = 0.0) -> bool:
        """Remove the credentials from the cluster if the pilots end within ``wait`` seconds. True if they have ended."""
        ended = self.do(stopping.remove_credentials(self.watched, wait))
        if not ended:
            log.warning("Pilots are left, so their credentials stay in %s. Cancel or drain them.", self.watched.folder)
        return ended

    def end(self, tokens: int | None, *, cancel_pending: bool = False) -> dict[str, Any] | None:
        """Clean up after a wait: log the figures, and remove the credentials and leases once the pilots have ended.

        ``cancel_pending``: first cancel pilots that have not started, unless there is work for them.

        ``tokens`` is the number of tokens that have finished. None means that they could not be counted: then there are
        no figures, and remaining pilots are not waited for. Returns the figures, or None if the cluster does not
        answer, which does not fail the wait.
        """
        try:
            if cancel_pending:
                self._cancel_pending()
            ended = self.remove_credentials(0.0 if tokens is None else END_WAIT)
            if tokens is None:
                return None
            self._tidy(self.watched.key if ended else None)
            result = self.figures(tokens)
        except RemoteError as error:
            log.warning("The pilots' figures cannot be had: %s", error)
            return None
        log.info("The pilots of %s:\n%s", self.watched.key, result.table())
        return result.as_dict()

    def _cancel_pending(self) -> None:
        try:
            number = self.do(tidy.cancel_pending(self._picas.pool, self.watched))
        except CouchDBError as error:
            log.info("Pilots that have not started may be left: %s", error)
            return
        if number:
            log.info("No token is left for %d pilots that have not started: they were cancelled.", number)

    def _tidy(self, key: str | None) -> None:
        try:
            self.do(tidy.local_documents(self._picas.pool, key))
        except CouchDBError as error:  # a later wait removes them
            log.info("Leases of pilots that have ended may be left: %s", error)


def credential_files(folder: str, settings: Settings) -> list[RemoteFile]:
    """The connection's credentials as files for pilots, in the submission's folder. Raises OSError for a missing CA file."""
    place = f"{folder}/{submission.CREDENTIALS}"
    config = credentials.picasconfig(settings.url, settings.database, settings.login, settings.password)
    files = [RemoteFile(f"{place}/{credentials.FILE}", config)]
    if isinstance(settings.verify, str):
        files.append(RemoteFile(f"{place}/{credentials.CA_FILE}", Path(settings.verify).read_bytes()))
    return files
