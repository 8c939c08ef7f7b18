"""The page of a large pool in a browser: headless Chromium before a real API server of Airflow.

Times are the browser's, from the begin of a navigation or from a click until what was asked for is painted. Its cache has
Airflow's files, as that of a person who works with Airflow.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from urllib.parse import urlencode

from playwright.sync_api import Page

from benchmarks.measure import Goal, Result
from stack import paths
from stack.pool import Pool
from stack.ui import SECONDS, chromium
from tests.integration.plugins.server import ApiServer

CONN = "measured"
UNTIL = """([condition, click, longest]) => new Promise((resolve, reject) => {
    const holds = new Function("return " + condition);
    const begin = click ? performance.now() : 0;
    const painted = () => requestAnimationFrame(() => setTimeout(() => resolve(performance.now() - begin)));
    const look = () => (holds() ? painted() : requestAnimationFrame(look));
    setTimeout(() => reject(new Error(condition + " does not hold on " + location)), longest);
    if (click) document.querySelector(click).click();
    look();
})"""
"""Milliseconds from a click, or else from the begin of the navigation, until a condition holds and is painted."""

COUNTS = "document.querySelector('[data-state=done]')"
BATCHES = "document.querySelector('.picas tbody button.link')"
AIRFLOW = "document.body.innerText.includes('default_pool')"
KEY = ".picas td.wide button.link"
ROWS = f"document.querySelector('{KEY}') && !document.querySelector('.picas [aria-busy=true]')"

NAME_NEXT = (
    "() => { [...document.querySelectorAll('.picas button')].find(one => one.innerText === 'Next').id = 'next' }"
)


def run(pool: Pool, batch_of: Callable[[int], str], turns: int, fauxton: Callable[[int], float]) -> Iterator[Result]:
    """Open a batch, the list of batches, a batch in it, and turn a page of its table. ``batch_of``: another batch for each
    turn. ``fauxton``: the seconds of the request that CouchDB's own page sends for the same page of documents."""
    with api_server() as server, opened(server) as page:
        server.connect(CONN, pool)
        pools = f"/plugin/picas?{urlencode({'picas_conn': CONN, 'picas_db': pool.database})}"

        def go(path: str, condition: str) -> float:
            page.goto(server.url + path, wait_until="commit")
            return until(page, condition)

        def turn(number: int) -> tuple[float, ...]:
            batch = batch_of(number)
            airflow = go("/pools", AIRFLOW)
            by_address = go(f"{pools}&picas_batch={batch}", COUNTS)
            listed = go(pools, BATCHES)
            clicked = until(page, COUNTS, click=KEY)
            until(page, ROWS, click="#picas-tab-tokens")
            first = page.locator(KEY).first.inner_text()
            changed = f"{ROWS} && document.querySelector('{KEY}').innerText !== {first!r}"
            page.evaluate(
                "() => { [...document.querySelectorAll('.picas button')].find(b => b.innerText === 'Next').id = 'next' }"
            )
            return airflow, by_address, listed, clicked, until(page, changed, click="#next"), fauxton(number)

        turn(0)  # the API server makes the application at the first request
        measured = [turn(number) for number in range(1, turns + 1)]
    airflow, by_address, listed, clicked, following, theirs = (median(times) for times in zip(*measured, strict=True))
    own = {"a page of Airflow's own": f"{airflow * 1000:.0f} ms"}
    yield result("in a browser: a batch, from a click in the list", clicked, 1.0)
    yield result("in a browser: a batch, from its address", by_address, 1.0, own)
    yield result("in a browser: the list of batches, from its address", listed, 1.0, own)
    yield result(
        "in a browser: the next page of a batch's table",
        following,
        0.3,
        {"Fauxton's request": f"{theirs * 1000:.0f} ms"},
    )


def until(page: Page, condition: str, *, click: str | None = None) -> float:
    """Seconds until this expression holds in the page, and it is painted."""
    milliseconds: float = page.evaluate(UNTIL, [condition, click, SECONDS * 1000])
    return milliseconds / 1000


@contextmanager
def api_server() -> Iterator[ApiServer]:
    """An API server with an empty Airflow."""
    folder = paths.RUN / "bench-page"
    dags = folder.with_name("bench-page-dags")
    dags.mkdir(parents=True, exist_ok=True)
    server = ApiServer(folder, paths.AIRFLOW_VENV, dags)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(dags, ignore_errors=True)


@contextmanager
def opened(server: ApiServer) -> Iterator[Page]:
    """A page of an admin who has logged in."""
    with chromium() as browser:
        context = browser.new_context(viewport={"width": 1440, "height": 1000})
        context.set_default_timeout(SECONDS * 1000)
        context.add_cookies([{"name": "_token", "value": server.token("admin"), "url": server.url}])
        page = context.new_page()
        page.on("pageerror", lambda error: print(f"the page: {error}", file=sys.stderr))
        yield page
        context.close()


def result(name: str, seconds: float, goal: float, more: dict[str, str] | None = None) -> Result:
    """A time with its goal."""
    return Result(name, more or {}, round(seconds * 1000, 1), Goal(goal * 1000), unit="ms")
