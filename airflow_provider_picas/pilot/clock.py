"""The database's clock, and whether a cluster of its nodes stores writes."""

import time
from typing import Optional

from airflow_provider_picas.lifecycle.dates import parse_date


class Quorum:
    """Tracks whether a cluster of CouchDB nodes stores writes on most copies of a document. All threads report to it.

    The cluster then answers 201. It answers 202 while too few nodes can be reached: such writes may lose against those
    of others.
    """

    def __init__(self) -> None:
        self._lost_at: Optional[float] = None

    def note(self, stored: bool) -> None:
        """Record that a write was stored on most copies, or on fewer."""
        if stored:
            self._lost_at = None
        elif self._lost_at is None:
            self._lost_at = time.monotonic()

    def lost_for(self) -> float:
        """Seconds since writes have been stored on too few copies; 0 while they are safe."""
        lost_at = self._lost_at
        return 0.0 if lost_at is None else time.monotonic() - lost_at

    def holds(self) -> bool:
        """True if the last write was stored on most copies, or before the first one."""
        return self._lost_at is None


class Clock:
    """The database's clock, from the ``Date`` of its responses, since a node's clock may be wrong. Also tracks the
    contact with it.

    ``longest_gap``: contact is lost after this number of seconds without a usable response.
    """

    COARSE = 1.0  # seconds by which two dates may contradict each other: servers cache the header for a second

    def __init__(self, longest_gap: float = float("inf")) -> None:
        offset = time.time() - time.monotonic()
        self._offset = (offset, offset)  # of the database's clock from the monotonic one: minimum, maximum
        self._heard = False
        self._last_answer = time.monotonic()
        self._longest_gap = longest_gap
        self._back_since: Optional[float] = None  # when contact was established, for the first time or again
        self.quorum = Quorum()

    def record(self, date: Optional[str], sent: Optional[float] = None, received: Optional[float] = None) -> None:
        """Use the ``Date`` of a usable response. It was made between the monotonic times ``sent`` and ``received``."""
        now = time.monotonic()
        if self._back_since is None or now - self._last_answer > self._longest_gap:
            self._back_since = now
        self._last_answer = now
        seen = parse_date(date)
        if seen is None:
            return
        low = seen - (now if received is None else received)
        high = seen + 1 - (now if sent is None else sent)  # the header has whole seconds
        least, most = self._offset
        if not self._heard or low > most + self.COARSE or high < least - self.COARSE:
            self._offset, self._heard = (low, high), True  # the first date, or the database's clock has stepped
        elif max(low, least) <= min(high, most):
            self._offset = (max(low, least), min(high, most))

    def now(self) -> float:
        """Seconds since 1970 by the database's clock."""
        return self.at(time.monotonic())

    def at(self, moment: float) -> float:
        """The time of the database's clock at a monotonic time."""
        return moment + sum(self._offset) / 2

    def silence(self) -> float:
        """Seconds since the last usable response."""
        return time.monotonic() - self._last_answer

    def contact(self) -> float:
        """Seconds of contact, since the start or since it was last lost."""
        return 0.0 if self._back_since is None else time.monotonic() - self._back_since
