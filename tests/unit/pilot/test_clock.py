"""The database's clock, as a pilot has it from responses."""

from __future__ import annotations

import time
from email.utils import formatdate
from types import SimpleNamespace

import pytest

from airflow_provider_picas.pilot.clock import Clock


def test_a_node_an_hour_off_goes_by_the_databases_clock() -> None:
    clock = Clock()
    begin = time.time()
    clock.record(formatdate(begin + 3600, usegmt=True))
    assert begin + 3600 - 0.6 < clock.now() < time.time() + 3600 + 0.6  # the header has whole seconds
    clock.record(None)
    clock.record("nonsense")
    assert begin + 3600 - 0.6 < clock.now() < time.time() + 3600 + 0.6


def test_contact_counts_from_the_first_answer_and_from_the_end_of_the_last_outage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr(
        "airflow_provider_picas.pilot.clock.time", SimpleNamespace(**{**vars(time), "monotonic": lambda: now})
    )
    clock = Clock(longest_gap=10)
    assert clock.contact() == 0
    clock.record(None)
    now += 11
    assert clock.contact() == 11
    clock.record(None)
    assert clock.contact() == 0
    now += 10
    assert clock.contact() == 10
    clock.record(None)
    assert clock.contact() == 10
