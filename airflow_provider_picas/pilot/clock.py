"""The database's clock, and whether a cluster of its nodes stores writes."""

import time
from typing import Optional

from airflow_provider_picas.lifecycle.dates import parse_date


class Quorum:
    """Whether a cluster of CouchDB nodes stores writes on most copies of a document. All threads note what they see.

    It answers 201 then, and 202 while too few nodes can be reached: what is written so may lose against what others write.
    """

    def __init__(self) -> None:
        self._lost_at: Optional[float] = None

    def note(self, stored: bool) -> None:
        """A write was stored on most copies, or on fewer."""
        if stored:
            self._lost_at = None
        elif self._lost_at is None:
            self._lost_at = time.monotonic()

    def lost_for(self) -> float:
        """Seconds since writes have been stored on too few copies; 0 while they are safe."""
        lost_at = self._lost_at
        return 0.0 if lost_at is None else time.monotonic() - lost_at

    def holds(self) -> bool:
        """Whether the last write was stored on most copies. True before the first one."""
        return self._lost_at is None


class Clock:
    """The database's clock, from the ``Date`` of its answers: a node's own may be wrong. And when it last answered.

    ``longest_gap``: seconds without a useful answer after which contact was lost.
    """

    COARSE = 1.0  # seconds by which two dates may contradict each other: servers keep the header for a second

    def __init__(self, longest_gap: float = float("inf")) -> None:
        offset = time.time() - time.monotonic()
        self._offset = (offset, offset)  # of the database's clock from the monotonic one: at least, at most
        self._heard = False
        self._last_answer = time.monotonic()
        self._longest_gap = longest_gap
        self._back_since: Optional[float] = None  # when contact was found, for the first time or again
        self.quorum = Quorum()

    def hear(self, date: Optional[str], sent: Optional[float] = None, received: Optional[float] = None) -> None:
        """Take the ``Date`` of a useful answer. It was made between the monotonic times ``sent`` and ``received``."""
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
        """What the database's clock shows at a monotonic time."""
        return moment + sum(self._offset) / 2

    def silence(self) -> float:
        """Seconds since the last useful answer."""
        return time.monotonic() - self._last_answer

    def contact(self) -> float:
        """Seconds of contact, since the start or since it was last lost."""
        return 0.0 if self._back_since is None else time.monotonic() - self._back_since
