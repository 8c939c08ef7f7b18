"""Sensor that waits until the tokens of a batch, or of a whole pool, have finished."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from itertools import islice
from typing import Any, NoReturn, TypeVar

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseSensorOperator,
    Context,
    PokeReturnValue,
    conf,
)

from airflow_provider_picas import assets
from airflow_provider_picas.couchdb import changes
from airflow_provider_picas.couchdb.errors import CouchDBError, ForbiddenError, UnavailableError, is_refusal
from airflow_provider_picas.couchdb.settings import Settings
from airflow_provider_picas.hooks.failures import FailedTokens, report
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.hooks.submission import WatchedSubmission
from airflow_provider_picas.links import PicasMonitoringLink, PicasPoolLink, push_links, push_page
from airflow_provider_picas.operators.instance import push_id
from airflow_provider_picas.options import MAX_SCRUBS, PilotWatch, WaitPolicy, unpack, unpacks_options
from airflow_provider_picas.parameters import optional_seconds, whole_number
from airflow_provider_picas.sensors.pilots import PATIENCE, find_pilots, forget_pilots
from airflow_provider_picas.slurm import jobs
from airflow_provider_picas.slurm.remote import RemoteError, UnreachableError
from airflow_provider_picas.slurm.sbatch_calls import SubmissionRefusedError
from airflow_provider_picas.submissions.report import PilotsLog
from airflow_provider_picas.submissions.stop import CANCEL_WAIT, StopMode
from airflow_provider_picas.submissions.submission import Watched
from airflow_provider_picas.task_state import task_state
from airflow_provider_picas.tokens import ids, waiting
from airflow_provider_picas.tokens.batch import Batch
from airflow_provider_picas.tokens.counts import Completeness, Counts, ErrorBudget
from airflow_provider_picas.tokens.progress_line import Pilots, ProgressLines
from airflow_provider_picas.tokens.states import State
from airflow_provider_picas.tokens.text import sample
from airflow_provider_picas.tokens.waiting import Endurance, Outcome, Progress, Threshold, Verdict
from airflow_provider_picas.triggers.tokens import GONE_AFTER, PicasTokenStateTrigger

_Value = TypeVar("_Value")
_SAMPLE = 5  # ids named in a message
_FAILED = 1_000  # failed tokens read to find causes
_CAUSES = 3  # causes named in the log
_MARGIN = timedelta(minutes=5)  # the trigger enforces the deadline; Airflow's is only for a triggerer that hangs


class PicasTokenStateSensor(BaseSensorOperator):
    """Wait until a batch, or the whole pool, is complete: every token that was pushed is done or in error.

    If pushed tokens are missing, or tokens are in no state, the task fails once all others have finished, and names
    them. It also fails if the named batch has no tokens.

    :param batch: the push operator's output, or the name of a batch. None: the whole pool, with the tokens that it has.
    :param policy: ``max_errors``, ``fail_fast``, ``success_threshold`` and ``no_progress`` as one ``WaitPolicy``.
    :param max_errors: the number of tokens that may end in error, or a fraction below 1. With more, the task fails.
    :param fail_fast: fail as soon as ``max_errors`` is exceeded. Default: when all tokens have finished.
    :param success_threshold: succeed as soon as this number of tokens is done, or this fraction (``1.0`` is all).
        Tokens in error then do not matter, unless too few tokens remain to reach it.
    :param no_progress: fail after this time, in seconds or as a timedelta, in which no token has finished. Default:
        never.
    :param pilots: the output of the operator that submits pilots. Default: the pilots that one task has submitted for
        the batch; if several tasks have, or without a batch, none. False: none. The wait watches them: it releases the
        tokens of dead pilots. If no pilots remain while tokens wait, the task fails and shows the ends of the pilots'
        logs. These are also shown while pilots run, unless the mode is ``reschedule``.
    :param watch: ``resubmit``, ``max_scrubs``, ``max_lock_age``, ``pilots_interval`` (there ``interval``) and ``on_kill`` as one
        ``PilotWatch``.
    :param resubmit: how many times to submit the same pilots again when none remain. Stops if they finish no tokens, or
        if they were drained or cancelled. When sbatch refuses for now (a closed partition, a submit limit), the wait
        tries again after 1 to 15 minutes. ``max_pilots`` and ``max_queued`` of the operator that submitted them are not
        checked again.
    :param max_scrubs: how many times the wait releases the token of a dead pilot before it becomes an error, 0 - 9.
        Pilots also release each other's tokens, with their own limit: give the operator that submits them
        ``pilot={"max_scrubs": …}`` too.
    :param max_lock_age: seconds after which the wait releases a token that is locked by a pilot without a lease, such
        as a PiCaS client's, unless it is one of ``pilots``. Default: never.
    :param pilots_interval: seconds between two checks of the pilots. Default: 5 to 60, longer while nothing changes.
    :param cancel_pending: when the wait succeeds, cancel those of ``pilots`` that have not started, if no token of
        their batch (of the pool, if they claim any) waits or runs. Pilots with ``wait_for_work`` are not cancelled.
    :param on_kill: what to do with the pilots when a person marks the waiting task failed: ``cancel`` (the default),
        ``drain`` or ``leave``. When the task is cleared or marked a success, they continue. Airflow gives the process
        of a wait that is not ``deferrable`` 5 s for this, and does not notify a wait of mode ``reschedule`` between two
        pokes.
    :param outage: fail after the database has been unavailable for this time, in seconds or as a timedelta. Default:
        while it does not answer, ``timeout``; while it refuses requests (deleted, password changed), 15 minutes, as
        long as pilots continue. A wait of mode ``reschedule`` keeps no state between two pokes, so it continues until
        ``timeout`` in both cases. If the database refuses the very first request, the task fails at once.
    :param picas_conn_id: a connection of type ``picas``.
    :param database: another database than the batch's or the connection's.
    :param deferrable: wait in the triggerer. Default: ``[operators] default_deferrable``.

    Pools in ``outlets`` (``assets.pool_asset``) get an event with batch, outcome and counts in its extra.

    Returns the counts by state. ``poke_interval``, ``timeout``, ``mode`` and ``soft_fail`` are those of every sensor. A
    short ``poke_interval`` is a risk with ``mode="reschedule"``: Airflow fails the task if it notices the end of one
    poke only after it has queued the next (apache/airflow#71172).
    """

    template_fields: Sequence[str] = (
        "batch", "max_errors", "success_threshold", "pilots", "resubmit", "max_scrubs", "max_lock_age", "outage",
        "picas_conn_id", "database",
    )  # fmt: skip
    operator_extra_links = (PicasPoolLink(), PicasMonitoringLink())
    ui_color = "#d7ecf5"

    @classmethod
    def partial(cls, **kwargs: Any) -> Any:
        """As for every operator; configuration objects are unpacked here, so that Airflow serializes plain arguments."""
        return super().partial(**unpack(kwargs))

    @unpacks_options
    def __init__(
        self,
        *,
        batch: str | Mapping[str, Any] | None = None,
        policy: WaitPolicy | None = None,
        max_errors: float | str = 0,
        fail_fast: bool = False,
        success_threshold: float | str | None = None,
        no_progress: float | timedelta | None = None,
        pilots: Mapping[str, Any] | bool | None = None,
        watch: PilotWatch | None = None,
        resubmit: int | str = 0,
        max_scrubs: int | str = 3,
        max_lock_age: float | str | None = None,
        pilots_interval: float | None = None,
        cancel_pending: bool = True,
        on_kill: str = StopMode.CANCEL,
        outage: float | timedelta | str | None = None,
        picas_conn_id: str = PicasHook.default_conn_name,
        database: str | None = None,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.batch = batch
        self.max_errors = max_errors
        self.fail_fast = fail_fast
        self.success_threshold = success_threshold
        self.no_progress = no_progress.total_seconds() if isinstance(no_progress, timedelta) else no_progress
        self.pilots = pilots
        self.resubmit = resubmit
        self.max_scrubs = max_scrubs
        self.max_lock_age = max_lock_age
        self.pilots_interval = pilots_interval
        self.cancel_pending = cancel_pending
        self.on_kill_how = StopMode(on_kill)
        self.outage = outage.total_seconds() if isinstance(outage, timedelta) else outage
        self.picas_conn_id = picas_conn_id
        self.database = database
        self.deferrable = deferrable
        self._last_counts: Counts | None = None
        self._concluded = False
        self._progress = Progress(self.no_progress)
        self._endurance: Endurance | None = None  #: only in a wait that pokes
        self._pilots_settings: Settings | None = (
            None  #: the connection's, as of the last renewal of the pilots' credentials
        )
        self._refused: bool | None = None  #: the outage that was logged; None: there is none
        self._no_pilots_before = 0.0  #: seconds since 1970: sbatch has refused more pilots for now
        self._gone_since: float | None = None  #: since when Slurm knows no job of the submission
        self._told: PilotsLog | None = None
        self._lines = ProgressLines()
        self._pilots_seen: Pilots | None = None  #: Slurm's last answer; None while it does not answer
        self._instance: Any = None  #: the task instance that runs

    def execute(self, context: Context) -> Any:
        self._instance = context["ti"]
        self._find_pilots()
        if not self.deferrable:
            return self._poke_on(context)
        self._outage()  # raises for a wrong value before the wait begins
        try:
            result = self._poke(context)
        except UnavailableError as error:
            self.log.warning("%s The wait goes on.", error)  # the trigger waits for the outage to end
        else:
            if result:
                return result.xcom_value
        self._defer(time.time() + self.timeout)

    def _poke_on(self, context: Context) -> Any:
        """Poke as every sensor does. A timeout, or a pool that is unavailable, ends the wait without ``_conclude``."""
        try:
            return super().execute(context)
        except (AirflowSensorTimeout, AirflowSkipException):
            if self._last_counts and not self._concluded:
                self._end_pilots(context, self._last_counts)
            raise
        except CouchDBError:
            self._end_pilots(context, None)
            raise

    def _defer(self, deadline: float) -> NoReturn:
        batch = self._batch()
        trigger = PicasTokenStateTrigger(
            picas_conn_id=self.picas_conn_id,
            database=self._database(batch),
            batch=batch.id if batch else None,
            expected=batch.tokens if batch else None,
            max_errors=self._budget().limit,
            deadline=deadline,
            pilots=self.pilots if isinstance(self.pilots, Mapping) else None,
            max_scrubs=self._max_scrubs(),
            max_lock_age=self._max_lock_age(),
            pilots_interval=self.pilots_interval,
            on_kill_how=str(self.on_kill_how),
            fail_fast=self.fail_fast,
            success_threshold=None if (threshold := self._threshold()) is None else threshold.limit,
            no_progress=self.no_progress,
            outage=self._outage(),
            no_pilots_before=self._no_pilots_before,
        )
        left = timedelta(seconds=max(1, deadline - time.time()))
        self.defer(
            trigger=trigger, method_name="execute_complete", kwargs={"deadline": deadline}, timeout=left + _MARGIN
        )
        raise AssertionError("defer raises")

    def execute_complete(self, context: Context, event: Mapping[str, Any], deadline: float) -> dict[str, int]:
        """Resume with the trigger's event; its counts are the task's result."""
        self._instance = context["ti"]
        self._find_pilots()
        outcome = Outcome(event["outcome"])
        batch = self._batch()
        if outcome is Outcome.AWAY:
            self._end_pilots(context, None)
            if self.soft_fail:
                raise AirflowSkipException(event["reason"])
            raise CouchDBError(event["reason"])
        if outcome is Outcome.UNWATCHED:
            return self._go_on_here(context, event["reason"], deadline)
        if event.get("reason"):
            self.log.warning("The counts are from before an outage. %s", event["reason"])
        completeness = Completeness(Counts(**event["counts"]), event["expected"])
        if outcome is Outcome.NO_PILOTS:
            try:  # the trigger's counts may be older than its check of the pilots
                completeness = self._look(self._hook(batch), batch)
            except CouchDBError as error:
                self.log.warning("%s The wait goes on.", error)
                self._defer(deadline)
            over = self._judge(completeness, batch).over
            if over or not completeness.counts.todo or self._submit_again(completeness, batch):
                self._defer(deadline)
        if self._lags(outcome, completeness, self._hook(batch), batch):
            self._defer(deadline)
        return self._conclude(context, outcome, completeness, batch)

    def _go_on_here(self, context: Context, reason: str, deadline: float) -> dict[str, int]:
        """Continue as a wait that pokes. The trigger cannot watch the pilots; a worker, which submitted them, can."""
        self.log.warning(
            "The triggerer cannot log in to the cluster. %s The wait goes on in this worker, which looks every %g s and takes a"
            " slot until the end. Mend the triggerer's login and clear this task to have it wait there again.",
            reason, self.poke_interval,
        )  # fmt: skip
        self.deferrable, self.mode = False, "poke"
        self.timeout = max(0.0, deadline - time.time())
        counts: dict[str, int] = self._poke_on(context)
        return counts

    def on_kill(self) -> None:
        """Called by Airflow in a signal handler, 5 s before it kills the process: stop the pilots if a person failed
        the task.

        The interrupted code may hold the process's connection to Airflow until it resumes, so a thread does the work.
        """
        if self._instance is not None and self.on_kill_how is not StopMode.LEAVE:
            threading.Thread(target=self._stop_pilots, name="stop-pilots", daemon=True).start()

    def _stop_pilots(self) -> None:
        """Stop the pilots if a person failed the task; if it was killed for any other reason, leave them running."""
        try:
            watched, batch = self._watched(), self._batch()
            if watched is None:
                return
            if (state := task_state(self._instance)) != "failed":
                self.log.info("The task is %s, not failed: the pilots of %s are left alone.", state, watched.key)
                return
            self.log.info("The task was marked failed: %s the pilots of %s.", self.on_kill_how, watched.key)
            with WatchedSubmission(watched, self._hook(batch), batch.id if batch else None) as submitted:
                if news := submitted.stop(self.on_kill_how):
                    PilotsLog(self.log).report_cancelled(news)
                submitted.remove_credentials(CANCEL_WAIT)
            self.log.info("The pilots of %s: %s is done.", watched.key, self.on_kill_how)
        except Exception as error:  # from Airflow's API, the pool or the cluster
            self.log.warning("The pilots could not be stopped: %s", error)

    def poke(self, context: Context) -> PokeReturnValue:
        try:
            result = self._poke(context)
        except CouchDBError as error:
            if self._fails_by(error, context):
                raise
            return PokeReturnValue(False)
        if self._endurance is not None and self._refused is not None:
            self.log.info("The database answers again.")
            self._endurance.answered()
            self._refused = None
        return result

    def _fails_by(self, error: CouchDBError, context: Context) -> bool:
        """True if an outage fails the task. It is logged once, and again when "no answer" becomes a refusal."""
        refused = is_refusal(error)
        if self.reschedule:  # it does not know when the outage began
            first = context["ti"].get_first_reschedule_date(context) is None
            endurance = Endurance(math.inf)
        else:
            first = self._last_counts is None
            endurance = self._endurance = self._endurance or Endurance(self._outage())
        if (refused and first) or endurance.over(refused, time.monotonic()):
            return True
        if refused != self._refused:
            self.log.warning("%s %s", error, endurance.promise(refused))
            self._refused = refused
        return False

    def _poke(self, context: Context) -> PokeReturnValue:
        batch = self._batch()
        hook = self._hook(batch)
        if self._last_counts is None:
            push_links(context, hook.settings)
            name, expected = (batch.id, batch.tokens) if batch else (None, None)
            wanted = {"max_errors": self._budget().limit, "expected": expected}
            push_page(context, self.picas_conn_id, hook.settings, name, role="wait", **wanted)
        nobody_left = self._look_after(hook, batch)
        completeness = self._look(hook, batch)
        if said := self._lines.next(completeness, self._pilots_seen, time.monotonic()):
            self.log.info("%s", said)
        verdict = self._judge(completeness, batch)
        if verdict.settling:
            time.sleep(waiting.SETTLE_SECONDS)
            completeness = self._look(hook, batch)
            verdict = self._judge(completeness, batch)
        outcome = verdict.outcome
        if not verdict.over and nobody_left and completeness.counts.todo:
            if not self.deferrable and self._submit_again(completeness, batch):
                return PokeReturnValue(False)
            outcome = Outcome.NO_PILOTS if not self.deferrable else outcome
        if outcome is Outcome.WAITING and self._stalled(context, hook, completeness.counts):
            outcome = Outcome.NO_PROGRESS
        if outcome is Outcome.WAITING or self._lags(outcome, completeness, hook, batch):
            return PokeReturnValue(False)
        return PokeReturnValue(True, self._conclude(context, outcome, completeness, batch))

    def _lags(self, outcome: Outcome, completeness: Completeness, hook: PicasHook, batch: Batch | None) -> bool:
        """True if the counts lack tokens that exist: in a cluster, the copy of the database that counts them may lag."""
        if (
            outcome is not Outcome.LOST
            or batch is None
            or completeness.expected is None
            or completeness.counts.stateless
        ):
            return False
        try:
            lags = not hook.missing(batch.id, completeness.expected, limit=1)
        except CouchDBError as error:
            self.log.warning("Whether tokens are missing is not known. %s", error)
            return isinstance(error, UnavailableError)
        if lags:
            self.log.warning(
                "%d tokens of %s are not counted, and they are there: a copy of the database lags. The wait goes on.",
                completeness.missing, self._where(batch),
            )  # fmt: skip
        return lags

    def _conclude(
        self, context: Context, outcome: Outcome, completeness: Completeness, batch: Batch | None
    ) -> dict[str, int]:
        """End the wait: push figures to XCom, remove credentials from the cluster, then succeed or fail."""
        self._concluded = True
        hook = self._hook(batch)
        self._end_pilots(context, completeness.counts, succeeded=outcome.success)
        tails = self._tell_ends(hook, batch) if outcome is Outcome.NO_PILOTS else ""
        counts = completeness.counts.as_dict()
        told = {"batch": batch.id if batch else None, "outcome": str(outcome), "counts": counts}
        assets.add_to_events(context, self.outlets, told)
        if not outcome.success:
            self._fail(outcome, completeness, hook, batch, tails)
        self._forget_pilots(batch)
        self.log.info("%s", self._explain(outcome, completeness, batch))
        return counts

    def _end_pilots(self, context: Context, counts: Counts | None, *, succeeded: bool = False) -> None:
        """Push figures to XCom, unless nothing could be counted, and remove credentials once the pilots have ended."""
        watched, batch = self._watched(), self._batch()
        if watched is None:
            return
        with WatchedSubmission(watched, self._hook(batch), batch.id if batch else None) as submitted:
            finished = counts.finished if counts else None
            if figures := submitted.end(finished, cancel_pending=succeeded and self.cancel_pending):
                context["ti"].xcom_push("figures", figures)

    def _tell_ends(self, hook: PicasHook, batch: Batch | None) -> str:
        """Log the tokens that others hold; return the ends of the pilots' logs."""
        watched = self._watched()
        if watched is None:
            return ""
        with WatchedSubmission(watched, hook, batch.id if batch else None) as submitted:
            try:
                if foreign := submitted.foreign():
                    self.log.warning(
                        "Held without a lease, by no job of this submission: %s. Whether anybody works on them cannot be known;"
                        " `max_lock_age` has them given back.", sample(foreign),
                    )  # fmt: skip
            except CouchDBError as error:
                self.log.warning("Who holds tokens cannot be told: %s", error)
            return submitted.log_tails()

    def _look_after(self, hook: PicasHook, batch: Batch | None) -> bool:
        """Check the pilots once, in a task. True if no pilots remain."""
        watched = self._watched()
        if watched is None or self.deferrable:
            return False
        with WatchedSubmission(watched, hook, batch.id if batch else None) as submitted:
            told = self._told = self._told or PilotsLog(self.log)
            max_lock_age = self._max_lock_age()
            for _ in range(2):  # jobs that were just submitted may appear a moment later
                news = submitted.look(self._max_scrubs(), max_lock_age)
                told.report(news)
                self._pilots_seen = None if news.jobs is None else jobs.pilots(news.jobs.values())
                if self.reschedule and batch is not None and (work := submitted.work_so_far(news)):
                    self._lines.rate.begin(time.monotonic() - work.seconds, work.finished_before)
                if not self.reschedule and told.logs_are_due():  # `reschedule` does not remember what was logged
                    told.report_logs(submitted.log_news(told.sizes))
                if news.pilots_remain:
                    self._renew_credentials(submitted, hook)
                if news.pilots_remain is not False or news.worked_on(max_lock_age):
                    self._gone_since = None
                    return False
                if not news.jobs and self.reschedule:  # nor since when no jobs remain
                    return time.time() - watched.since >= GONE_AFTER
                if not news.jobs:  # as in the trigger
                    now = time.monotonic()
                    self._gone_since = now if self._gone_since is None else self._gone_since
                    return now - self._gone_since >= GONE_AFTER
                time.sleep(2)
        return True

    def _renew_credentials(self, submitted: WatchedSubmission, hook: PicasHook) -> None:
        if hook.settings != self._pilots_settings and submitted.renew_credentials():
            self._pilots_settings = hook.settings

    def _submit_again(self, completeness: Completeness, batch: Batch | None) -> bool:
        """Submit the same pilots again, if `resubmit` allows it and they make progress. True if the wait continues."""
        watched = self._watched()
        resubmit = self._checked(whole_number, "resubmit")
        if watched is None or not resubmit:
            return False
        self._gone_since = None
        with WatchedSubmission(watched, self._hook(batch), batch.id if batch else None) as submitted:
            try:
                why_not = submitted.resubmit(resubmit, completeness.counts.finished)
            except (UnreachableError, UnavailableError) as error:
                self.log.warning("%s The wait goes on.", error)
                return True
            except SubmissionRefusedError as error:
                if error.for_now:
                    self._no_pilots_before = time.time() + error.retry_in
                    self.log.warning("%s They are submitted again in %.0f s. The wait goes on.", error, error.retry_in)
                    return True
                why_not = str(error)
            except RemoteError as error:
                why_not = str(error)
        if why_not:
            self.log.warning("No more pilots are submitted. %s", why_not)
        return why_not is None

    def _look(self, hook: PicasHook, batch: Batch | None) -> Completeness:
        counts = hook.count(batch.id if batch else None)
        if self._last_counts is None:
            self.log.info("Waiting for %s.", self._where(batch))
        self._last_counts = counts
        return Completeness(counts, batch.tokens if batch else None)

    def _fail(
        self, outcome: Outcome, completeness: Completeness, hook: PicasHook, batch: Batch | None, tails: str
    ) -> NoReturn:
        name = batch.id if batch else None
        samples: dict[str, list[str]] = {}
        if advice := waiting.advice(outcome):
            self.log.error("%s", advice)
        try:
            if outcome in (Outcome.TOO_MANY_ERRORS, Outcome.TOO_FEW_DONE):
                self._log_causes(hook, name)
            if outcome is Outcome.LOST:
                samples["stateless"] = hook.stateless_ids(name, _SAMPLE)
                if name is not None and completeness.missing and completeness.expected is not None:
                    samples["missing"] = hook.missing(name, completeness.expected)
        except CouchDBError as error:
            self.log.warning("Which tokens these are is not known: %s", error)
        text = self._explain(outcome, completeness, batch, **samples)
        if tails:
            self.log.error("The ends of the pilots' logs:\n%s", tails)
        if self.soft_fail:
            raise AirflowSkipException(text)
        if outcome is Outcome.TIMED_OUT:
            raise AirflowSensorTimeout(text)
        raise AirflowFailException(text)

    def _log_causes(self, hook: PicasHook, batch: str | None) -> None:
        """Log why tokens failed: the most frequent causes, and the end of one token's log."""
        failed = FailedTokens(hook)
        failed.add(islice(hook.tokens(State.ERROR, batch), _FAILED))
        causes = failed.summary(_CAUSES)
        for group in causes[1:]:
            group["log"] = None
        for text in report(causes, failed.tokens):
            for line in text.splitlines():
                self.log.error("%s", line)

    def _judge(self, completeness: Completeness, batch: Batch | None) -> Verdict:
        return waiting.judge(
            completeness,
            self._budget(),
            named=batch is not None,
            fail_fast=self.fail_fast,
            threshold=self._threshold(),
        )

    def _explain(
        self, outcome: Outcome, completeness: Completeness, batch: Batch | None, **samples: Sequence[str]
    ) -> str:
        place = f" in {self._hook(batch).settings.place}" if outcome is Outcome.UNKNOWN else ""
        return waiting.explain(
            outcome,
            completeness,
            self._budget(),
            where=self._where(batch) + place,
            threshold=self._threshold(),
            no_progress=self.no_progress,
            **samples,
        )

    def _stalled(self, context: Context, hook: PicasHook, counts: Counts) -> bool:
        """True if no token has finished for ``no_progress``. In mode ``reschedule`` the pool stores this between pokes."""
        if self.no_progress is None or self.deferrable:
            return False
        if self.mode == "reschedule":
            ti = context["ti"]
            name = ids.digest(push_id(context), str(ti.try_number))
            try:
                idle = hook.do(changes.idle(hook.pool, name, counts.finished))
            except ForbiddenError as error:
                self.log.warning("Whether there is progress is not known between pokes. %s", error)
                return False
            return idle >= self.no_progress
        self._progress.note(counts, time.monotonic())
        return self._progress.left(time.monotonic()) <= 0

    def _batch(self) -> Batch | None:
        try:
            return Batch.parse(self.batch)
        except ValueError as error:
            raise AirflowFailException(str(error)) from None

    def _budget(self) -> ErrorBudget:
        try:
            return ErrorBudget.parse(self.max_errors)
        except ValueError as error:
            raise AirflowFailException(str(error)) from None

    def _threshold(self) -> Threshold | None:
        try:
            return Threshold.parse(self.success_threshold)
        except ValueError as error:
            raise AirflowFailException(str(error)) from None

    def _find_pilots(self) -> None:
        """Use the pilots that were submitted for the batch, unless the author has named some."""
        batch = self._batch()
        if batch is None or self.pilots is False or self.pilots:
            return
        patience = 0.0 if self.reschedule else PATIENCE
        self.pilots = find_pilots(self._hook(batch), batch.id, self.log, patience) or self.pilots

    def _forget_pilots(self, batch: Batch | None) -> None:
        """Record that the wait for these pilots is over: a later wait for a batch of that name is for other pilots."""
        watched = self._watched()
        if watched is None or batch is None or not isinstance(self.pilots, Mapping):
            return
        forget_pilots(self._hook(batch), batch.id, self.pilots, self.log)

    def _watched(self) -> Watched | None:
        try:
            return Watched.parse(self.pilots or None)
        except ValueError as error:
            raise AirflowFailException(str(error)) from None

    def _max_lock_age(self) -> float | None:
        return self._checked(optional_seconds, "max_lock_age")

    def _outage(self) -> float | None:
        return self._checked(optional_seconds, "outage")

    def _max_scrubs(self) -> int:
        return self._checked(lambda name, value: whole_number(name, value, least=0, most=MAX_SCRUBS), "max_scrubs")

    def _checked(self, parse: Callable[[str, Any], _Value], name: str) -> _Value:
        try:
            return parse(name, getattr(self, name))
        except ValueError as error:
            raise AirflowFailException(str(error)) from None

    def _database(self, batch: Batch | None) -> str | None:
        return self.database or (batch.database if batch else None)

    def _hook(self, batch: Batch | None) -> PicasHook:
        return PicasHook(self.picas_conn_id, database=self._database(batch), wait_for_index=False)  # checks `timeout`

    def _where(self, batch: Batch | None) -> str:
        return f"batch {batch.id}" if batch else "the pool"
