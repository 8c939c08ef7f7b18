"""Waits while the database is unavailable, refuses them, or returns as an older copy. Each test has a server of its own."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowSensorTimeout, TaskDeferred
from airflow.sdk.exceptions import AirflowRescheduleException

from airflow_provider_picas.couchdb import http, refusals
from airflow_provider_picas.couchdb.errors import CouchDBError, UnauthorizedError, UnavailableError
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.sensors.tokens import PicasTokenStateSensor
from airflow_provider_picas.tokens import documents, waiting
from airflow_provider_picas.tokens.counts import Counts
from airflow_provider_picas.triggers import feed
from airflow_provider_picas.triggers.tokens import PicasTokenStateTrigger
from stack import processes
from stack.couchdb import CouchDB
from tests.conftest import set_connection
from tests.integration.faults import Proxy
from tests.integration.readers import waiting as reading
from tests.integration.sensors.test_tokens import run_poked as execute_poked
from tests.integration.tasks import context

LIMIT = 60.0  # seconds that anything may take
BATCH = {"database": "pool", "batch": "b", "tokens": 2}
FIELDS = {"conn_type": "picas", "schema": "pool", "login": "me", "password": "s3cret"}


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits are impatient, and try to connect often."""
    monkeypatch.setattr(waiting, "SETTLE_SECONDS", 0.5)
    monkeypatch.setattr(feed, "FIRST_RECONNECT", 0.1)
    monkeypatch.setattr(feed, "LONGEST_RECONNECT", 0.3)
    monkeypatch.setattr(refusals, "FIRST_PAUSE", 0.2)
    monkeypatch.setattr(refusals, "LONGEST_PAUSE", 0.2)
    monkeypatch.setattr(http, "TRIES", 1)
    monkeypatch.setattr(http, "TRIES_TO_CONNECT", 1)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[CouchDB]:
    with CouchDB(tmp_path / "couchdb") as made:
        made.create_user("me", "s3cret")
        made.create_database("pool", members=["me"], admins=["me"])
        yield made


@pytest.fixture
def hook(server: CouchDB, monkeypatch: pytest.MonkeyPatch) -> PicasHook:
    """A pool with a batch of two tokens, reached without the proxy."""
    hook = PicasHook(set_connection(monkeypatch, "direct", {**FIELDS, "host": server.url}))
    hook.deploy_views()
    push(hook, "b", 2)
    return hook


