"""Counts and waits while CouchDB builds an index, which takes longer than a request may take."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import pytest

from airflow_provider_picas.couchdb import errors, http
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.hooks.picas_async import PicasAsyncHook
from airflow_provider_picas.sensors.tokens import PicasTokenStateSensor
from airflow_provider_picas.tokens import documents
from airflow_provider_picas.tokens.counts import Counts
from airflow_provider_picas.tokens.selection import Selection
from airflow_provider_picas.tokens.states import State
from airflow_provider_picas.triggers import events
from airflow_provider_picas.triggers.events import PicasTokenEventTrigger
from stack import native
from stack.couchdb import CouchDBAdmin
from stack.pool import Pool
from tests.conftest import set_connection
from tests.integration.tasks import context

NUMBER = 800
SLOW = "(function () { var end = Date.now() + 5; while (Date.now() < end) {} return true; })()"
"""A condition that takes five milliseconds, twice for each token, so that the index takes eight seconds on any machine."""

REQUEST_TIMEOUT = "/_node/_local/_config/fabric/request_timeout"


@pytest.fixture(params=["the client gives up", "CouchDB answers 500"])
def slow(
    request: pytest.FixtureRequest, pool: Pool, couchdb: CouchDBAdmin, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A connection to a pool whose counts come from an index that is not built yet, with too few tries to wait for it.

    A try that ends just after the index is built counts, and on a busy machine another may take longer than its second.
    """
    monkeypatch.setattr(http, "TRIES", 1)
    monkeypatch.setattr(http, "TRIES_TO_CONNECT", 2)
    by_server = request.param != "the client gives up"
    if by_server and couchdb.request("GET", "/")[1]["vendor"]["name"] != "The Apache Software Foundation":
        pytest.skip("The embedded server holds a request for as long as it takes.")
    fields = native.picas_connection(pool)
    plain = PicasHook(set_connection(monkeypatch, "plain", fields))
    plain.deploy_views()
    plain.push(documents.new_token({"input": n}, batch="b", push="b", ordinal=n) for n in range(NUMBER))
    plain.count()  # the other views' index is built, but for the slow one
    plain.deploy_views({"Slow": SLOW})
    extra = {"design_document": "Slow", **({} if by_server else {"read_timeout": 1})}
    if by_server:
        couchdb.request("PUT", REQUEST_TIMEOUT, "1000")
    yield set_connection(monkeypatch, "picas_default", {**fields, "extra": extra})
    if by_server:
        couchdb.request("DELETE", REQUEST_TIMEOUT)


def test_a_task_waits_for_the_index(slow: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert PicasHook(slow).count() == Counts(todo=NUMBER)
    assert capsys.readouterr().out.count("is building the index of Slow") == 1


@pytest.mark.parametrize("work", ["collect", "reset"])
def test_a_task_that_reads_or_changes_tokens_waits_too(slow: str, work: str) -> None:
    hook = PicasHook(slow)
    if work == "collect":
        assert sum(1 for _ in hook.tokens(State.TODO)) == NUMBER
    else:
        assert hook.editor.reset(Selection.parse(states=["error"])).changed == 0


def test_a_poke_does_not_wait_for_the_index(slow: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It does not block: the time-out is looked at between the pokes."""
    sensor = PicasTokenStateSensor(task_id="wait", batch=None, success_threshold=1)
    said, pokes = "", 0
    while f"{NUMBER} to do" not in said:
        assert not sensor.poke(context("wait"))
        said += capsys.readouterr().out
        pokes += 1
        assert pokes < 1000, said
    assert pokes > 1
    assert said.count("The wait continues until its deadline") == 1


def test_a_watcher_does_not_wait_for_the_index(
    slow: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(events, "TRY_AGAIN", 0.2)

    async def first() -> Any:
        trigger = PicasTokenEventTrigger(event="todo", batch="b")
        async with asyncio.timeout(120), aclosing(trigger.run()) as stream:
            async for event in stream:
                return event.payload
        return None

    found = asyncio.run(first())
    assert found["counts"]["todo"] == NUMBER
    assert capsys.readouterr().out.count("The watcher continues") == 1


def test_what_is_not_an_index_fails_as_before(pool: Pool, picas_default: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hook = PicasHook(picas_default, wait_for_index=False)
    hook.deploy_views()
    assert hook.count() == Counts()
    set_connection(monkeypatch, "away", {**native.picas_connection(pool), "host": "http://127.0.0.1", "port": 1})
    monkeypatch.setattr(http, "TRIES_TO_CONNECT", 1)
    with pytest.raises(errors.UnavailableError):
        PicasHook("away").count()

    async def count() -> None:
        async with PicasAsyncHook("away") as asynchronous:
            await asynchronous.count()

    with pytest.raises(errors.UnavailableError):
        asyncio.run(count())
