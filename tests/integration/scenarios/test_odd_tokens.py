"""Tasks on pools with one odd token among good ones: it may be skipped, with the reason, and the good ones are changed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_picas.couchdb import conflicts
from airflow_provider_picas.couchdb.http import Operation, Request, json_body
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.operators.tokens import (
    PicasCollectTokensOperator,
    PicasDeleteTokensOperator,
    PicasPushTokensOperator,
    PicasResetTokensOperator,
    PicasUpdateTokensOperator,
)
from airflow_provider_picas.tokens.counts import Counts
from airflow_provider_picas.tokens.documents import HUGE_INTEGER
from airflow_provider_picas.tokens.states import State
from tests.integration import lives
from tests.integration.faults import Proxy
from tests.integration.tasks import context

HUGE = "integer of 4301 digits"  # what the proxy replaces: CouchDB keeps such, the embedded server does not
DIGITS = "1" + "0" * 4300
LIMIT = 100_000  # bytes


@pytest.fixture
def proxy(proxy: Proxy) -> Proxy:
    proxy.rewrite = lambda _, status, content: (status, content.replace(f'"{HUGE}"'.encode(), DIGITS.encode()))
    return proxy


def fill(state: State) -> tuple[PicasHook, list[str]]:
    """Four tokens of batch b, the second one odd."""
    hook = PicasHook()
    ids = lives.fill(hook, {state: 4})
    return hook, ids


def left(ids: list[str], reason: str) -> dict[str, Any]:
    return {reason: {"tokens": 1, "ids": [ids[1]]}}


@pytest.mark.usefixtures("proxy")
def test_an_integer_that_python_does_not_read_is_collected_as_text() -> None:
    hook, ids = fill(State.DONE)
    lives.change(hook, ids[1], output=HUGE)
    output = PicasCollectTokensOperator(task_id="collect", batch="b").execute(context("collect"))
    assert output["collected"] == 4
    assert [row["output"] for row in output["rows"]] == [{"words": 7}, DIGITS, {"words": 7}, {"words": 7}]


@pytest.mark.usefixtures("proxy")
def test_a_token_with_such_an_integer_is_not_written_again(tmp_path: Path) -> None:
    hook, ids = fill(State.ERROR)
    lives.change(hook, ids[1], input={"a": [1, HUGE]})
    update = PicasUpdateTokensOperator(task_id="update", batch="b", fields={"priority": 5}, states="error")
    assert update.execute(context("update"))["left"] == left(ids, HUGE_INTEGER)
    reset = PicasResetTokensOperator(task_id="reset", batch="b").execute(context("reset"))
    assert (reset["reset"], reset["left"]) == (3, left(ids, HUGE_INTEGER))
    delete = PicasDeleteTokensOperator(task_id="delete", batch="b", archive=str(tmp_path))
    deleted = delete.execute(context("delete"))
    assert (deleted["deleted"], deleted["left"]) == (3, left(ids, HUGE_INTEGER))
    assert [token["_id"] for token in hook.batch_documents("b")] == [ids[1]]
    assert PicasDeleteTokensOperator(task_id="delete", batch="b").execute(context("delete"))["deleted"] == 1


@pytest.mark.parametrize(("value", "why"), [(HUGE, HUGE_INTEGER), ("x" * LIMIT, "is too large to be written again")])
def test_a_token_that_cannot_be_released_keeps_no_other_from_it(proxy: Proxy, value: str, why: str) -> None:
    hook, ids = fill(State.LOCKED)
    lives.change(hook, ids[1], input=value)
    proxy.largest = LIMIT
    news = lives.release_old(hook, "b")
    assert sorted(token for token, _ in news.reaped) == [ids[0], ids[2], ids[3]]
    assert news.stuck == {ids[1]: why}
    assert dataclasses.asdict(news.holders) == {"known": 0, "foreign": (ids[1],), "patience": 0.0}


@pytest.mark.usefixtures("proxy")
def test_what_an_older_client_left_in_no_state_runs_again_when_the_push_is_cleared() -> None:
    """As the message of a wait that fails on such tokens says."""
    push = PicasPushTokensOperator(task_id="push", batch="b", tokens=[{"input": place} for place in range(3)])
    push.execute(context("push"))
    hook = PicasHook()
    lives.change(hook, "b:00000001", lock=-1, done=-1)
    assert hook.count("b") == Counts(todo=2, stateless=1)
    push.execute(context("push", try_number=2))
    assert hook.count("b") == Counts(todo=3)


@pytest.mark.parametrize("name", [".", "..", "plain"])
def test_a_wait_merges_revisions_in_conflict_of_an_id_without_a_path(proxy: Proxy, name: str) -> None:
    hook = PicasHook()
    base = {"_id": name, "type": "token", "lock": 5, "done": 0, "exit_code": "", "scrub_count": 0}
    log = {"attempt-1.out": {"content_type": "text/plain", "data": "b3V0"}}
    lost = {**base, "_rev": "2-a", "done": 6, "exit_code": 0, "_attachments": log}
    body = json_body({"docs": [{**base, "_rev": "2-f"}, lost], "new_edits": False})

    def merge() -> Operation[list[dict[str, Any]]]:
        yield Request("POST", hook.pool.path("_bulk_docs"), body=body)
        found = yield from conflicts.branches(hook.pool, [name])
        yield from conflicts.settle(hook.pool, found[name], lambda token: False)
        after = yield from conflicts.branches(hook.pool, [name])
        return [*found[name], *after[name]]

    assert [(doc["_rev"][:3], doc["done"]) for doc in hook.do(merge())][:2] == [("2-f", 0), ("2-a", 6)]
    (whole,) = hook.with_attachments([hook.get(name)])
    assert (whole["done"], whole["_attachments"]["attempt-1.out"]["data"]) == (6, "b3V0")
    assert not [request for request in proxy.requests if "/../" in request or "/./" in request]
