"""The gauges of a pool, as they reach Airflow's metrics."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.providers.common.compat.sdk import Stats

from airflow_provider_picas import metrics
from airflow_provider_picas.metrics import PoolGauges
from airflow_provider_picas.tokens.counts import Counts


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    found: dict[str, float] = {}
    monkeypatch.setattr(Stats, "gauge", lambda name, value, **_: found.update({name: value}))
    return found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    class Clock:
        now = 1_000.0

        def monotonic(self) -> float:
            return self.now

    made = Clock()
    monkeypatch.setattr(metrics, "time", made)
    return made


def test_gauges_have_states_and_rate(sent: dict[str, float], clock: Any) -> None:
    gauges = PoolGauges()
    gauges.database = "group/pool"
    gauges.note("a", Counts(todo=5))
    gauges.note("b", Counts(todo=3, done=100))  # finished before: no part of the rate
    gauges.note("a", Counts(todo=1, locked=2, done=1, error=1))
    gauges.send()
    assert sent == {}  # too soon
    clock.now += 30
    gauges.send()
    assert sent == {
        "picas.group_pool.tokens.todo": 4,
        "picas.group_pool.tokens.locked": 2,
        "picas.group_pool.tokens.done": 101,
        "picas.group_pool.tokens.error": 1,
        "picas.group_pool.finished_per_minute": 4.0,
    }
    gauges.forget("b")
    clock.now += 30
    gauges.send()
    assert (sent["picas.group_pool.tokens.done"], sent["picas.group_pool.finished_per_minute"]) == (1, 0)


def test_gauges_are_zero_in_the_end(sent: dict[str, float], clock: Any) -> None:
    gauges = PoolGauges()
    gauges.database = "p"
    gauges.note("a", Counts(todo=1))
    gauges.end()
    assert sent == {}, "nothing was sent before"
    gauges.note("a", Counts(todo=1))
    clock.now += 30
    gauges.send()
    gauges.note("a", Counts(done=1))
    gauges.end()
    assert set(sent.values()) == {0}


def test_a_wait_for_the_whole_pool_counts_its_batches(sent: dict[str, float], clock: Any) -> None:
    gauges = PoolGauges()
    gauges.database = "p"
    gauges.note("a", Counts(todo=1))
    gauges.note(None, Counts(todo=10))
    clock.now += 30
    gauges.send()
    assert sent["picas.p.tokens.todo"] == 10
