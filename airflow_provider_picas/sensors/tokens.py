"""Sensor that waits until the tokens of a batch, or of a whole pool, have finished."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from itertools import islice
from typing import Any, NoReturn

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseSensorOperator,
    Context,
    PokeReturnValue,
    conf,
)

from airflow_provider_picas.couchdb.errors import CouchDBError
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.tokens import waiting
from airflow_provider_picas.tokens.batch import Batch
from airflow_provider_picas.tokens.counts import Completeness, Counts, ErrorBudget
from airflow_provider_picas.tokens.states import State
from airflow_provider_picas.tokens.waiting import Outcome
from airflow_provider_picas.triggers.tokens import PicasTokenStateTrigger

_SAMPLE = 5  # ids that a message names
_MARGIN = timedelta(minutes=5)  # the trigger keeps the deadline itself; Airflow's is only for a triggerer that hangs


class PicasTokenStateSensor(BaseSensorOperator):
    """Wait until a batch, or the whole pool, is complete: every token that was pushed is done or in error.

    Tokens that were pushed and are gone, and tokens in no state, fail it once all others have finished, and are named.

    :param batch: the push operator's output, or the name of a batch. None: the whole pool, whose tokens are those that it has.
    :param max_errors: how many tokens may end in error: a number, or a fraction below 1. More fail the task.
    :param picas_conn_id: a connection of type ``picas``.
    :param database: another database than the batch's or the connection's.
    :param deferrable: wait in the triggerer. Default: ``[operators] default_deferrable``.

    Returns the counts by state. ``poke_interval``, ``timeout``, ``mode`` and ``soft_fail`` are those of every sensor.
    """

    template_fields: Sequence[str] = ("batch", "max_errors", "picas_conn_id", "database")
    ui_color = "#d7ecf5"

    def __init__(
        self,
        *,
        batch: str | Mapping[str, Any] | None = None,
        max_errors: float = 0,
        picas_conn_id: str = PicasHook.default_conn_name,
        database: str | None = None,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.batch = batch
        self.max_errors = max_errors
        self.picas_conn_id = picas_conn_id
        self.database = database
        self.deferrable = deferrable
        self._last_counts: Counts | None = None

    def execute(self, context: Context) -> Any:
        if not self.deferrable:
            return super().execute(context)
        result = self.poke(context)
        if result:
            return result.xcom_value
        batch = self._batch()
        trigger = PicasTokenStateTrigger(
            picas_conn_id=self.picas_conn_id,
            database=self._database(batch),
            batch=batch.id if batch else None,
            expected=batch.tokens if batch else None,
            max_errors=self._budget().limit,
            deadline=time.time() + self.timeout,
        )
        self.defer(trigger=trigger, method_name="execute_complete", timeout=timedelta(seconds=self.timeout) + _MARGIN)

    def execute_complete(self, context: Context, event: Mapping[str, Any]) -> dict[str, int]:
        """What the trigger found out; its counts are the task's result."""
        outcome = Outcome(event["outcome"])
        batch = self._batch()
        completeness = Completeness(Counts(**event["counts"]), event["expected"])
        if outcome is not Outcome.COMPLETE:
            self._fail(outcome, completeness, self._hook(batch), batch)
        self.log.info("%s", waiting.explain(outcome, completeness, self._budget(), where=self._where(batch)))
        return completeness.counts.as_dict()

    def poke(self, context: Context) -> PokeReturnValue:
        batch = self._batch()
        hook = self._hook(batch)
        completeness = self._look(hook, batch)
        verdict = waiting.judge(completeness, self._budget())
        if verdict.settling:
            time.sleep(waiting.SETTLE_SECONDS)
            completeness = self._look(hook, batch)
            verdict = waiting.judge(completeness, self._budget())
        if not verdict.over:
            return PokeReturnValue(False)
        if verdict.outcome is not Outcome.COMPLETE:
            self._fail(verdict.outcome, completeness, hook, batch)
        self.log.info("%s", waiting.explain(verdict.outcome, completeness, self._budget(), where=self._where(batch)))
        return PokeReturnValue(True, completeness.counts.as_dict())

    def _look(self, hook: PicasHook, batch: Batch | None) -> Completeness:
        counts = hook.count(batch.id if batch else None)
        if counts != self._last_counts:
            self.log.info("%s: %s.", self._where(batch), counts)
            self._last_counts = counts
        return Completeness(counts, batch.tokens if batch else None)

    def _fail(self, outcome: Outcome, completeness: Completeness, hook: PicasHook, batch: Batch | None) -> NoReturn:
        name = batch.id if batch else None
        samples: dict[str, list[str]] = {}
        try:
            if outcome is Outcome.TOO_MANY_ERRORS:
                samples["in_error"] = list(islice(hook.token_ids(State.ERROR, name), _SAMPLE))
            if outcome is Outcome.LOST:
                samples["stateless"] = hook.stateless_ids(name, _SAMPLE)
                if name is not None and completeness.missing and completeness.expected is not None:
                    samples["missing"] = hook.missing(name, completeness.expected)
        except CouchDBError as error:
            self.log.warning("The tokens cannot be named: %s", error)
        text = waiting.explain(outcome, completeness, self._budget(), where=self._where(batch), **samples)
        if self.soft_fail:
            raise AirflowSkipException(text)
        if outcome is Outcome.TIMED_OUT:
            raise AirflowSensorTimeout(text)
        raise AirflowFailException(text)

    def _batch(self) -> Batch | None:
        try:
            return Batch.parse(self.batch)
        except ValueError as error:
            raise AirflowFailException(str(error)) from None

    def _budget(self) -> ErrorBudget:
        limit: Any = self.max_errors
        try:
            if isinstance(limit, str):  # rendered from a template
                limit = float(limit) if "." in limit else int(limit)
            return ErrorBudget(limit)
        except ValueError as error:
            raise AirflowFailException(str(error)) from None

    def _database(self, batch: Batch | None) -> str | None:
        return self.database or (batch.database if batch else None)

    def _hook(self, batch: Batch | None) -> PicasHook:
        return PicasHook(self.picas_conn_id, database=self._database(batch))

    def _where(self, batch: Batch | None) -> str:
        return f"batch {batch.id}" if batch else "the pool"
