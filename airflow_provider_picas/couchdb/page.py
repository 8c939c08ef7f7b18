"""What the page in Airflow's UI reads: pages of a table, when and where tokens ended. Operations, as in ``pool``.

Each reads a bounded number of documents. The page's views may be missing: then ``behind``, ``latest``,
``ended_page``, ``history`` and ``nodes`` raise NotFoundError.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from airflow_provider_picas.couchdb import errors, indexes
from airflow_provider_picas.couchdb.http import Operation, Request, Response
from airflow_provider_picas.couchdb.pool import Document, Pool
from airflow_provider_picas.lifecycle.ids import END_OF_PREFIX
from airflow_provider_picas.lifecycle.profile import PICAS, Profile
from airflow_provider_picas.tokens import ids
from airflow_provider_picas.tokens.states import State

MOST_POINTS = 600  # rows of a plot, at most
MOST_NODES = 2_000
STEPS = {3: 86_400, 4: 3_600, 5: 60, 6: 1}
"""Seconds of a step of the history, by group level of the view ``ended``."""
MINUTES = 5


@dataclass(frozen=True)
class Part:
    """A part of a pool's tokens in the order of their ids: those of a ``batch``, in a ``state`` (None: any), whose keys
    begin with ``prefix``; after the id ``after``, or before it if ``descending``."""

    batch: str | None
    state: str | None = None
    prefix: str = ""
    after: str | None = None
    descending: bool = False

    @property
    def keys(self) -> tuple[str | None, str | None]:
        """The first and the last id."""
        begin = f"{self.batch}:{self.prefix}" if self.batch is not None else self.prefix
        return (begin, f"{begin}{END_OF_PREFIX}") if begin else (None, None)

    def holds(self, document_id: str, profile: Profile = PICAS) -> bool:
        """True if the id is in this part: the order of a view's keys ignores case first."""
        begin = self.keys[0] if profile.is_default else self.prefix
        return document_id.startswith(begin or "") and not document_id.startswith("_")


