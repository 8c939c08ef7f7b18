"""The pools that a user may read, and the batches of a pool."""

from __future__ import annotations

import asyncio

from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.models.connection import Connection
from airflow.utils.session import create_session
from fastapi import HTTPException
from sqlalchemy import select

from airflow_provider_picas.couchdb import changes, counting, errors, overview
from airflow_provider_picas.couchdb.http import Operation
from airflow_provider_picas.couchdb.overview import changed_last
from airflow_provider_picas.hooks.picas_async import PicasAsyncHook
from airflow_provider_picas.plugins import access, models
from airflow_provider_picas.plugins.answers.cursors import cursor_of, text_of
from airflow_provider_picas.plugins.live import PoolReader, reader_for
from airflow_provider_picas.tokens.counts import Counts
from airflow_provider_picas.tokens.text import one_line

POOLS_KEPT = 25.0  # seconds
BATCHES_KEPT = 25.0
LAST_CHANGES = 500
MOST_POOLS = 100
SLOWEST_POOL = 10.0  # seconds
BATCHES_OF_A_PAGE = 50


async def pools(user: BaseUser) -> models.PoolsAnswer:
    """The pools of all connections of type ``picas`` that the user may read."""
    found = await asyncio.to_thread(_connections, user)
    shown = await asyncio.gather(*(_pool(conn_id) for conn_id in found[:MOST_POOLS]))
    return models.PoolsAnswer(pools=list(shown), partial=len(found) > MOST_POOLS)


def _connections(user: BaseUser) -> list[str]:
    with create_session() as session:
        found = sorted(session.scalars(select(Connection.conn_id).where(Connection.conn_type == "picas")))
    return [conn_id for conn_id in found if access.may_use_connection(user, conn_id)]


async def _pool(conn_id: str) -> models.PoolInfo:
    reader = reader_for(conn_id, None)
    try:
        async with asyncio.timeout(SLOWEST_POOL):
            hook = await reader.hook()
            counts = await reader.shared(("pool",), POOLS_KEPT, lambda hook: counting.count(hook.pool))
    except TimeoutError:
        return models.PoolInfo(conn_id=conn_id, database="", host="", error="The database does not answer.")
    except errors.CouchDBError as error:
        return models.PoolInfo(conn_id=conn_id, database="", host="", error=one_line(str(error), 500))
    host, database = hook.settings.url, hook.settings.database
    return models.PoolInfo(conn_id=conn_id, database=database, host=host, counts=models.Counts(**counts.as_dict()))


async def batches(viewer: access.Viewer, cursor: str | None) -> models.BatchesAnswer:
    """A page of the batches of a pool: those that changed last first, then the others by name.

    Only the counts of this page are read: each row of them costs the database time.
    """
    scope = viewer.scope
    reader = reader_for(scope.conn_id, scope.database)
    after = _name_of(cursor)
    recent = await recent_batches(reader) if after is None else {}
    others, more = await batches_by_name(reader, after or "", BATCHES_OF_A_PAGE - len(recent))
    database = (await reader.hook()).settings.database
    runs = await asyncio.to_thread(access.runs_of_batches, viewer.user, scope.conn_id, database)
    rows = [_batch(name, counts, runs.get(name), changed=name in recent) for name, counts in (recent | others).items()]
    last = next(reversed(others), after or "")
    return models.BatchesAnswer(batches=rows, next=cursor_of(f":{last}") if more else None)


def _name_of(cursor: str | None) -> str | None:
    """The name of the batch after which a page begins; None for the first page. Raises HTTPException."""
    text = text_of(cursor)
    if text is not None and not text.startswith(":"):
        raise HTTPException(422, "Invalid cursor.")
    return None if text is None else text[1:]


async def recent_batches(reader: PoolReader) -> dict[str, Counts]:
    """The batches that changed last, the latest first. Raises HTTPException without the provider's views."""
    # Few changes are read, since each costs the database time; what was seen before is still in order.

    def read(hook: PicasAsyncHook) -> Operation[dict[str, Counts]]:
        seen = dict.fromkeys([*(yield from changed_last(hook.pool, LAST_CHANGES)), *reader.recent])
        names = list(seen)[:BATCHES_OF_A_PAGE]
        found = (yield from changes.query(hook.pool, names)) if names else {}
        reader.recent = [name for name in names if found[name].total]
        return {name: found[name] for name in reader.recent}

    try:
        return await reader.shared(("changed last",), BATCHES_KEPT, read)
    except errors.NotFoundError as error:
        raise _unlisted(error) from None


async def batches_by_name(reader: PoolReader, after: str, limit: int) -> tuple[dict[str, Counts], bool]:
    """The next batches by name, without those that changed last, and whether there are more. Raises HTTPException
    without the provider's views."""
    known = set(reader.recent)
    most = limit + len(known)
    try:
        found, more = await reader.shared(
            ("batches", after, most), BATCHES_KEPT, lambda hook: overview.batches_by_name(hook.pool, after, most)
        )
    except errors.NotFoundError as error:
        raise _unlisted(error) from None
    others = [name for name in found if name not in known]
    return {name: found[name] for name in others[:limit]}, more or len(others) > limit


def _unlisted(error: errors.NotFoundError) -> Exception:
    if error.database_missing:
        return error
    return HTTPException(409, "The batches of this pool cannot be listed: it lacks the provider's views.")


def _batch(name: str, counts: Counts, run: models.RunBatch | None, *, changed: bool) -> models.BatchInfo:
    of_run = {"label": run.label, "dag_id": run.dag_id, "run_id": run.run_id} if run else {}
    return models.BatchInfo(batch=name, counts=models.Counts(**counts.as_dict()), changed=changed, **of_run)
