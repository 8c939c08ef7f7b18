"""The trigger that starts DAGs, against a real pool: which events it fires, also after a restart."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.tokens import documents
from airflow_provider_picas.triggers import events, feed, subscriptions
from airflow_provider_picas.triggers.events import PicasTokenEventTrigger
from stack.couchdb import CouchDBAdmin
from stack.pool import Pool
from tests.integration.lives import push

SOON = 40.0  # seconds: after a slow look the feed pauses three times as long


class Store:
    """What Airflow 3.3 keeps for a watched asset."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    async def aget(self, key: str) -> Any:
        return self.values.get(key)

    async def aset(self, key: str, value: Any) -> None:
        self.values[key] = value


@pytest.fixture
def hook(picas_default: str, monkeypatch: pytest.MonkeyPatch) -> PicasHook:
    monkeypatch.setattr(events, "SAVE_AFTER", 0.5)
    hook = PicasHook(picas_default)
    hook.deploy_views()
    return hook


def finish(hook: PicasHook, batch: str, exit_code: int = 0) -> None:
    """Finish one token of a batch."""
    now = int(time.time())
    token = next(iter(hook.tokens("todo", batch)))
    hook.do(hook.pool.write([documents.encode({**token, "lock": now, "done": now, "exit_code": exit_code})]))


class Watcher:
    """A running trigger."""

    def __init__(self, trigger: PicasTokenEventTrigger) -> None:
        self._events = trigger.run()
        self._coming: asyncio.Future[Any] | None = None

    async def next(self, seconds: float = SOON) -> dict[str, Any]:
        """The payload of the next event."""
        self._coming = self._coming or asyncio.ensure_future(anext(self._events))
        done, _ = await asyncio.wait({self._coming}, timeout=seconds)
        if not done:
            raise TimeoutError
        payload: dict[str, Any] = self._coming.result().payload
        self._coming = None
        return payload

    async def none(self, seconds: float = 1.5) -> None:
        """There is no event."""
        with pytest.raises(TimeoutError):
            await self.next(seconds)

    async def stop(self) -> None:
        if self._coming:
            self._coming.cancel()
            await asyncio.gather(self._coming, return_exceptions=True)
        await self._events.aclose()


@asynccontextmanager
async def watching(event: str, batch: str | None = None, store: Store | None = None) -> AsyncIterator[Watcher]:
    """A trigger as the triggerer makes it from what is stored."""
    path, arguments = PicasTokenEventTrigger(event=event, batch=batch).serialize()
    assert path == "airflow_provider_picas.triggers.events.PicasTokenEventTrigger"
    trigger = PicasTokenEventTrigger(**arguments)
    trigger.asset_state_store = store  # type: ignore[assignment]
    watcher = Watcher(trigger)
    try:
        yield watcher
    finally:
        await watcher.stop()
        assert feed.open_feeds() == 0


def test_a_complete_batch_is_an_event(hook: PicasHook, pool: Pool) -> None:
    push(hook, "a", 2)
    push(hook, "b", 1)

    async def watch() -> None:
        async with watching("complete") as watcher:
            await watcher.none()
            finish(hook, "a")
            await watcher.none()
            finish(hook, "a", exit_code=1)
            counts = {"todo": 0, "locked": 0, "done": 1, "error": 1}
            assert await watcher.next() == {
                "event": "complete",
                "database": pool.database,
                "batch": "a",
                "counts": counts,
            }
            finish(hook, "b")
            assert (await watcher.next())["batch"] == "b"
            push(hook, "a", 1, start=2)
            await watcher.none()
            finish(hook, "a")
            assert (await watcher.next())["counts"]["done"] == 2  # complete once more

    asyncio.run(watch())


def test_new_errors_are_events(hook: PicasHook) -> None:
    push(hook, "a", 3)

    async def watch() -> None:
        async with watching("error") as watcher:
            await watcher.none()
            finish(hook, "a", exit_code=1)
            assert (await watcher.next())["counts"]["error"] == 1
            finish(hook, "a")
            await watcher.none()
            finish(hook, "a", exit_code=2)
            assert (await watcher.next())["counts"]["error"] == 2

    asyncio.run(watch())


def test_tokens_to_do_with_and_without_a_batch(hook: PicasHook) -> None:
    async def watch() -> None:
        async with watching("todo") as watcher:
            await watcher.none()
            push(hook, "a", 2)
            assert (await watcher.next())["counts"]["todo"] == 2
            finish(hook, "a")
            await watcher.none()
            for name in ("token_1", "foreign:2"):  # as the PiCaS client writes them
                token = {"_id": name, "type": "token", "lock": 0, "done": 0, "exit_code": "", "scrub_count": 0}
                hook.do(hook.pool.put(token))
                event = await watcher.next()
                assert event["batch"] is None
            assert event["counts"]["todo"] == 2

    asyncio.run(watch())


