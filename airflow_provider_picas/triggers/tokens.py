"""Trigger that waits for tokens: the pool's ``_changes`` feed is its alarm clock, and counts decide."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_picas.couchdb import errors
from airflow_provider_picas.hooks.picas import PicasAsyncHook
from airflow_provider_picas.tokens import waiting
from airflow_provider_picas.tokens.counts import Completeness, Counts, ErrorBudget
from airflow_provider_picas.tokens.waiting import Outcome, Verdict

DEBOUNCE = 0.3  # seconds: tokens finish in bursts, and one count does for all of them
LONGEST_SLEEP = 60.0  # seconds without news until the counts are read all the same
LOG_INTERVAL = 10.0  # seconds between two lines of counts
GRACE = 300.0  # seconds that a pool may be away before the wait fails


class PicasTokenStateTrigger(BaseTrigger):
    """Yields one event when a batch, or the whole pool, is complete, will never be, or the deadline has passed.

    :param batch: id of the batch; None: the whole pool.
    :param expected: number of tokens that were pushed; None: all that are there.
    :param max_errors: as for ``ErrorBudget``.
    :param deadline: seconds since 1970.

    The event's payload is ``{"outcome", "counts", "expected"}``.
    """

    def __init__(
        self,
        picas_conn_id: str,
        database: str | None,
        batch: str | None,
        expected: int | None,
        max_errors: float,
        deadline: float,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.picas_conn_id = picas_conn_id
        self.database = database
        self.batch = batch
        self.expected = expected
        self.max_errors = max_errors
        self.deadline = deadline
        self._logged: tuple[float, Counts | None] = (0.0, None)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class's path and its arguments."""
        names = ("picas_conn_id", "database", "batch", "expected", "max_errors", "deadline")
        return f"{type(self).__module__}.{type(self).__qualname__}", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait; yield the event."""
        completeness = Completeness(Counts(), self.expected)
        away_since: float | None = None
        while True:
            try:
                async with PicasAsyncHook(self.picas_conn_id, database=self.database) as hook:
                    async for completeness, verdict in self._watch(hook):
                        away_since = None
                        if verdict.over:
                            yield self._event(verdict.outcome, completeness)
                            return
            except errors.UnavailableError as error:
                now = time.monotonic()
                away_since = away_since or now
                if now - away_since > GRACE:
                    raise
                self.log.warning("%s The wait goes on.", error)
            if time.time() >= self.deadline:
                yield self._event(Outcome.TIMED_OUT, completeness)
                return
            await asyncio.sleep(random.uniform(1, 5))

    async def _watch(self, hook: PicasAsyncHook) -> AsyncIterator[tuple[Completeness, Verdict]]:
        """How the wait stands, after each piece of news and now and then, until the deadline."""
        budget = ErrorBudget(self.max_errors)
        since = await hook.do(hook.pool.sequence())
        while True:
            completeness = await self._look(hook)
            verdict = waiting.judge(completeness, budget)
            if verdict.settling:
                await asyncio.sleep(waiting.SETTLE_SECONDS)
                completeness = await self._look(hook)
                verdict = waiting.judge(completeness, budget)
            yield completeness, verdict
            left = self.deadline - time.time()
            if left <= 0:
                return
            since = await hook.do(hook.pool.changed(since, min(LONGEST_SLEEP, left)))
            await asyncio.sleep(DEBOUNCE)

    async def _look(self, hook: PicasAsyncHook) -> Completeness:
        counts = await hook.count(self.batch)
        logged_at, logged = self._logged
        if counts != logged and time.monotonic() - logged_at >= LOG_INTERVAL:
            self.log.info("%s: %s.", f"batch {self.batch}" if self.batch else "the pool", counts)
            self._logged = (time.monotonic(), counts)
        return Completeness(counts, self.expected)

    def _event(self, outcome: Outcome, completeness: Completeness) -> TriggerEvent:
        return TriggerEvent(  # type: ignore[no-untyped-call]
            {"outcome": str(outcome), "counts": completeness.counts.as_dict(), "expected": completeness.expected}
        )
