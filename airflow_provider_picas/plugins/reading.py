"""What the page shows of a pool beside the overview: pools, batches, causes, tokens, pilots and nodes."""

from __future__ import annotations

import asyncio
import base64
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.models.connection import Connection
from airflow.utils.session import create_session
from fastapi import HTTPException
from sqlalchemy import select

from airflow_provider_picas.couchdb import counting, edits, errors, page
from airflow_provider_picas.couchdb.http import Operation
from airflow_provider_picas.couchdb.overview import changed_last
from airflow_provider_picas.couchdb.page import Ended, Part
from airflow_provider_picas.couchdb.pool import Document, Pool
from airflow_provider_picas.lifecycle.classes import class_name
from airflow_provider_picas.lifecycle.ids import END_OF_PREFIX, drain_flag, watched_flag
from airflow_provider_picas.lifecycle.json_values import number
from airflow_provider_picas.plugins import access, models
from airflow_provider_picas.plugins.live import PoolReader, reader_for
from airflow_provider_picas.plugins.overview import leases_of, submissions_of, summary_of
from airflow_provider_picas.submissions import seen, why
from airflow_provider_picas.tokens import table
from airflow_provider_picas.tokens.counts import Counts
from airflow_provider_picas.tokens.states import State
from airflow_provider_picas.tokens.table import Filter
from airflow_provider_picas.tokens.text import one_line

POOLS_KEPT = 10.0  # seconds
BATCHES_KEPT = 10.0
CAUSES_KEPT = 15.0
TOKENS_KEPT = 2.0
RUNS_KEPT = 10.0
MOST_POOLS = 100
SLOWEST_POOL = 10.0  # seconds
BATCHES_OF_A_PAGE = 50
MOST_READ = 5_000  # tokens in error that are read for causes
MOST_SEARCHED = 2_000  # tokens that a filter reads for one page
MOST_CAUSES = 100
MOST_NODES_OF_CAUSE = 20
SAMPLE = 5
READ_AT_ONCE = 500
BARS = 400  # finished runs in each state on the timeline
MOST_LOCKED = 500
MOST_PILOTS = 500
MOST_NODES = 500
MOST_FLAGS = 5
WATCHED, WATCH_AGAIN = 150.0, 60.0  # seconds that pilots show output after a look, and until that is told again

NO_VIEWS = (
    "This needs the page's views, which the pool does not have. An admin of the database creates them with"
    " `airflow-picas deploy-views`; a push does, too."
)


# -- pools and batches ------------------------------------------------------------------------------------------------


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
    begin = _whole(cursor)
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
            reader.shared(("changed last",), BATCHES_KEPT, lambda hook: changed_last(hook.pool)),
        )
    except errors.NotFoundError as error:
        if error.database_missing:
            raise
        raise HTTPException(409, "The batches of this pool cannot be listed: it lacks the provider's views.") from None
    return found, [batch for batch in recent if batch in found]


def _batch(name: str, counts: Counts, run: models.RunBatch | None, *, changed: bool) -> models.BatchInfo:
    of_run = {"label": run.label, "dag_id": run.dag_id, "run_id": run.run_id} if run else {}
    return models.BatchInfo(batch=name, counts=models.Counts(**counts.as_dict()), changed=changed, **of_run)


def _whole(cursor: str | None) -> int:
    if cursor is None:
        return 0
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 10):
        raise HTTPException(422, "Invalid cursor.")
    return int(cursor)


# -- causes -----------------------------------------------------------------------------------------------------------


class _Cause:
    """Tokens with the same cause, as they are read."""

    def __init__(self, cause: str) -> None:
        self.cause = cause
        self.ids: list[str] = []
        self.times: list[float] = []
        self.nodes: Counter[str] = Counter()

    def shown(self) -> models.Cause:
        nodes = [models.NodeTokens(node=n, tokens=k) for n, k in self.nodes.most_common(MOST_NODES_OF_CAUSE)]
        return models.Cause(
            id=table.cause_id(self.cause),
            cause=self.cause,
            tokens=len(self.ids),
            first=min(self.times, default=None),
            last=max(self.times, default=None),
            nodes=nodes,
            sample=self.ids[:SAMPLE],
        )


async def causes(scope: access.Scope) -> models.CausesAnswer:
    """The tokens in error by cause, of the first ``MOST_READ`` of them."""
    found, read, whole = await _causes(reader_for(scope.conn_id, scope.database), scope.batch)
    largest = sorted(found.values(), key=lambda cause: (-len(cause.ids), cause.cause))
    partial = not whole or len(largest) > MOST_CAUSES
    return models.CausesAnswer(causes=[cause.shown() for cause in largest[:MOST_CAUSES]], read=read, partial=partial)


