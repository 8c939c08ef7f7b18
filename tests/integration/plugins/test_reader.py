"""What the page reads of a pool for a person who looks on: not more than it shows, and nothing that has to wait.

In the process of the tests, with the times of the page shortened.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import HTTPException

from airflow_provider_picas.couchdb import batch_pilots, chains, new_tokens
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.plugins import access, answers, live, overview, page_index
from airflow_provider_picas.plugins.access import Scope, Viewer
from airflow_provider_picas.plugins.models import Building
from airflow_provider_picas.plugins.routes import events
from airflow_provider_picas.tokens import views
from airflow_provider_picas.tokens.chain import Chain
from airflow_provider_picas.tokens.documents import new_token
from airflow_provider_picas.tokens.groups import Grouping
from airflow_provider_picas.tokens.states import State
from airflow_provider_picas.tokens.table import Filter
from airflow_provider_picas.triggers import feed, subscriptions
from stack import native
from stack.couchdb import CouchDBAdmin
from stack.pool import Pool
from tests.conftest import set_connection
from tests.integration.faults import Fault, Proxy
from tests.integration.lives import LIVES, change, fill, write

SLOW = "var until = Date.now() + 4; while (Date.now() < until) {}"
"""Takes 4 ms for each token in each of the page's two views."""

COPIES = 6
"""Of an index, at most: a cluster of three nodes has three for each of the database's two ranges."""

SHORTER = 30
"""How many times shorter the page's times are here."""


