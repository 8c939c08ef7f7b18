"""Readers of a pool's feed, as a wait is one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from airflow_provider_picas.tokens.counts import Counts
from airflow_provider_picas.triggers.feed import feed_for
from airflow_provider_picas.triggers.subscriptions import CountsSubscription

LIMIT = 60.0
"""Seconds that an update may take: after a slow query the feed pauses three times as long, and the hook tries five times."""


class Reader:
    """Reads a subscription and keeps what it received."""

    def __init__(self, subscription: CountsSubscription) -> None:
        self._subscription = subscription
        self.counts: Counts | None = None
        self.notices: list[str] = []

    async def read(self) -> None:
        """Read one update."""
        item = await anext(self._subscription)
        self.counts = item.counts or self.counts
        self.notices += item.notices

    async def until(self, wanted: Counts) -> None:
        """Wait for these counts."""
        async with asyncio.timeout(LIMIT):
            while self.counts != wanted:
                await self.read()

    async def noticed(self, text: str) -> str:
        """Wait for a notice with this text."""
        async with asyncio.timeout(LIMIT):
            while not (found := [notice for notice in self.notices if text in notice]):
                await self.read()
        return found[0]


@asynccontextmanager
async def waiting(batch: str | None = "a", conn_id: str = "picas_default") -> AsyncIterator[Reader]:
    """A wait for a batch."""
    async with feed_for(conn_id).subscribe(batch) as subscription:
        yield Reader(subscription)
