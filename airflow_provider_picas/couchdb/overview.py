"""An overview of a pool for people: the batches that changed last, and the pilots with leases."""

from __future__ import annotations

from airflow_provider_picas.couchdb.http import Operation, Request
from airflow_provider_picas.couchdb.pool import Document, Pool
from airflow_provider_picas.lifecycle.ids import lease_id

LAST_CHANGES = 5_000  # limit on the changes that are read
MOST_LEASES = 2_000  # limit on the leases that are read


def changed_last(pool: Pool) -> Operation[list[str]]:
    """The batches of the last changed tokens, the latest first, without batches that have not changed for long. None
    where ids do not name the batch."""
    if pool.profile.batch_field is not None:
        return []
    response = yield Request("GET", pool.path("_changes"), {"descending": "true", "limit": str(LAST_CHANGES)})
    ids = (str(row["id"]) for row in response.rows("results", id=str))
    return list(dict.fromkeys(batch for batch, colon, _ in (name.partition(":") for name in ids) if colon))


def pilots(pool: Pool) -> Operation[tuple[list[Document], int | None]]:
    """The leases of pilots, at most ``MOST_LEASES`` of them, and the database's time."""
    return (yield from pool.local_documents(lease_id(""), limit=MOST_LEASES))