def page(pool: Pool, part: Part, limit: int) -> Operation[tuple[list[Document], str | None]]:
    """At most ``limit`` tokens of a part, and the id after which it continues; None at the end."""
    size = limit
    while True:
        try:
            response = yield _page_request(pool, part, size + (part.after is not None))
            break
        except errors.LargeResponseError:
            if size == 1:
                raise
            size = max(1, size // 8)
    rows = response.rows(id=str, doc=(dict, type(None)))
    last = rows[-1]["id"] if len(rows) >= size + (part.after is not None) else None
    found = [
        response.document(row["doc"])
        for row in rows
        if row.get("doc")
        and row["id"] != part.after
        and part.holds(row["id"], pool.profile)
        and pool.profile.is_token(row["doc"])
    ]
    return found, last if last != part.after else None


def _page_request(pool: Pool, part: Part, limit: int) -> Request:
    first, last = part.keys
    begin, end = (last, first) if part.descending else (first, last)
    query: dict[str, Any] = {"startkey": part.after or begin, "endkey": end, "limit": limit, "include_docs": True}
    query |= {"descending": True} if part.descending else {}
    if not pool.profile.is_default:
        return _request_of_profile(pool, part, query)
    if part.state is not None:
        return pool.state_request(None if part.state == "stateless" else State(part.state), query)
    params = {name: json.dumps(value) for name, value in query.items() if value is not None}
    return Request("GET", pool.path("_all_docs"), params)


def _request_of_profile(pool: Pool, part: Part, query: dict[str, Any]) -> Request:
    """A page of a pool whose ids do not name the batch: from the views that list its tokens."""
    state = [] if part.state is None else [None if part.state == "stateless" else part.state]
    if part.batch is None and not state:
        params = {name: json.dumps(value) for name, value in query.items() if value is not None}
        return Request("GET", pool.path("_all_docs"), params)
    key = [part.batch or "", *state]
    first, last = [*key, part.prefix], [*key, f"{part.prefix}{END_OF_PREFIX}"]
    begin, end = (last, first) if part.descending else (first, last)
    query |= {"startkey": begin if part.after is None else [*key, part.after], "endkey": end}
    return pool.view_request("counts" if state else "tokens", pool.profile.design, reduce=False, **query)


def behind(pool: Pool, few: int) -> Operation[int]:
    """The number of changes that the index of the page's views lacks; 0 if at most ``few``, so that a read is quick.

    CouchDB answers a query of a view when the index is up to date. If more changes are missing, this has CouchDB add
    them, and does not wait for it. 0 also if the server does not say.
    """
    index = yield from indexes.info(pool, pool.profile.page_design)
    pending = index.get("updates_pending")
    missing = pending.get("minimum") if isinstance(pending, dict) else None
    if not isinstance(missing, int) or missing <= few:
        return 0
    if not index.get("updater_running"):
        yield pool.view_request("ended", pool.profile.page_design, update="lazy", limit=1, reduce=False)
    return missing


@dataclass(frozen=True)
class Ended:
    """A row of the view ``ended``: a token and its ``key``, when it began and ended, and where."""

    id: str
    key: list[Any]
    state: str
    job: str | None
    node: str | None
    began: float | None
    ended: int | None


def ended_page(
    pool: Pool,
    batch: str | None,
    state: State,
    limit: int,
    *,
    after: tuple[list[Any], str] | None = None,
    descending: bool = True,
) -> Operation[list[Ended]]:
    """The tokens in a state by the time when they ended, by default the latest first; from a key and an id on."""
    query = _ended_query(batch, state, limit, descending)
    if after is not None:
        query |= {"startkey": after[0], "startkey_docid": after[1], "limit": limit + 1}
    response = yield pool.view_request("ended", pool.profile.page_design, **query)
    rows = (_ended(response, row) for row in response.rows(id=str, key=list, value=list))
    return [row for row in rows if after is None or row.id != after[1]][:limit]


def latest(pool: Pool, batch: str | None, limit: int) -> Operation[list[list[Ended]]]:
    """The tokens that were done last, and those that were in error last, at most ``limit`` of each. One request."""
    queries = [_ended_query(batch, state, limit, descending=True) for state in (State.DONE, State.ERROR)]
    response = yield pool.queries_request("ended", pool.profile.page_design, queries)
    return [_all_ended(response, result["rows"]) for result in response.rows("results", rows=list)]


def _ended_query(batch: str | None, state: State, limit: int, descending: bool) -> dict[str, Any]:
    keys: list[list[Any]] = [[batch, state], [batch, state, {}]]
    begin, end = reversed(keys) if descending else keys
    query: dict[str, Any] = {"startkey": begin, "endkey": end, "limit": limit, "reduce": False}
    return query | ({"descending": True} if descending else {})


def _all_ended(response: Response, rows: Iterable[Any]) -> list[Ended]:
    return [_ended(response, response.checked(row, {"id": str, "key": list, "value": list})) for row in rows]


def _ended(response: Response, row: Mapping[str, Any]) -> Ended:
    key, value = row["key"], row["value"]
    if len(key) != 6 or len(value) != 3 or not all(isinstance(part, int | float) for part in key[2:]):
        raise response.unexpected("a row of the view 'ended' does not have the expected form")
    job, node, began = value
    at = _seconds(key[2:])
    return Ended(
        row["id"],
        key,
        str(key[1]),
        job if isinstance(job, str) else None,
        node if isinstance(node, str) else None,
        float(began) if isinstance(began, int | float) else None,
        at or None,
    )


def _seconds(parts: list[Any]) -> int:
    """Seconds since 1970 from day, hour, minute and second, as far as they are given."""
    return int(sum(number * step for number, step in zip(parts, (86_400, 3_600, 60, 1), strict=False)))


@dataclass(frozen=True)
class History:
    """How many tokens ended in each step: begin of the step, done, error. ``level``: of the step, for the next query."""

    level: int
    points: list[tuple[int, int, int]]

    @property
    def step(self) -> int:
        """Seconds of a step."""
        return STEPS[self.level]


def history(pool: Pool, batch: str | None, level: int = MINUTES) -> Operation[History]:
    """When tokens ended, in the finest steps that give at most ``MOST_POINTS`` rows. ``level``: to begin with."""
    coarser = False
    while True:
        points, complete = yield from _points(pool, batch, level)
        if not complete and level > min(STEPS):
            level, coarser = level - 1, True
            continue
        dated = [at for at, _, _ in points if at > 0]
        finer = STEPS.get(level + 1)
        if coarser or finer is None or not dated:
            return History(level, points)
        if 2 * (dated[-1] - dated[0] + STEPS[level]) // finer > MOST_POINTS:
            return History(level, points)
        level += 1


def _points(pool: Pool, batch: str | None, level: int) -> Operation[tuple[list[tuple[int, int, int]], bool]]:
    query = {"startkey": [batch, State.DONE], "endkey": [batch, State.ERROR, {}], "group_level": level}
    response = yield pool.view_request("ended", pool.profile.page_design, **query, limit=MOST_POINTS + 1)
    rows = response.rows(key=list, value=int)
    points: dict[int, list[int]] = {}
    for row in rows[:MOST_POINTS]:
        if len(row["key"]) != level or not all(isinstance(part, int | float) for part in row["key"][2:]):
            raise response.unexpected("a row of the view 'ended' does not have the expected form")
        points.setdefault(_seconds(row["key"][2:]), [0, 0])[row["key"][1] == State.ERROR] += row["value"]
    return [(at, done, error) for at, (done, error) in sorted(points.items())], len(rows) <= MOST_POINTS


def nodes(pool: Pool, batch: str | None) -> Operation[tuple[dict[str, tuple[int, int]], bool]]:
    """How many tokens were done and in error on each node, and whether these are all nodes."""
    query = {"startkey": [batch], "endkey": [batch, {}], "group_level": 3, "limit": 2 * MOST_NODES}
    response = yield pool.view_request("nodes", pool.profile.page_design, **query)
    rows = response.rows(key=list, value=int)
    found: dict[str, tuple[int, int]] = {}
    for row in rows:
        if len(row["key"]) != 3 or not isinstance(row["key"][1], str):
            raise response.unexpected("a row of the view 'nodes' does not have the expected form")
        done, error = found.get(row["key"][1], (0, 0))
        is_error = row["key"][2] == State.ERROR
        found[row["key"][1]] = (done + row["value"] * (not is_error), error + row["value"] * is_error)
    return found, len(rows) < 2 * MOST_NODES


def ahead(pool: Pool, batch: str | None, name: str, priority: float) -> Operation[int]:
    """How many waiting tokens of a class have a higher priority. Needs the provider's views."""
    key = [batch if batch is not None else "", name]
    query = {"startkey": key, "endkey": [*key, 0 - priority], "inclusive_end": False, "group_level": 2}
    response = yield pool.view_request("todo", pool.profile.design, **query)
    return sum(row["value"] for row in response.rows(value=int))


def in_scope(token_id: str, batch: str | None, profile: Profile = PICAS) -> bool:
    """True if a token of this id may be one of the batch, or of the pool. Where ids do not name the batch, the token has
    to be read to know."""
    if profile.batch_field is not None:
        return not token_id.startswith("_")
    return ids.in_batch(token_id, batch) if batch is not None else not token_id.startswith("_")
