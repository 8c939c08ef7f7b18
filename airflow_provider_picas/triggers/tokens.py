"""Trigger that waits for tokens: it evaluates the counts from the pool's feed, and watches the pilots."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import cached_property
from typing import Any

from airflow.providers.common.compat.sdk import conf
from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from airflow_provider_picas.couchdb import errors
from airflow_provider_picas.hooks.picas_async import PicasAsyncHook
from airflow_provider_picas.hooks.pilots import credential_files
from airflow_provider_picas.lifecycle.backoff import Backoff
from airflow_provider_picas.sansio import drive_async
from airflow_provider_picas.slurm import logs, submission_folder
from airflow_provider_picas.slurm.remote import RemoteError
from airflow_provider_picas.submissions import wait as waits
from airflow_provider_picas.submissions.on_kill import end_pilots, is_for_pilots
from airflow_provider_picas.submissions.stop import StopMode
from airflow_provider_picas.submissions.submission import Submission, performer
from airflow_provider_picas.submissions.wait import CheckInterval, Wait
from airflow_provider_picas.submissions.watch import PilotStatus, check_pilots
from airflow_provider_picas.task_state import task_state
from airflow_provider_picas.tokens.chain import Chain
from airflow_provider_picas.tokens.counts import Completeness, Counts, ErrorBudget
from airflow_provider_picas.tokens.waiting import Outcome, Terms, Threshold
from airflow_provider_picas.triggers.chain import subscribe
from airflow_provider_picas.triggers.cluster import Cluster, cluster_for
from airflow_provider_picas.triggers.feed import Feed, Shape, feed_for
from airflow_provider_picas.triggers.subscriptions import CountsSubscription, CountsUpdate

STOP_TRIES = 5  # attempts to stop the pilots, with growing pauses
CANCEL_WAIT = 60.0  # seconds for cancelled pilots to end; after that their credentials are left in place
DRAIN_WAIT = 6 * 3600.0  # the same for drained pilots

_ARGUMENTS = (
    "picas_conn_id", "database", "batch", "expected", "max_errors", "deadline", "pilots", "max_scrubs", "max_lock_age",
    "pilots_interval", "on_kill_how", "fail_fast", "success_threshold", "no_progress", "outage",
    "no_pilots_before", "profile", "stages", "stage", "tokens", "least_work", "ready", "groups",
    "resubmits",
)  # fmt: skip


class PicasTokenStateTrigger(BaseTrigger):
    """Yields one event when a batch, or the whole pool, is complete, cannot become complete, or the deadline has passed.

    :param picas_conn_id: a connection of type ``picas``.
    :param database: another database than the connection's; None: the connection's.
    :param batch: id of the batch; None: the whole pool.
    :param expected: number of tokens that were pushed; None: all that exist.
    :param max_errors: as for ``ErrorBudget``.
    :param deadline: seconds since 1970.
    :param pilots: output of the operator that submitted the pilots to watch, or a list of such outputs; None: watch no
        pilots.
    :param max_scrubs: how many times the token of a dead pilot is released before it becomes an error.
    :param max_lock_age: seconds after which a token that is held by a pilot without a lease is released; None: never.
    :param pilots_interval: seconds between two checks of the pilots; None: 5 to 60, longer while nothing changes.
    :param on_kill_how: what to do with the pilots when a person marks the task failed: cancel, drain or leave.
    :param fail_fast: do not wait for the others once too many tokens are in error.
    :param success_threshold: as for ``Threshold``: this number of done tokens is enough.
    :param no_progress: end the wait after this number of seconds without a finished token; restarts from 0 in another
        triggerer.
    :param outage: end the wait after the database was unavailable for this number of seconds; None: as for
        ``Endurance``.
    :param no_pilots_before: seconds since 1970; before that, it is not an error that no pilots remain.
    :param stages: names of the stages that the tokens make, in order, or a mapping to their batches; then ``batch`` is the one
        that the chain begins with.
    :param stage: the stage that the wait is for; None: the batch and all of its stages together.
    :param tokens: number of tokens pushed to the batch that the chain begins with.
    :param least_work: as long as more tokens may appear, pilots are missing only for this number of waiting ones.
    :param ready: the wait is over when this number of tokens waits, or no more can appear; None: when they have finished.
    :param groups: the stages whose tokens are made from groups of others, as for ``Grouping``.
    :param profile: another shape of the pool than the connection's: the name of a profile, or an object.
    :param resubmits: the task submits pilots again, as for ``Wait``.

    The event's payload is ``{"outcome", "counts", "expected"}``, and ``"reason"`` if the pool stayed unavailable, or is
    unavailable at the deadline, or if the cluster refuses the login of this process: then a task has to continue.

    Tokens that are added to the batch during the wait are included: the wait ends when no token waits or runs, and at
    least as many have finished as were pushed. With ``expected`` None, a batch without tokens is unknown, and a pool
    without tokens is complete. Deleted tokens are missing, and fail the wait at the end.
    """

    def __init__(
        self,
        picas_conn_id: str,
        database: str | None,
        batch: str | None,
        expected: int | None,
        max_errors: float,
        deadline: float,
        pilots: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        max_scrubs: int = 3,
        max_lock_age: float | None = None,
        pilots_interval: float | None = None,
        on_kill_how: str = StopMode.CANCEL,
        fail_fast: bool = False,
        success_threshold: float | None = None,
        no_progress: float | None = None,
        outage: float | None = None,
        no_pilots_before: float = 0.0,
        profile: Shape = None,
        stages: Sequence[str] | Mapping[str, str] = (),
        stage: str | None = None,
        tokens: int | None = None,
        least_work: int = 1,
        ready: int | None = None,
        groups: Mapping[str, Any] | None = None,
        resubmits: bool = False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.picas_conn_id = picas_conn_id
        self.database = database
        self.batch = batch
        self.expected = expected
        self.max_errors = max_errors
        self.deadline = deadline
        self.pilots = pilots
        self.max_scrubs = max_scrubs
        self.max_lock_age = max_lock_age
        self.pilots_interval = pilots_interval
        self.on_kill_how = on_kill_how
        self.fail_fast = fail_fast
        self.success_threshold = success_threshold
        self.no_progress = no_progress
        self.outage = outage
        self.no_pilots_before = no_pilots_before
        self.profile = profile
        self.stages = dict(stages) if isinstance(stages, Mapping) else list(stages)
        self.stage = stage
        self.tokens = tokens
        self.least_work = least_work
        self.ready = ready
        self.groups = dict(groups or {})
        self.resubmits = resubmits
        self._updates: CountsSubscription | None = None
        self._feed: Feed | None = None
        self._answers_since: float | None = None  #: time of the first successful check, or of the first after an outage

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class's path and its arguments."""
        return f"{type(self).__module__}.{type(self).__qualname__}", {name: getattr(self, name) for name in _ARGUMENTS}

    @cached_property
    def _state(self) -> Wait:
        """The state of this wait. The wall clock is read once, so later clock steps do not matter."""
        threshold = None if self.success_threshold is None else Threshold(self.success_threshold)
        budget = ErrorBudget(self.max_errors)
        terms = Terms(
            self._own,
            self.expected,
            budget,
            threshold,
            self.fail_fast,
            self.no_progress,
            self._chain,
            self.least_work,
            self.ready,
        )
        clock = time.monotonic() - time.time()
        return Wait(
            terms,
            self.log,
            deadline=self.deadline + clock,
            max_lock_age=self.max_lock_age,
            no_pilots_before=self.no_pilots_before + clock,
            resubmits=self.resubmits,
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait; yield the event."""
        submissions = Submission.parse_all(self.pilots)
        for submission in submissions:
            self._state.watched(submission.key)
        may_fire_at = time.monotonic() + _lingering()
        self._feed = feed_for(self.picas_conn_id, self.database, self.profile)
        async with self._subscribe(self._feed) as updates:
            self._updates = updates
            checks = [asyncio.create_task(self._keep_watching(submission)) for submission in submissions]
            try:
                event = await self._wait(updates)
            except errors.CouchDBError as error:
                event = self._event(Outcome.AWAY, Completeness(Counts(), self.expected), str(error))
            except asyncio.CancelledError:
                if not hasattr(
                    BaseTrigger, "on_kill"
                ):  # before Airflow 3.3, cancellation is the only signal to a trigger
                    self._begin_to_stop_pilots()
                raise
            finally:
                for check in checks:
                    check.cancel()
                await asyncio.gather(*checks, return_exceptions=True)
        await asyncio.sleep(may_fire_at - time.monotonic())
        yield event

    @property
    def _chain(self) -> Chain | None:
        return Chain.parse(self.batch or "", self.stages, self.stage, self.tokens, self.groups)

    @property
    def _own(self) -> str | None:
        """The batch whose pilots are watched."""
        chain = self._chain
        return chain.own[0] if chain else self.batch

    def _subscribe(self, feed: Feed) -> AbstractAsyncContextManager[CountsSubscription]:
        chain = self._chain
        if chain is None:
            return feed.subscribe(self.batch, outage=self.outage)
        return subscribe(feed, chain, self._state.looks, self._picas(), self.outage)

    async def _wait(self, updates: CountsSubscription) -> TriggerEvent:
        """Read updates until the wait is over."""
        wait = self._state
        while (outcome := wait.decide(time.monotonic())) is Outcome.WAITING:
            self._note_update(await _next(updates, wait.decide_again_in(time.monotonic())))
        reason = wait.refusal if outcome is Outcome.UNWATCHED else None
        if outcome is Outcome.TIMED_OUT and self._feed:
            reason = self._feed.trouble
        return self._event(outcome, wait.last, reason)

    def _note_update(self, item: CountsUpdate) -> None:
        if item.counts is not None:
            self._state.note_counts(item.counts, time.monotonic())
        for notice in item.notices:
            self.log.warning("%s", notice)
        self._state.log_progress(time.monotonic())

    def _picas(self) -> PicasAsyncHook:
        return PicasAsyncHook(self.picas_conn_id, database=self.database, profile=self.profile)

    def _event(self, outcome: Outcome, completeness: Completeness, reason: str | None = None) -> TriggerEvent:
        payload = {"outcome": str(outcome), "counts": completeness.counts.as_dict(), "expected": completeness.expected}
        return TriggerEvent(payload | ({"reason": reason} if reason else {}))  # type: ignore[no-untyped-call]

    # -- pilots -------------------------------------------------------------------------------------------------------

    async def _keep_watching(self, submission: Submission) -> None:
        """Run ``_watch_pilots``, and restart it when it fails."""
        while True:
            try:
                await self._watch_pilots(submission)
            except Exception:  # a bug in here must not end the watch
                self.log.exception("Watching the pilots failed. It is restarted.")
            await asyncio.sleep(waits.LONGEST_INTERVAL)

    async def _watch_pilots(self, submission: Submission) -> None:
        """Check the pilots repeatedly. Outages of either side are logged, and the watch continues."""
        interval = CheckInterval(self.pilots_interval)
        wait, key = self._state, submission.key
        watched = wait.watched(key)
        async with AsyncExitStack() as stack:
            picas = await stack.enter_async_context(self._picas())
            slurm = await stack.enter_async_context(cluster_for(submission.ssh_conn_id).use())
            while True:
                status = await self._check(picas, slurm, submission)
                wait.note_pilots(status, time.monotonic(), submission=key)
                wait.log_progress(time.monotonic())
                await picas.do(watched.slurm_record.write(picas.pool, self._own, key, status.slurm))
                # If this process cannot log in, a task watches the pilots: a worker can, as the submit task has shown.
                wait.note_refusal(key, slurm.refusal)
                if self._updates is not None and (wait.no_pilots or wait.refusal is not None):
                    self._updates.wake()
                if status.pilots_remain:
                    await self._renew_credentials(picas, slurm, submission)
                if watched.pilots_log.logs_are_due():
                    await self._show_logs(slurm, submission)
                await asyncio.sleep(interval.after(status, absent=wait.pilots_absent))

    async def _check(self, picas: PicasAsyncHook, slurm: Cluster, submission: Submission) -> PilotStatus:
        try:
            status = await drive_async(
                check_pilots(
                    picas.pool,
                    self._own,
                    submission,
                    max_scrubs=self.max_scrubs,
                    max_lock_age=self.max_lock_age,
                    observer=self._state.watched(submission.key).observer,
                    contact=self._contact(),
                    others=self._state.others(submission.key),
                ),
                performer(picas.send, slurm.perform),
            )
        except errors.CouchDBError as error:
            self._answers_since = None
            return PilotStatus(outage=str(error))
        except Exception as error:  # a bug in here must not end the watch
            self.log.exception("The pilots could not be checked.")
            return PilotStatus(outage=f"The pilots could not be checked ({type(error).__name__}: {error}).")
        if self._answers_since is None:
            self._answers_since = time.monotonic()
        return status

    async def _renew_credentials(self, picas: PicasAsyncHook, slurm: Cluster, submission: Submission) -> None:
        """Send pending and running pilots the connection's login, if it has changed since they were submitted."""
        settings, sent = picas.settings, self._state.watched(submission.key).credentials
        if not sent.differ(settings):
            return
        result: bool | Exception
        try:
            files = await asyncio.to_thread(credential_files, submission.folder, settings)
            result = await slurm.do(submission_folder.renew_credentials(submission.folder, files, self.picas_conn_id))
        except (RemoteError, OSError) as error:
            result = error
        sent.note(settings, self.picas_conn_id, result)

    def _contact(self) -> float:
        """Monotonic time since which the database has answered without a break, both in the checks and in the feed."""
        if self._answers_since is None:
            return math.inf
        return max(self._answers_since, time.monotonic() - self._feed.contact if self._feed else -math.inf)

    async def _show_logs(self, slurm: Cluster, submission: Submission) -> None:
        shown = self._state.watched(submission.key).pilots_log
        try:
            shown.report_logs(await slurm.do(logs.updates(submission.folder, shown.sizes)))
        except RemoteError:
            return  # the next check of the jobs logs this

    async def on_kill(self) -> None:
        """Called by Airflow 3.3 and later when a person ends the task. Stops the pilots only if the task was marked
        failed.

        Airflow also calls it when the task is cleared or marked a success, or another triggerer takes over: then the
        pilots continue.
        """
        if work := self._begin_to_stop_pilots():
            await asyncio.shield(asyncio.gather(*work))

    def _begin_to_stop_pilots(self) -> list[asyncio.Task[None]]:
        """Stop the pilots in separate asyncio tasks: Airflow 3.3.2 cancels ``on_kill`` a second after the call."""
        if self.on_kill_how == StopMode.LEAVE:
            return []
        work = [asyncio.create_task(self._stop_pilots(each)) for each in Submission.parse_all(self.pilots)]
        for task in work:
            _stopping.add(task)
            task.add_done_callback(_stopping.discard)
        return work

    async def _stop_pilots(self, submission: Submission) -> None:
        backoff = Backoff(5.0, 25.0, most=STOP_TRIES)
        while True:
            try:
                state = await sync_to_async(task_state)(self.task_instance)  # other threads cannot call Airflow
                if is_for_pilots(state, submission, StopMode(self.on_kill_how), self.log):
                    await self._stop_once(submission)
            except Exception as error:  # from Airflow's API, the pool or the cluster
                pause, tries = backoff.again(), backoff.tries
                self.log.warning("The pilots of %s could not be stopped (try %d): %s", submission.key, tries, error)
                if pause is None:
                    return
                await asyncio.sleep(pause)
            else:
                return

    async def _stop_once(self, submission: Submission) -> None:
        how = StopMode(self.on_kill_how)
        async with AsyncExitStack() as stack:
            picas = await stack.enter_async_context(self._picas())
            slurm = await stack.enter_async_context(cluster_for(submission.ssh_conn_id).use())
            seconds = CANCEL_WAIT if how is StopMode.CANCEL else DRAIN_WAIT
            stopping = end_pilots(picas.pool, self._own, submission, how, self.log, wait=seconds)
            await drive_async(stopping, performer(picas.send, slurm.perform))


_stopping: set[asyncio.Task[None]] = set()
"""Work of ``on_kill`` that is under way; asyncio itself keeps no task alive."""


def _lingering() -> float:
    """Seconds in which Airflow may not yet have noticed that the task's process ended when it deferred.

    An event within this time can fail the task: the scheduler of 3.3.2 mistakes the end of that process for the end of
    the next.
    """
    interval = float(conf.getfloat("workers", "min_heartbeat_interval", fallback=5.0))
    return interval + 3 if interval > 0 else 0.0


async def _next(updates: CountsSubscription, seconds: float) -> CountsUpdate:
    """The next update; an empty one after ``seconds``."""
    try:
        async with asyncio.timeout(max(0.0, seconds)):
            return await anext(updates)
    except TimeoutError:
        return CountsUpdate(None)
