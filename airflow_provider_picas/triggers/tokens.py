"""Trigger that waits for tokens: the pool's ``_changes`` feed is its alarm clock, counts decide, and pilots are looked after."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_picas import stopping
from airflow_provider_picas.couchdb import errors
from airflow_provider_picas.couchdb.protocol import Request
from airflow_provider_picas.hooks.picas import PicasAsyncHook
from airflow_provider_picas.hooks.slurm import SlurmAsyncHook
from airflow_provider_picas.operation import drive_async
from airflow_provider_picas.reaping import News, Watched, look_after
from airflow_provider_picas.slurm import logs
from airflow_provider_picas.slurm.remote import RemoteError
from airflow_provider_picas.stopping import How
from airflow_provider_picas.tokens import waiting
from airflow_provider_picas.tokens.counts import Completeness, Counts, ErrorBudget
from airflow_provider_picas.tokens.text import sample
from airflow_provider_picas.tokens.waiting import Outcome, Verdict

DEBOUNCE = 0.3  # seconds: tokens finish in bursts, and one count does for all of them
LONGEST_SLEEP = 60.0  # seconds without news until the counts are read all the same
LOG_INTERVAL = 10.0  # seconds between two lines of counts
GRACE = 300.0  # seconds that a pool may be away before the wait fails

FIRST_INTERVAL = 5.0  # seconds between two looks at the pilots while there is news of them
LONGEST_INTERVAL = 60.0  # seconds, when nothing changes
LOGS_INTERVAL = 30.0  # seconds between two looks at the pilots' logs
GONE_AFTER = 60.0  # seconds that Slurm must know of no job of a submission until it has none

_ARGUMENTS = (
    "picas_conn_id", "database", "batch", "expected", "max_errors", "deadline", "pilots", "max_scrubs", "max_lock_age",
    "pilots_interval", "on_kill_how",
)  # fmt: skip


class PicasTokenStateTrigger(BaseTrigger):
    """Yields one event when a batch, or the whole pool, is complete, will never be, or the deadline has passed.

    :param batch: id of the batch; None: the whole pool.
    :param expected: number of tokens that were pushed; None: all that are there.
    :param max_errors: as for ``ErrorBudget``.
    :param deadline: seconds since 1970.
    :param pilots: output of the operator that submitted the pilots, which are looked after; None: pilots are not watched.
    :param max_scrubs: how often the token of a dead pilot is given back until it is an error.
    :param max_lock_age: seconds after which a token is given back that a pilot without a lease holds; None: never.
    :param pilots_interval: seconds between two looks at the pilots; None: 5 to 60, longer while nothing changes.
    :param on_kill_how: what happens to the pilots when a person marks the task failed: cancel, drain or leave.

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
        pilots: Mapping[str, Any] | None = None,
        max_scrubs: int = 3,
        max_lock_age: float | None = None,
        pilots_interval: float | None = None,
        on_kill_how: str = How.CANCEL,
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
        self._logged: tuple[float, Counts | None] = (0.0, None)
        self._nobody_left = asyncio.Event()

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class's path and its arguments."""
        return f"{type(self).__module__}.{type(self).__qualname__}", {name: getattr(self, name) for name in _ARGUMENTS}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait; yield the event."""
        watched = Watched.parse(self.pilots)
        looks = asyncio.create_task(self._watch_pilots(watched)) if watched else None
        try:
            async for event in self._wait():
                yield event
                return
        finally:
            if looks is not None:
                looks.cancel()
                await asyncio.gather(looks, return_exceptions=True)

    async def _wait(self) -> AsyncIterator[TriggerEvent]:
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
            completeness = await self._count(hook)
            verdict = waiting.judge(completeness, budget)
            if verdict.settling:
                await asyncio.sleep(waiting.SETTLE_SECONDS)
                completeness = await self._count(hook)
                verdict = waiting.judge(completeness, budget)
            if not verdict.over and self._nobody_left.is_set() and completeness.counts.todo:
                verdict = Verdict(Outcome.NO_PILOTS)
            yield completeness, verdict
            left = self.deadline - time.time()
            if left <= 0:
                return
            since = await self._next_change(hook, since, min(LONGEST_SLEEP, left))

    async def _next_change(self, hook: PicasAsyncHook, since: str, seconds: float) -> str:
        """Wait for news of the pool, or that no pilot is left; where the feed stands then."""
        change = asyncio.create_task(hook.do(hook.pool.changed(since, seconds)))
        nobody = asyncio.create_task(
            self._nobody_left.wait() if not self._nobody_left.is_set() else asyncio.sleep(seconds)
        )
        try:
            await asyncio.wait({change, nobody}, return_when=asyncio.FIRST_COMPLETED)
            if not change.done():
                return since
            await asyncio.sleep(DEBOUNCE)
            return change.result()
        finally:
            for task in (change, nobody):
                task.cancel()
            await asyncio.gather(change, nobody, return_exceptions=True)

    async def _count(self, hook: PicasAsyncHook) -> Completeness:
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

    # -- pilots -------------------------------------------------------------------------------------------------------

    async def _watch_pilots(self, watched: Watched) -> None:
        """Look after the pilots, again and again. Outages of either side are said, and survived."""
        interval = self.pilots_interval or FIRST_INTERVAL
        states: object = None
        outage: str | None = None
        none_left_since: float | None = None
        sizes: dict[str, int] = {}
        logs_at = 0.0
        async with AsyncExitStack() as stack:
            picas = await stack.enter_async_context(PicasAsyncHook(self.picas_conn_id, database=self.database))
            slurm = await stack.enter_async_context(SlurmAsyncHook(watched.ssh_conn_id))
            while True:
                news = await self._look(picas, slurm, watched)
                if news.outage != outage:
                    self.log.warning(
                        "%s", f"{news.outage} The wait goes on." if news.outage else "The cluster answers again."
                    )
                    outage = news.outage
                self._tell(news)
                now = time.monotonic()
                if news.jobs is not None and news.pilots_left is False and not news.locked:
                    none_left_since = none_left_since if none_left_since is not None else now
                    # A job that was just submitted may show a moment later; one that Slurm says has ended, has.
                    if now - none_left_since >= (FIRST_INTERVAL if news.jobs else GONE_AFTER):
                        self._nobody_left.set()
                else:
                    none_left_since = None
                if now - logs_at >= LOGS_INTERVAL:
                    logs_at = now
                    await self._show_logs(slurm, watched, sizes)
                seen = {name: job.state for name, job in (news.jobs or {}).items()}
                quiet = seen == states and not news.reaped and none_left_since is None
                states = seen
                interval = min(LONGEST_INTERVAL, interval * 1.5) if quiet else FIRST_INTERVAL
                await asyncio.sleep((self.pilots_interval or interval) * random.uniform(0.9, 1.0))

    async def _look(self, picas: PicasAsyncHook, slurm: SlurmAsyncHook, watched: Watched) -> News:
        try:
            return await drive_async(
                look_after(picas.pool, self.batch, watched, max_scrubs=self.max_scrubs, max_lock_age=self.max_lock_age),
                lambda step: picas.send(step) if isinstance(step, Request) else slurm.perform(step),
            )
        except errors.CouchDBError as error:
            return News(outage=str(error))

    async def _show_logs(self, slurm: SlurmAsyncHook, watched: Watched, sizes: dict[str, int]) -> None:
        try:
            for item in await slurm.do(logs.news(watched.folder, sizes)):
                sizes[item.name] = item.size
                for line in item.lines:
                    self.log.info("%s: %s", item.name, line)
        except RemoteError:
            return  # the next look at the jobs says so

    def _tell(self, news: News) -> None:
        if news.sent:
            self.log.info("%d results that pilots had left in the submission's folder were sent.", news.sent)
        for what, tokens in (("Given back", news.reaped), ("Given up, now in error", news.given_up)):
            if tokens:
                self.log.warning("%s: %s (%s).", what, sample([token for token, _ in tokens]), sample(_causes(tokens)))

    async def on_kill(self) -> None:
        """Called by Airflow 3.3 and later when the task ends by somebody's hand: pilots are stopped only if it was failed.

        It is also called when the task is cleared, marked a success, or another triggerer takes over: these leave them alone.
        """
        watched = Watched.parse(self.pilots)
        if watched is None or self.on_kill_how == How.LEAVE or await self._task_state() != "failed":
            return
        async with AsyncExitStack() as stack:
            picas = await stack.enter_async_context(PicasAsyncHook(self.picas_conn_id, database=self.database))
            slurm = await stack.enter_async_context(SlurmAsyncHook(watched.ssh_conn_id))
            await drive_async(
                stopping.stop(picas.pool, self.batch, watched, How(self.on_kill_how), wait=20),
                lambda step: picas.send(step) if isinstance(step, Request) else slurm.perform(step),
            )

    async def _task_state(self) -> str | None:
        """The state that Airflow has for the task now."""
        from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
        from asgiref.sync import sync_to_async

        ti = self.task_instance
        if ti is None:
            return None
        states: Any = await sync_to_async(RuntimeTaskInstance.get_task_states)(
            dag_id=ti.dag_id, task_ids=[ti.task_id], run_ids=[ti.run_id], map_index=ti.map_index
        )
        found = states.get(ti.run_id, {})
        name = f"{ti.task_id}_{ti.map_index}" if ti.map_index is not None and ti.map_index >= 0 else ti.task_id
        state = found.get(ti.task_id, found.get(name))
        return None if state is None else str(getattr(state, "value", state))


def _causes(tokens: list[tuple[str, str]]) -> list[str]:
    return list(dict.fromkeys(cause for _, cause in tokens))