@pytest.fixture
def proxy(pool: Pool, picas_default: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """What the page's requests go through; those of the tests do not."""
    with Proxy(pool.url) as started:
        set_connection(monkeypatch, "paged", {**native.picas_connection(pool), "host": started.url, "port": None})
        yield started


@pytest.fixture
def hook(picas_default: str) -> PicasHook:
    found = PicasHook(picas_default)
    found.deploy_views()
    return found


def viewer(batch: str | None = "b", why_not: str | None = None) -> Viewer:
    user: Any = SimpleNamespace(get_name=lambda: "me")
    return Viewer(Scope("paged", None, batch), user, why_not)


@asynccontextmanager
async def reader() -> AsyncIterator[live.PoolReader]:
    """The page's reader of the pool, which is closed at the end."""
    found = live.reader_for("paged", None)
    yield found
    async with found.using() as hook:
        pass
    await hook.__aexit__()


def on_a_page(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        async with reader(), asyncio.timeout(120):
            await test()

    asyncio.run(run())


# -- the index --------------------------------------------------------------------------------------------------------


def test_nothing_waits_for_the_index_of_the_pages_views(
    proxy: Proxy, hook: PicasHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    design = hook.get(f"_design/{views.PAGE}")
    for view in design["views"].values():
        view["map"] = view["map"].replace("{", "{" + SLOW, 1)
    hook.do(hook.pool.put(design))
    tokens = fill_all(hook, 500)
    hook.count("b")
    monkeypatch.setattr(page_index, "FEW", 50)
    monkeypatch.setattr(page_index, "ASK_AGAIN", 0.2)

    async def look() -> None:
        first = await overview.overview(viewer())
        assert first.building is not None
        assert (first.history, first.views, first.counts.done) == (None, "page", tokens)
        scope = viewer().scope
        assert len((await answers.tokens.tokens(scope, None, Filter("b"), None, 50, False)).tokens) == 50
        told = [first.building.percent]
        for ask in (
            lambda: answers.pilots.pilots(scope),
            lambda: answers.nodes.nodes(scope),
            lambda: answers.tokens.latest(scope, None, None, 50, True),
            lambda: overview.overview(viewer()),
        ):
            while (answer := await ask()).building is not None:
                told.append(answer.building.percent)
                assert waiting(proxy) == []
                await asyncio.sleep(0.05)
        assert all(percent is not None for percent in told)
        assert told == sorted(told, key=lambda percent: percent or 0)
        lazy = len([request for request in proxy.requests if "update=lazy" in request])
        assert 1 <= lazy <= COPIES
        assert await ended() == [tokens, 0]
        assert [(node.node, node.done) for node in (await answers.nodes.nodes(scope)).nodes] == [("n1", tokens)]
        assert len((await answers.pilots.pilots(scope)).bars) == 400
        assert len((await answers.tokens.latest(scope, None, None, 50, True)).tokens) == 50

    on_a_page(look)


def fill_all(hook: PicasHook, number: int) -> int:
    write(
        hook,
        [{**new_token({"input": n}, batch="b", push="b", ordinal=n), **LIVES[State.DONE]} for n in range(number)],
    )
    return number


def waiting(proxy: Proxy) -> list[str]:
    """Requests that CouchDB answers when the index of the page's views is up to date."""
    return [one for one in proxy.requests if f"{views.PAGE}/_view/" in one and "update=lazy" not in one]


def test_a_query_that_takes_long_is_sent_once(proxy: Proxy, hook: PicasHook, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on servers that do not say how far behind an index is."""
    fill(hook, {State.DONE: 3})
    monkeypatch.setattr(page_index, "PATIENCE", 0.2)
    proxy.hurt(Fault.HOLD, on="_view/ended")

    async def look() -> None:
        for _ in range(3):
            found = await overview.overview(viewer())
            assert (found.history, found.building, found.counts.done) == (None, Building(percent=None), 3)
        assert len(waiting(proxy)) == 1
        proxy.let_go.set()
        while (found := await overview.overview(viewer())).building is not None:
            await asyncio.sleep(0.05)
        assert found.history is not None

    on_a_page(look)


def test_the_plot_continues_with_the_counts(proxy: Proxy, hook: PicasHook) -> None:
    """The views are not read again for each token that ends."""
    tokens = fill(hook, {State.TODO: 3, State.DONE: 2})

    async def look() -> None:
        assert await ended() == [2, 0]
        asked = len(waiting(proxy))
        for name, state in zip(tokens, (State.DONE, State.ERROR), strict=False):
            await asyncio.to_thread(change, hook, name, **LIVES[state])
        while await ended() != [3, 1]:
            await asyncio.sleep(0.05)
        assert len(waiting(proxy)) == asked

    on_a_page(look)


def test_views_that_are_missing_are_asked_for_once_a_minute(proxy: Proxy, hook: PicasHook) -> None:
    fill(hook, {State.DONE: 1})
    hook.do(hook.pool.put({**hook.get(f"_design/{views.PAGE}"), "_deleted": True}))

    async def look() -> None:
        for _ in range(3):
            found = await overview.overview(viewer())
            assert (found.views, found.history, found.building) == ("partial", None, None)
            assert (await answers.pilots.pilots(viewer().scope)).building is None
            with pytest.raises(HTTPException, match="deploy-views"):
                await answers.nodes.nodes(viewer().scope)
        assert len([one for one in proxy.requests if views.PAGE in one]) == 1

    on_a_page(look)


async def ended() -> list[int]:
    """How many tokens are done and in error by the plot."""
    history = (await overview.overview(viewer())).history
    assert history is not None
    return [sum(each[part] for each in history.points) for part in (1, 2)]


# -- how much is read -------------------------------------------------------------------------------------------------


@pytest.fixture
def shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every time that says how often something is read."""
    for module, *names in (
        (live, "OFTEN", "SELDOM", "LOOK", "PATIENCE"),
        (
            overview,
            "PILOTS_KEPT",
            "PILOTS_KEPT_AT_END",
            "HISTORY_KEPT",
            "ACCESS_KEPT",
            "LEASES_KEPT",
            "SUBMISSIONS_KEPT",
        ),
        (answers.causes, "CAUSES_KEPT"),
        (answers.chain, "COUNTS_KEPT", "LINKS_KEPT"),
        (answers.nodes, "NODES_KEPT", "RUNS_KEPT"),
        (answers.pilots, "RUNNING_KEPT", "ENDED_KEPT", "RUNS_KEPT", "WATCH_AGAIN"),
        (page_index, "FRESH"),
        (events, "PAUSE", "LOOK"),
        (feed, "CHECK_AGAIN", "GATHER", "SHORTEST_PAUSE", "PATIENT"),
        (subscriptions, "WHILE_MANY"),
    ):
        for name in names:
            if hasattr(module, name):
                monkeypatch.setattr(module, name, getattr(module, name) / SHORTER)


async def watch(seconds: float, seen: list[Any], tab: str = "overview") -> None:
    """What a browser does that shows a tab of a batch: it follows the events, and reads the lists again now and then."""

    async def follow() -> None:
        async with aclosing(events._events(viewer())) as stream:
            async for event in stream:
                if event.startswith("event: overview"):
                    seen.append(json.loads(event.partition("data: ")[2]))

    async def read_lists() -> None:
        while True:
            await LISTS[tab]()
            await asyncio.sleep((30 if tab == "tokens" else 5) / SHORTER)

    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.gather(follow(), read_lists())


async def read_chain() -> None:
    await answers.causes.causes(viewer().scope)
    assert len((await answers.chain.chain(viewer())).nodes) == 3


async def read_pilots() -> None:
    await answers.pilots.pilots(viewer().scope)
    await answers.nodes.nodes(viewer().scope)


LISTS: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
    "overview": lambda: answers.causes.causes(viewer().scope),
    "chain": read_chain,
    "pilots": read_pilots,
    "tokens": lambda: answers.tokens.tokens(viewer().scope, None, Filter("b"), None, 50, False),
}


async def work(hook: PicasHook, tokens: list[str]) -> None:
    """Tokens change all the time."""
    while tokens:
        await asyncio.to_thread(change, hook, tokens.pop(), **LIVES[State.DONE])
        await asyncio.sleep(0.02)


@pytest.mark.usefixtures("shorter")
@pytest.mark.parametrize("tab", LISTS)
def test_a_watcher_costs_less_than_one_request_in_five_seconds(
    proxy: Proxy, hook: PicasHook, tab: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = fill(hook, {State.ERROR: 2, State.TODO: 2_000})
    pilots = {"submission": "s.1", "folder": "/h/s.1", "submitted": "2026-01-01T00:00:00+00:00", "job_ids": ["12"]}
    hook.do(batch_pilots.note(hook.pool, "b", {**pilots, "ssh_conn_id": "spider"}))
    if tab == "chain":
        # There is no Airflow in here to ask for rights.
        monkeypatch.setattr(access, "visible_batches", lambda viewer, batches: set(batches))
        stages = Chain("b", ("s", "t"), groups={"t": Grouping("s")})
        hook.do(new_tokens.deploy(hook.pool))
        hook.do(chains.note(hook.pool, stages))
    minutes = 4
    seen: list[Any] = []

    async def look() -> None:
        working = asyncio.create_task(work(hook, tokens[2:]))
        await watch(60 / SHORTER, [], tab)  # the first minute has the first readings
        begin, before = time.monotonic(), len(proxy.requests)
        await watch(minutes * 60 / SHORTER, seen, tab)
        elapsed = (time.monotonic() - begin) * SHORTER
        working.cancel()
        requests = proxy.requests[before:]
        print(f"{len(requests)} requests in {elapsed:.0f} s:", *sorted(short(one) for one in requests), sep="\n  ")
        assert len(requests) < elapsed / 5

    on_a_page(look)
    done = [each["counts"]["done"] for each in seen]
    assert done == sorted(done)
    assert len(set(done)) >= 2 * minutes, "a person sees how it goes on"  # a slow machine has a second for each


def short(request: str) -> str:
    """A request without its parameters."""
    return request.partition("?")[0]


@pytest.mark.usefixtures("shorter")
def test_what_changes_after_a_rest_is_shown_at_once(proxy: Proxy, hook: PicasHook) -> None:
    """And while nothing changes, little is read: what pilots say, and whether the database is still the same."""
    tokens = fill(hook, {State.TODO: 3})

    async def look() -> None:
        await watch(60 / SHORTER, [])
        before = len(proxy.requests)
        await watch(60 / SHORTER, [])
        quiet = proxy.requests[before:]
        assert len(quiet) <= 4, quiet
        seen: list[Any] = []
        watching = asyncio.create_task(watch(live.SELDOM + 60 / SHORTER, seen))
        begin = time.monotonic()
        await asyncio.to_thread(change, hook, tokens[0], **LIVES[State.DONE])
        while not seen or seen[-1]["counts"]["done"] == 0:
            await asyncio.sleep(0.01)
        print(f"shown after {(time.monotonic() - begin) * SHORTER:.1f} s")
        await watching

    on_a_page(look)


# -- a login that may only read ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["forbidden", "unauthorized"])
@pytest.mark.parametrize("may_write", [True, False])
def test_a_login_that_may_only_read_is_known_before_it_changes_anything(
    proxy: Proxy, hook: PicasHook, pool: Pool, couchdb: CouchDBAdmin, word: str, may_write: bool
) -> None:
    tokens = fill(hook, {State.ERROR: 2})
    refuse = (
        f"if (user.name != '{'nobody' if not may_write else pool.user}') throw ({{{word}: 'Readers may only read.'}});"
    )
    function = f"function (doc, old, user) {{ if (user.roles.indexOf('_admin') < 0) {{ {refuse} }} }}"
    status, _ = couchdb.request("PUT", f"/{pool.database}/_design/guard", {"validate_doc_update": function})
    assert status == 201
    before = hook.get(tokens[0]), position(hook)

    async def look() -> None:
        for _ in range(3):
            found = await overview.overview(viewer())
        rerun = found.actions.rerun
        assert rerun.allowed is may_write
        assert may_write or "Readers may only read." in str(rerun.why_not)
        assert len([one for one in proxy.requests if "_bulk_docs" in one]) == 1
        assert found.trouble is None

    on_a_page(look)
    assert (hook.get(tokens[0]), position(hook)) == before


def position(hook: PicasHook) -> str:
    """The number of changes of the pool so far."""
    return str(hook.do(hook.pool.info())["update_seq"]).partition("-")[0]


@pytest.mark.parametrize("why_not", [None, "You may look, but not act."])
def test_nothing_is_offered_where_every_login_may_write_or_the_user_may_not(
    proxy: Proxy, hook: PicasHook, why_not: str | None
) -> None:
    fill(hook, {State.ERROR: 1})

    async def look() -> None:
        found = await overview.overview(viewer(why_not=why_not))
        assert found.actions.rerun.why_not == why_not

    on_a_page(look)
    assert [one for one in proxy.requests if "_bulk_docs" in one] == []
