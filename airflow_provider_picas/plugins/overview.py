"""A batch at a glance, put together from what is shared."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from airflow.utils.session import create_session

from airflow_provider_picas.couchdb import batch_pilots, errors, page
from airflow_provider_picas.couchdb.http import Operation
from airflow_provider_picas.couchdb.overview import pilots as read_leases
from airflow_provider_picas.couchdb.pool import Document
from airflow_provider_picas.hooks.picas_async import PicasAsyncHook
from airflow_provider_picas.plugins import access, models
from airflow_provider_picas.plugins.access import Scope, Viewer
from airflow_provider_picas.plugins.live import BatchWatch, PoolReader, reader_for
from airflow_provider_picas.submissions import seen
from airflow_provider_picas.tokens.counts import Counts, ErrorBudget
from airflow_provider_picas.tokens.progress_line import seconds_left

LEASES_KEPT = 15.0  # seconds; pilots renew them every 20 or so
SUBMISSIONS_KEPT = 15.0
HISTORY_KEPT = 15.0
WAIT_KEPT = 60.0
RECENT = 300.0  # seconds of the history that give a rate, until one was measured
FEWEST = 3  # tokens that must have ended in that time


async def overview(viewer: Viewer) -> models.Overview:
    """The batch at a glance, as this user may see it."""
    scope = viewer.scope
    reader = reader_for(scope.conn_id, scope.database)
    watch = await reader.batch(scope.batch)
    history, pilots, wait = await asyncio.gather(
        history_of(reader, watch), summary_of(reader, scope.batch), wait_of(reader, scope)
    )
    counts, (limit, expected) = watch.counts or Counts(), wait
    measured = watch.rate.measure() or _recent(history)
    left = seconds_left(counts, *measured) if measured else None
    hours, finished = pilots.pop("core_hours"), counts.finished
    allowed = None if limit is None else ErrorBudget(limit).allowed(max(counts.total, expected or 0))
    return models.Overview(
        at=watch.at,
        counts=models.Counts(**counts.as_dict()),
        expected=expected,
        rate=models.Rate(per_second=measured[0], tokens=measured[1]) if measured else None,
        time_left=models.TimeLeft(low=left[0], high=left[1]) if left else None,
        history=history,
        pilots=models.PilotsSummary(**pilots),
        core_hours=models.CoreHours(total=hours, per_token=hours / finished if finished else None) if hours else None,
        budget=None if allowed is None else models.Budget(allowed=allowed, failed=counts.error),
        views="partial" if history is None else "page",
        trouble=watch.trouble,
        actions=actions_of(viewer, reader),
    )


def _recent(history: models.History | None) -> tuple[float, int] | None:
    """The rate of the last minutes by the history."""
    if history is None or history.step > 60:
        return None
    tokens = sum(done + error for at, done, error in history.points if at >= time.time() - RECENT)
    return (tokens / RECENT, tokens) if tokens >= FEWEST else None


async def history_of(reader: PoolReader, watch: BatchWatch) -> models.History | None:
    """When tokens ended; None without the page's views. It is not read again while no token has finished."""

    async def read() -> tuple[int, models.History | None]:
        finished = watch.counts.finished if watch.counts else 0
        try:
            found = await reader.do(lambda hook: page.history(hook.pool, watch.batch))
        except errors.NotFoundError as error:
            if error.database_missing:
                raise
            return finished, None
        return finished, models.History(step=found.step, points=found.points)

    if watch.history is None or watch.counts is None or watch.history[0] != watch.counts.finished:
        watch.history = await reader.readings.get(("history", watch.batch), HISTORY_KEPT, read)
    history: models.History | None = watch.history[1] if watch.history else None
    return history


async def leases_of(reader: PoolReader) -> tuple[list[Document], float]:
    """The leases of the pool's pilots, and the database's time at which they were read."""
    found, now = await reader.shared(("leases",), LEASES_KEPT, lambda hook: read_leases(hook.pool))
    return found, float(now or time.time())


async def submissions_of(reader: PoolReader, batch: str | None) -> list[dict[str, Any]]:
    """The records of the batch's submissions, the latest first."""

    def read(hook: PicasAsyncHook) -> Operation[list[dict[str, Any]]]:
        return batch_pilots.records(hook.pool, batch) if batch else _nothing()

    return await reader.shared(("submissions", batch), SUBMISSIONS_KEPT, read)


def _nothing() -> Operation[list[dict[str, Any]]]:
    yield from ()
    return []


async def summary_of(reader: PoolReader, batch: str | None) -> dict[str, Any]:
    """The batch's pilots by what they do, and their ``core_hours``."""
    (leases, now), records = await asyncio.gather(leases_of(reader), submissions_of(reader, batch))
    keys = [record["pilots"]["submission"] for record in records]
    reported = [record["slurm"] for record in records if isinstance(record.get("slurm"), Mapping)]
    return seen.summary(seen.of_batch(leases, batch, keys), now, reported)


async def wait_of(reader: PoolReader, scope: Scope) -> tuple[float | None, int | None]:
    """The error budget and the number of tokens of the run's wait for the batch, as far as they are known."""

    async def read() -> tuple[float | None, int | None]:
        return await asyncio.to_thread(_wait_of, scope)

    if scope.dag_id is None or scope.run_id is None:
        return None, None
    return await reader.readings.get(("wait", scope), WAIT_KEPT, read)


def _wait_of(scope: Scope) -> tuple[float | None, int | None]:
    wanted = (scope.conn_id, scope.database, scope.batch)
    with create_session() as session:
        for named in access.batches_of_run(session, str(scope.dag_id), str(scope.run_id)):
            if named.role == "wait" and (named.conn_id, named.database, named.batch) == wanted:
                return named.max_errors, named.expected
    return None, None


def actions_of(viewer: Viewer, reader: PoolReader) -> models.Actions:
    """What the user may do, and the connection's login, as far as the database has refused it a change."""
    why_not = viewer.why_not or reader.read_only
    answer = models.Allowed(allowed=why_not is None, why_not=why_not)
    return models.Actions(**dict.fromkeys(models.Actions.model_fields, answer))
