"""The page of a large pool: what the API server takes for its answers, and what a browser takes, beside the request of
CouchDB's own page, Fauxton, for the same list.

HTTP and Airflow's check of the user come on top of the answers, about 20 ms. Needs Apache CouchDB for figures that mean
something; with ``PICAS_BENCH_PAGE_TOKENS`` for a smaller pool.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import urllib.request
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any

from airflow_provider_picas.couchdb.http import json_body
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.plugins import answers, overview
from airflow_provider_picas.plugins.access import Scope, Viewer
from airflow_provider_picas.plugins.live import reader_for
from airflow_provider_picas.tokens import documents, views
from airflow_provider_picas.tokens.table import Filter
from benchmarks import browser
from benchmarks.measure import Goal, Result, clock
from benchmarks.server import CONN_ID, Server
from stack.pool import Pool

TOKENS = int(os.environ.get("PICAS_BENCH_PAGE_TOKENS", "1000000"))
BATCHES = 300
ROWS = 50  # of a page of the table
NOW = 1_763_820_000
REQUEST = 2_000  # tokens written by one request


def run(server: Server, pairs: int) -> Iterator[Result]:
    """The first look at a batch, later ones, pages of its table, and the list of batches. The indexes are built before."""
    with server.pool(views=True) as pool:
        hook = PicasHook(CONN_ID)
        size = _fill(hook)
        hook.do(_ask(hook, "counts", views.PROVIDER))
        yield asyncio.run(_unbuilt(pool))
        hook.do(_ask(hook, "ended", views.PAGE))
        yield from asyncio.run(_answers(pool, size, pairs))
        yield from browser.run(pool, _batch, pairs, lambda turn: _fauxton(pool, turn * size + ROWS))


def _ask(hook: PicasHook, view: str, design: str) -> Any:
    yield hook.pool.view_request(view, design, limit=1, reduce=False)


async def _unbuilt(pool: Pool) -> Result:
    """The first look, before CouchDB has built the index of the page's views."""
    user: Any = SimpleNamespace(get_name=lambda: "bench")
    viewer = Viewer(Scope(CONN_ID, pool.database, _batch(0)), user, None)
    with clock() as time:
        found = await overview.overview(viewer)
    built = "being built" if found.building else "built"
    return _result(f"the first look at a batch, the index of the page's views is {built}", time.seconds, 1.0)


async def _answers(pool: Pool, size: int, pairs: int) -> list[Result]:
    user: Any = SimpleNamespace(get_name=lambda: "bench")
    found: list[Result] = []
    large = f"{TOKENS:,} tokens in {BATCHES} batches"

    async def timed(ask: Callable[[int], Awaitable[Any]]) -> float:
        taken = []
        for turn in range(pairs):
            with clock() as time:
                await ask(turn)
            taken.append(time.seconds)
        return sorted(taken)[len(taken) // 2]

    def scope(turn: int) -> Scope:
        return Scope(CONN_ID, pool.database, _batch(turn))

    first = await timed(lambda turn: overview.overview(Viewer(scope(turn), user, None)))
    found.append(_result(f"the first look at a batch of {large}", first, 1.0))
    batches = await timed(lambda turn: _batches(pool))
    found.append(_result("the list of batches", batches, 1.0))
    nobody = Filter()

    async def next_page(turn: int) -> None:
        page = await answers.tokens.tokens(scope(turn), None, nobody, None, ROWS, False)
        with clock() as time:
            await answers.tokens.tokens(scope(turn), None, nobody, page.next, ROWS, False)
        seconds.append(time.seconds)

    seconds: list[float] = []
    await timed(next_page)
    ours = sorted(seconds)[len(seconds) // 2]
    theirs = sorted([await asyncio.to_thread(_fauxton, pool, turn * size + ROWS) for turn in range(pairs)])[pairs // 2]
    found.append(_result(f"the next page of a batch's table, {ROWS} tokens", ours, 0.3, theirs))
    latest = await timed(lambda turn: answers.tokens.latest(scope(turn), None, None, ROWS, True))
    found.append(_result("the tokens of a batch that ended last", latest, 0.3))
    causes = await timed(lambda turn: answers.causes.causes(scope(turn)))
    found.append(_result("the causes of a batch's failures", causes, 1.0))
    return found


async def _batches(pool: Pool) -> None:
    reader = reader_for(CONN_ID, pool.database)
    reader.readings.drop()
    reader.recent.clear()
    recent = await answers.pools.recent_batches(reader)
    await answers.pools.batches_by_name(reader, "", answers.pools.BATCHES_OF_A_PAGE - len(recent))


def _result(name: str, seconds: float, goal: float, fauxton: float | None = None) -> Result:
    figures = {"Fauxton's request": f"{fauxton * 1000:.0f} ms"} if fauxton is not None else {}
    return Result(name, figures, round(seconds * 1000, 1), Goal(goal * 1000), unit="ms")


def _fauxton(pool: Pool, skip: int) -> float:
    """The seconds of the request that CouchDB's own page sends for the next documents. Its own files are not always
    installed, so its time in a browser is not measured."""
    path = f"{pool.database}/_all_docs?include_docs=true&limit={ROWS + 1}&skip={skip}"
    request = urllib.request.Request(f"{pool.url}/{path}")
    request.add_header("Authorization", f"Basic {b64encode(f'{pool.user}:{pool.password}'.encode()).decode()}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with clock() as time, opener.open(request, timeout=600) as answer:
        json.load(answer)
    return time.seconds


def _fill(hook: PicasHook) -> int:
    """Write the tokens, most of them done; returns the size of a batch."""
    size = max(1, TOKENS // BATCHES)
    tokens = (_token(batch, n, size) for batch in range(BATCHES) for n in range(size))
    while some := list(itertools.islice(tokens, REQUEST)):
        hook.do(hook.pool.write([json_body(token) for token in some]))
    return size


def _batch(turn: int) -> str:
    """Another batch for each turn."""
    return f"b{(turn * 7 + 5) % BATCHES}"


def _token(batch: int, n: int, size: int) -> dict[str, Any]:
    name = f"b{batch}"
    token = documents.new_token({"input": f"file-{n}"}, batch=name, push=name, ordinal=n)
    if n % 20 == 19:
        return token
    at = NOW + batch * 600 + n * 3_600 // size
    ended = {"lock": at, "done": at + 60, "hostname": f"node{n % 40}", "slurm_job_id": f"{batch}_{n % 100}"}
    if n % 25 == 0:
        error = [{"time": at, "message": f"exit code {n % 3 + 1}: no file {n}"}]
        return {**token, **ended, "exit_code": n % 3 + 1, "error": error}
    return {**token, **ended, "exit_code": 0, "output": {"words": n}}
