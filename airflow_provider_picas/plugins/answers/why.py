"""Why a token, or a batch, does not run."""

from __future__ import annotations

from collections.abc import Sequence

from airflow_provider_picas.couchdb import counting, errors, page
from airflow_provider_picas.couchdb.http import Operation
from airflow_provider_picas.couchdb.pool import Pool
from airflow_provider_picas.lifecycle.classes import class_name
from airflow_provider_picas.lifecycle.ids import drain_flag
from airflow_provider_picas.lifecycle.json_values import number
from airflow_provider_picas.plugins import access, models
from airflow_provider_picas.plugins.answers.tokens import document
from airflow_provider_picas.plugins.live import reader_for
from airflow_provider_picas.plugins.overview import pilots_of, summary_of
from airflow_provider_picas.submissions import seen, why
from airflow_provider_picas.tokens.counts import Counts

RUNS_KEPT = 30.0
MOST_FLAGS = 5


async def why_not(scope: access.Scope, token_id: str | None) -> models.WhyAnswer:
    """Why a token, or with None the batch, does not run."""
    reader = reader_for(scope.conn_id, scope.database)
    token = None if token_id is None else await document(scope, token_id)
    watch = await reader.batch(scope.batch)
    pilots = await pilots_of(reader, scope.batch)
    keys = pilots.submissions
    known = why.Known(
        watch.counts or Counts(),
        seen.of_batch(pilots.leases, scope.batch, keys),
        pilots.now,
        await summary_of(reader, scope.batch),
        keys,
        await reader.shared(("drained", scope.batch), RUNS_KEPT, lambda hook: _drained(hook.pool, keys)),
        await reader.shared(("classes", scope.batch), RUNS_KEPT, lambda hook: _classes(hook.pool, scope.batch)),
    )
    if token is None:
        return models.WhyAnswer(sentences=why.of_batch(known))
    priority = number(token.get("priority"))
    ahead = await reader.do(lambda hook: _ahead(hook.pool, scope.batch, class_name(token), priority))
    return models.WhyAnswer(sentences=why.of_token(token, known, ahead, await reader.profile()))


def _drained(pool: Pool, keys: Sequence[str]) -> Operation[list[str]]:
    """The submissions whose pilots are to stop, of the latest ones."""
    flags, found = {drain_flag(key): key for key in keys[:MOST_FLAGS]}, []
    for flag, key in flags.items():
        try:
            document = yield from pool.get(flag)
        except errors.NotFoundError as error:
            if error.database_missing:
                raise
            continue
        found += [key] if document.get("drain") else []
    return found


def _classes(pool: Pool, batch: str | None) -> Operation[dict[str, int]]:
    try:
        return (yield from counting.todo_by_class(pool, batch))
    except errors.NotFoundError:
        return {}


def _ahead(pool: Pool, batch: str | None, name: str, priority: float) -> Operation[int | None]:
    if pool.profile.priorities:
        return None  # the field `priority` does not say which tokens go first
    try:
        return (yield from page.ahead(pool, batch, name, priority))
    except errors.NotFoundError:
        return None
