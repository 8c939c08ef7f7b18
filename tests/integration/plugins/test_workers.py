"""An API server with two workers: a request reaches any of them, and each has its own reader of the pool."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_picas.tokens.states import State
from stack import processes
from stack.couchdb import CouchDBAdmin
from stack.pool import Pool
from tests.integration.lives import fill
from tests.integration.plugins.conftest import Page, page_of
from tests.integration.plugins.server import ApiServer

WORKERS = 2


@pytest.fixture(scope="module")
def workers(server: ApiServer) -> Iterator[ApiServer]:
    """Another API server on the same database, with two workers."""
    second = server.another(workers=WORKERS)
    yield second
    second.stop()


@pytest.fixture
def page(workers: ApiServer, pool: Pool, picas_default: str) -> Page:
    """A pool with the provider's views; a run whose push names the batch ``b`` of it."""
    return page_of(workers, pool, picas_default)


def pids(server: ApiServer) -> list[int]:
    """The workers: the processes that have the server's port open, but the first of them."""
    assert server.process is not None
    main = server.process.pid
    found = [pid for pid in processes.session(main) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return sorted(found)


@contextmanager
def alone(server: ApiServer, worker: int) -> Iterator[None]:
    """Only this worker answers meanwhile: the others are stopped."""
    others = [pid for pid in pids(server) if pid != worker]
    for pid in others:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in others:
            os.kill(pid, signal.SIGCONT)


def test_what_one_worker_learns_about_the_login_all_know(page: Page, couchdb: CouchDBAdmin) -> None:
    fill(page.hook, {State.TODO: 2, State.ERROR: 1})
    first, second = pids(page.server)
    with alone(page.server, first):
        assert page.ask("batch", **page.of_run)["actions"]["priority"]["allowed"], "before anything was refused"
    guard = {"validate_doc_update": "function () { throw({forbidden: 'this pool is read-only'}); }"}
    couchdb.request("PUT", f"/{page.pool.database}/_design/guard", guard)
    with alone(page.server, first):
        reply = page.server.post("batch/actions/priority", {"all": True, "priority": 1}, **page.of_run)
        assert reply.status == 409, reply.body

    for worker in (first, second):
        with alone(page.server, worker):
            shown = page.ask("batch", **page.of_run)["actions"]["priority"]
        assert (shown["allowed"], "read-only" in shown["why_not"]) == (False, True)


@pytest.mark.parametrize("sort", ["id", "ended"])
def test_each_page_of_the_table_may_come_from_another_worker(page: Page, sort: str) -> None:
    ids = fill(page.hook, {State.DONE: 12})
    seen: list[str] = []
    query: dict[str, Any] = {"sort": sort, "limit": 4}
    cursor = None
    while True:
        with alone(page.server, pids(page.server)[len(seen) // 4 % WORKERS]):
            answer = page.ask("batch/tokens", **query, cursor=cursor)
        seen += [token["id"] for token in answer["tokens"]]
        cursor = answer["next"]
        if cursor is None:
            break
    assert sorted(seen) == sorted(ids)


def test_a_plan_and_its_action_may_reach_different_workers(page: Page) -> None:
    ids = fill(page.hook, {State.TODO: 3})
    first, second = pids(page.server)
    body = {"ids": ids[:2], "priority": 3}
    with alone(page.server, first):
        assert page.server.post("batch/actions/priority/plan", body, **page.of_run).json["tokens"] == 2
    with alone(page.server, second):
        assert page.server.post("batch/actions/priority", body, **page.of_run).json["tokens"] == 2
        shown = page.ask("batch/tokens", **page.of_run)["tokens"]
    assert [token["priority"] for token in shown] == [3, 3, None]


def test_a_server_ends_soon_although_streams_are_open(page: Page) -> None:
    fill(page.hook, {State.TODO: 1})
    streams = [page.server.open("/picas/api/batch/events", **page.of_run) for _ in range(4)]
    assert all(stream.readline().startswith(b"retry") for stream in streams)
    assert page.server.process is not None
    begin = time.monotonic()
    os.kill(page.server.process.pid, signal.SIGTERM)
    page.server.process.wait(timeout=60)
    print(f"the server ended {time.monotonic() - begin:.1f} s after SIGTERM, with {len(streams)} streams open")
    for stream in streams:
        stream.close()
