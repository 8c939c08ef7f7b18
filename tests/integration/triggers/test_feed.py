"""One feed for each pool: which wait gets which update, and which faults the feed survives."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import Stats

from airflow_provider_picas import metrics
from airflow_provider_picas.couchdb import changes, errors
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.hooks.picas_async import PicasAsyncHook
from airflow_provider_picas.tokens import documents
from airflow_provider_picas.tokens import waiting as wait_rules
from airflow_provider_picas.tokens.counts import Counts
from airflow_provider_picas.triggers import feed
from airflow_provider_picas.triggers.feed import feed_for, open_feeds
from stack import native
from stack.couchdb import CouchDBAdmin
from stack.pool import Pool
from tests.conftest import set_connection
from tests.integration.lives import push
from tests.integration.readers import waiting

SOON = 40.0  # seconds: after a slow look the feed pauses three times as long
TOLD = 30.0  # seconds: the hook tries five times, which takes up to 11 s, and the feed asks once more before it tells an outage


@pytest.fixture
def hook(picas_default: str) -> PicasHook:
    """The pool, with all views."""
    hook = PicasHook(picas_default)
    hook.deploy_views()
    return hook


def finish(hook: PicasHook, batch: str, number: int = 1, exit_code: int = 0) -> None:
    """Finish so many tokens of a batch, as a pilot does."""
    now = int(time.time())
    some = list(hook.tokens("todo", batch))[:number]
    done = [{**token, "lock": now, "done": now, "exit_code": exit_code} for token in some]
    hook.do(hook.pool.write([documents.encode(token) for token in done]))


def test_a_wait_gets_the_present_state_and_then_each_change(hook: PicasHook) -> None:
    push(hook, "a", 2)

    async def wait() -> None:
        async with waiting() as news:
            await news.until(Counts(todo=2))
            finish(hook, "a")
            await news.until(Counts(todo=1, done=1))
            finish(hook, "a", exit_code=1)
            await news.until(Counts(done=1, error=1))

    asyncio.run(wait())


def test_each_wait_gets_only_its_own_updates(hook: PicasHook) -> None:
    push(hook, "a", 1)
    push(hook, "b", 1)

    async def wait() -> None:
        async with waiting("a") as a, waiting("b") as b, waiting(None) as whole:
            await a.until(Counts(todo=1))
            await b.until(Counts(todo=1))
            await whole.until(Counts(todo=2))
            finish(hook, "a")
            await a.until(Counts(done=1))
            await whole.until(Counts(todo=1, done=1))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(b.read(), 1)

    asyncio.run(wait())


def test_few_queries_while_many_tokens_are_left(hook: PicasHook) -> None:
    """A token that finishes does not matter much then; the last ones do."""
    push(hook, "a", 80)

    async def wait() -> tuple[int, float, int]:
        one = feed_for("picas_default")
        async with waiting() as news:
            await news.until(Counts(todo=80))
            before, begin = one.queries, time.monotonic()
            for _ in range(50):
                await asyncio.to_thread(finish, hook, "a")
                await asyncio.sleep(0.05)
            many, took = one.queries - before, time.monotonic() - begin
            await news.until(Counts(todo=30, done=50))
            await asyncio.to_thread(finish, hook, "a", 27)
            await news.until(Counts(todo=3, done=77))
            before = one.queries
            for done in (78, 79, 80):
                await asyncio.to_thread(finish, hook, "a")
                await news.until(Counts(todo=80 - done, done=done))
            return many, took, one.queries - before

    many, took, last = asyncio.run(wait())
    assert many <= 2 + took / 0.6, f"{many} looks for 50 tokens, in {took:.1f} s"
    assert last >= 3


def test_a_wait_ends_although_something_changes_at_that_moment(hook: PicasHook) -> None:
    push(hook, "a", 1)

    async def wait() -> None:
        one = feed_for("picas_default")
        async with asyncio.timeout(SOON):
            async with one.subscribe("a") as updates:
                await anext(updates)
                await asyncio.sleep(2)  # the feed waits for changes
                one._touch({"a"})
        assert open_feeds() == 0

    asyncio.run(wait())


def test_the_index_of_picas_clients_follows_a_wait(hook: PicasHook, monkeypatch: pytest.MonkeyPatch) -> None:
    """CouchDB does not update it by itself."""
    monkeypatch.setattr(feed, "UPDATE_MONITOR", 0.0)
    push(hook, "a", 20)

    async def wait() -> None:
        async with waiting() as news, PicasAsyncHook("picas_default") as other:
            await news.until(Counts(todo=20))
            finish(hook, "a", 20)
            await news.until(Counts(done=20))
            async with asyncio.timeout(SOON):
                while True:
                    stale = other.pool.view_request("overview_total", "Monitor", group=True, update="false")
                    if {"key": "done", "value": 20} in (await other.send(stale)).rows():
                        return
                    await asyncio.sleep(0.1)

    asyncio.run(wait())


def test_the_gauges_are_zero_when_nobody_waits_any_longer(hook: PicasHook, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[str, float] = {}
    monkeypatch.setattr(metrics, "INTERVAL", 0.1)
    monkeypatch.setattr(Stats, "gauge", lambda name, value, **_: sent.update({name.rpartition(".")[2]: value}))
    push(hook, "a", 2)

    async def wait() -> None:
        async with waiting() as news:
            await news.until(Counts(todo=2))
            async with asyncio.timeout(SOON):
                while sent.get("todo") != 2:
                    await asyncio.sleep(0.05)

    asyncio.run(wait())
    assert sent == {"todo": 0, "locked": 0, "done": 0, "error": 0, "finished_per_minute": 0}


def test_one_feed_for_all_waits_on_a_pool_and_none_after_them(hook: PicasHook) -> None:
    push(hook, "a", 1)

    async def wait() -> None:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(5):
                news = await stack.enter_async_context(waiting())
                await news.until(Counts(todo=1))
            assert open_feeds() == 1
        assert open_feeds() == 0
        assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []

    asyncio.run(wait())


def test_only_changed_batches_are_counted(hook: PicasHook, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    real = changes.counts_of
    monkeypatch.setattr(changes, "counts_of", lambda pool, batches: asked.append(list(batches)) or real(pool, batches))
    push(hook, "a", 1)
    push(hook, "b", 1)

    async def wait() -> None:
        async with waiting("a") as a, waiting("b") as b:
            await a.until(Counts(todo=1))
            await b.until(Counts(todo=1))
            asked.clear()
            push(hook, "c", 1)  # nobody waits for it
            finish(hook, "a")
            await a.until(Counts(done=1))
            await asyncio.sleep(0.5)
        assert {batch for batches in asked for batch in batches} == {"a"}

    asyncio.run(wait())


@pytest.mark.parametrize("number", [3, 100])
def test_counts_of_many_batches_are_those_of_each(hook: PicasHook, number: int) -> None:
    names = [f"batch-{n:03d}" for n in range(number)]
    tokens = [
        documents.new_token({"input": 0}, batch=batch, push=batch, ordinal=n)
        for batch in names[1:]  # the first one has none
        for n in range(2)
    ]
    hook.push(tokens)
    hook.do(hook.pool.put({"_id": "foreign", "type": "token", "lock": 0, "done": 0, "exit_code": ""}))
    finish(hook, names[-1])

    async def ask() -> dict[str, Counts]:
        async with PicasAsyncHook("picas_default") as asynchronous:
            return await asynchronous.do(changes.counts_of(asynchronous.pool, [*names, changes.NO_BATCH]))

    found = asyncio.run(ask())
    expected = {batch: Counts(todo=2) for batch in names} | {names[0]: Counts(), names[-1]: Counts(todo=1, done=1)}
    assert found == {**expected, changes.NO_BATCH: Counts(todo=1)}


def test_a_scan_that_ends_too_early_is_completed(hook: PicasHook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "FEW", 2)
    monkeypatch.setattr(changes, "ROWS_OF_ONE", 1)
    for batch in "abcdefgh":
        push(hook, batch, 2)
        finish(hook, batch)
    asked = "abcdefg"  # as many rows are scanned: the last one is the first of two
    found = hook.do(changes.counts_of(hook.pool, list(asked)))
    assert found == {batch: Counts(todo=1, done=1) for batch in asked}


def test_a_pool_with_monitor_only_is_followed(pool: Pool, picas_default: str, couchdb: CouchDBAdmin) -> None:
    hook = PicasHook(picas_default)
    hook.deploy_views()
    _, design = couchdb.request("GET", f"/{pool.database}/_design/airflow-picas-1")
    couchdb.request("DELETE", f"/{pool.database}/_design/airflow-picas-1?rev={design['_rev']}")
    push(hook, "a", 2)

    async def wait() -> None:
        async with waiting() as news:
            await news.until(Counts(todo=2))
            finish(hook, "a")
            await news.until(Counts(todo=1, done=1))

    asyncio.run(wait())


def test_a_batch_without_tokens_has_counts(hook: PicasHook) -> None:
    async def wait() -> None:
        async with waiting("none") as news:
            await news.until(Counts())

    asyncio.run(wait())


def test_a_replaced_design_document_is_noticed(hook: PicasHook, pool: Pool, couchdb: CouchDBAdmin) -> None:
    """Somebody replaces the views by ones that count otherwise: the counts are read again at once."""
    push(hook, "a", 1)
    path = f"/{pool.database}/_design/airflow-picas-1"

    async def wait() -> None:
        async with waiting() as news:
            await news.until(Counts(todo=1))
            _, design = couchdb.request("GET", path)
            design["views"]["counts"]["map"] = "function (doc) { emit([doc.batch, 'done'], null); }"
            assert couchdb.request("PUT", path, design)[0] == 201
            await news.until(Counts(done=1))

    asyncio.run(wait())


def test_a_pool_that_is_deleted_and_made_anew(hook: PicasHook, pool: Pool, couchdb: CouchDBAdmin) -> None:
    push(hook, "a", 3)

    async def wait() -> None:
        async with waiting() as news:
            await news.until(Counts(todo=3))
            couchdb.delete_database(pool.database)
            assert "no database" in await news.noticed("The wait continues")
            await asyncio.sleep(1.1)  # CouchDB tells the time of birth in seconds
            couchdb.create_database(pool.database, members=[pool.user], admins=[pool.user])
            hook.deploy_views()
            push(hook, "a", 1)
            await news.until(Counts(todo=1))
            await news.noticed("created again")
            finish(hook, "a")  # and the feed goes on
            await news.until(Counts(done=1))

    asyncio.run(wait())


def test_a_pool_that_stays_away_fails_the_waits_with_the_reason(
    hook: PicasHook, pool: Pool, couchdb: CouchDBAdmin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wait_rules, "REFUSED_SECONDS", 2.0)
    push(hook, "a", 1)

    async def wait() -> None:
        async with waiting() as news:
            await news.until(Counts(todo=1))
            couchdb.delete_database(pool.database)
            with pytest.raises(errors.NotFoundError, match="There is no database"):
                await news.until(Counts(done=1))
        assert open_feeds() == 0

    try:
        asyncio.run(wait())
    finally:
        couchdb.create_database(pool.database)


def test_credentials_that_stop_working_fail_it_after_a_while(
    hook: PicasHook, pool: Pool, couchdb: CouchDBAdmin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wait_rules, "REFUSED_SECONDS", 2.0)
    monkeypatch.setattr(feed, "HEARTBEAT", 1.0)
    push(hook, "a", 1)

    async def wait() -> None:
        async with waiting() as news:
            await news.until(Counts(todo=1))
            couchdb.delete_user(pool.user)
            push_as_admin(couchdb, pool)  # ends the poll; the next one is refused
            with pytest.raises(errors.UnauthorizedError, match="refused login"):
                await news.until(Counts(done=1))

    asyncio.run(wait())


def push_as_admin(couchdb: CouchDBAdmin, pool: Pool) -> None:
    """Write a token into batch a."""
    token = documents.new_token({"input": 0}, batch="a", push="other", ordinal=0, key=secrets.token_hex(4))
    assert couchdb.request("PUT", f"/{pool.database}/{token['_id']}", token)[0] == 201


# -- the way to the server ---------------------------------------------------------------------------------------------


class Tunnel:
    """A TCP proxy on a port of its own, in the test's event loop. ``longest``: seconds after which it cuts a connection."""

    def __init__(self, pool: Pool) -> None:
        self._host, _, port = pool.url.rpartition("/")[2].partition(":")
        self._port = int(port)
        self.longest: float | None = None
        self.cut_answers_at: int | None = None  #: bytes of an answer that still pass
        self.connections: set[asyncio.StreamWriter] = set()
        self.requests: list[str] = []
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        """Accept connections, on the port of the last time."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse connections, and break those that there are."""
        if self._server:
            self._server.close()
        for writer in list(self.connections):
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream = await asyncio.open_connection(self._host, self._port)
        self.connections |= {writer, upstream}

        async def relay(source: asyncio.StreamReader, target: asyncio.StreamWriter, answer: bool) -> None:
            with contextlib.suppress(OSError):
                while chunk := await source.read(65536):
                    if not answer:
                        self.requests.append(chunk.partition(b"\r\n")[0].decode())
                    if answer and self.cut_answers_at is not None:
                        target.write(chunk[: self.cut_answers_at])
                        await target.drain()
                        return
                    target.write(chunk)
                    await target.drain()

        tasks = [
            asyncio.create_task(relay(reader, upstream, False)),
            asyncio.create_task(relay(upstream_reader, writer, True)),
        ]
        await asyncio.wait(tasks, timeout=self.longest, return_when=asyncio.FIRST_COMPLETED)
        for end in (writer, upstream):
            end.transport.abort()
            self.connections.discard(end)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
