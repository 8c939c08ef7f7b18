"""Sensor that waits until the tokens of a batch, or of a whole pool, have finished."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import timedelta
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
from airflow_provider_picas.couchdb import chains, changes, groups, new_tokens
from airflow_provider_picas.couchdb.errors import CouchDBError, ForbiddenError, UnavailableError, is_refusal
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.links import (
    PicasMonitoringLink,
    PicasPoolLink,
    PicasRerunLink,
    push_links,
    push_page,
    push_rerun,
)
from airflow_provider_picas.operators.instance import push_id
from airflow_provider_picas.options import MAX_SCRUBS, PilotWatch, TakesOptions, WaitPolicy, unpacks_options
from airflow_provider_picas.parameters import optional_seconds, optional_whole_number, whole_number
from airflow_provider_picas.sensors.actions import AllPilots
from airflow_provider_picas.sensors.failures import counts_lag, explain_failure
from airflow_provider_picas.sensors.pilots import PATIENCE, find_pilots, forget_pilots
from airflow_provider_picas.submissions.stop import StopMode
from airflow_provider_picas.submissions.submission import Submission
from airflow_provider_picas.submissions.wait import Wait
from airflow_provider_picas.tokens import ids
from airflow_provider_picas.tokens.batch import Batch
from airflow_provider_picas.tokens.chain import Chain, ChainCounts
from airflow_provider_picas.tokens.counts import Completeness, Counts, ErrorBudget
from airflow_provider_picas.tokens.waiting import Outcome, Terms, Threshold
from airflow_provider_picas.triggers.tokens import PicasTokenStateTrigger

_Value = TypeVar("_Value")
_MARGIN = timedelta(minutes=5)  # the trigger enforces the deadline; Airflow's is only for a triggerer that hangs


class PicasTokenStateSensor(TakesOptions, BaseSensorOperator):
    """Wait until a batch, or the whole pool, is complete: every token that was pushed is done or in error.

    If pushed tokens are missing, or tokens are in no state, the task fails once all others have finished, and names
    them. It also fails if the named batch has no tokens.

    :param batch: the push operator's output, or the name of a batch. None: the whole pool, with the tokens that it has.
    :param stages: names of the stages whose tokens the batch's tokens make, in order: each is filled by the batch and the
        stages before it (``docs/howto/stages.md``). The wait is over only when no token can make more. It also makes tokens
        that a pilot has named, but died before it made them. A mapping names the batch of each stage, if that is not
        ``<batch>.<stage>``.
    :param stage: wait for this stage alone. Default: for the batch and all of its stages together.
    :param least_work: with ``stage``: while more tokens may appear, do not submit pilots again for fewer waiting tokens.
    :param ready: with ``stage``: succeed as soon as this number of its tokens waits, or no more can appear, and return
        the batch of the stage. For a task before the one that submits its pilots.
    :param groups: stages with one token for each group of another stage's tokens: ``{"imaging": {"of": "calibration",
        "at_least": 0.9}}``. The wait makes the token of a group when enough of its members have finished.
    :param policy: ``max_errors``, ``fail_fast``, ``success_threshold`` and ``no_progress`` as one ``WaitPolicy``.
    :param max_errors: the number of tokens that may end in error, or a fraction below 1. With more, the task fails.
    :param fail_fast: fail as soon as ``max_errors`` is exceeded. Default: when all tokens have finished.
    :param success_threshold: succeed as soon as this number of tokens is done, or this fraction (``1.0`` is all).
        Tokens in error then do not matter, unless too few tokens remain to reach it.
    :param no_progress: fail after this time, in seconds or as a timedelta, in which no token has finished. Default:
        never.
    :param pilots: the output of the operator that submits pilots, or a list of such outputs: pilots on several clusters,
        each checked with its own Slurm. While one cluster does not answer, the others go on, and the tokens of its pilots
        are released when their leases have expired. Default: the pilots that one task has submitted for
        the batch; if several tasks have, or without a batch, none. False: none. The wait watches them: it releases the
        tokens of dead pilots. If no pilots remain while tokens wait, the task fails and shows the ends of the pilots'
        logs. These are also shown while pilots run, unless the mode is ``reschedule``.
    :param watch: ``resubmit``, ``max_scrubs``, ``max_lock_age``, ``pilots_interval`` (there ``interval``) and ``on_kill`` as one
        ``PilotWatch``.
    :param resubmit: how many times to submit the same pilots again when none remain. Stops if they finish no tokens, or
        if they were drained or cancelled. While one of several clusters does not answer, and the leases of its pilots
        have expired, those of the others are submitted again (not in mode ``reschedule``). When sbatch refuses for now
        (a closed partition, a submit limit), the wait tries again after 1 to 15 minutes. ``max_pilots`` and
        ``max_queued`` of the operator that submitted them are not checked again.
    :param max_scrubs: how many times the wait releases the token of a dead pilot before it becomes an error, 0 - 9.
        Pilots also release each other's tokens, with their own limit: give the operator that submits them
        ``pilot={"max_scrubs": …}`` too.
    :param max_lock_age: seconds after which the wait releases a token that is locked by a pilot without a lease, such
        as a PiCaS client's, unless its job is one of ``pilots`` and runs, or somebody still saves the token: it counts
        from the last save that the wait has seen, and the wait watches it for a while first. Default: never.
    :param pilots_interval: seconds between two checks of the pilots. Default: 5 to 60, longer while nothing changes.
    :param cancel_pending: when the wait succeeds, cancel those of ``pilots`` that have not started, if no token of
        their batch (of the pool, if they claim any) waits or runs. Pilots with ``wait_for_work`` are drained then, if no
        more tokens can appear in their batch: with ``stages``, or if ``batch`` is the output of a push and ``pilots`` names
        them. Others are left.
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
    :param profile: the shape of the pool, if it is not the connection's: the name of a profile, or an object.
    :param deferrable: wait in the triggerer. Default: ``[operators] default_deferrable``.

    Pools and stages in ``outlets`` (``assets.pool_asset``, ``assets.stage_asset``) get an event with batch, outcome and
    counts in its extra; those of stages have partition keys from Airflow 3.3 on.

    Returns the counts by state. ``poke_interval``, ``timeout``, ``mode`` and ``soft_fail`` are those of every sensor. A
    short ``poke_interval`` is a risk with ``mode="reschedule"``: Airflow fails the task if it notices the end of one
    poke only after it has queued the next (apache/airflow#71172).
    """

    template_fields: Sequence[str] = (
        "batch", "stages", "stage", "least_work", "ready", "groups", "max_errors", "success_threshold", "pilots", "resubmit",
        "max_scrubs", "max_lock_age", "outage", "picas_conn_id", "database", "profile",
    )  # fmt: skip
    operator_extra_links = (PicasRerunLink(), PicasPoolLink(), PicasMonitoringLink())
    ui_color = "#d7ecf5"

    @unpacks_options
    def __init__(
        self,
        *,
        batch: str | Mapping[str, Any] | None = None,
        stages: Sequence[str] | Mapping[str, Any] = (),
        stage: str | None = None,
        least_work: int | str = 1,
        ready: int | str | None = None,
        groups: Mapping[str, Any] | None = None,
        policy: WaitPolicy | None = None,
        max_errors: float | str = 0,
        fail_fast: bool = False,
        success_threshold: float | str | None = None,
        no_progress: float | timedelta | None = None,
        pilots: Mapping[str, Any] | Sequence[Any] | bool | None = None,
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
        profile: str | Mapping[str, Any] | None = None,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.batch = batch
        self.stages = stages
        self.stage = stage
        self.least_work = least_work
        self.ready = ready
        self.groups = groups
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
        self.profile = profile
        self.deferrable = deferrable
        self._concluded = False
        self._found_pilots = False  #: the author has named none
        self._state: Wait | None = None
        self._instance: Any = None  #: the task instance that runs

    def execute(self, context: Context) -> Any:
        self._instance = context["ti"]
        self._find_pilots()
        if not self.deferrable:
            return self._poke_until_over(context)
        try:
            result = self._poke(context)
        except UnavailableError as error:
            self.log.warning("%s The wait continues.", error)  # the trigger waits for the outage to end
        else:
            if result:
                return result.xcom_value
        self._defer(time.time() + self.timeout)

    def _poke_until_over(self, context: Context) -> Any:
        """Poke as every sensor does. A timeout, or a pool that is unavailable, ends the wait without ``_conclude``."""
        try:
            return super().execute(context)
        except (AirflowSensorTimeout, AirflowSkipException):
            if self._state and self._state.completeness and not self._concluded:
                self._end_pilots(context, self._state.completeness.counts)
            raise
        except CouchDBError:
            self._end_pilots(context, None)
            raise

    def _defer(self, deadline: float) -> NoReturn:
        batch, wait = self._batch(), self._wait
        terms, chain = wait.terms, wait.terms.chain
        trigger = PicasTokenStateTrigger(
            picas_conn_id=self.picas_conn_id,
            database=self._database(batch),
            batch=chain.batch if chain else terms.batch,
            expected=terms.expected,
            max_errors=terms.budget.limit,
            deadline=deadline,
            pilots=self.pilots or None if not isinstance(self.pilots, bool) else None,
            max_scrubs=self._max_scrubs(),
            max_lock_age=wait.max_lock_age,
            pilots_interval=self.pilots_interval,
            on_kill_how=str(self.on_kill_how),
            fail_fast=terms.fail_fast,
            success_threshold=None if terms.threshold is None else terms.threshold.limit,
            no_progress=self.no_progress,
            outage=self._outage(),
            profile=self.profile,
            stages=chain.as_argument if chain else (),
            stage=chain.stage if chain else None,
            tokens=chain.tokens if chain else None,
            least_work=terms.least_work,
            ready=terms.ready,
            groups={name: grouping.as_dict() for name, grouping in chain.groups.items()} if chain else None,
            resubmits=wait.resubmits,
            no_pilots_before=max(0.0, wait.no_pilots_before - time.monotonic() + time.time()),
        )
        left = timedelta(seconds=max(1, deadline - time.time()))
        self.defer(
            trigger=trigger, method_name="execute_complete", kwargs={"deadline": deadline}, timeout=left + _MARGIN
        )
        raise AssertionError("defer raises")

    def execute_complete(self, context: Context, event: Mapping[str, Any], deadline: float) -> dict[str, Any]:
        """Resume with the trigger's event; its counts are the task's result."""
        self._instance = context["ti"]
        self._find_pilots()
        outcome = Outcome(event["outcome"])
        if outcome is Outcome.AWAY:
            self._end_pilots(context, None)
            if self.soft_fail:
                raise AirflowSkipException(event["reason"])
            raise CouchDBError(event["reason"])
        if outcome is Outcome.UNWATCHED:
            return self._continue_in_task(context, event["reason"], deadline)
        if event.get("reason"):
            self.log.warning("The counts are from before an outage. %s", event["reason"])
        completeness = Completeness(Counts(**event["counts"]), event["expected"])
        if outcome is Outcome.NO_PILOTS:
            try:  # the trigger's counts may be older than its check of the pilots
                completeness = self._count()
            except CouchDBError as error:
                self.log.warning("%s The wait continues.", error)
                self._defer(deadline)
            over = self._wait.terms.evaluate(completeness).over
            if over or not completeness.counts.todo or self._submit_again(completeness):
                self._defer(deadline)
        if counts_lag(outcome, completeness, self._hook(), self._wait.terms, self.log):
            self._defer(deadline)
        return self._conclude(context, outcome, completeness)

    def _continue_in_task(self, context: Context, reason: str, deadline: float) -> dict[str, Any]:
        """Continue as a wait that pokes. The trigger cannot watch the pilots; a worker, which submitted them, can."""
        self.log.warning(
            "The triggerer cannot log in to the cluster. %s The wait continues in this worker, which checks every %g s and"
            " occupies a slot until the end. Fix the triggerer's login and clear this task to wait there again.",
            reason, self.poke_interval,
        )  # fmt: skip
        self.deferrable, self.mode = False, "poke"
        self.timeout = max(0.0, deadline - time.time())
        counts: dict[str, Any] = self._poke_until_over(context)
        return counts

    def on_kill(self) -> None:
        """Called by Airflow in a signal handler, 5 s before it kills the process: stop the pilots if a person failed
        the task.

        The interrupted code may hold the process's connection to Airflow until it resumes, so a thread does the work.
        """
        if self._instance is not None and self.on_kill_how is not StopMode.LEAVE:
            threading.Thread(target=self._stop_pilots, name="stop-pilots", daemon=True).start()

    def _stop_pilots(self) -> None:
        try:
            if pilots := self._pilots(self._hook()):
                pilots.stop(self._instance, self.on_kill_how)
        except Exception as error:  # from Airflow's API, the pool or the cluster
            self.log.warning("The pilots could not be stopped: %s", error)

    def poke(self, context: Context) -> PokeReturnValue:
        try:
            result = self._poke(context)
        except CouchDBError as error:
            if self._fails_by(error, context):
                raise
            return PokeReturnValue(False)
        if self._wait.endurance.answered():
            self.log.info("The database is reachable again.")
        return result

    def _fails_by(self, error: CouchDBError, context: Context) -> bool:
        """True if an outage fails the task. It is logged once, and again when "no answer" becomes a refusal."""
        refused, endurance = is_refusal(error), self._wait.endurance
        first = self._wait.completeness is None
        if self.reschedule:
            first = context["ti"].get_first_reschedule_date(context) is None
        if (refused and first) or endurance.over(refused, time.monotonic()):
            return True
        if notice := endurance.notice(error, refused):
            self.log.warning("%s", notice)
        return False

    def _poke(self, context: Context) -> PokeReturnValue:
        hook, wait = self._hook(), self._wait
        if wait.completeness is None:
            push_links(context, hook.settings)
            terms = wait.terms
            wanted = {"max_errors": terms.budget.limit, "expected": terms.expected}
            push_page(context, self.picas_conn_id, hook.settings, terms.batch, role="wait", **wanted)
        if not self.deferrable:
            self._check_pilots(hook)
        outcome, completeness = self._decide(hook)
        if outcome is Outcome.NO_PILOTS and self._submit_again(completeness):
            return PokeReturnValue(False)
        if outcome is Outcome.WAITING and self._stalled_between_pokes(context, hook, completeness.counts):
            outcome = Outcome.NO_PROGRESS
        if outcome is Outcome.WAITING or counts_lag(outcome, completeness, hook, wait.terms, self.log):
            return PokeReturnValue(False)
        return PokeReturnValue(True, self._conclude(context, outcome, completeness))

    def _check_pilots(self, hook: PicasHook) -> None:
        if pilots := self._pilots(hook):
            pilots.check(self._max_scrubs(), reschedule=self.reschedule)

    def _decide(self, hook: PicasHook) -> tuple[Outcome, Completeness]:
        """The outcome and the counts that it is based on. Counts again if it is final only once it has lasted."""
        wait = self._wait
        while True:
            completeness = self._count(hook)
            wait.log_progress(time.monotonic())
            outcome = wait.decide(time.monotonic())
            settled_in = wait.settled_in(time.monotonic())
            if outcome is not Outcome.WAITING or math.isinf(settled_in):
                return outcome, completeness
            time.sleep(max(0.0, settled_in))

    def _conclude(self, context: Context, outcome: Outcome, completeness: Completeness) -> dict[str, Any]:
        """End the wait: push figures to XCom, remove credentials from the cluster, then succeed or fail."""
        self._concluded = True
        hook, terms = self._hook(), self._wait.terms
        self._end_pilots(context, completeness.counts, succeeded=outcome.success)
        pilots = self._pilots(hook) if outcome is Outcome.NO_PILOTS else None
        tails = pilots.log_tails() if pilots else ""
        counts = completeness.counts.as_dict()
        if completeness.counts.error:
            push_rerun(context)
        assets.add_to_events(context, self.outlets, {"batch": terms.batch, "outcome": str(outcome), "counts": counts})
        if outcome.success and terms.chain is not None:
            self._add_partitions(context, hook, terms.chain)
        if not outcome.success:
            self._fail(outcome, explain_failure(outcome, completeness, hook, terms, self.log), tails)
        self._forget_pilots()
        self.log.info("%s", terms.explain(outcome, completeness))
        if outcome is Outcome.READY and (batch := self._batch()):
            return batch.as_dict()
        return counts

    def _add_partitions(self, context: Context, hook: PicasHook, chain: Chain) -> None:
        """Give the events of stages their partition keys."""
        batches = {name: batch for name, batch in chain.by_stage.items() if batch in chain.own}
        try:
            assets.add_partitions(
                context, self.outlets, batches, lambda stage: hook.do(groups.done_groups(hook.pool, chain, stage))
            )
        except CouchDBError as error:
            self.log.warning("The events of groups have no partition keys. %s", error)

    def _fail(self, outcome: Outcome, message: str, tails: str) -> NoReturn:
        if tails:
            self.log.error("The ends of the pilots' logs:\n%s", tails)
        if self.soft_fail:
            raise AirflowSkipException(message)
        if outcome is Outcome.TIMED_OUT:
            raise AirflowSensorTimeout(message)
        raise AirflowFailException(message)

    def _end_pilots(self, context: Context, counts: Counts | None, *, succeeded: bool = False) -> None:
        if pilots := self._pilots(self._hook()):
            cancel = succeeded and self.cancel_pending
            pilots.end(context, counts, cancel_pending=cancel, complete=self._complete() if cancel else ())

    def _complete(self) -> Collection[str]:
        """The batches in which no more tokens can appear after this wait has succeeded. Pilots that it has found by itself may
        be meant for another task, too."""
        terms = self._wait.terms
        if terms.chain is not None:
            return terms.chain.batches
        return [terms.batch] if terms.batch and terms.expected is not None and not self._found_pilots else []

    def _submit_again(self, completeness: Completeness) -> bool:
        """Submit the same pilots again, if `resubmit` allows it and they make progress. True if the wait continues."""
        pilots = self._pilots(self._hook())
        most = self._checked(whole_number, "resubmit")
        return pilots is not None and pilots.resubmit(most, completeness.counts.finished)

    def _count(self, hook: PicasHook | None = None) -> Completeness:
        wait = self._wait
        hook = hook or self._hook()
        chain, now = wait.terms.chain, time.monotonic()
        counts: Counts | ChainCounts
        if chain is None:
            counts = hook.count(wait.terms.batch)
        else:
            if wait.completeness is None:
                hook.do(new_tokens.deploy(hook.pool))  # if it may not, the query below says what to do
                hook.do(chains.note(hook.pool, chain))
            counts = hook.do(new_tokens.count_chain(hook.pool, chain, look=wait.looks.due(now)))
        if wait.completeness is None:
            self.log.info("Waiting for %s.", wait.terms.where)
        wait.note_counts(counts, time.monotonic())
        return wait.last

    def _stalled_between_pokes(self, context: Context, hook: PicasHook, counts: Counts) -> bool:
        """True if no token has finished for ``no_progress``, in mode ``reschedule``: the pool stores this meanwhile."""
        if self.no_progress is None or self.deferrable or not self.reschedule:
            return False
        ti = context["ti"]
        name = ids.digest(push_id(context), str(ti.try_number))
        try:
            idle = hook.do(changes.idle(hook.pool, name, counts.finished))
        except ForbiddenError as error:
            self.log.warning("Could not store the progress between pokes. %s", error)
            return False
        return idle >= self.no_progress

    @property
    def _wait(self) -> Wait:
        """The state of this wait, made from the rendered arguments."""
        if self._state is None:
            batch, chain = self._batch(), self._chain()
            terms = Terms(
                batch.id if batch else None,
                batch.tokens if batch else None,
                self._parsed(ErrorBudget.parse, self.max_errors),
                self._parsed(Threshold.parse, self.success_threshold),
                self.fail_fast,
                self.no_progress,
                chain,
                self._checked(lambda name, value: whole_number(name, value, least=1), "least_work"),
                self._checked(lambda name, value: optional_whole_number(name, value, least=1), "ready"),
            )
            outage = math.inf if self.reschedule else self._outage()  # `reschedule` does not know when it began
            self._state = Wait(
                terms,
                self.log,
                outage=outage,
                max_lock_age=self._checked(optional_seconds, "max_lock_age"),
                resubmits=self._checked(whole_number, "resubmit") > 0,
            )
        return self._state

    def _find_pilots(self) -> None:
        """Use the pilots that were submitted for the batch, unless the author has named some."""
        batch = self._batch()
        if batch is None or self.pilots is False or self.pilots:
            return
        patience = 0.0 if self.reschedule else PATIENCE
        if found := find_pilots(self._hook(), batch.id, self.log, patience):
            self.pilots, self._found_pilots = found, True

    def _forget_pilots(self) -> None:
        """Record that the wait for these pilots is over: a later wait for a batch of that name is for other pilots."""
        batch = self._batch()
        if batch is None or not self._parsed(Submission.parse_all, self.pilots or None):
            return
        hook = self._hook()
        for pilots in [self.pilots] if isinstance(self.pilots, Mapping) else self.pilots or ():  # type: ignore[union-attr]
            if pilots["submission"]:
                forget_pilots(hook, batch.id, pilots, self.log)

    def _pilots(self, hook: PicasHook) -> AllPilots | None:
        """The actions on the pilots; None if this wait watches none."""
        submissions = self._parsed(Submission.parse_all, self.pilots or None)
        return AllPilots(submissions, hook, self._wait, self.log) if submissions else None

    def _batch(self) -> Batch | None:
        """The batch that the wait is for, which may be a stage's."""
        batch, chain = self._parsed(Batch.parse, self.batch), self._chain()
        if batch is None or chain is None or chain.stage is None:
            return batch
        return Batch(chain.own[0], batch.database)

    def _chain(self) -> Chain | None:
        batch = self._parsed(Batch.parse, self.batch)
        if batch is None:
            if self.stages:
                raise AirflowFailException("`stages` needs a `batch`: the one that the chain begins with.")
            return None
        return self._parsed(
            lambda stages: Chain.parse(batch.id, stages, self.stage, batch.tokens, self.groups), self.stages
        )

    def _outage(self) -> float | None:
        return self._checked(optional_seconds, "outage")

    def _max_scrubs(self) -> int:
        return self._checked(lambda name, value: whole_number(name, value, least=0, most=MAX_SCRUBS), "max_scrubs")

    def _checked(self, parse: Callable[[str, Any], _Value], name: str) -> _Value:
        return self._parsed(lambda value: parse(name, value), getattr(self, name))

    @staticmethod
    def _parsed(parse: Callable[[Any], _Value], value: Any) -> _Value:
        try:
            return parse(value)
        except ValueError as error:
            raise AirflowFailException(str(error)) from None

    def _database(self, batch: Batch | None) -> str | None:
        return self.database or (batch.database if batch else None)

    def _hook(self) -> PicasHook:
        database = self._database(self._batch())
        # `timeout` is checked between pokes, so a request does not wait for an index.
        return PicasHook(self.picas_conn_id, database=database, profile=self.profile, wait_for_index=False)
