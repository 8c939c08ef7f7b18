"""Responses that never end or are far too large: both hooks abort them at a limit and name it."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from airflow_provider_picas.couchdb import errors, http
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.hooks.picas_async import PicasAsyncHook
from airflow_provider_picas.tokens.states import State
from tests.integration import lives
from tests.integration.faults import Fault, Proxy

pytestmark = pytest.mark.usefixtures("no_pauses")


def ask() -> Any:
    return PicasHook().get("x")


def ask_async() -> Any:
    async def whole() -> Any:
        async with PicasAsyncHook() as hook:
            return await hook.get("x")

    return asyncio.run(whole())


@pytest.mark.parametrize("question", [ask, ask_async])
@pytest.mark.parametrize("fault", [Fault.BOMB, Fault.ENDLESS])
def test_an_answer_of_more_bytes_than_any_has(proxy: Proxy, question: Callable[[], Any], fault: Fault) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    proxy.hurt(fault, on="/x")
    with pytest.raises(errors.LargeResponseError, match=r"to GET /test_\w+/x has more than 64,000,000 bytes"):
        question()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # kB: it is not a gigabyte


@pytest.mark.parametrize("question", [ask, ask_async])
def test_an_answer_that_trickles_ends_in_time(
    proxy: Proxy, question: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "TRIES_TO_CONNECT", 1)
    monkeypatch.setattr(http, "SLOWEST_RESPONSE", 0.05)  # of 60 s
    proxy.hurt(Fault.TRICKLE, on="/x")
    with pytest.raises(errors.UnavailableError, match=r"to GET /test_\w+/x was not complete after 3 s"):
        question()


def test_a_page_that_is_too_large_is_read_in_smaller_ones(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    hook = PicasHook()
    ids = lives.fill(hook, {State.DONE: 40}, output="x" * 3_000)
    check_size = http.check_size
    monkeypatch.setattr(
        http,
        "check_size",
        lambda settings, request, size: check_size(settings, replace(request, largest=50_000), size),
    )
    assert [token["_id"] for token in hook.tokens(State.DONE, "b")] == ids
    assert [token["_id"] for token in hook.batch_documents("b")] == ids
    assert sorted(hook.do(hook.pool.fetch(ids))) == ids