@pytest.fixture
def proxy(server: CouchDB, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """What the waits reach the server by; it counts their requests while the server is away."""
    with Proxy(server.url) as made:
        set_connection(monkeypatch, "picas_default", {**FIELDS, "host": made.url})
        yield made


def push(hook: PicasHook, batch: str, number: int) -> None:
    hook.push(documents.new_token({"input": n}, batch=batch, push=batch, ordinal=n) for n in range(number))


def finish(hook: PicasHook) -> None:
    now = int(time.time())
    done = [{**token, "lock": now, "done": now, "exit_code": 0} for token in hook.tokens("todo", "b")]
    hook.do(hook.pool.write([documents.encode(token) for token in done]))


def sensor(**options: Any) -> PicasTokenStateSensor:
    return PicasTokenStateSensor(task_id="wait", batch=BATCH, **{"poke_interval": 0.1, "timeout": LIMIT, **options})


def poll(proxy: Proxy) -> None:
    """Wait until somebody listens to the feed."""
    processes.wait_for(lambda: any("longpoll" in request for request in proxy.requests), what="A poll", seconds=LIMIT)


def requests_for(proxy: Proxy, seconds: float) -> None:
    """Wait until so many seconds have passed since the next request, and two more have come."""
    before = len(proxy.requests)
    processes.wait_for(lambda: len(proxy.requests) > before, what="A request", seconds=LIMIT)
    time.sleep(seconds)
    before = len(proxy.requests)
    processes.wait_for(lambda: len(proxy.requests) > before + 1, what="More requests", seconds=LIMIT)


def run_deferred(waits: PicasTokenStateSensor, proxy: Proxy, meanwhile: Callable[[], None]) -> Any:
    """Defer, run the trigger as it was stored, and go on with its event."""
    with pytest.raises(TaskDeferred) as caught:
        waits.execute(context("wait"))
    _, arguments = caught.value.trigger.serialize()
    made = PicasTokenStateTrigger(**json.loads(json.dumps(arguments)))
    proxy.requests.clear()

    async def run() -> Any:
        async def event() -> Any:
            return (await anext(aiter(made.run()))).payload  # type: ignore[attr-defined]

        waits = asyncio.create_task(event())
        await asyncio.to_thread(poll, proxy)
        await asyncio.to_thread(meanwhile)
        async with asyncio.timeout(LIMIT):
            return await waits

    event = asyncio.run(run())
    return waits.execute_complete(context("wait"), event, **(caught.value.kwargs or {}))


def run_poked(waits: PicasTokenStateSensor, proxy: Proxy, meanwhile: Callable[[], None]) -> Any:
    def later() -> None:
        processes.wait_for(lambda: len(proxy.requests) > 3, what="Some pokes", seconds=LIMIT)
        meanwhile()

    return execute_poked(waits, later)


def run_rescheduled(waits: PicasTokenStateSensor, proxy: Proxy, meanwhile: Callable[[], None]) -> Any:
    """Each look in a sensor of its own, as in a process of its own."""
    from datetime import UTC, datetime

    first, began = datetime.now(UTC), False
    while True:
        one = sensor(mode="reschedule", timeout=waits.timeout, outage=waits.outage)
        try:
            return one.execute(context("wait", first_reschedule=first if began else None))
        except AirflowRescheduleException:
            if not began:
                began = True
                threading.Thread(target=meanwhile, daemon=True).start()
            time.sleep(0.1)


MODES = pytest.mark.parametrize(
    ("run", "options"),
    [
        (run_deferred, {"deferrable": True}),
        (run_poked, {"deferrable": False}),
        (run_rescheduled, {"deferrable": False, "mode": "reschedule"}),
    ],
    ids=["deferrable", "poke", "reschedule"],
)


@MODES
def test_a_database_that_does_not_answer_is_waited_for(
    hook: PicasHook, server: CouchDB, proxy: Proxy, run: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than a refusal would be, and until the deadline."""
    monkeypatch.setattr(waiting, "REFUSED_SECONDS", 0.2)

    def outage() -> None:
        server.kill()
        requests_for(proxy, 0.5)
        server.start()
        finish(hook)

    assert run(sensor(**options), proxy, outage)["done"] == 2


@MODES
def test_an_outage_ends_with_the_time_out(
    hook: PicasHook, server: CouchDB, proxy: Proxy, run: Any, options: dict[str, Any]
) -> None:
    with pytest.raises(AirflowSensorTimeout):
        run(sensor(timeout=4, **options), proxy, server.kill)


@pytest.mark.parametrize(
    ("run", "options"),
    [(run_deferred, {"deferrable": True}), (run_poked, {"deferrable": False})],
    ids=["deferrable", "poke"],
)
def test_the_outage_parameter_limits_an_outage(
    hook: PicasHook, server: CouchDB, proxy: Proxy, run: Any, options: dict[str, Any]
) -> None:
    with pytest.raises(CouchDBError, match="does not answer"):
        run(sensor(outage=timedelta(seconds=0.5), **options), proxy, server.kill)


@MODES
def test_a_login_that_is_refused_for_a_while(
    hook: PicasHook, server: CouchDB, proxy: Proxy, run: Any, options: dict[str, Any]
) -> None:
    def refuse() -> None:
        server.delete_user("me")
        push_as_admin(server)  # ends the poll
        requests_for(proxy, 0.2)
        server.create_user("me", "s3cret")
        finish(hook)

    assert run(sensor(**options), proxy, refuse)["done"] == 2


def test_a_login_that_is_refused_for_too_long(
    hook: PicasHook, server: CouchDB, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "REFUSED_SECONDS", 0.2)
    with pytest.raises(UnauthorizedError):
        run_poked(sensor(), proxy, lambda: server.delete_user("me"))
    with pytest.raises(UnauthorizedError):  # at once: this connection has never worked
        sensor(outage=LIMIT).execute(context("wait"))


def push_as_admin(server: CouchDB) -> None:
    token = documents.new_token({"input": 0}, batch="other", push="other", ordinal=0)
    assert server.request("PUT", f"/pool/{token['_id']}", token)[0] == 201


# -- restored backups --------------------------------------------------------------------------------------------------


def test_a_restored_backup_is_followed(server: CouchDB, hook: PicasHook, tmp_path: Path) -> None:
    server.stop()
    shutil.copytree(server.data, tmp_path / "backup")
    server.start()
    push(hook, "other", 50)

    def restore() -> None:
        server.stop()
        shutil.rmtree(server.data)
        shutil.copytree(tmp_path / "backup", server.data)
        server.start()

    async def wait() -> None:
        async with reading("b", "direct") as news:
            await news.until(Counts(todo=2))
            finish(hook)
            await news.until(Counts(done=2))
            await asyncio.to_thread(restore)
            await news.until(Counts(todo=2))
            await news.noticed("backup")
            finish(hook)
            await news.until(Counts(done=2))

    asyncio.run(wait())


def test_an_older_copy_is_noticed_while_the_poll_stays_open(
    server: CouchDB, hook: PicasHook, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when something in between hands requests to another server: the poll is still answered by the one before."""
    monkeypatch.setattr(feed, "CHECK_AGAIN", 0.5)
    server.stop()
    shutil.copytree(server.data, tmp_path / "copy" / "couchdb")
    server.start()
    push(hook, "other", 50)
    with CouchDB(tmp_path / "copy") as copy:
        copied = PicasHook(set_connection(monkeypatch, "copy", {**FIELDS, "host": copy.url}))

        async def wait() -> None:
            async with reading("b") as news:
                await news.until(Counts(todo=2))
                await asyncio.to_thread(poll, proxy)
                proxy.redirect(copy.url)
                await news.noticed("backup")
                finish(copied)
                await news.until(Counts(done=2))

        asyncio.run(wait())


def test_a_server_that_is_away_at_the_start(hook: PicasHook, server: CouchDB, proxy: Proxy) -> None:
    server.stop()
    with pytest.raises(TaskDeferred):
        sensor(deferrable=True).execute(context("wait"))
    with pytest.raises(UnavailableError):
        sensor(outage=0).execute(context("wait"))
