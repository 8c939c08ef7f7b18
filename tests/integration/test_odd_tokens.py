"""Tasks on pools that hold an odd token beside good ones: it may be left, with the reason, and the good ones are changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_picas import reaping
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.operators.tokens import (
    PicasCollectTokensOperator,
    PicasDeleteTokensOperator,
    PicasResetTokensOperator,
    PicasUpdateTokensOperator,
)
from airflow_provider_picas.tokens.documents import HUGE_INTEGER
from airflow_provider_picas.tokens.states import State
from stack import native
from stack.pool import Pool
from tests.conftest import set_connection
from tests.integration import lives
from tests.integration.faults import Proxy
from tests.integration.tasks import context

HUGE = "integer of 4301 digits"  # what the proxy replaces: CouchDB keeps such, the embedded server does not
DIGITS = "1" + "0" * 4300
LIMIT = 100_000  # bytes


@pytest.fixture
def proxy(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with Proxy(pool.url) as proxy:
        proxy.rewrite = lambda _, status, content: (status, content.replace(f'"{HUGE}"'.encode(), DIGITS.encode()))
        set_connection(monkeypatch, "picas_default", native.picas_connection(pool) | {"host": proxy.url, "port": None})
        yield proxy


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
def test_a_token_that_cannot_be_given_back_keeps_no_other_from_it(proxy: Proxy, value: str, why: str) -> None:
    hook, ids = fill(State.LOCKED)
    lives.change(hook, ids[1], input=value)
    proxy.largest = LIMIT
    news = hook.do(reaping.look_after(hook.pool, "b", None, max_scrubs=3, max_lock_age=1))
    assert sorted(token for token, _ in news.reaped) == [ids[0], ids[2], ids[3]]
    assert news.stuck == {ids[1]: why}
    assert dataclasses.asdict(news.holders) == {"known": 0, "foreign": (ids[1],), "patience": 0.0}