def through_tunnel(
    hook: PicasHook, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[Tunnel], Awaitable[None]]], None]:
    """Runs a coroutine function with a tunnel in front of the pool, of which the connection ``tunnel`` knows."""

    async def main(work: Callable[[Tunnel], Awaitable[None]]) -> None:
        tunnel = Tunnel(pool)
        await tunnel.start()
        fields = {**native.picas_connection(pool), "host": f"http://127.0.0.1:{tunnel.port}"}
        set_connection(monkeypatch, "tunnel", fields)
        try:
            await work(tunnel)
        finally:
            await tunnel.stop()

    return lambda work: asyncio.run(main(work))


def polls(tunnel: Tunnel) -> list[str]:
    """The long polls among the requests."""
    return [request for request in tunnel.requests if "feed=longpoll" in request]


def test_an_outage_loses_nothing(hook: PicasHook, through_tunnel: Any) -> None:
    push(hook, "a", 2)

    async def wait(tunnel: Tunnel) -> None:
        async with waiting(conn_id="tunnel") as news:
            await news.until(Counts(todo=2))
            await tunnel.stop()
            assert "does not answer" in await news.noticed("The wait continues")
            await asyncio.to_thread(finish, hook, "a", 2)
            await tunnel.start()
            await news.until(Counts(done=2))
            await news.noticed("is reachable again")

    through_tunnel(wait)


