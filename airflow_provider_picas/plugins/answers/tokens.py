"""Pages of a batch's tokens, and one token."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import HTTPException

from airflow_provider_picas.couchdb import errors, page
from airflow_provider_picas.couchdb.http import Operation
from airflow_provider_picas.couchdb.page import Part
from airflow_provider_picas.couchdb.pool import Document, Pool
from airflow_provider_picas.lifecycle.ids import END_OF_PREFIX
from airflow_provider_picas.plugins import access, models, page_index
from airflow_provider_picas.plugins.answers.cursors import cursor_of, or_no_views, text_of
from airflow_provider_picas.plugins.live import reader_for
from airflow_provider_picas.tokens import table
from airflow_provider_picas.tokens.states import State
from airflow_provider_picas.tokens.table import Filter

TOKENS_KEPT = 2.0
MOST_SEARCHED = 2_000  # tokens that a filter reads for one page
READ_AT_ONCE = 500


async def tokens(
    scope: access.Scope, state: str | None, chosen: Filter, cursor: str | None, limit: int, descending: bool
) -> models.TokensAnswer:
    """A page of tokens in the order of their ids."""
    reader, after = reader_for(scope.conn_id, scope.database), text_of(cursor)
    state = State.ERROR if chosen.cause and state is None else state

    def read(pool: Pool) -> Operation[tuple[list[dict[str, Any]], str | None, bool]]:
        return _search(pool, Part(scope.batch, state, chosen.key or "", after, descending), chosen, limit)

    key = ("tokens", scope.batch, state, chosen, after, limit, descending)
    rows, following, partial = await reader.shared(key, TOKENS_KEPT, lambda hook: read(hook.pool))
    shown = [models.TokenRow(**row) for row in rows]
    return models.TokensAnswer(tokens=shown, next=cursor_of(following), partial=partial)


def _search(
    pool: Pool, part: Part, chosen: Filter, limit: int
) -> Operation[tuple[list[dict[str, Any]], str | None, bool]]:
    """The rows of the next tokens that match, the id after which the search continues, and whether it ended early."""
    rows: list[dict[str, Any]] = []
    read, size = 0, READ_AT_ONCE if chosen.reads else limit
    while True:
        tokens, after = yield from page.page(pool, part, size)
        for token in tokens:
            read += 1
            row = table.row_of(token, part.batch, pool.profile)
            if not _fits(row, part, chosen):
                continue
            if len(rows) == limit:
                return rows, rows[-1]["id"], False
            rows.append(row)
        if after is None or read >= MOST_SEARCHED or (len(rows) == limit and not chosen.reads):
            return rows, after, after is not None and len(rows) < limit
        part = Part(part.batch, part.state, part.prefix, after, part.descending)


def _fits(row: Mapping[str, Any], part: Part, chosen: Filter) -> bool:
    return (part.state is None or row["state"] == part.state) and chosen.matches(row)


async def latest(
    scope: access.Scope, state: str | None, cursor: str | None, limit: int, descending: bool
) -> models.TokensAnswer:
    """A page of tokens in the order of the times at which they ended. Raises HTTPException without the page's views."""
    if state not in (None, State.DONE, State.ERROR):
        return models.TokensAnswer(tokens=[])
    reader, begin = reader_for(scope.conn_id, scope.database), _place_of(cursor)
    states = [State(state)] if state else [State.DONE, State.ERROR]
    key = ("latest", scope.batch, state, cursor, limit, descending)
    try:
        rows, following = await page_index.read(
            reader,
            key,
            TOKENS_KEPT,
            lambda hook: _latest(hook.pool, scope.batch, states, begin, limit, descending),
        )
    except page_index.IndexBuildingError as error:
        return models.TokensAnswer(tokens=[], building=error.building)
    except errors.NotFoundError as error:
        raise or_no_views(error) from None
    return models.TokensAnswer(tokens=[models.TokenRow(**row) for row in rows], next=cursor_of(following))


_Place = tuple[list[int], str, str]
"""A time, a state and an id, after which a list in the order of the ends continues."""


def _latest(
    pool: Pool, batch: str | None, states: Sequence[State], begin: _Place | None, limit: int, descending: bool
) -> Operation[tuple[list[dict[str, Any]], str | None]]:
    """The rows of a page, and where the next one begins."""
    found = []
    for each in states:
        after = _from(begin, batch, each, descending)
        found += yield from page.ended_page(pool, batch, each, limit + 1, after=after, descending=descending)
    found.sort(key=lambda row: (row.key[2:], row.key[1], row.id), reverse=descending)
    some = [row for row in found if begin is None or row.id != begin[2]][:limit]
    documents = yield from pool.fetch([row.id for row in some])
    rows = [table.row_of(documents[row.id], batch, pool.profile) for row in some if row.id in documents]
    more = len(found) > len(some)
    return rows, json.dumps([some[-1].key[2:], some[-1].key[1], some[-1].id]) if some and more else None


def _from(place: _Place | None, batch: str | None, state: State, descending: bool) -> tuple[list[Any], str] | None:
    """Where a state's rows continue: the place itself in its own state; in the other one the same time, with or without
    the tokens that ended at this time."""
    if place is None:
        return None
    time, of_state, token = place
    if of_state != state:
        follows = (str(state) > of_state) != descending
        token = END_OF_PREFIX if follows == descending else ""
    return [batch, str(state), *time], token


def _place_of(cursor: str | None) -> _Place | None:
    text = text_of(cursor)
    if text is None:
        return None
    try:
        time, state, token = json.loads(text)
        if len(time) == 4 and all(isinstance(part, int) for part in time) and isinstance(token, str):
            return time, str(state), token
    except (ValueError, TypeError):
        pass
    raise HTTPException(422, "Invalid cursor.")


async def document(scope: access.Scope, token_id: str) -> Document:
    """A token of the scope. Raises HTTPException if it is not one."""
    reader = reader_for(scope.conn_id, scope.database)
    profile = await reader.profile()
    if not page.in_scope(token_id, scope.batch, profile):
        raise HTTPException(404, "This batch has no such token.")
    try:
        found = await reader.shared(("token", token_id), TOKENS_KEPT, lambda hook: hook.pool.get(token_id))
    except errors.NotFoundError as error:
        if error.database_missing:
            raise
        raise HTTPException(404, "This batch has no such token.") from None
    elsewhere = profile.batch_field is not None and scope.batch is not None and profile.batch_of(found) != scope.batch
    if not profile.is_token(found) or elsewhere:
        raise HTTPException(404, "This batch has no such token.")
    return found