async def ids_of_cause(scope: access.Scope, cause: str) -> list[str]:
    """The tokens in error with the cause of this id, of those that were read."""
    found, _, _ = await _causes(reader_for(scope.conn_id, scope.database), scope.batch)
    return found[cause].ids if cause in found else []


async def _causes(reader: PoolReader, batch: str | None) -> tuple[dict[str, _Cause], int, bool]:
    return await reader.shared(("causes", batch), CAUSES_KEPT, lambda hook: _read_causes(hook.pool, batch))


def _read_causes(pool: Pool, batch: str | None) -> Operation[tuple[dict[str, _Cause], int, bool]]:
    found: dict[str, _Cause] = {}
    read, after = 0, None
    while read < MOST_READ:
        tokens, after = yield from page.page(pool, Part(batch, State.ERROR, after=after), READ_AT_ONCE)
        for row in (table.row_of(token, batch) for token in tokens):
            if not row["cause"]:
                continue  # the token has changed since the view was read
            cause = found.setdefault(row["cause_id"], _Cause(row["cause"]))
            cause.ids.append(row["id"])
            cause.nodes[row["node"] or ""] += 1
            cause.times += [row["ended"]] if row["ended"] else []
        read += len(tokens)
        if after is None:
            return found, read, True
    return found, read, False


# -- tokens -----------------------------------------------------------------------------------------------------------


async def tokens(
    scope: access.Scope, state: str | None, chosen: Filter, cursor: str | None, limit: int, descending: bool
) -> models.TokensAnswer:
    """A page of tokens in the order of their ids."""
    reader, after = reader_for(scope.conn_id, scope.database), _text_of(cursor)
    state = State.ERROR if chosen.cause and state is None else state

    def read(pool: Pool) -> Operation[tuple[list[dict[str, Any]], str | None, bool]]:
        return _search(pool, Part(scope.batch, state, chosen.key or "", after, descending), chosen, limit)

    key = ("tokens", scope.batch, state, chosen, after, limit, descending)
    rows, following, partial = await reader.shared(key, TOKENS_KEPT, lambda hook: read(hook.pool))
    shown = [models.TokenRow(**row) for row in rows]
    return models.TokensAnswer(tokens=shown, next=_cursor(following), partial=partial)


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
            row = table.row_of(token, part.batch)
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
    reader = reader_for(scope.conn_id, scope.database)
    states = [State(state)] if state else [State.DONE, State.ERROR]
    begin = _place_of(cursor)
    try:
        found = [
            row
            for each in states
            for row in await reader.do(
                lambda hook, each=each: page.ended_page(  # type: ignore[misc]
                    hook.pool,
                    scope.batch,
                    each,
                    limit + 1,
                    after=_from(begin, scope.batch, each, descending),
                    descending=descending,
                )
            )
        ]
    except errors.NotFoundError as error:
        raise _or_no_views(error) from None
    found = sorted(found, key=lambda row: (row.key[2:], row.key[1], row.id), reverse=descending)
    some = [row for row in found if begin is None or row.id != begin[2]][:limit]
    documents = await reader.do(lambda hook: hook.pool.fetch([row.id for row in some]))
    rows = [table.row_of(documents[row.id], scope.batch) for row in some if row.id in documents]
    more = len(found) > len(some)
    following = json.dumps([some[-1].key[2:], some[-1].key[1], some[-1].id]) if some and more else None
    return models.TokensAnswer(tokens=[models.TokenRow(**row) for row in rows], next=_cursor(following))


def _from(
    place: tuple[list[int], str, str] | None, batch: str | None, state: State, descending: bool
) -> tuple[list[Any], str] | None:
    """Where a state's rows continue: the place itself in its own state; in the other one the same time, with or without
    the tokens that ended at this time."""
    if place is None:
        return None
    time, of_state, token = place
    if of_state != state:
        follows = (str(state) > of_state) != descending
        token = END_OF_PREFIX if follows == descending else ""
    return [batch, str(state), *time], token


def _place_of(cursor: str | None) -> tuple[list[int], str, str] | None:
    text = _text_of(cursor)
    if text is None:
        return None
    try:
        time, state, token = json.loads(text)
        if len(time) == 4 and all(isinstance(part, int) for part in time) and isinstance(token, str):
            return time, str(state), token
    except (ValueError, TypeError):
        pass
    raise HTTPException(422, "Invalid cursor.")


def _or_no_views(error: errors.NotFoundError) -> Exception:
    return error if error.database_missing else HTTPException(409, NO_VIEWS)


def _cursor(text: str | None) -> str | None:
    return None if text is None else base64.urlsafe_b64encode(text.encode("utf-8", "surrogatepass")).decode()


