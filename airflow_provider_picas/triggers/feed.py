"""One feed per pool: all waits of a process on a pool share one long poll of its changes, and each gets only its own
counts.

The poll shows which batches changed, and triggers a query of the counts of those that a wait needs. A query puts load
on the database, so the next one waits for a multiple of the time that it took, and longer while no batch can be
complete soon. After an outage the feed resumes at its position and reads all counts again; it also does so from time to
time, regardless of the changes. If the database is at an earlier state than before, as after a backup was restored, the
feed follows it from there. Each wait decides how long it endures an outage; the feed tries to connect as long as it has
subscribers.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from airflow_provider_picas import metrics
from airflow_provider_picas.couchdb import changes, counting, edits, errors, indexes
from airflow_provider_picas.couchdb.changes import NO_BATCH, Changes
from airflow_provider_picas.couchdb.http import Operation
from airflow_provider_picas.hooks.picas_async import PicasAsyncHook
from airflow_provider_picas.lifecycle.backoff import Backoff
from airflow_provider_picas.metrics import PoolGauges
from airflow_provider_picas.tokens.counts import Counts
from airflow_provider_picas.triggers.subscriptions import (
    CountsSubscription,
    CountsUpdate,
    Subscription,
    Touched,
    TouchedSubscription,
)

log = logging.getLogger(__name__)
Result = TypeVar("Result")
Shape = str | Mapping[str, Any] | None
"""A profile as an author gives it; None: the connection's."""

HEARTBEAT = 20.0  # seconds between the heartbeats of a poll without changes
READ_AGAIN = 1_800.0  # seconds after which all counts are read, regardless of the changes
CHECK_AGAIN = 60.0  # seconds of a silent poll, after which the feed checks that the database is still the same
GATHER = 0.05  # seconds after a wake-up: tokens finish in bursts, and one query covers all of them
SHORTEST_PAUSE = 0.1  # seconds between two queries
LONGEST_PAUSE = 10.0  # most of a slow query is the update of the index, which is needed anyway
UPDATE_MONITOR = 60.0  # seconds between two updates of the index that PiCaS clients read, while tokens change
LOAD = 3.0  # the pause after a query is this many times as long as the query took
PATIENCE = 5.0  # seconds that a query may take before the feed checks whether an index is being built
NOTICE_INTERVAL = 60.0  # seconds between two notices of an index build, or of an earlier state
PATIENT = 1.5  # seconds: all subscribers that let updates wait for longer are people, who look on for hours
UNPOLLED = 11  # queries in a row without a poll between them, while each brings other counts
SOON = 0.5  # part of the patience: a poll that ends within it shows that changes come all the time
SHORTEST_POLL = 5.0  # seconds: a poll that lasted longer before it broke was cut by something in between
BROKEN_POLLS = 3  # consecutive polls that may break sooner, while the server answers other requests
FIRST_RECONNECT, LONGEST_RECONNECT = 1.0, 30.0  # seconds, with jitter


