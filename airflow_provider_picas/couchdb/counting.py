"""Counts the tokens of a pool. Operations, as in ``pool``."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

from airflow_provider_picas.couchdb import errors
from airflow_provider_picas.couchdb.http import Operation, Response
from airflow_provider_picas.couchdb.pool import PAGE, Next, Pool
from airflow_provider_picas.lifecycle.json_values import number
from airflow_provider_picas.lifecycle.profile import PICAS, Profile
from airflow_provider_picas.tokens import counts, ids, views
from airflow_provider_picas.tokens.states import State


def count(pool: Pool, batch: str | None = None) -> Operation[counts.Counts]:
    """Tokens by state, of a batch or of the whole pool. One request if the provider's views are deployed.

    With another design document than ``Monitor``, only the tokens in its views are counted.
    """
    if not pool.profile.is_default:
        return (yield from _count_of_profile(pool, batch or ""))
    if batch is None:
        return (yield from _count_pool(pool))
    if pool.settings.design_document != views.MONITOR:
        return (yield from _count_range(pool, batch))
    try:
        request = pool.view_request("counts", views.PROVIDER, group=True, startkey=[batch], endkey=[batch, {}])
        response = yield request
    except errors.NotFoundError as error:
        if error.database_missing:
            raise
        return (yield from _count_range(pool, batch))
    return counts.from_rows((state, value) for _, state, value in parse_rows(response))


def _count_of_profile(pool: Pool, batch: str) -> Operation[counts.Counts]:
    """Count a batch of a pool of another shape; an empty name is the whole pool."""
    query = {"group_level": 2, "startkey": [batch], "endkey": [batch, {}]}
    response = yield pool.view_request("counts", pool.profile.design, **query)
    return counts.from_rows((state, value) for _, state, value in parse_rows(response, profile=pool.profile))


def todo_by_class(pool: Pool, batch: str | None = None) -> Operation[dict[str, int]]:
    """Waiting tokens, by resource class (``"<cores>/<gpu>/<time>"``). Needs the provider's views."""
    name = batch if batch is not None else ""
    query = {"startkey": [name], "endkey": [name, {}], "group_level": 2}
    response = yield pool.view_request("todo", pool.profile.design, **query)
    rows = response.rows(key=list, value=int)
    if not all(len(row["key"]) == 2 and isinstance(row["key"][1], str) for row in rows):
        raise response.unexpected("a key is not a [batch, resource class] pair")
    return {row["key"][1]: row["value"] for row in rows}


def _count_pool(pool: Pool) -> Operation[counts.Counts]:
    try:
        response = yield pool.view_request(views.OVERVIEW, group=True)
        # A pool's own overview may count more than states.
        of_states = [row for row in response.rows() if row.get("key") in list(State)]
        rows = [(row["key"], response.checked(row, {"value": (int, float)})["value"]) for row in of_states]
    except errors.NotFoundError as error:
        if error.database_missing:
            raise
        rows = []
        for state in State:
            response = yield pool.view_request(state, limit=0)
            rows.append((str(state), response.object(total_rows=int)["total_rows"]))
    if pool.settings.design_document != views.MONITOR:
        return counts.from_rows((key, int(number(value))) for key, value in rows)
    try:
        response = yield pool.view_request("stateless", views.PROVIDER, group=False)
        stateless = sum(row["value"] for row in response.rows(value=int))
    except errors.NotFoundError:
        stateless = 0  # the pool has only PiCaS's views, which do not show such tokens
    return counts.from_rows([*((key, int(number(value))) for key, value in rows), (None, stateless)])


def _count_range(pool: Pool, batch: str) -> Operation[counts.Counts]:
    """Count the batch as a key range of PiCaS's views: slower, but without the provider's views."""
    rows = []
    for state in State:
        found = yield from pool.all_ids(state, batch)
        rows.append((state, len(found)))
    return counts.from_rows(rows)


def missing(pool: Pool, batch: str, expected: int, *, limit: int = PAGE) -> Operation[list[str]]:
    """The missing tokens of a batch, by their place in the push (or the id that follows from it).

    In a cluster, the copy that lists the tokens may lag: those whose ids are known are read again, from most copies.
    """
    ordinals: set[int] = set()
    after: Next | None = None
    numbered = True
    while True:
        found, after = yield from pool.batch_documents(batch, after=after)
        for token in found:
            ordinal = token.get("ordinal")
            if isinstance(ordinal, int):
                ordinals.add(ordinal)
                numbered &= token["_id"] == ids.token_id(batch, ids.ordinal_key(ordinal))
        if after is None:
            break
    gone = (ordinal for ordinal in range(expected) if ordinal not in ordinals)
    if not numbered:
        return [f"input {ordinal}" for ordinal in islice(gone, limit)]
    confirmed: list[str] = []
    while len(confirmed) < limit and (some := list(islice(gone, PAGE))):
        names = [ids.token_id(batch, ids.ordinal_key(ordinal)) for ordinal in some]
        present = yield from pool.fetch(names)
        confirmed += [name for name in names if name not in present]
    return confirmed[:limit]


def parse_rows(
    response: Response, rows: Iterable[Any] | None = None, *, profile: Profile = PICAS
) -> list[tuple[str | None, counts.Key, int]]:
    """Batch, state and number of the rows of the view ``counts``; ``rows``: a part of the response instead of its rows.
    Rows of states that have names of their own in the profile are followed by one for each name.

    Raises UnexpectedResponseError.
    """
    found: list[tuple[str | None, counts.Key, int]] = []
    names = profile.further_names
    for each in response.rows() if rows is None else rows:
        row = response.checked(each, {"key": list, "value": list if names else int})
        key = row["key"]
        if len(key) != 2 or not isinstance(key[0], str | None) or key[1] not in (None, *State):
            raise response.unexpected("a key is not a [batch, state] pair")
        value = row["value"] if names else [row["value"]]
        if len(value) != len(names) + 1 or not all(isinstance(part, int) for part in value):
            raise response.unexpected(f"a value is not a list of {len(names) + 1} numbers")
        total, *of_names = value
        found.append((key[0], key[1], total))
        found += [(key[0], name, part) for name, part in zip(names, of_names, strict=True) if part]
    return found
