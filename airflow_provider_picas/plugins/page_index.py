"""Reads from the page's views, whose index CouchDB brings up to date only when they are read.

That takes minutes in a large pool that nobody has looked at, and a query waits for it. So before the first query,
CouchDB is asked how far behind the index is. While it is far behind, nothing but that is asked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, TypeVar

from airflow_provider_picas.couchdb import errors, page
from airflow_provider_picas.couchdb.http import Operation
from airflow_provider_picas.hooks.picas_async import PicasAsyncHook
from airflow_provider_picas.plugins import models
from airflow_provider_picas.plugins.live import PoolReader

Result = TypeVar("Result")

FEW = 2_000  # changes that a query may wait for: a second or two
ASK_AGAIN = 10.0  # seconds, while the index is being built
MISSING = 60.0  # seconds until the pool is asked again for views that it lacks
FRESH = 150.0  # seconds after a query, in which the index cannot have fallen far behind
PATIENCE = 3.0  # seconds that an answer waits for a query; it goes on, and a later answer has its result


class IndexBuildingError(Exception):
    """The index is being built, ``building`` says how far it is; the query has no result yet."""

    def __init__(self, building: models.Building) -> None:
        super().__init__("CouchDB is building the index of the page's views.")
        self.building = building


async def read(
    reader: PoolReader,
    key: tuple[Any, ...],
    seconds: float,
    operation: Callable[[PicasAsyncHook], Operation[Result]],
) -> Result:
    """The result of an operation that queries the page's views, as from ``PoolReader.shared``.

    Raises IndexBuildingError while it would have to wait, and NotFoundError without the views.
    """
    index = reader.index
    if time.monotonic() < index.missing_until and index.missing is not None:
        raise index.missing
    try:
        if time.monotonic() - index.read_at > FRESH:
            await _check(reader)
        async with asyncio.timeout(PATIENCE):
            found = await reader.shared(key, seconds, operation)
    except TimeoutError:
        raise IndexBuildingError(models.Building(percent=index.percent)) from None
    except errors.NotFoundError as error:
        if not error.database_missing:
            index.missing, index.missing_until = error, time.monotonic() + MISSING
        raise
    index.read_at = time.monotonic()
    return found


async def _check(reader: PoolReader) -> None:
    """Raise IndexBuildingError if the index is far behind."""
    behind = await reader.shared(("index",), ASK_AGAIN, lambda hook: page.behind(hook.pool, FEW))
    reader.index.note(behind)
    if behind:
        raise IndexBuildingError(models.Building(percent=reader.index.percent))
