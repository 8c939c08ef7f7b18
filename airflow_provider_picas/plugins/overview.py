"""A batch at a glance, put together from what is shared."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from airflow.utils.session import create_session

from airflow_provider_picas.couchdb import errors, page, write_access
from airflow_provider_picas.couchdb.http import Operation
from airflow_provider_picas.couchdb.overview import local_documents_of
from airflow_provider_picas.couchdb.pool import Document
from airflow_provider_picas.hooks.picas_async import PicasAsyncHook
from airflow_provider_picas.plugins import access, models, page_index
from airflow_provider_picas.plugins.access import Scope, Viewer
from airflow_provider_picas.plugins.live import BatchWatch, PoolReader, reader_for
from airflow_provider_picas.submissions import seen
from airflow_provider_picas.tokens.chain import Chain
from airflow_provider_picas.tokens.counts import Counts, ErrorBudget
from airflow_provider_picas.tokens.progress_line import seconds_left

PILOTS_KEPT = 40.0  # seconds; pilots renew their leases about as often
PILOTS_KEPT_AT_END = 120.0  # when no token waits or runs
HISTORY_KEPT = 120.0  # the counts continue it meanwhile
ACCESS_KEPT = 300.0  # what one worker of the API server finds out, the others find out within minutes
WAIT_KEPT = 60.0
RECENT = 300.0  # seconds of the history that give a rate, until one was measured
FEWEST = 3  # tokens that must have ended in that time


async def overview(viewer: Viewer) -> models.Overview:
    """The batch at a glance, as this user may see it."""
    scope = viewer.scope
    reader = reader_for(scope.conn_id, scope.database)
    watch = await reader.batch(scope.batch)
    (history, building), pilots, wait, why_not = await asyncio.gather(
        history_of(reader, watch), summary_of(reader, scope.batch), wait_of(reader, scope), refusal_of(viewer, reader)
    )
    counts, (limit, expected) = watch.counts or Counts(), wait
    chain = (await pilots_of(reader, scope.batch)).chain
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
        views="partial" if history is None and building is None else "page",
        building=building,
        chain=None if chain is None else models.ChainPlace(batch=chain.batch, stage=_stage_of(chain, scope.batch)),
        trouble=watch.trouble,
        actions=_actions(why_not),
    )


def _stage_of(chain: Chain, batch: str | None) -> str | None:
    return next((name for name, of_stage in chain.by_stage.items() if of_stage == batch), None)


def _recent(history: models.History | None) -> tuple[float, int] | None:
    """The rate of the last minutes by the history."""
    if history is None or history.step > 60:
        return None
    tokens = sum(done + error for at, done, error in history.points if at >= time.time() - RECENT)
    return (tokens / RECENT, tokens) if tokens >= FEWEST else None


@dataclass(frozen=True)
class _Read:
    """The history as it was read ``at`` a time, when ``finished`` tokens had ended; None without the page's views."""

    at: float
    finished: int
    history: page.History | None


async def history_of(reader: PoolReader, watch: BatchWatch) -> tuple[models.History | None, models.Building | None]:
    """When tokens ended; None without the page's views, or while their index is built. It is read again from time to
    time, if tokens have ended since; the counts show how many have."""
    known: _Read | None = watch.history
    building = None
    if known is None or watch.counts is None or known.finished != watch.counts.finished:
        try:
            known = watch.history = await _read_history(reader, watch, known)
        except page_index.IndexBuildingError as error:
            building = error.building
    if known is None or known.history is None:
        return None, building
    points = _continued(known.history, known.at, watch.samples)
    return models.History(step=known.history.step, points=points), building


async def _read_history(reader: PoolReader, watch: BatchWatch, known: _Read | None) -> _Read:
    level = known.history.level if known and known.history else page.MINUTES

    def read(hook: PicasAsyncHook) -> Operation[_Read]:
        finished, at = watch.counts.finished if watch.counts else 0, time.time()
        return _Read(at, finished, (yield from page.history(hook.pool, watch.batch, level)))

    try:
        return await page_index.read(reader, ("history", watch.batch), HISTORY_KEPT, read)
    except errors.NotFoundError as error:
        if error.database_missing:
            raise
        return _Read(time.time(), -1, None)


def _continued(
    history: page.History, read_at: float, samples: Iterable[tuple[float, Counts]]
) -> list[tuple[int, int, int]]:
    """The points of a history, and what the counts say of the time since it was read."""
    points = {at: (done, error) for at, done, error in history.points}
    done, error = (sum(ended) for ended in zip(*points.values(), strict=True)) if points else (0, 0)
    for at, counts in samples:
        more = (max(0, counts.done - done), max(0, counts.error - error))
        if at < read_at or not any(more):
            continue
        step = int(at) - int(at) % history.step
        before = points.get(step, (0, 0))
        points[step] = (before[0] + more[0], before[1] + more[1])
        done, error = done + more[0], error + more[1]
    return [(at, *ended) for at, ended in sorted(points.items())]


@dataclass(frozen=True)
class Pilots:
    """The leases of the pool's pilots, the records of the batch's submissions, the latest first, the chain of stages
    that the batch belongs to, and the database's time at which they were read."""

    leases: list[Document]
    records: list[Document]
    chain: Chain | None
    now: float

    @property
    def submissions(self) -> list[str]:
        """The keys of the batch's submissions, the latest first."""
        return [record["pilots"]["submission"] for record in self.records]


async def pilots_of(reader: PoolReader, batch: str | None) -> Pilots:
    """What the pool knows of the batch's pilots."""
    counts = reader.counts_of(batch)
    works = counts is None or counts.unfinished

    def read(hook: PicasAsyncHook) -> Operation[Pilots]:
        found = yield from local_documents_of(hook.pool, batch)
        return Pilots(found.leases, found.records, found.chain, float(found.time or time.time()))

    return await reader.shared(("pilots", batch), PILOTS_KEPT if works else PILOTS_KEPT_AT_END, read)


async def summary_of(reader: PoolReader, batch: str | None) -> dict[str, Any]:
    """The batch's pilots by what they do, and their ``core_hours``."""
    known = await pilots_of(reader, batch)
    reported = [record["slurm"] for record in known.records if isinstance(record.get("slurm"), Mapping)]
    return seen.summary(seen.of_batch(known.leases, batch, known.submissions), known.now, reported)


async def refusal_of(viewer: Viewer, reader: PoolReader) -> str | None:
    """Why this user may not act, or why the database would refuse it; None as far as is known."""
    if viewer.why_not is not None:
        return viewer.why_not
    try:
        return await reader.shared(
            ("access",), ACCESS_KEPT, lambda hook: write_access.refusal(hook.pool, viewer.scope.batch)
        )
    except errors.CouchDBError:
        return None


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


def _actions(why_not: str | None) -> models.Actions:
    answer = models.Allowed(allowed=why_not is None, why_not=why_not)
    return models.Actions(**dict.fromkeys(models.Actions.model_fields, answer))
