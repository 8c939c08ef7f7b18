"""What everybody who watches a pool shares: one connection, one feed, and each reading once.

The API server has one ``PoolReader`` for each pool that somebody looks at, however many look. A reading is kept for some
seconds, and whoever asks for it meanwhile gets the same one. Nothing is read while nobody looks.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from airflow.providers.common.compat.connection import get_async_connection
from airflow.providers.common.compat.sdk import AirflowNotFoundException

from airflow_provider_picas.couchdb import errors
from airflow_provider_picas.couchdb.http import Operation
from airflow_provider_picas.hooks.connection import no_connection
from airflow_provider_picas.hooks.picas_async import PicasAsyncHook
from airflow_provider_picas.lifecycle.profile import Profile
from airflow_provider_picas.tokens.counts import Counts
from airflow_provider_picas.tokens.progress_line import Rate
from airflow_provider_picas.triggers.feed import feed_for

IDLE = 30.0  # seconds after the last look, after which nothing is read any more
OFTEN, SELDOM = 2.0, 10.0  # seconds between two updates of the counts: at first, and when they change all the time
SLOWER = 1.5  # times as long between two updates as before
POOL_SLOWER = 2.0  # times as long for a whole pool, whose counts take two requests
LOOK = 5.0  # seconds between two looks at whether the counts still hold
SAMPLES = 200  # of the counts that are kept
MOST_READINGS = 500  # kept for a pool

Result = TypeVar("Result")


@dataclass
class IndexState:
    """How far the index of the page's views is, as far as is known."""

    read_at: float = -math.inf  #: when the views were last read, by the monotonic clock
    missing: errors.NotFoundError | None = None  #: the error of a pool without the views
    missing_until: float = -math.inf  #: by the monotonic clock; then the pool is asked again
    _behind: int = 0
    _most: int = 0

    def note(self, behind: int) -> None:
        """Record how many changes it lacks; 0: too few to matter. In a cluster, any of its copies may have answered."""
        self._behind = min(behind, self._behind or behind)
        self._most = max(behind, self._most) if behind else 0

    @property
    def percent(self) -> int | None:
        """The part of the changes that were missing at first and have been added; None if unknown."""
        return 100 - 100 * self._behind // self._most if self._most else None


class Pace:
    """The seconds until the next update of counts: more the longer they change without a rest. What happens after a
    rest is shown soon, and a batch that changes for hours costs the database little."""

    def __init__(self, slower: float = 1.0) -> None:
        self._often, self._seldom = slower * OFTEN, slower * SELDOM
        self._changed_at = -math.inf
        self.seconds = self._often

    def note_change(self, now: float) -> None:
        """Record that the counts changed at ``now``, by any clock."""
        rested = now - self._changed_at > 2 * self._seldom
        self.seconds = self._often if rested else min(self._seldom, SLOWER * self.seconds)
        self._changed_at = now


@dataclass
class _Reading:
    """A reading, or one that is under way."""

    task: asyncio.Task[Any]
    until: float = math.inf


class Readings:
    """Shares the results of functions: each runs once at a time, and its result is kept for some seconds."""

    def __init__(self) -> None:
        self._kept: dict[Any, _Reading] = {}

    async def get(self, key: Any, seconds: float, read: Callable[[], Awaitable[Result]]) -> Result:
        """The result of ``read``, or the one that another caller got at most ``seconds`` ago. Errors are not kept."""
        kept = self._kept.get(key)
        if kept is None or kept.until <= time.monotonic():
            self._forget_old()
            kept = self._kept[key] = _Reading(asyncio.create_task(_await(read)))
            kept.task.add_done_callback(partial(self._done, key, kept, seconds))
        result: Result = await asyncio.shield(kept.task)
        return result

    def _done(self, key: Any, reading: _Reading, seconds: float, _: asyncio.Task[Any]) -> None:
        reading.until = time.monotonic() + seconds
        failed = reading.task.cancelled() or reading.task.exception() is not None
        if failed and self._kept.get(key) is reading:
            del self._kept[key]

    def drop(self, *begins: Any) -> None:
        """Forget the readings whose keys begin with these parts, for example after a change."""
        for key in [key for key in self._kept if key[: len(begins)] == begins]:
            del self._kept[key]

    def _forget_old(self) -> None:
        now = time.monotonic()
        for key in [key for key, reading in self._kept.items() if reading.until <= now]:
            del self._kept[key]
        while len(self._kept) >= MOST_READINGS:
            del self._kept[next(iter(self._kept))]


async def _await(read: Callable[[], Awaitable[Result]]) -> Result:
    return await read()