def _text_of(cursor: str | None) -> str | None:
    if cursor is None:
        return None
    try:
        return base64.urlsafe_b64decode(cursor.encode()).decode("utf-8", "surrogatepass")
    except ValueError:
        raise HTTPException(422, "Invalid cursor.") from None


# -- pilots and nodes -------------------------------------------------------------------------------------------------


async def pilots(scope: access.Scope) -> models.PilotsAnswer:
    """The batch's pilots, and the latest runs of its tokens."""
    reader = reader_for(scope.conn_id, scope.database)
    (leases, now), records, (running, ended, whole) = await asyncio.gather(
        leases_of(reader),
        submissions_of(reader, scope.batch),
        reader.shared(("runs", scope.batch), RUNS_KEPT, lambda hook: _runs(hook.pool, scope.batch)),
    )
    keys = [record["pilots"]["submission"] for record in records]
    await _watch(reader, scope.batch, [record for record in records if not record.get("ended")], now)
    shown = [seen.pilot_of(lease, now, scope.batch) for lease in seen.of_batch(leases, scope.batch, keys)]
    names = {pilot["job"]: pilot["pilot"] for pilot in shown if pilot["job"]}
    _add_claimed(shown, running)
    bars = [*_running_bars(running, names), *_ended_bars(ended, names, scope.batch)]
    known = {pilot["pilot"] for pilot in shown}
    shown += _without_lease(running, bars, known)
    for pilot in shown:
        pilot["started"] = pilot["started"] or min(
            (b["start"] for b in bars if b["pilot"] == pilot["pilot"]), default=None
        )
    order = {"working": 0, "draining": 1, "stopping": 1, "idle": 1, "silent": 2, "unknown": 3, "ended": 4}
    shown.sort(key=lambda pilot: (order[pilot["state"]], -(pilot["started"] or 0), pilot["pilot"]))
    return models.PilotsAnswer(
        at=now,
        pilots=[models.Pilot(**pilot) for pilot in shown[:MOST_PILOTS]],
        bars=[models.Bar(**bar) for bar in bars],
        partial=not whole or len(shown) > MOST_PILOTS,
    )


async def _watch(reader: PoolReader, batch: str | None, records: Sequence[Mapping[str, Any]], now: float) -> None:
    """Tell the pilots that somebody watches them, so that they show the output of their commands; for two minutes."""
    keys = [record["pilots"]["submission"] for record in records[:MOST_FLAGS]]
    if not keys:
        return
    with suppress(errors.CouchDBError):  # the login may only read
        await reader.shared(("watch", batch), WATCH_AGAIN, lambda hook: _write_watched(hook.pool, keys, now + WATCHED))


def _write_watched(pool: Pool, keys: Sequence[str], until: float) -> Operation[None]:
    for key in keys:
        document: Document = {"_id": watched_flag(key), "until": int(until), "since": int(until)}
        try:
            yield from pool.put(document)
        except errors.ConflictError:  # CouchDB overwrites a local document, other servers require the revision
            present = yield from pool.get(document["_id"])
            yield from pool.put({**document, "_rev": present["_rev"]})


def _runs(pool: Pool, batch: str | None) -> Operation[tuple[list[dict[str, Any]], list[Ended], bool]]:
    """The rows of running tokens, the latest finished ones, and whether these are all."""
    locked, more = yield from page.page(pool, Part(batch, State.LOCKED), MOST_LOCKED)
    running = [row for row in (table.row_of(token, batch) for token in locked) if row["state"] == State.LOCKED]
    try:
        done = yield from page.ended_page(pool, batch, State.DONE, BARS)
        error = yield from page.ended_page(pool, batch, State.ERROR, BARS)
    except errors.NotFoundError as problem:
        if problem.database_missing:
            raise
        return running, [], False
    return running, [*done, *error], more is None and len(done) < BARS and len(error) < BARS


def _add_claimed(pilots: Iterable[dict[str, Any]], running: Iterable[Mapping[str, Any]]) -> None:
    """Add the tokens that pilots have claimed since they renewed their leases, up to 20 s ago."""
    by_name = {pilot["pilot"]: pilot for pilot in pilots if pilot["state"] != "ended"}
    for row in running:
        pilot = by_name.get(row["pilot"])
        if pilot is not None and row["id"] not in {run["token"] for run in pilot["now"]}:
            pilot["now"].append({"token": row["id"], "since": row["started"]})
            pilot["state"] = "working" if pilot["state"] == "idle" else pilot["state"]


def _running_bars(rows: Iterable[Mapping[str, Any]], names: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {"pilot": _holder(row, names), "token": row["id"], "start": row["started"], "end": None, "state": "locked"}
        for row in rows
        if row["started"]
    ]


