"""A wait in a cluster of CouchDB nodes whose copy of the database lags when it counts. A proxy plays that copy."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, TaskDeferred

from stack import native
from stack.pool import Pool
from tests.conftest import set_connection
from tests.integration.faults import Proxy
from tests.integration.sensors import test_tokens
from tests.integration.sensors.test_tokens import DONE, put, remove, run_poked, sensor
from tests.integration.tasks import context

batch, settle_soon = test_tokens.batch, test_tokens.settle_soon


@pytest.fixture
def lagging(batch: dict[str, Any], pool: Pool, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Ten done tokens, of which the first three answers of each view, and of lists of documents, show six. The views asked."""
    put(range(10), DONE)
    asked: list[str] = []

    def rewrite(request: str, status: int, content: bytes) -> tuple[int, bytes]:
        view = request.partition("?")[0]
        counts = "/_view/counts" in view
        if not counts and not (view.startswith("GET") and "_all_docs" in view):
            return status, content
        asked.append(view)
        if asked.count(view) > 3:
            return status, content
        answer = json.loads(content)
        for result in answer.get("results", [answer]):
            result["rows"] = [{"key": ["b", "done"], "value": 6}] if counts else result["rows"][:6]
        return status, json.dumps(answer).encode()

    with Proxy(pool.url) as proxy:
        proxy.rewrite = rewrite
        set_connection(monkeypatch, "lagging", {**native.picas_connection(pool), "host": proxy.url})
        yield asked


def test_a_poke_does_not_fail_by_a_copy_that_lags(lagging: list[str], batch: dict[str, Any]) -> None:
    assert run_poked(sensor(batch, picas_conn_id="lagging"))["done"] == 10
    assert any("_all_docs" in view for view in lagging)


def test_what_the_trigger_counted_does_not_fail_it_either(lagging: list[str], batch: dict[str, Any]) -> None:
    waits = sensor(batch, picas_conn_id="lagging", deferrable=True)
    event = {"outcome": "lost", "counts": {"todo": 0, "locked": 0, "done": 6, "error": 0}, "expected": 10}
    with pytest.raises(TaskDeferred):
        waits.execute_complete(context("wait"), event, deadline=time.time() + 60)
    assert lagging


def test_tokens_that_are_gone_fail_it_all_the_same(lagging: list[str], batch: dict[str, Any]) -> None:
    remove([7, 8])
    with pytest.raises(AirflowFailException, match=r"are missing \(b:00000007, b:00000008"):
        run_poked(sensor(batch, picas_conn_id="lagging"))
    assert lagging