class PoolReader:
    """A pool that somebody looks at. Get it from ``reader_for``."""

    def __init__(self, conn_id: str, database: str | None) -> None:
        self.conn_id = conn_id
        self.database = database
        self.readings = Readings()
        self.index = IndexState()
        self.recent: list[str] = []  #: the batches that changed last and are on the first page of their list
        self._hook: PicasAsyncHook | None = None
        self._opening = asyncio.Lock()
        self._used = time.monotonic()
        self._users = 0
        self._batches: dict[str | None, BatchWatch] = {}
        self._closing: asyncio.Task[None] | None = None

    async def hook(self) -> PicasAsyncHook:
        """The hook of the pool. Raises CouchDBError, also if the connection is of another type."""
        self._used = time.monotonic()
        async with self._opening:
            if self._hook is None:
                await self._check_type()
                self._hook = await PicasAsyncHook(self.conn_id, database=self.database).__aenter__()
                self._closing = asyncio.create_task(self._close_when_idle(), name=f"page of {self.conn_id}")
        return self._hook

    async def profile(self) -> Profile:
        """The shape of the pool."""
        return (await self.hook()).settings.profile

    @asynccontextmanager
    async def using(self) -> AsyncIterator[PicasAsyncHook]:
        """The hook of the pool, which stays open meanwhile."""
        self._users += 1
        try:
            yield await self.hook()
        finally:
            self._users -= 1
            self._used = time.monotonic()

    async def _check_type(self) -> None:
        try:
            connection = await get_async_connection(self.conn_id)
        except AirflowNotFoundException:
            raise no_connection(self.conn_id) from None
        if connection.conn_type != "picas":
            raise errors.SettingsError(
                f"Connection {self.conn_id!r:.200} is not of type 'picas', so the page does not use it."
            )

    async def _close_when_idle(self) -> None:
        while self._users or self._used + 2 * IDLE > time.monotonic():
            await asyncio.sleep(IDLE)
        hook, self._hook = self._hook, None
        if hook is not None:
            await hook.__aexit__()

    async def do(self, operation: Callable[[PicasAsyncHook], Operation[Result]]) -> Result:
        """Run an operation on the pool."""
        async with self.using() as hook:
            return await hook.do(operation(hook))

    async def shared(
        self, key: tuple[Any, ...], seconds: float, operation: Callable[[PicasAsyncHook], Operation[Result]]
    ) -> Result:
        """The result of an operation, or the one that another caller got at most ``seconds`` ago."""
        self._used = time.monotonic()
        return await self.readings.get(key, seconds, lambda: self.do(operation))

    def counts_of(self, batch: str | None) -> Counts | None:
        """The counts of a batch that is followed; None if they are not known."""
        watch = self._batches.get(batch)
        return None if watch is None or watch.over else watch.counts

    async def batch(self, batch: str | None) -> BatchWatch:
        """The counts of a batch, followed from now on."""
        hook = await self.hook()
        watch = self._batches.get(batch)
        if watch is None or watch.over:
            watch = self._batches[batch] = BatchWatch(self.conn_id, hook.settings.database, batch)
            self._batches = {name: each for name, each in self._batches.items() if not each.over}
        await watch.begin(hook)
        return watch


class BatchWatch:
    """The counts of a batch as they change, and the rate at which its tokens finish."""

    def __init__(self, conn_id: str, database: str, batch: str | None) -> None:
        self.batch = batch
        self.counts: Counts | None = None
        self.at = 0.0  #: when the counts were read, or known to hold
        self.rate = Rate()
        self.version = 0  #: grows with each change of the counts
        self.samples: deque[tuple[float, Counts]] = deque(maxlen=SAMPLES)  #: the counts, when they changed
        self.history: Any = None  #: the overview's: the history that it read last
        self._pace = Pace(POOL_SLOWER if batch is None else 1.0)
        self._feed = feed_for(conn_id, database)
        self._first = asyncio.Lock()
        self._watchers = 0
        self._used = time.monotonic()
        self._task: asyncio.Task[None] | None = None

    @property
    def over(self) -> bool:
        """True if it does not follow the batch any more."""
        return self._task is not None and self._task.done()

    @property
    def trouble(self) -> str | None:
        """Why the counts may be old."""
        return self._feed.trouble

    async def begin(self, hook: PicasAsyncHook) -> None:
        """Read the first counts, and follow the batch from there on."""
        self._used = time.monotonic()
        async with self._first:
            if self.counts is None:
                self._note(await hook.count(self.batch))
            if self._task is None:
                self._task = asyncio.create_task(self._follow(), name=f"page of {self.batch}")

    async def _follow(self) -> None:
        async with self._feed.subscribe(self.batch, outage=math.inf, least_patience=self._pace.seconds) as news:
            while self._watchers or time.monotonic() - self._used < IDLE:
                try:
                    async with asyncio.timeout(LOOK):
                        counts = (await anext(news)).counts
                except TimeoutError:
                    counts = None
                if isinstance(counts, Counts):
                    self._note(counts)
                    news.least_patience = self._pace.seconds
                elif self.trouble is None and self.counts is not None:
                    self._note(self.counts)

    def _note(self, counts: Counts) -> None:
        self.rate.note(counts, time.monotonic())
        self.at = time.time()
        if counts != self.counts:
            if self.counts is not None:
                self._pace.note_change(time.monotonic())
            self.counts = counts
            self.samples.append((self.at, counts))
            self.version += 1

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Somebody watches meanwhile."""
        self._watchers += 1
        try:
            yield
        finally:
            self._watchers -= 1
            self._used = time.monotonic()


_readers: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, str | None], PoolReader]] = WeakKeyDictionary()
_MOST_READERS = 1_000


def reader_for(conn_id: str, database: str | None) -> PoolReader:
    """The reader of a pool on the running event loop."""
    readers = _readers.setdefault(asyncio.get_running_loop(), {})
    key = (conn_id, database)
    if key not in readers:
        while len(readers) >= _MOST_READERS:
            del readers[next(iter(readers))]
        readers[key] = PoolReader(conn_id, database)
    return readers[key]