def test_the_end_of_an_outage_is_reported_to_who_only_follows(hook: PicasHook, through_tunnel: Any) -> None:
    async def wait(tunnel: Tunnel) -> None:
        notices: list[str] = []

        async def noticed(text: str) -> None:
            async with asyncio.timeout(TOLD):
                while not any(text in notice for notice in notices):
                    notices.extend((await anext(news)).notices)

        async with feed_for("tunnel").follow() as news:
            assert (await anext(news)).begins
            await tunnel.stop()
            await noticed("The wait continues")
            await tunnel.start()
            await noticed("is reachable again")

    through_tunnel(wait)


def test_a_proxy_that_cuts_long_polls_loses_nothing(
    hook: PicasHook, through_tunnel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The polls become short enough, no outage is told, and changes are still noticed."""
    monkeypatch.setattr(feed, "SHORTEST_POLL", 1.0)
    push(hook, "a", 1)

    async def wait(tunnel: Tunnel) -> None:
        tunnel.longest = 2.0
        async with waiting(conn_id="tunnel") as news:
            await news.until(Counts(todo=1))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(news.read(), 6)
            assert "timeout=" in polls(tunnel)[-1]
            await asyncio.to_thread(finish, hook, "a")
            await news.until(Counts(done=1))

    through_tunnel(wait)


def test_a_response_that_breaks_off_is_an_outage(hook: PicasHook, through_tunnel: Any) -> None:
    """An answer that breaks off is an outage like any other."""
    push(hook, "a", 1)

    async def wait(tunnel: Tunnel) -> None:
        async with waiting(conn_id="tunnel") as news:
            await news.until(Counts(todo=1))
            tunnel.cut_answers_at = 300  # behind the headers
            await asyncio.to_thread(finish, hook, "a")
            await news.noticed("The wait continues")
            tunnel.cut_answers_at = None
            await news.until(Counts(done=1))

    through_tunnel(wait)


def test_an_idle_wait_asks_nothing(hook: PicasHook, through_tunnel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "HEARTBEAT", 2.0)
    push(hook, "a", 1)

    async def wait(tunnel: Tunnel) -> None:
        async with waiting(conn_id="tunnel") as news:
            await news.until(Counts(todo=1))
            async with asyncio.timeout(SOON):
                while not polls(tunnel):
                    await asyncio.sleep(0.05)
            await asyncio.sleep(0.5)
            before = len(tunnel.requests)
            await asyncio.sleep(7)  # a poll without signs of life breaks after 6
            assert len(tunnel.requests) == before

    through_tunnel(wait)


def test_an_index_that_is_being_built_is_reported(
    pool: Pool, picas_default: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "PATIENCE", 0.1)
    hook = PicasHook(picas_default)
    push(hook, "a", 10_000)
    hook.deploy_views()

    async def wait() -> None:
        async with waiting() as news:
            assert pool.database in await news.noticed("building the index")
            await news.until(Counts(todo=10_000))

    asyncio.run(wait())
