"""A proxy that refuses requests above 1 MB, nginx's default: larger writes are split, or the token is named."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_picas.couchdb.errors import TooLargeError
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.operators.tokens import (
    PicasPushTokensOperator,
    PicasResetTokensOperator,
    PicasUpdateTokensOperator,
)
from airflow_provider_picas.tokens.counts import Counts
from airflow_provider_picas.tokens.states import State
from tests.integration import lives
from tests.integration.faults import Proxy
from tests.integration.tasks import context

LIMIT = 1_000_000  # bytes


@pytest.fixture
def proxy(proxy: Proxy) -> Proxy:
    proxy.largest = LIMIT
    return proxy


def push(tokens: list[dict[str, Any]]) -> dict[str, Any]:
    return PicasPushTokensOperator(task_id="push", batch="b", tokens=tokens).execute(context("push"))


def test_tokens_are_pushed_updated_and_reset_in_parts(proxy: Proxy) -> None:
    hook = PicasHook()
    tokens = [{"input": str(place) + "x" * 3_000} for place in range(900)]
    assert push(tokens)["tokens"] == 900
    assert hook.count("b") == Counts(todo=900)
    update = PicasUpdateTokensOperator(task_id="update", batch="b", fields={"priority": 5})
    assert update.execute(context("update"))["updated"] == 900
    writes = sum("_bulk_docs" in request for request in proxy.requests)
    lives.write(hook, [{**token, "lock": 5, "done": 6, "exit_code": 1} for token in hook.batch_documents("b")])
    reset = PicasResetTokensOperator(task_id="reset", batch="b")
    assert reset.execute(context("reset"))["reset"] == 900
    assert hook.count("b") == Counts(todo=900)
    assert writes < 40  # halves, not single tokens


def test_a_token_that_is_too_large_by_itself_is_named(proxy: Proxy) -> None:
    tokens = [{"input": "small"}, {"input": "x" * 1_200_000}, {"input": "small, too"}]
    with pytest.raises(
        TooLargeError, match=r"Token 'b:00000001' is too large\. .*1,200,.* bytes .*client_max_body_size"
    ):
        push(tokens)


def test_a_token_that_is_too_large_to_be_reset_is_left(proxy: Proxy) -> None:
    hook = PicasHook()
    ids = lives.fill(hook, {State.ERROR: 3})
    proxy.largest = None
    lives.change(hook, ids[1], input="x" * LIMIT)
    proxy.largest = LIMIT
    output = PicasResetTokensOperator(task_id="reset", batch="b").execute(context("reset"))
    assert (output["reset"], output["left"]) == (
        2,
        {"is too large to be written again": {"tokens": 1, "ids": [ids[1]]}},
    )
    assert hook.count("b") == Counts(todo=2, error=1)
