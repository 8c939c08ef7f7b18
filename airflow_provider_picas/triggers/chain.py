"""The counts of a chain of stages, for a wait in the triggerer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from airflow_provider_picas.couchdb import errors, new_tokens
from airflow_provider_picas.hooks.picas_async import PicasAsyncHook
from airflow_provider_picas.tokens.chain import Chain, Looks
from airflow_provider_picas.triggers.feed import Feed
from airflow_provider_picas.triggers.subscriptions import CountsSubscription, CountsUpdate

COUNT_AGAIN = 5.0  # seconds until a count that failed is repeated


class ChainSubscription(CountsSubscription):
    """The counts of a chain: first the current ones, then when those of one of its batches change, and from time to time:
    the lists of a pilot that died change nothing.

    A pending ``__anext__`` may be cancelled and called again.
    """

    def __init__(self, chain: Chain, looks: Looks, hook: PicasAsyncHook, outage: float | None) -> None:
        super().__init__(chain.batch, outage)
        self._chain = chain
        self._looks = looks
        self._hook = hook
        self._changed = True

    async def follow(self, updates: CountsSubscription) -> None:
        """Count again when the counts of a batch change."""
        try:
            async for item in updates:
                if item.counts is not None:
                    self._changed = True
                self._notices += item.notices
                self._ready.set()
        except errors.CouchDBError as error:
            self.fail(error)

    async def __anext__(self) -> CountsUpdate:
        if not self._changed and not self._notices:
            try:
                async with asyncio.timeout(self._looks.remaining(time.monotonic())):
                    await self._ready.wait()
            except TimeoutError:
                self._changed = True
        self._ready.clear()
        if self._failure is not None:
            raise self._failure
        found = None
        if self._changed:
            look = self._looks.due(time.monotonic())
            try:
                found = await self._hook.do(new_tokens.count_chain(self._hook.pool, self._chain, look=look))
            except errors.CouchDBError as error:
                await asyncio.sleep(COUNT_AGAIN)
                self.note_outage(error)
            else:
                self._changed = False
                self.endurance.answered()
        notices, self._notices = tuple(self._notices), []
        return CountsUpdate(found, notices)


@asynccontextmanager
async def subscribe(
    feed: Feed, chain: Chain, looks: Looks, hook: PicasAsyncHook, outage: float | None
) -> AsyncIterator[ChainSubscription]:
    """The counts of a chain, while the feed follows the pool."""
    found = ChainSubscription(chain, looks, hook, outage)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(hook)
        followers = []
        for batch in chain.batches:
            updates = await stack.enter_async_context(feed.subscribe(batch, outage=outage))
            followers.append(asyncio.create_task(found.follow(updates)))
        try:
            yield found
        finally:
            for follower in followers:
                follower.cancel()
            await asyncio.gather(*followers, return_exceptions=True)
