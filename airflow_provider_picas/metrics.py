"""Airflow metrics for administrators: the number of tokens in running waits, and the rate at which they finish.

Gauges, for each pool that this process waits on: ``picas.<database>.tokens.<state>``, the tokens of all batches in
running waits, and ``picas.<database>.finished_per_minute``. They are 0 when no wait is running any more.
"""

from __future__ import annotations

import re
import time

from airflow.providers.common.compat.sdk import Stats

from airflow_provider_picas.tokens.counts import Counts
from airflow_provider_picas.tokens.states import State

INTERVAL = 10.0  # seconds between two reports


class PoolGauges:
    """The gauges of one pool. ``database`` None: nothing is sent until its name is known."""

    def __init__(self) -> None:
        self.database: str | None = None
        self._counts: dict[str | None, Counts] = {}
        self._finished = 0  #: tokens since the last report
        self._sent_at = time.monotonic()
        self._sent = False

    def note(self, batch: str | None, counts: Counts) -> None:
        """Record the newest counts of a batch, or with None of the whole pool."""
        known = self._counts.get(batch)
        if known is not None:
            self._finished += max(0, counts.finished - known.finished)
        self._counts[batch] = counts

    def forget(self, batch: str | None) -> None:
        """Remove a batch without waits."""
        self._counts.pop(batch, None)

    def send(self) -> None:
        """Send the gauges, unless they were sent a moment ago."""
        passed = time.monotonic() - self._sent_at
        if passed >= INTERVAL:
            self._send(passed)

    def end(self) -> None:
        """Set the gauges to 0 when the last wait ends: a gauge keeps its last value until another is sent."""
        self._counts.clear()
        self._finished = 0
        if self._sent:
            self._send(INTERVAL)
        self._sent = False

    def _send(self, passed: float) -> None:
        if self.database is None:
            return
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", self.database)
        # A wait for the whole pool also counts the batches.
        counted = [self._counts[None]] if None in self._counts else list(self._counts.values())
        for state in State:
            Stats.gauge(f"picas.{name}.tokens.{state}", sum(counts[state] for counts in counted))
        Stats.gauge(f"picas.{name}.finished_per_minute", round(self._finished * 60 / passed, 3))
        self._sent_at, self._finished, self._sent = time.monotonic(), 0, True
