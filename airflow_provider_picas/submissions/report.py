"""Logs the results of checks of the pilots in the waiting task's log, for the trigger and for the sensor that pokes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Any

from airflow_provider_picas.slurm.logs import LogUpdate
from airflow_provider_picas.submissions.watch import PilotStatus
from airflow_provider_picas.tokens.text import one_line, sample

MOST_STUCK = 20  # tokens named because they cannot be released
_STUCK = "The pilot of token %s is dead, but the token cannot be released: it %s. Delete the token, or repair it in the database."
_RECOVERED = "CouchDB and Slurm are reachable again."
LOGS_INTERVAL = 30.0  # seconds between two checks of the pilots' logs


class PilotsLog:
    """Logs what is new. ``sizes``: how much of each pilot's log was shown, in bytes by name."""

    def __init__(self, log: Any) -> None:
        self.sizes: dict[str, int] = {}
        self._log = log
        self._trouble: str | None = None
        self._logs_at = -math.inf
        self._stuck: set[str] = set()  # tokens that were already named

    def report(self, status: PilotStatus) -> None:
        """Log the result of a check."""
        if status.trouble != self._trouble:
            self._trouble = status.trouble
            message = f"{status.trouble} The wait continues." if status.trouble else _RECOVERED
            self._log.warning("%s", message)
        if status.sent:
            self._log.info("Sent %d results that pilots had saved in the submission's folder.", status.sent)
        for what, tokens in (("Released", status.reaped), ("Released too often, now in error", status.given_up)):
            if tokens:
                causes = list(dict.fromkeys(cause for _, cause in tokens))
                self._log.warning("%s: %s (%s).", what, sample([token for token, _ in tokens]), sample(causes))
        for token, why in status.stuck.items():
            if token not in self._stuck and len(self._stuck) < MOST_STUCK:
                self._stuck.add(token)
                self._log.warning(_STUCK, one_line(token), why)

    def report_cancelled(self, status: PilotStatus) -> None:
        """Log the result of the last check after a cancel."""
        if status.trouble:
            self._log.warning("Tokens of the cancelled pilots may still be locked. %s", status.trouble)
        if status.reaped:
            self._log.info("Released for the cancelled pilots: %s.", sample([token for token, _ in status.reaped]))
        for token, why in list(status.stuck.items())[:MOST_STUCK]:
            self._log.warning(_STUCK, one_line(token), why)
        if len(status.stuck) > MOST_STUCK:
            self._log.warning("%d more tokens cannot be released.", len(status.stuck) - MOST_STUCK)

    def logs_are_due(self) -> bool:
        """True if it is time to check the pilots' logs."""
        now = time.monotonic()
        if now - self._logs_at < LOGS_INTERVAL:
            return False
        self._logs_at = now
        return True

    def report_logs(self, found: Iterable[LogUpdate]) -> None:
        """Log what was added to the pilots' logs since ``sizes``."""
        for item in found:
            self.sizes[item.name] = item.size
            for line in item.lines:
                self._log.info("%s: %s", one_line(item.name), line)