class Feed:
    """The changes of a pool, shared by all subscribers on this event loop. Get it from ``feed_for``; runs while it has
    subscribers."""

    def __init__(self, picas_conn_id: str, database: str | None, profile: Shape = None) -> None:
        self.picas_conn_id = picas_conn_id
        self.database = database
        self.profile = profile
        self.queries = 0  #: number of queries of the counts, for measurements
        self._gauges = PoolGauges()
        self._waits: dict[str | None, set[CountsSubscription]] = {}
        self._followers: set[TouchedSubscription] = set()
        self._touched: set[str | None] = set()  #: what to query next; None is the whole pool
        self._changed = False  #: whether the last query brought other counts
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._since: str | None = None
        self._birth: str | None = None
        self._longest_poll: float | None = None  #: seconds; None: nothing is known to cut long polls
        self._broken_polls = 0  #: consecutive ones
        self._away_since: float | None = None
        self._answers_since = time.monotonic()
        self._outage: errors.CouchDBError | None = None  #: the error that was logged
        self._noticed_index = self._noticed_older = -NOTICE_INTERVAL

    # -- subscribers --------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def subscribe(
        self, batch: str | None, *, outage: float | None = None, least_patience: float = 0.0
    ) -> AsyncIterator[CountsSubscription]:
        """The counts of a batch, or with None of the whole pool. The iterator raises CouchDBError when the pool is
        unavailable for longer than ``outage`` allows (as for ``Endurance``). ``least_patience``: seconds that may always
        pass between two updates."""
        subscription = CountsSubscription(batch, outage, least_patience)
        self._waits.setdefault(batch, set()).add(subscription)
        if self._outage:
            subscription.note_outage(self._outage)
        self._touch({batch})
        self._start()
        try:
            yield subscription
        finally:
            self._waits[batch].discard(subscription)
            if not self._waits[batch]:
                del self._waits[batch]
                self._gauges.forget(batch)
            await self._stop_if_unused()

    @asynccontextmanager
    async def follow(self) -> AsyncIterator[TouchedSubscription]:
        """All batches that change from now on. The iterator continues through outages of any length."""
        subscription = TouchedSubscription()
        self._followers.add(subscription)
        self._start()
        if self._since is not None:
            subscription.begin(self._since)
        try:
            yield subscription
        finally:
            self._followers.discard(subscription)
            await self._stop_if_unused()

    def _start(self) -> None:
        if self._task is None:
            # A separate context, so that its logs do not go to the task whose wait came first.
            self._task = asyncio.create_task(self._run(), name=f"{self}", context=contextvars.Context())

    async def _stop_if_unused(self) -> None:
        if self._waits or self._followers or self._task is None:
            return
        self._forget()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def _forget(self) -> None:
        feeds = _feeds.get(asyncio.get_running_loop(), {})
        key = feed_key(self.picas_conn_id, self.database, self.profile)
        if feeds.get(key) is self:
            del feeds[key]
        self._gauges.end()

    def _subscriptions(self) -> Iterable[Subscription[CountsUpdate] | Subscription[Touched]]:
        for waits in list(self._waits.values()):
            yield from waits
        yield from list(self._followers)

    def _notify(self, text: str) -> None:
        log.info("%s: %s", self, text)
        for subscription in list(self._subscriptions()):
            subscription.notify(text)

    def __str__(self) -> str:
        return f"feed of {self.database or 'the database'} ({self.picas_conn_id})"

    # -- outages ------------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            backoff = Backoff(FIRST_RECONNECT, LONGEST_RECONNECT, jitter=(0.5, 1.0))
            while True:
                begin = time.monotonic()
                try:
                    async with PicasAsyncHook(self.picas_conn_id, database=self.database, profile=self.profile) as hook:
                        await self._follow_pool(hook)
                except errors.CouchDBError as error:
                    self._note_outage(error)
                if time.monotonic() - begin > LONGEST_RECONNECT:
                    backoff.reset()
                await asyncio.sleep(backoff.pause())
        except Exception as error:
            # Nothing awaits this task, so pass the error to the subscribers; later ones get a new feed.
            log.warning("%s ends: %s", self, error)
            self._forget()
            for subscription in self._subscriptions():
                subscription.fail(error)

    def _note_outage(self, error: errors.CouchDBError) -> None:
        """Log it once, and again when "no answer" becomes a refusal or vice versa. Waits that have endured long enough
        fail."""
        self._longest_poll, self._broken_polls = None, 0
        if self._away_since is None:
            self._away_since = time.monotonic()
        if self._outage is None or errors.is_refusal(error) != errors.is_refusal(self._outage):
            self._outage = error
            log.info("%s: %s", self, error)
        for subscription in list(self._subscriptions()):
            subscription.note_outage(error)

    @property
    def contact(self) -> float:
        """Seconds since which the database has answered without a break, as far as is known."""
        return 0.0 if self._away_since is not None else time.monotonic() - self._answers_since

    @property
    def trouble(self) -> str | None:
        """Why the database does not answer or refuses requests; None while it works."""
        return None if self._outage is None else str(self._outage)

    def _note_answer(self) -> None:
        if self._away_since is not None:
            self._away_since = self._outage = None
            self._answers_since = time.monotonic()
            for subscription in list(self._subscriptions()):
                subscription.endurance.answered()
            self._notify("The database is reachable again.")

    async def _follow_pool(self, hook: PicasAsyncHook) -> None:
        """Poll and query until one of them fails."""
        self._gauges.database = hook.settings.database
        await self._check_pool(hook)
        if self._since is None:
            self._since = await hook.do(hook.pool.sequence())
        self._begin()
        if not self._waits:
            self._note_answer()  # followers query nothing until something changes
        tasks = {asyncio.create_task(self._listen(hook)), asyncio.create_task(self._keep_querying(hook))}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            done.pop().result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _check_pool(self, hook: PicasAsyncHook) -> bool:
        """Start afresh if the database was deleted and created again, or restored from a backup: its old position is
        then meaningless. True if this was the case."""
        since = self._since
        standing = await hook.do(changes.feed_position(hook.pool))
        if self._birth is not None and standing.birth != self._birth:
            self._notify("The database was deleted and created again. All tokens are counted again.")
        elif since is not None and changes.is_older(standing.sequence, since):
            self._notice_older()
        else:
            self._birth = standing.birth
            return False
        self._birth = standing.birth
        self._since = await hook.do(hook.pool.sequence())
        self._begin()
        return True

    def _notice_older(self) -> None:
        """Log an earlier state, but not every time: in a cluster, nodes that lag behind are also at an earlier state."""
        if time.monotonic() - self._noticed_older >= NOTICE_INTERVAL:
            self._noticed_older = time.monotonic()
            self._notify(
                "The database has returned to an earlier state, as after restoring a backup. All tokens are counted again."
            )

    def _begin(self) -> None:
        """Have everything queried again, since changes may have been missed."""
        for follower in self._followers:
            follower.begin(self._since or "")
        self._touch(self._waits)

    # -- listening ----------------------------------------------------------------------------------------------------

    async def _listen(self, hook: PicasAsyncHook) -> None:
        while True:
            begin = time.monotonic()
            changed = await self._poll(hook)
            lasted = time.monotonic() - begin
            if changed is None:
                await asyncio.sleep(SHORTEST_PAUSE)
                continue
            self._since = changed.since
            if changed.design:
                self._touch(self._waits)
            if batches := await self._changed_batches(hook, changed):
                self._touch({*batches, None})
            if changed.more and self._patience() > PATIENT:
                # The rest of the changes is not needed: all counts are read again.
                self._since = await hook.do(hook.pool.sequence())
                self._touch(self._waits)
            elif changed.more:
                continue
            await self._rest(lasted)

    async def _rest(self, lasted: float) -> None:
        """Wait until the next poll. ``lasted``: seconds of the one before. If it ended soon, patient subscribers need
        no further polls: their counts are queried anyway, until they do not change any more."""
        patience = self._patience()
        await asyncio.sleep(max(GATHER, patience))
        for _ in range(UNPOLLED if lasted < SOON * patience else 0):
            patience = self._patience()
            if patience <= PATIENT or not self._changed:
                return
            self._touch(self._waits)
            await asyncio.sleep(patience)

    async def _changed_batches(self, hook: PicasAsyncHook, changed: Changes) -> set[str]:
        """The batches that may have changed: all of them, where ids do not name the batch."""
        if hook.settings.profile.batch_field is None or not changed.batches:
            return changed.batches
        every = await hook.do(edits.batches(hook.pool)) if self._followers else {}
        return {NO_BATCH, *every, *(batch for batch in self._waits if batch is not None)}

    async def _poll(self, hook: PicasAsyncHook) -> Changes | None:
        """The next changes; None if the poll ended without any, as when the pool is deleted. No change is lost."""
        since = self._since or "now"
        begin = time.monotonic()
        if self._longest_poll is None:
            operation = changes.changes(hook.pool, since, heartbeat=HEARTBEAT)
        else:
            operation = changes.changes(hook.pool, since, timeout=self._longest_poll)
        poll = asyncio.create_task(hook.do(operation))
        try:
            while not (await asyncio.wait({poll}, timeout=CHECK_AGAIN))[0]:
                if await self._check_pool(hook):
                    return None  # this poll receives nothing any more
            return await self._read(hook, poll, time.monotonic() - begin)
        finally:
            poll.cancel()
            await asyncio.gather(poll, return_exceptions=True)

    async def _read(self, hook: PicasAsyncHook, poll: asyncio.Task[Changes], lasted: float) -> Changes | None:
        """The changes from a poll that ended after ``lasted`` seconds."""
        try:
            changed = poll.result()
        except errors.UnavailableError:
            await self._check_pool(hook)  # raises if the server or the pool is gone
            if lasted >= SHORTEST_POLL:
                # A proxy cuts long responses, or holds the heartbeats back: ask for responses that end in time.
                self._longest_poll = max(SHORTEST_POLL, 0.8 * lasted)
            elif self._broken_polls >= BROKEN_POLLS:
                raise
            self._broken_polls += 1
            return None
        self._broken_polls = 0
        if not changed.ids:
            await self._check_pool(hook)
            return None
        return changed

    def _touch(self, batches: Iterable[str | None]) -> None:
        """Have the batches queried that have subscribers."""
        wanted = {batch for batch in batches if batch in self._waits or (self._followers and batch is not None)}
        if wanted:
            self._touched |= wanted
            self._wake.set()

    # -- queries ------------------------------------------------------------------------------------------------------

    async def _keep_querying(self, hook: PicasAsyncHook) -> None:
        again, monitor = _next_reading(), time.monotonic() + UPDATE_MONITOR
        while True:
            if not await self._woken(again):
                self._touch(self._waits)
                again = _next_reading()
            await asyncio.sleep(GATHER)
            self._wake.clear()
            begin = time.monotonic()
            await self._query(hook)
            self._note_answer()
            self._gauges.send()
            took = time.monotonic() - begin
            if time.monotonic() >= monitor:
                await hook.do(indexes.update_monitor(hook.pool))
                monitor = time.monotonic() + UPDATE_MONITOR
            await asyncio.sleep(min(LONGEST_PAUSE, max(SHORTEST_PAUSE, LOAD * took, self._patience())))

    def _patience(self) -> float:
        """Seconds that the next query may wait: the shortest patience of the subscribers."""
        if self._followers:
            return 0.0
        return min((wait.patience for waits in self._waits.values() for wait in waits), default=0.0)

    async def _woken(self, until: float) -> bool:
        """Wait until there is something to query; False if it is time to query everything. Keeps the gauges current
        meanwhile."""
        while (left := until - time.monotonic()) > 0:
            try:
                # Not with wait_for, which may lose a cancellation in Python 3.11.
                async with asyncio.timeout(min(left, metrics.INTERVAL)):
                    await self._wake.wait()
            except TimeoutError:
                self._gauges.send()
            else:
                return True
        return False

    async def _query(self, hook: PicasAsyncHook) -> None:
        """Query the counts of changed batches, and pass them to the subscribers."""
        position, asked_at = self._since or "", time.monotonic()
        touched, self._touched = self._touched, set()
        batches = sorted(batch for batch in touched if batch is not None)
        found: dict[str, Counts] = {}
        whole: Counts | None = None
        try:
            self.queries += 1
            if batches:
                found = await self._ask(hook, lambda: changes.counts_of(hook.pool, batches))
            if self._followers and NO_BATCH not in found and not all(counts.total for counts in found.values()):
                # Ids of tokens without a batch may have the form of a batch's.
                found |= await self._ask(hook, lambda: changes.counts_of(hook.pool, [NO_BATCH]))
            if None in touched:
                whole = await self._ask(hook, lambda: counting.count(hook.pool))
        except BaseException:
            self._touched |= touched
            self._wake.set()
            raise
        self._distribute(position, found, whole, asked_at)

    def _distribute(self, position: str, found: Mapping[str, Counts], whole: Counts | None, asked_at: float) -> None:
        counted: dict[str | None, Counts] = dict(found.items())
        if whole is not None:
            counted[None] = whole
        self._changed = False
        for batch, counts in counted.items():
            if batch in self._waits:
                self._gauges.note(batch, counts)
            for wait in self._waits.get(batch, ()):
                self._changed |= wait.put(counts)
        if found:
            for follower in self._followers:
                follower.put(position, found, asked_at)

    async def _ask(self, hook: PicasAsyncHook, operation: Callable[[], Operation[Result]]) -> Result:
        """The result of an operation. Waits as long as an index is being built."""
        while True:
            task = asyncio.create_task(hook.do(operation()))
            try:
                while not (await asyncio.wait({task}, timeout=PATIENCE))[0]:
                    await self._note_index(hook)
                return task.result()
            except errors.UnavailableError:
                if not await self._note_index(hook):
                    raise
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _note_index(self, hook: PicasAsyncHook) -> bool:
        """Log that an index is being built, if one is, and its progress."""
        building = await hook.do(indexes.progress(hook.pool))
        if building is not None and time.monotonic() - self._noticed_index >= NOTICE_INTERVAL:
            self._noticed_index = time.monotonic()
            self._notify(f"CouchDB is building the index of {building}. Counts follow when it is done.")
        return building is not None


_feeds: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, ...], Feed]] = WeakKeyDictionary()


def feed_for(picas_conn_id: str, database: str | None = None, profile: Shape = None) -> Feed:
    """The feed of a pool on the running event loop. All callers get the same one while it has subscribers."""
    feeds = _feeds.setdefault(asyncio.get_running_loop(), {})
    key = feed_key(picas_conn_id, database, profile)
    if key not in feeds:
        feeds[key] = Feed(picas_conn_id, database, profile)
    return feeds[key]


def feed_key(picas_conn_id: str, database: str | None, profile: Shape) -> tuple[str, ...]:
    """The same for all who can share a feed."""
    return picas_conn_id, json.dumps(database), json.dumps(profile, sort_keys=True)


def open_feeds() -> int:
    """The number of feeds on the running event loop."""
    return len(_feeds.get(asyncio.get_running_loop(), {}))


def _next_reading() -> float:
    """The time when all counts are read again, randomized so that pools do not coincide."""
    return time.monotonic() + READ_AGAIN * random.uniform(0.8, 1.0)
