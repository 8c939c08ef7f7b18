"""Trigger that turns changes in a pool into events that start DAGs, for ``AssetWatcher``."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Hashable, Mapping
from contextlib import aclosing
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any

from airflow.providers.common.compat.sdk import AirflowNotFoundException
from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from airflow_provider_picas.couchdb import changes, edits, errors
from airflow_provider_picas.couchdb.changes import NO_BATCH
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.hooks.picas_async import PicasAsyncHook
from airflow_provider_picas.tokens.counts import Completeness, Counts
from airflow_provider_picas.triggers.feed import feed_for, feed_key
from airflow_provider_picas.triggers.subscriptions import Touched

SAVE_AFTER = 10.0  # seconds for an event to reach Airflow's database before the position behind it is saved
REMEMBERED = 1_000  # batches whose last events are kept over a restart
TRY_AGAIN = 60.0  # seconds until an unavailable pool is tried again: a watcher never gives up


class TokenEvent(StrEnum):
    """The kinds of events."""

    COMPLETE = "complete"  #: all tokens of a batch have finished
    ERROR = "error"  #: a batch has more tokens in error than before
    TODO = "todo"  #: a batch has more waiting tokens than before: new ones, or released ones

    def level(self, counts: Counts) -> int:
        """A number that grows when the event happens, and is 0 if it has not."""
        if self is TokenEvent.COMPLETE:
            return counts.total if counts.total and Completeness(counts).complete else 0
        return counts.error if self is TokenEvent.ERROR else counts.todo


class PicasTokenEventTrigger(BaseEventTrigger):
    """Fires when a batch is complete, when more tokens are in error, or when todo tokens appear.

    :param event: ``complete``, ``error`` or ``todo``.
    :param batch: name of a batch, or a pattern with ``*``. Default: any batch of the pool, and the tokens without one.
    :param picas_conn_id: a connection of type ``picas``.
    :param database: another database than the connection's.
    :param profile: the shape of the pool, if it is not the connection's: the name of a profile, or an object.

    The event's payload is ``{"event", "database", "batch", "counts"}``; in the asset event it is ``extra["payload"]``.
    ``batch`` is None for the tokens without one. An event describes the current state: a change that was undone between
    two queries is not reported.

    On Airflow 3.3 and later it resumes after a restart: it reports what happened in the meantime, and almost nothing
    twice. Before 3.3, and when it starts for the first time, it first reports the current state, as if it had just
    happened.
    """

    def __init__(
        self,
        *,
        event: str = TokenEvent.COMPLETE,
        batch: str | None = None,
        picas_conn_id: str = PicasHook.default_conn_name,
        database: str | None = None,
        profile: str | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if event not in list(TokenEvent):
            raise ValueError(f"`event` must be one of {', '.join(TokenEvent)}, not {event!r:.80}.")
        self.event = TokenEvent(event)
        self.batch = batch
        self.picas_conn_id = picas_conn_id
        self.database = database
        self.profile = profile

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class's path and its arguments."""
        arguments: dict[str, Any] = {
            "event": str(self.event), "batch": self.batch, "picas_conn_id": self.picas_conn_id, "database": self.database,
        }  # fmt: skip
        arguments |= {"profile": self.profile} if self.profile else {}  # without one, as before: Airflow keeps triggers
        return f"{type(self).__module__}.{type(self).__qualname__}", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Used before Airflow 3.3, which introduced shared streams. The pool's feed is shared anyway."""
        _, arguments = self.serialize()
        # Close it here: the event loop would close an abandoned generator at some later time.
        async with (
            aclosing(self.open_shared_stream(arguments)) as stream,
            aclosing(self.filter_shared_stream(stream)) as events,
        ):
            async for event in events:
                yield event

    def shared_stream_key(self) -> Hashable | None:
        """All watchers of a pool share its stream."""
        return (type(self).__module__, *feed_key(self.picas_conn_id, self.database, self.profile))

    @classmethod
    async def open_shared_stream(cls, kwargs: dict[str, Any]) -> AsyncGenerator[Touched, None]:
        """Yield changes in the pool, without end. Continues through outages of any length."""
        while True:
            try:
                async with feed_for(
                    kwargs["picas_conn_id"], kwargs["database"], kwargs.get("profile")
                ).follow() as updates:
                    async for touched in updates:
                        yield touched
            except (errors.CouchDBError, AirflowNotFoundException):
                await asyncio.sleep(TRY_AGAIN * random.uniform(0.5, 1.0))  # the feed has logged the reason

    async def filter_shared_stream(self, shared_stream: AsyncIterator[Touched]) -> AsyncGenerator[TriggerEvent, None]:
        """This trigger's events: first those since its last position, then new ones as they happen."""
        memory = await self._recall()
        for payload in await self._catch_up(memory):
            yield TriggerEvent(payload)  # type: ignore[no-untyped-call]
        stream = aiter(shared_stream)
        coming = asyncio.ensure_future(anext(stream))
        unsaved = True
        try:
            while True:
                await asyncio.wait({coming}, timeout=SAVE_AFTER if unsaved else None)
                if not coming.done():
                    await self._keep(memory)
                    unsaved = False
                    continue
                for payload in await self._take(memory, coming.result()):
                    yield TriggerEvent(payload)  # type: ignore[no-untyped-call]
                unsaved = True
                coming = asyncio.ensure_future(anext(stream))
        finally:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)

    async def _take(self, memory: _Memory, touched: Touched) -> list[dict[str, Any]]:
        for notice in touched.notices:
            self.log.warning("%s", notice)
        missed = await self._catch_up(memory) if touched.begins else []
        # Changes that Airflow buffered during the catch-up may be older than the known state.
        fresh = {b: counts for b, counts in touched.counts.items() if touched.asked_at[b] >= memory.counted_at}
        return missed + (memory.note(self, touched.position, fresh) if fresh else [])

    def wanted(self, batch: str) -> bool:
        """True if events of this batch are wanted."""
        return self.batch is None or fnmatchcase(batch, self.batch)

    # -- what happened before ------------------------------------------------------------------------------------------

    async def _catch_up(self, memory: _Memory) -> list[dict[str, Any]]:
        """The payloads of the events since ``memory``, or, if it is empty, of the current state."""
        said = False
        while True:
            try:
                async with PicasAsyncHook(self.picas_conn_id, database=self.database, profile=self.profile) as hook:
                    memory.database = hook.settings.database
                    begin = time.monotonic()
                    payloads = memory.note(self, *await self._ask(hook, memory))
                    memory.counted_at = begin
                    return payloads
            except (errors.CouchDBError, AirflowNotFoundException) as error:
                if not said:
                    self.log.warning("%s The watcher continues.", error)
                said = True
                await asyncio.sleep(TRY_AGAIN * random.uniform(0.5, 1.0))

    async def _ask(self, hook: PicasAsyncHook, memory: _Memory) -> tuple[str, Mapping[str, Counts]]:
        """The feed's position, and the counts of the batches that changed since ``memory``, or of all."""
        standing = await hook.do(changes.feed_position(hook.pool))
        same = memory.birth == standing.birth
        if memory.position and same and not changes.is_older(standing.sequence, memory.position):
            if hook.settings.profile.batch_field is not None:  # ids do not name the batch
                return await hook.do(hook.pool.sequence()), await self._count_all(hook)
            position, batches = await self._touched_since(hook, memory.position)
            return position, await hook.do(changes.counts_of(hook.pool, batches)) if batches else {}
        position = await hook.do(hook.pool.sequence())
        found = await self._count_all(hook)
        # After a backup was restored, events that were reported before and still hold are not reported again.
        memory.levels = {batch: level for batch, level in memory.levels.items() if same and batch in found}
        memory.birth = standing.birth
        return position, found

    async def _count_all(self, hook: PicasAsyncHook) -> Mapping[str, Counts]:
        """The counts of all batches that may be reported."""
        if self.batch is not None and "*" not in self.batch:
            return await hook.do(changes.counts_of(hook.pool, [self.batch]))
        try:
            found = await hook.do(edits.batches(hook.pool))
        except errors.NotFoundError:  # PiCaS's own views only: the pool as a whole
            return {NO_BATCH: await hook.count()}
        return found | await hook.do(changes.counts_of(hook.pool, [NO_BATCH]))

    async def _touched_since(self, hook: PicasAsyncHook, position: str) -> tuple[str, list[str]]:
        batches: set[str] = set()
        while True:
            found = await hook.do(changes.changes(hook.pool, position))
            position = found.since
            batches |= found.batches
            if not found.more:
                break
        # Ids of tokens without a batch may have the form of a batch's.
        return position, sorted(batches | {NO_BATCH}) if batches else []

    # -- what is saved --------------------------------------------------------------------------------------------------

    @property
    def _key(self) -> str:
        return f"picas:{self.event}:{self.batch or '*'}"

    async def _recall(self) -> _Memory:
        """The memory that an earlier triggerer has saved; empty before Airflow 3.3."""
        store = getattr(self, "asset_state_store", None)
        try:
            return _Memory(await store.aget(self._key) if store is not None else None)
        except ValueError as error:  # several assets share this trigger
            self.log.warning("After a restart the current state is reported first: %s", error)
            return _Memory(None)

    async def _keep(self, memory: _Memory) -> None:
        store = getattr(self, "asset_state_store", None)
        if store is not None and memory.position:
            try:
                await store.aset(self._key, memory.as_dict())
            except ValueError:
                return  # already logged


