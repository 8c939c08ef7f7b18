"""An overview of a pool for people: the batches that changed last, and the pilots with leases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from airflow_provider_picas.couchdb import batch_pilots, chains
from airflow_provider_picas.couchdb.counting import parse_rows
from airflow_provider_picas.couchdb.http import Operation, Request, json_body
from airflow_provider_picas.couchdb.pool import Document, Pool
from airflow_provider_picas.lifecycle.ids import END_OF_PREFIX, lease_id
from airflow_provider_picas.tokens.chain import Chain
from airflow_provider_picas.tokens.counts import Counts, Key, from_rows
from airflow_provider_picas.tokens.states import State

LAST_CHANGES = 5_000  # limit on the changes that are read: CouchDB 3.5.0 takes 0.1 ms for each
ROWS_OF_BATCH = len(State) + 1  # in the view that counts: one for each state, and one for tokens in none
MOST_LEASES = 2_000  # limit on the leases that are read


def changed_last(pool: Pool, limit: int = LAST_CHANGES) -> Operation[list[str]]:
    """The batches of the last changed tokens, the latest first, without batches that have not changed for long. None
    where ids do not name the batch."""
    if pool.profile.batch_field is not None:
        return []
    response = yield Request("GET", pool.path("_changes"), {"descending": "true", "limit": str(limit)})
    ids = (str(row["id"]) for row in response.rows("results", id=str))
    return list(dict.fromkeys(batch for batch, colon, _ in (name.partition(":") for name in ids) if colon))


def batches_by_name(pool: Pool, after: str, limit: int) -> Operation[tuple[dict[str, Counts], bool]]:
    """The batches after a name, at most ``limit``, with their counts, and whether there are more. Reads no others.

    Raises NotFoundError if the provider's views are not deployed.
    """
    most = ROWS_OF_BATCH * limit + 1
    group: dict[str, Any] = {"group": True} if pool.profile.is_default else {"group_level": 2}
    response = yield pool.view_request("counts", pool.profile.design, **group, startkey=[after, {}], limit=most)
    rows, found = response.rows(), dict[str, list[tuple[Key, int]]]()
    full = len(rows) == most
    for batch, state, number in parse_rows(response, rows, profile=pool.profile):
        found.setdefault(batch or "", []).append((state, number))
    names = list(found)
    if full:
        names.pop()  # its other states may be in the rows that follow
    return {name: from_rows(found[name]) for name in names[:limit]}, full or len(names) > limit


def pilots(pool: Pool) -> Operation[tuple[list[Document], int | None]]:
    """The leases of pilots, at most ``MOST_LEASES`` of them, and the database's time."""
    return (yield from pool.local_documents(lease_id(""), limit=MOST_LEASES))


@dataclass(frozen=True)
class LocalDocuments:
    """What the pool knows of a batch besides its tokens."""

    leases: list[Document]  #: of the pool's pilots, at most ``MOST_LEASES``
    records: list[Document]  #: of the batch's submissions, the latest first
    chain: Chain | None  #: the stages of the batch, or those that it is one of
    time: int | None  #: the database's


def local_documents_of(pool: Pool, batch: str | None) -> Operation[LocalDocuments]:
    """What the pool knows of a batch besides its tokens. One request."""
    spans = [(lease_id(""), f"{lease_id('')}{END_OF_PREFIX}")]
    if batch:
        spans.append((batch_pilots.prefix(batch), f"{batch_pilots.prefix(batch)}{END_OF_PREFIX}"))
        spans.append((chains.record_id(batch), chains.record_id(batch)))
    queries = [{"startkey": begin, "endkey": end, "include_docs": True, "limit": MOST_LEASES} for begin, end in spans]
    response = yield Request("POST", pool.path("_local_docs", "queries"), body=json_body({"queries": queries}))
    found = [
        [response.document(row["doc"]) for row in result["rows"] if isinstance(row, dict) and row.get("doc")]
        for result in response.rows("results", rows=list)
    ]
    leases, records, chain = (*found, [], [], [])[:3]
    known = chains.parse(batch, chain[0]) if batch and chain else None
    return LocalDocuments(leases, batch_pilots.records_in(records), known, response.time)