def test_only_watched_batches_are_events(hook: PicasHook) -> None:
    async def watch() -> None:
        async with watching("todo", "night-*") as watcher:
            push(hook, "day-1", 1)
            await watcher.none()
            push(hook, "night-1", 1)
            assert (await watcher.next())["batch"] == "night-1"

    asyncio.run(watch())


def test_without_a_store_the_present_state_comes_first(hook: PicasHook) -> None:
    push(hook, "a", 1)
    push(hook, "b", 1)
    finish(hook, "b")

    async def watch() -> None:
        for _ in range(2):
            async with watching("complete") as watcher:
                assert (await watcher.next())["batch"] == "b"
                await watcher.none(1)

    asyncio.run(watch())


def test_what_airflow_kept_while_it_caught_up_is_not_reported_again(hook: PicasHook) -> None:
    """Airflow 3.3 reads the stream for all watchers, also for one that has yet to begin."""
    trigger = PicasTokenEventTrigger(event="complete", picas_conn_id="picas_default")
    kept: asyncio.Queue[subscriptions.Touched] = asyncio.Queue()

    async def keep() -> None:
        async for item in trigger.open_shared_stream(trigger.serialize()[1]):
            kept.put_nowait(item)

    async def until_kept(number: int) -> None:
        async with asyncio.timeout(SOON):
            while kept.qsize() < number:
                await asyncio.sleep(0.05)

    async def stream() -> AsyncIterator[subscriptions.Touched]:
        while True:
            yield await kept.get()

    async def watch() -> None:
        keeping = asyncio.create_task(keep())
        await until_kept(1)  # the feed begins
        for number, change in enumerate((lambda: push(hook, "a", 1), lambda: finish(hook, "a")), start=2):
            await asyncio.to_thread(change)
            await until_kept(number)
        told = trigger.filter_shared_stream(stream())
        assert (await anext(told)).payload["batch"] == "a"
        coming = asyncio.ensure_future(anext(told))
        assert not (await asyncio.wait({coming}, timeout=1.5))[0]
        await asyncio.to_thread(push, hook, "b", 1)
        await asyncio.to_thread(finish, hook, "b")
        assert (await asyncio.wait_for(coming, SOON)).payload["batch"] == "b"
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)

    asyncio.run(watch())


def test_after_a_restart_it_goes_on_where_it_was(hook: PicasHook) -> None:
    store = Store()
    push(hook, "a", 1)
    push(hook, "b", 1)
    push(hook, "c", 1)
    finish(hook, "b")

    async def watch() -> None:
        async with watching("complete", store=store) as watcher:
            assert (await watcher.next())["batch"] == "b"
            async with asyncio.timeout(SOON):
                while not store.values:
                    await watcher.none(0.5)
        finish(hook, "a")  # while no triggerer runs
        async with watching("complete", store=store) as watcher:
            assert (await watcher.next())["batch"] == "a"  # and not b again
            await watcher.none()
            finish(hook, "c")
            assert (await watcher.next())["batch"] == "c"

    asyncio.run(watch())


def test_an_event_that_may_not_have_arrived_comes_again(hook: PicasHook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "SAVE_AFTER", 30.0)
    store = Store()
    push(hook, "a", 1)
    finish(hook, "a")

    async def watch() -> None:
        for _ in range(2):
            async with watching("complete", store=store) as watcher:
                assert (await watcher.next())["batch"] == "a"

    asyncio.run(watch())


def test_a_pool_that_was_made_anew_begins_anew(hook: PicasHook, pool: Pool, couchdb: CouchDBAdmin) -> None:
    store = Store()
    push(hook, "a", 1)
    finish(hook, "a")

    async def watch() -> None:
        async with watching("complete", store=store) as watcher:
            assert (await watcher.next())["batch"] == "a"
            await watcher.none()
        await asyncio.sleep(1)
        couchdb.delete_database(pool.database)
        couchdb.create_database(pool.database, members=[pool.user], admins=[pool.user])
        hook.deploy_views()
        push(hook, "a", 1)
        finish(hook, "a")
        async with watching("complete", store=store) as watcher:
            assert (await watcher.next())["batch"] == "a"

    asyncio.run(watch())


def test_watchers_of_a_pool_share_a_stream() -> None:
    keys = {PicasTokenEventTrigger(event=event).shared_stream_key() for event in ("todo", "error", "complete")}
    assert len(keys) == 1
    assert PicasTokenEventTrigger(database="other").shared_stream_key() not in keys


def test_unrelated_changes_are_not_events() -> None:
    with pytest.raises(ValueError, match=r"`event` must be one of .*, not 'done'"):
        PicasTokenEventTrigger(event="done")
