"""The tokens in error by cause."""

from __future__ import annotations

from collections import Counter

from airflow_provider_picas.couchdb import page
from airflow_provider_picas.couchdb.http import Operation
from airflow_provider_picas.couchdb.page import Part
from airflow_provider_picas.couchdb.pool import Pool
from airflow_provider_picas.plugins import access, models
from airflow_provider_picas.plugins.live import PoolReader, reader_for
from airflow_provider_picas.tokens import table
from airflow_provider_picas.tokens.states import State

CAUSES_KEPT = 60.0  # seconds
MOST_READ = 5_000  # tokens in error that are read for causes
MOST_CAUSES = 100
MOST_NODES_OF_CAUSE = 20
SAMPLE = 5
READ_AT_ONCE = 500


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
        for row in (table.row_of(token, batch, pool.profile) for token in tokens):
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
