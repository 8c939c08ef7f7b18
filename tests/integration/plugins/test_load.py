"""How much a watcher costs: the database, and the memory of the API server. And what a worker pays for the page."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from airflow_provider_picas.tokens.states import State
from stack import processes
from tests.integration.faults import Proxy
from tests.integration.lives import LIVES, change, fill
from tests.integration.plugins.conftest import CONN, Page
from tests.integration.plugins.test_batch import events

WATCHERS = 50
WINDOW = 8.0  # seconds in which requests are counted


class Watcher(threading.Thread):
    """A browser that shows the batch."""

    def __init__(self, page: Page) -> None:
        super().__init__(daemon=True)
        self.done = 0  #: tokens that it has shown as done
        self._page = page
        self._over = threading.Event()

    def run(self) -> None:
        for event, overview in events(self._page, seconds=120):
            if event == "overview":
                self.done = overview["counts"]["done"]
            if self._over.is_set():
                return

    def stop(self) -> None:
        self._over.set()


@contextmanager
def watching(page: Page, number: int) -> Iterator[list[Watcher]]:
    watchers = [Watcher(page) for _ in range(number)]
    for watcher in watchers:
        watcher.start()
    try:
        yield watchers
    finally:
        for watcher in watchers:
            watcher.stop()


def work(page: Page, tokens: list[str], watchers: list[Watcher]) -> None:
    """Tokens finish, some each second, until ``WINDOW`` is over and every watcher has seen the last."""
    deadline = time.monotonic() + WINDOW
    while time.monotonic() < deadline:
        change(page.hook, tokens.pop(), **LIVES[State.DONE])
        time.sleep(0.25)
    done = page.hook.count("b").done
    processes.wait_for(lambda: all(watcher.done == done for watcher in watchers), what="The last overview", seconds=60)


def memory(page: Page) -> int:
    """Bytes of the largest process of the API server."""
    assert page.server.process is not None
    return max(processes.memory(pid) for pid in processes.session(page.server.process.pid))


def test_many_watchers_cost_the_database_as_much_as_one(page: Page) -> None:
    tokens = fill(page.hook, {State.TODO: 2_000})
    with Proxy(page.pool.url) as proxy:
        page.server.connect(CONN, replace(page.pool, url=proxy.url))
        with watching(page, 1) as one:
            processes.wait_for(lambda: proxy.requests, what="The first request", seconds=60)
            before = len(proxy.requests)
            work(page, tokens, one)
            alone = len(proxy.requests) - before
            small = memory(page)
            with watching(page, WATCHERS) as many:
                before = len(proxy.requests)
                work(page, tokens, many)
                together = len(proxy.requests) - before
                grown = (memory(page) - small) / WATCHERS
        page.server.connect(CONN, page.pool)
    print(f"requests in {WINDOW:g} s: one {alone}, {WATCHERS} {together}; memory a watcher: {grown / 1024:.0f} kB")
    assert together <= 2 * alone + 5
    assert together / WATCHERS < 1
    assert grown < 1_000_000


def test_a_worker_pays_nothing_for_the_page() -> None:
    """It imports the plugin's module, and no part of FastAPI nor of the page by it."""
    code = """
import sys, time
import airflow.providers.common.compat.sdk as sdk
sdk.AirflowPlugin, sdk.conf
before, begin = set(sys.modules), time.perf_counter()
import airflow_provider_picas.plugins.picas_plugin
print(f"{(time.perf_counter() - begin) * 1000:.1f} ms", *sorted(set(sys.modules) - before))
"""
    told: Any = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    ours = [name for name in told[2:] if name.startswith("airflow_provider_picas")]
    print(*told[:2], *ours)
    assert set(ours) <= {
        "airflow_provider_picas",
        "airflow_provider_picas.links",
        "airflow_provider_picas.plugins",
        "airflow_provider_picas.plugins.picas_plugin",
    }
    assert [name for name in told[2:] if name.startswith(("fastapi", "starlette", "pydantic", "aiohttp"))] == []