class _Memory:
    """What was already reported: the last nonzero level of each batch, the newest last, and the feed's position."""

    def __init__(self, kept: Any) -> None:
        fields = kept if isinstance(kept, Mapping) else {}
        self.position = str(fields.get("position", ""))
        self.birth = str(fields.get("birth", ""))
        self.levels: dict[str, int] = dict(fields.get("levels", {}))
        self.database = ""
        self.counted_at = 0.0  #: when everything was counted, by the monotonic clock

    def as_dict(self) -> dict[str, Any]:
        levels = dict(list(self.levels.items())[-REMEMBERED:])
        return {"position": self.position, "birth": self.birth, "levels": levels}

    def note(self, trigger: PicasTokenEventTrigger, position: str, found: Mapping[str, Counts]) -> list[dict[str, Any]]:
        """Remember counts. Returns the payloads of the resulting events."""
        self.position = position
        payloads = []
        for batch, counts in sorted(found.items()):
            if not trigger.wanted(batch):
                continue
            level, before = trigger.event.level(counts), self.levels.pop(batch, 0)
            if level:
                self.levels[batch] = level
            if level > before:
                payloads.append(
                    {
                        "event": str(trigger.event),
                        "database": self.database,
                        "batch": batch or None,
                        "counts": counts.as_dict(),
                    }
                )
        return payloads
