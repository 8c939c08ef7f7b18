"""Follows a pool: the changes since a position, and the counts of many batches at once. Operations, as in ``pool``."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from airflow_provider_picas.couchdb import counting, errors
from airflow_provider_picas.couchdb.http import Operation, Request
from airflow_provider_picas.couchdb.pool import Pool
from airflow_provider_picas.lifecycle.json_values import number
from airflow_provider_picas.tokens import counts, views
from airflow_provider_picas.tokens.counts import Counts

PAGE = 1_000
"""Limit on the rows of a response."""

FEW = 4  # batches that are queried one by one; more may be cheaper in a scan
# A scan of this number of rows takes as long as the query of one batch, which updates the index each time.
ROWS_OF_ONE = 100
MOST_ROWS = 5_000  # of a scan: half a second on CouchDB 3.5.0
QUERIES = 200  # batches in one request: CouchDB responds when it has all of them

NO_BATCH = ""
"""The key for tokens without a batch."""


@dataclass(frozen=True)
class Changes:
    """One response of the feed. ``since``: the position after it, to continue from. ``more``: the response was full."""

    since: str
    ids: tuple[str, ...]
    more: bool

    @property
    def batches(self) -> set[str]:
        """The batches in the rows, by the prefix of their ids."""
        return {
            document_id.partition(":")[0] if ":" in document_id else NO_BATCH
            for document_id in self.ids
            if not document_id.startswith("_")
        }

    @property
    def design(self) -> bool:
        """True if a design document has changed, so that counts may have changed, too."""
        return any(document_id.startswith("_design/") for document_id in self.ids)


def changes(
    pool: Pool, since: str, *, heartbeat: float | None = None, timeout: float | None = None
) -> Operation[Changes]:
    """The changes after ``since`` (from an earlier response, or ``now``); at once, or as soon as there are any.

    ``heartbeat``: wait forever, with a heartbeat at this interval in seconds. ``timeout``: wait at most this number of
    seconds. The request is not repeated if the response is lost: the caller knows how long it has waited.
    """
    params = {"since": since, "limit": str(PAGE)}
    read_timeout = None
    if heartbeat is not None:
        params |= {"feed": "longpoll", "heartbeat": str(int(heartbeat * 1000))}
        read_timeout = 3 * heartbeat
    elif timeout is not None:
        params |= {"feed": "longpoll", "timeout": str(max(1, int(timeout * 1000)))}
        read_timeout = timeout + 15
    endless = heartbeat is not None
    response = yield Request(
        "GET", pool.path("_changes"), params, repeatable=False, read_timeout=read_timeout, endless=endless
    )
    rows = response.rows("results", id=str)
    since = response.object(last_seq=(str, int))["last_seq"]
    return Changes(str(since), tuple(row["id"] for row in rows), more=len(rows) >= PAGE)


@dataclass(frozen=True)
class FeedPosition:
    """The identity of the database, and the position of its feed. ``birth``: its creation time in whole seconds, which
    differs if a database of the same name was created again."""

    birth: str
    sequence: str


def feed_position(pool: Pool) -> Operation[FeedPosition]:
    """Query the database's information about itself."""
    info: Mapping[str, Any] = yield from pool.info()
    return FeedPosition(str(info.get("instance_start_time", "")), str(info.get("update_seq", "")))


def is_older(sequence: str, than: str) -> bool:
    """True if a database at this sequence is at an earlier state, as after a backup was restored: its feed is silent
    until it has passed ``than``. Sequences begin with the number of changes."""
    now, before = sequence.partition("-")[0], than.partition("-")[0]
    numbers = [int(text) for text in (now, before) if re.fullmatch("[0-9]{1,18}", text)]
    return len(numbers) == 2 and numbers[0] < numbers[1]


def counts_of(pool: Pool, batches: Collection[str]) -> Operation[dict[str, Counts]]:
    """The counts of some batches, as from ``counting.count``; all zero for a batch without tokens."""
    if pool.settings.design_document != views.MONITOR:
        return (yield from _count_each(pool, batches))
    found: dict[str, Counts] = {}
    try:
        if len(batches) > FEW and pool.profile.is_default:
            found = yield from _scan(pool, set(batches))
        missing = [batch for batch in batches if batch not in found]
        for start in range(0, len(missing), QUERIES):
            found |= yield from query(pool, missing[start : start + QUERIES])
    except errors.NotFoundError as error:
        if error.database_missing:
            raise
        # The provider's views are not deployed.
        found = yield from _count_each(pool, batches)
    return found


def _count_each(pool: Pool, batches: Collection[str]) -> Operation[dict[str, Counts]]:
    found: dict[str, Counts] = {}
    for batch in batches:
        found[batch] = yield from counting.count(pool, _key(batch))
    return found


def _key(batch: str) -> str | None:
    return None if batch == NO_BATCH else batch


def query(pool: Pool, batches: Collection[str]) -> Operation[dict[str, Counts]]:
    """The counts of some batches, each with a query of its own, in one request. Needs the provider's views."""
    group: dict[str, Any] = {"group": True} if pool.profile.is_default else {"group_level": 2}
    queries = [{**group, "startkey": [_key(batch)], "endkey": [_key(batch), {}]} for batch in batches]
    response = yield pool.queries_request("counts", pool.profile.design, queries)
    results = response.rows("results", rows=list)
    if len(results) != len(batches):
        raise response.unexpected(f"it has {len(results):,} results for {len(batches):,} queries")
    return {
        batch: counts.from_rows(
            (state, value) for _, state, value in counting.parse_rows(response, result["rows"], profile=pool.profile)
        )
        for batch, result in zip(batches, results, strict=True)
    }


def _scan(pool: Pool, batches: set[str]) -> Operation[dict[str, Counts]]:
    """The counts of the batches that are among the first of the pool: faster than querying each, if there are few others."""
    limit = min(MOST_ROWS, ROWS_OF_ONE * len(batches))
    response = yield pool.view_request("counts", views.PROVIDER, group=True, limit=limit)
    rows = counting.parse_rows(response)
    states: dict[str, list[tuple[counts.Key, int]]] = {}
    for batch, state, value in rows:
        name = NO_BATCH if batch is None else batch
        if name in batches:
            states.setdefault(name, []).append((state, value))
    if len(rows) < limit:
        return {batch: counts.from_rows(states.get(batch, [])) for batch in batches}
    last = rows[-1][0]  # the page may end in the middle of its states
    states.pop(NO_BATCH if last is None else last, None)
    return {batch: counts.from_rows(states) for batch, states in states.items()}


def idle(pool: Pool, wait: str, finished: int) -> Operation[float]:
    """Seconds, by the database's clock, since the wait of this name first reported this number of ``finished`` tokens.

    The pool stores it in a local document, which wakes no feed. Raises ForbiddenError for a login that may only read.
    """
    response = yield Request("GET", pool.path())
    now = response.time
    if now is None:
        return 0.0
    name = f"_local/picas-wait-{wait}"
    try:
        known = yield from pool.get(name)
        if known.get("finished") == finished:
            return now - number(known.get("since"), now)
    except errors.NotFoundError as error:
        if error.database_missing:
            raise
    yield from pool.put({"_id": name, "finished": finished, "since": now})
    return 0.0
