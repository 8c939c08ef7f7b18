"""Subscriptions of waits and event triggers to a feed."""

from __future__ import annotations

import asyncio
import math
import time
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from airflow_provider_picas.couchdb import errors
from airflow_provider_picas.tokens.chain import ChainCounts
from airflow_provider_picas.tokens.counts import Counts
from airflow_provider_picas.tokens.waiting import Endurance

Item = TypeVar("Item")
FEW = 5  # with fewer unfinished tokens, a batch may be complete at any moment
WHILE_MANY = 1.0  # seconds: longest extra pause between two queries because no batch can be complete soon
MANY = 500  # unfinished tokens; with more of them the pause is longer in proportion, up to
LONGEST = 5.0  # times as long: a token that is counted twice, as locked and as done, costs the database more


@dataclass(frozen=True)
class CountsUpdate:
    """The newest counts of a subscription, or None if they have not changed; and notices for the log."""

    counts: Counts | ChainCounts | None
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Touched:
    """Batches that have changed, with their counts, which include all changes up to ``position``.

    ``NO_BATCH`` stands for the tokens without a batch. ``begins``: the feed has just begun to listen, possibly
    again; the receiver must find out what happened before ``position``. ``asked_at``: when the counts of each batch
    were queried, by the monotonic clock.
    """

    position: str
    counts: Mapping[str, Counts]
    begins: bool = False
    notices: tuple[str, ...] = ()
    asked_at: Mapping[str, float] = field(default_factory=dict)


class Subscription(Generic[Item]):
    """Updates for one wait: an asynchronous iterator. A pending ``__anext__`` may be cancelled and called again.

    ``outage``: as for ``Endurance``.
    """

    def __init__(self, outage: float | None) -> None:
        self.endurance = Endurance(outage)
        self._ready = asyncio.Event()
        self._failure: Exception | None = None
        self._notices: list[str] = []

    def __aiter__(self) -> Subscription[Item]:
        return self

    async def __anext__(self) -> Item:
        await self._ready.wait()
        self._ready.clear()
        if self._failure is not None:
            self._ready.set()  # it stays so
            raise self._failure
        notices, self._notices = tuple(self._notices), []
        return self._take(notices)

    @abstractmethod
    def _take(self, notices: tuple[str, ...]) -> Item: ...

    def notify(self, text: str) -> None:
        """Add a notice."""
        self._notices.append(text)
        self._ready.set()

    def note_outage(self, error: errors.CouchDBError) -> None:
        """Fail if the outage has lasted for too long; else add a notice if it is new."""
        refused = errors.is_refusal(error)
        if self.endurance.over(refused, time.monotonic()):
            self.fail(error)
        elif notice := self.endurance.notice(error, refused):
            self.notify(notice)

    def wake(self) -> None:
        """Let the iterator continue, without an update."""
        self._ready.set()

    def fail(self, error: Exception) -> None:
        """End the subscription: the iterator raises this error."""
        self._failure = error
        self._ready.set()


class CountsSubscription(Subscription[CountsUpdate]):
    """The counts of one batch, or of the whole pool: first the current ones, then each time that they change.

    ``least_patience``: seconds that an update may always wait; may be changed at any time.
    """

    def __init__(self, batch: str | None, outage: float | None, least_patience: float = 0.0) -> None:
        super().__init__(outage)
        self.batch = batch
        self.least_patience = least_patience
        self._known: Counts | None = None
        self._new: Counts | None = None
        self._put_at = 0.0
        self._rate = 0.0  #: finished tokens per second

    def put(self, counts: Counts) -> bool:
        """Deliver the newest counts. True if they differ from the ones before."""
        now = time.monotonic()
        if self._known is not None:
            self._rate = (counts.finished - self._known.finished) / max(now - self._put_at, 0.001)
        self._put_at = now
        if counts == self._known:
            return False
        self._known = self._new = counts
        self._ready.set()
        return True

    @property
    def patience(self) -> float:
        """Seconds that an update of this batch may wait: a fraction of the least time that it needs at its current rate."""
        if self._known is None or (left := self._known.unfinished) <= FEW:
            return self.least_patience
        patience = WHILE_MANY * min(LONGEST, max(1.0, left / MANY))
        if self._rate > 0:
            patience = min(patience, left / self._rate / 5)
        return max(self.least_patience, patience)

    def _take(self, notices: tuple[str, ...]) -> CountsUpdate:
        counts, self._new = self._new, None
        return CountsUpdate(counts, notices)


class TouchedSubscription(Subscription[Touched]):
    """All batches that change from now on; first, the position where the feed begins."""

    def __init__(self) -> None:
        super().__init__(math.inf)
        self._position = ""
        self._counts: dict[str, Counts] = {}
        self._asked_at: dict[str, float] = {}
        self._begins = False

    def begin(self, position: str) -> None:
        """Deliver the position where the feed begins."""
        self._position, self._begins = position, True
        self._ready.set()

    def put(self, position: str, counts: Mapping[str, Counts], asked_at: float) -> None:
        """Deliver the newest counts. They replace counts that were not read yet."""
        self._position = position
        self._counts |= counts
        self._asked_at |= dict.fromkeys(counts, asked_at)
        self._ready.set()

    def _take(self, notices: tuple[str, ...]) -> Touched:
        counts, self._counts = self._counts, {}
        asked_at, self._asked_at = self._asked_at, {}
        begins, self._begins = self._begins, False
        return Touched(self._position, counts, begins, notices, asked_at)
