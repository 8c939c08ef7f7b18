"""Large locked tokens: a wait reads them once, page by page, and releases those of dead pilots in portions."""

from __future__ import annotations

import time
from typing import Any

import pytest

from airflow_provider_picas.couchdb import edits
from airflow_provider_picas.couchdb import pool as pools
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.submissions.deaths import ObservedLeases
from airflow_provider_picas.submissions.watch import PilotStatus, check_pilots
from airflow_provider_picas.tokens.states import State
from tests.integration import lives
from tests.integration.faults import Proxy

SIZE = 40_000  # bytes of each token
TOKENS = 40


@pytest.fixture
def proxy(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Proxy:
    monkeypatch.setattr(pools, "PAGE_BYTES", 200_000)
    monkeypatch.setattr(edits, "WRITE_BYTES", 200_000)
    return proxy


def look(hook: PicasHook, observer: ObservedLeases, **keys: Any) -> PilotStatus:
    options = {"max_scrubs": 3, "max_lock_age": None, "observer": observer, **keys}
    return hook.do(check_pilots(hook.pool, "b", None, **options))  # type: ignore[arg-type]


def answers(proxy: Proxy) -> list[int]:
    """The sizes of the answers from now on."""
    sizes: list[int] = []

    def measured(request: str, status: int, content: bytes) -> tuple[int, bytes]:
        sizes.append(len(content))
        return status, content

    proxy.rewrite = measured
    return sizes


def test_checks_read_large_tokens_once(proxy: Proxy) -> None:
    hook, observer = PicasHook(), ObservedLeases()
    ids = lives.fill(hook, {State.LOCKED: TOKENS}, large="x" * SIZE)
    sizes = answers(proxy)
    first = look(hook, observer)
    assert first.locked == TOKENS
    assert TOKENS * SIZE < sum(sizes) < 1.2 * TOKENS * SIZE
    assert max(sizes) < 6 * SIZE  # those by which it learned how large they are
    assert "x" * SIZE not in repr(observer.locked)
    sizes.clear()
    lives.change(hook, ids[3], hostname="n2")
    sizes.clear()
    assert look(hook, observer).locked == TOKENS
    assert SIZE < sum(sizes) < 2 * SIZE, "the one that has changed is read"
    sizes.clear()
    lives.change(hook, ids[4], done=lives.NOW + 60, exit_code=0)
    sizes.clear()
    assert look(hook, observer).locked == TOKENS - 1
    assert sum(sizes) < SIZE


def test_large_tokens_of_the_dead_are_released_in_portions(proxy: Proxy) -> None:
    hook = PicasHook()
    ids = lives.fill(hook, {State.LOCKED: TOKENS}, large="x" * SIZE, attempts=[])
    sizes = answers(proxy)
    proxy.largest = 6 * SIZE
    news = lives.release_old(hook, "b")
    assert sorted(name for name, _ in news.reaped) == ids
    assert max(sizes) < 6 * SIZE
    assert hook.count("b").todo == TOKENS
    writes = [request for request in proxy.requests if "_bulk_docs" in request]
    assert len(writes) >= TOKENS * SIZE // 200_000
    assert hook.get(ids[0])["large"] == "x" * SIZE


def test_a_token_that_changes_after_it_was_evaluated_is_left(proxy: Proxy) -> None:
    hook, observer = PicasHook(), ObservedLeases()
    ids = lives.fill(hook, {State.LOCKED: 3})
    look(hook, observer, max_lock_age=0.2)
    time.sleep(0.2)  # for which nobody has saved them
    behind = PicasHook()
    _ = behind.settings
    changed: list[str] = []

    def meanwhile(request: str, status: int, content: bytes) -> tuple[int, bytes]:
        if "picas-quorum" in request or ("_local_docs" in request and not changed):
            changed.append(ids[1])
            proxy.rewrite = lambda request, status, content: (status, content)
            lives.change(behind, ids[1], hostname="n2", lock=lives.NOW + 10**9)
        return status, content

    proxy.rewrite = meanwhile
    news = look(hook, observer, max_lock_age=0.2)
    assert changed
    assert sorted(name for name, _ in news.reaped) == [ids[0], ids[2]]
    assert hook.get(ids[1])["hostname"] == "n2"
