"""The pilots of a batch, and what they ran."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from airflow_provider_picas.couchdb import errors, page
from airflow_provider_picas.couchdb.http import Operation
from airflow_provider_picas.couchdb.page import Ended, Part
from airflow_provider_picas.couchdb.pool import Document, Pool
from airflow_provider_picas.lifecycle.ids import watched_flag
from airflow_provider_picas.lifecycle.profile import Profile
from airflow_provider_picas.plugins import access, models, page_index
from airflow_provider_picas.plugins.live import PoolReader, reader_for
from airflow_provider_picas.plugins.overview import Pilots, pilots_of
from airflow_provider_picas.submissions import seen
from airflow_provider_picas.tokens import table
from airflow_provider_picas.tokens.states import State
from airflow_provider_picas.tokens.text import one_line

RUNNING_KEPT, ENDED_KEPT = 60.0, 90.0  # seconds; leases, which are read more often, say what runs now
BARS = 400  # finished runs in each state on the timeline
MOST_LOCKED = 500
MOST_PILOTS = 500
MOST_FLAGS = 5
WATCHED, WATCH_AGAIN = (
    180.0,
    100.0,
)  # seconds that pilots show output after a request, and until that is requested again


async def pilots(scope: access.Scope) -> models.PilotsAnswer:
    """The batch's pilots, and the latest runs of its tokens."""
    reader = reader_for(scope.conn_id, scope.database)
    known, (running, all_running), (ended, all_ended, building) = await asyncio.gather(
        pilots_of(reader, scope.batch),
        reader.shared(("running", scope.batch), RUNNING_KEPT, lambda hook: _running(hook.pool, scope.batch)),
        _ended(reader, scope.batch),
    )
    now = known.now
    await _watch(reader, scope.batch, [record for record in known.records if not record.get("ended")], now)
    shown, names = _with_leases(known, scope.batch)
    _add_claimed(shown, running)
    begun = {run["token"]: run["since"] for pilot in shown for run in pilot["now"]}
    bars = [*_running_bars(running, names, begun), *_ended_bars(ended, names, scope.batch, await reader.profile())]
    shown += _without_lease(running, bars, {pilot["pilot"] for pilot in shown})
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
        partial=not (all_running and all_ended) or len(shown) > MOST_PILOTS,
        building=building,
    )


async def held(scope: access.Scope) -> tuple[dict[str, list[str]], dict[str, str]]:
    """All running tokens of the batch by the pilots that hold them, and the states of the pilots that have leases."""
    reader = reader_for(scope.conn_id, scope.database)
    known = await pilots_of(reader, scope.batch)
    found, names = _with_leases(known, scope.batch)
    tokens = await reader.do(lambda hook: _held(hook.pool, scope.batch, names))
    return tokens, {pilot["pilot"]: pilot["state"] for pilot in found}


def _with_leases(known: Pilots, batch: str | None) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The batch's pilots that have leases, and their names by their jobs."""
    leases = seen.of_batch(known.leases, batch, known.submissions)
    found = [seen.pilot_of(lease, known.now, batch) for lease in leases]
    return found, {pilot["job"]: pilot["pilot"] for pilot in found if pilot["job"]}


def _held(pool: Pool, batch: str | None, names: Mapping[str, str]) -> Operation[dict[str, list[str]]]:
    found: dict[str, list[str]] = {}
    after = None
    while True:
        locked, after = yield from page.page(pool, Part(batch, State.LOCKED, after=after), MOST_LOCKED)
        for row in (table.row_of(token, batch, pool.profile) for token in locked):
            if row["state"] == State.LOCKED and row["started"]:
                found.setdefault(_holder(row, names), []).append(row["id"])
        if after is None:
            return found


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


def _running(pool: Pool, batch: str | None) -> Operation[tuple[list[dict[str, Any]], bool]]:
    """The rows of running tokens, and whether these are all."""
    locked, more = yield from page.page(pool, Part(batch, State.LOCKED), MOST_LOCKED)
    rows = (table.row_of(token, batch, pool.profile) for token in locked)
    return [row for row in rows if row["state"] == State.LOCKED], more is None


async def _ended(reader: PoolReader, batch: str | None) -> tuple[list[Ended], bool, models.Building | None]:
    """The runs that ended last, whether these are all, and why they are missing if the index is being built."""
    try:
        states = await page_index.read(
            reader, ("ended", batch), ENDED_KEPT, lambda hook: page.latest(hook.pool, batch, BARS)
        )
    except page_index.IndexBuildingError as error:
        return [], False, error.building
    except errors.NotFoundError as problem:
        if problem.database_missing:
            raise
        return [], False, None
    return [row for rows in states for row in rows], all(len(rows) < BARS for rows in states), None


def _add_claimed(pilots: Iterable[dict[str, Any]], running: Iterable[Mapping[str, Any]]) -> None:
    """Add the tokens that pilots have claimed since they renewed their leases, up to 20 s ago."""
    by_name = {pilot["pilot"]: pilot for pilot in pilots if pilot["state"] != "ended"}
    for row in running:
        pilot = by_name.get(row["pilot"])
        if pilot is not None and row["id"] not in {run["token"] for run in pilot["now"]}:
            pilot["now"].append({"token": row["id"], "since": row["started"]})
            pilot["state"] = "working" if pilot["state"] == "idle" else pilot["state"]


def _running_bars(
    rows: Iterable[Mapping[str, Any]], names: Mapping[str, str], begun: Mapping[str, float | None]
) -> list[dict[str, Any]]:
    """Bars from when a token's command began, as far as its pilot's lease says so, else from its claim."""
    return [
        {
            "pilot": _holder(row, names),
            "token": row["id"],
            "start": begun.get(row["id"]) or row["started"],
            "end": None,
            "state": "locked",
        }
        for row in rows
        if row["started"]
    ]


def _holder(row: Mapping[str, Any], names: Mapping[str, str]) -> str:
    return str(row["pilot"] or names.get(row["job"], row["job"]) or row["node"] or "?")


def _ended_bars(
    rows: Iterable[Ended], names: Mapping[str, str], batch: str | None, profile: Profile
) -> list[dict[str, Any]]:
    bars = []
    for row in rows:
        if row.ended and row.began and row.began <= row.ended and page.in_scope(row.id, batch, profile):
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