def _holder(row: Mapping[str, Any], names: Mapping[str, str]) -> str:
    return str(row["pilot"] or names.get(row["job"], row["job"]) or row["node"] or "?")


def _ended_bars(rows: Iterable[Ended], names: Mapping[str, str], batch: str | None) -> list[dict[str, Any]]:
    bars = []
    for row in rows:
        if row.ended and row.began and row.began <= row.ended and page.in_scope(row.id, batch):
            job = one_line(row.job or "") or None
            pilot = names.get(job or "", job) or one_line(row.node or "") or "?"
            bars.append({"pilot": pilot, "token": row.id, "start": row.began, "end": row.ended, "state": row.state})
    return bars


def _without_lease(
    running: Iterable[Mapping[str, Any]], bars: Iterable[Mapping[str, Any]], known: set[str]
) -> list[dict[str, Any]]:
    """Pilots that the tokens name and that have no lease: those of PiCaS clients, and those whose lease was removed."""
    by_token = {row["id"]: row for row in running}
    found: dict[str, dict[str, Any]] = {}
    for bar in bars:
        if bar["pilot"] in known:
            continue
        pilot = found.setdefault(
            bar["pilot"],
            {"pilot": bar["pilot"], "state": "unknown", "done": 0, "failed": 0, "now": [], "started": None},
        )
        pilot["done"] += bar["state"] == State.DONE
        pilot["failed"] += bar["state"] == State.ERROR
        if row := by_token.get(bar["token"]):
            pilot |= {"node": row["node"], "job": row["job"]}
            pilot["now"].append({"token": bar["token"], "since": bar["start"]})
        pilot["heard"] = max(filter(None, (pilot.get("heard"), bar["end"], bar["start"])))
    return list(found.values())


async def nodes(scope: access.Scope) -> models.NodesAnswer:
    """The nodes on which tokens ended, those with the most errors first. Raises HTTPException without the views."""
    reader = reader_for(scope.conn_id, scope.database)
    try:
        found, whole = await reader.shared(
            ("nodes", scope.batch), RUNS_KEPT, lambda hook: page.nodes(hook.pool, scope.batch)
        )
    except errors.NotFoundError as error:
        raise _or_no_views(error) from None
    rows = [models.Node(node=one_line(node), done=done, error=error) for node, (done, error) in found.items()]
    rows.sort(key=lambda node: (-node.error, -node.done, node.node))
    return models.NodesAnswer(nodes=rows[:MOST_NODES], partial=not whole or len(rows) > MOST_NODES)


# -- why --------------------------------------------------------------------------------------------------------------


async def why_not(scope: access.Scope, token_id: str | None) -> models.WhyAnswer:
    """Why a token, or with None the batch, does not run."""
    reader = reader_for(scope.conn_id, scope.database)
    token = None if token_id is None else await document(scope, token_id)
    watch = await reader.batch(scope.batch)
    (leases, now), records, summary = await asyncio.gather(
        leases_of(reader), submissions_of(reader, scope.batch), summary_of(reader, scope.batch)
    )
    keys = [record["pilots"]["submission"] for record in records]
    mine = seen.of_batch(leases, scope.batch, keys)
    known = why.Known(
        watch.counts or Counts(),
        mine,
        now,
        summary,
        keys,
        await reader.shared(("drained", scope.batch), RUNS_KEPT, lambda hook: _drained(hook.pool, keys)),
        await reader.shared(("classes", scope.batch), RUNS_KEPT, lambda hook: _classes(hook.pool, scope.batch)),
    )
    if token is None:
        return models.WhyAnswer(sentences=why.of_batch(known))
    priority = number(token.get("priority"))
    ahead = await reader.do(lambda hook: _ahead(hook.pool, scope.batch, class_name(token), priority))
    return models.WhyAnswer(sentences=why.of_token(token, known, ahead))


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
    try:
        return (yield from page.ahead(pool, batch, name, priority))
    except errors.NotFoundError:
        return None


async def document(scope: access.Scope, token_id: str) -> Document:
    """A token of the scope. Raises HTTPException if it is not one."""
    if not page.in_scope(token_id, scope.batch):
        raise HTTPException(404, "This batch has no such token.")
    reader = reader_for(scope.conn_id, scope.database)
    try:
        found = await reader.shared(("token", token_id), TOKENS_KEPT, lambda hook: hook.pool.get(token_id))
    except errors.NotFoundError as error:
        if error.database_missing:
            raise
        raise HTTPException(404, "This batch has no such token.") from None
    if found.get("type") != "token":
        raise HTTPException(404, "This batch has no such token.")
    return found
