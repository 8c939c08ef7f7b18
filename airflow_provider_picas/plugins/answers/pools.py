"""The pools that a user may read, and the batches of a pool."""

from __future__ import annotations

import asyncio

from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.models.connection import Connection
from airflow.utils.session import create_session
from fastapi import HTTPException
from sqlalchemy import select

from airflow_provider_picas.couchdb import counting, edits, errors
from airflow_provider_picas.couchdb.overview import changed_last
from airflow_provider_picas.plugins import access, models
from airflow_provider_picas.plugins.answers.cursors import number_of
from airflow_provider_picas.plugins.live import PoolReader, reader_for
from airflow_provider_picas.tokens.counts import Counts
from airflow_provider_picas.tokens.text import one_line

POOLS_KEPT = 10.0  # seconds
BATCHES_KEPT = 10.0
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
    """A page of the batches of a pool: those that changed last first, then the others by name."""
    scope = viewer.scope
    reader = reader_for(scope.conn_id, scope.database)
    found, recent = await all_batches(reader)
    known = set(recent)
    names = [*recent, *sorted(batch for batch in found if batch not in known)]
    begin = number_of(cursor)
    some = names[begin : begin + BATCHES_OF_A_PAGE]
    end = begin + len(some)
    database = (await reader.hook()).settings.database
    runs = await asyncio.to_thread(access.runs_of_batches, viewer.user, scope.conn_id, database)
    rows = [_batch(name, found[name], runs.get(name), changed=name in known) for name in some]
    return models.BatchesAnswer(batches=rows, next=str(end) if end < len(names) else None)


async def all_batches(reader: PoolReader) -> tuple[dict[str, Counts], list[str]]:
    """The batches of a pool, and which of them changed last, the latest first. Raises HTTPException without views."""
    try:
        found, recent = await asyncio.gather(
            reader.shared(("batches",), BATCHES_KEPT, lambda hook: edits.batches(hook.pool)),
            reader.shared(("changed last",), BATCHES_KEPT, lambda hook: changed_last(hook.pool, LAST_CHANGES)),
        )
    except errors.NotFoundError as error:
        if error.database_missing:
            raise
        raise HTTPException(409, "The batches of this pool cannot be listed: it lacks the provider's views.") from None
    # Few changes are read, since each costs the database time; what was seen before is still in order.
    reader.recent = [batch for batch in dict.fromkeys([*recent, *reader.recent]) if batch in found]
    return found, reader.recent


def _batch(name: str, counts: Counts, run: models.RunBatch | None, *, changed: bool) -> models.BatchInfo:
    of_run = {"label": run.label, "dag_id": run.dag_id, "run_id": run.run_id} if run else {}
    return models.BatchInfo(batch=name, counts=models.Counts(**counts.as_dict()), changed=changed, **of_run)
