"""The chain of stages that a batch belongs to: what each batch of it has, and which make tokens for which."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from airflow_provider_picas.couchdb import chains, changes, errors
from airflow_provider_picas.couchdb.chains import Links
from airflow_provider_picas.plugins import access, models
from airflow_provider_picas.plugins.live import PoolReader, reader_for
from airflow_provider_picas.plugins.overview import pilots_of
from airflow_provider_picas.tokens.chain import Chain
from airflow_provider_picas.tokens.counts import Counts

COUNTS_KEPT = 60.0  # seconds; the counts of a batch that somebody views are live
LINKS_KEPT = 120.0
VISIBLE_KEPT = 60.0


async def chain(viewer: access.Viewer) -> models.ChainAnswer:
    """The chain of the batch, as this user may see it."""
    scope = viewer.scope
    reader = reader_for(scope.conn_id, scope.database)
    found = (await pilots_of(reader, scope.batch)).chain if scope.batch is not None else None
    if found is None:
        return models.ChainAnswer(nodes=[], edges=[])
    counts, links, visible = await asyncio.gather(
        _counts_of(reader, found), _links_of(reader, found), _visible(viewer, reader, found)
    )
    counts = {batch: reader.counts_of(batch) or known for batch, known in counts.items()}
    return models.ChainAnswer(
        nodes=_nodes(found, counts, links, visible), edges=_edges(found, links, visible), partial=links.more_groups
    )


async def _counts_of(reader: PoolReader, found: Chain) -> Mapping[str, Counts]:
    return await reader.shared(("chain", *found.own), COUNTS_KEPT, lambda hook: changes.counts_of(hook.pool, found.own))


async def _links_of(reader: PoolReader, found: Chain) -> Links:
    try:
        return await reader.shared(
            ("links", *found.own, *sorted(grouping.of for grouping in found.groups.values())),
            LINKS_KEPT,
            lambda hook: chains.links(hook.pool, found),
        )
    except errors.NotFoundError as error:
        if error.database_missing:
            raise
        return Links()


async def _visible(viewer: access.Viewer, reader: PoolReader, found: Chain) -> set[str]:
    async def read() -> set[str]:
        return await asyncio.to_thread(access.visible_batches, viewer, found.own)

    return await reader.readings.get(("visible", viewer.scope, viewer.name), VISIBLE_KEPT, read)


def _nodes(found: Chain, counts: Mapping[str, Counts], links: Links, visible: set[str]) -> list[models.ChainNode]:
    nodes = []
    growing = False
    for batch, name in zip(found.own, (None, *found.stages), strict=True):
        grouping = found.groups.get(name or "")
        of = found.batch_of(grouping.of) if grouping else ""
        node = models.ChainNode(batch=batch, stage=name)
        if batch in visible:
            node.counts, node.pending = models.Counts(**counts[batch].as_dict()), links.pending.get(batch, 0)
            node.growing = growing
            growing = growing or bool(counts[batch].unfinished or node.pending)
            if grouping is not None and of in visible:
                node.groups, node.made = links.groups.get(of, 0), links.made.get(of, 0)
            node.at_least = grouping.at_least if grouping is not None else None
        nodes.append(node)
    return nodes


def _edges(found: Chain, links: Links, visible: set[str]) -> list[models.ChainEdge]:
    """The edges by which tokens were made, as far as the user may see both batches. A stage without any is shown after
    the one before it."""
    numbers = {batch: number for number, batch in enumerate(found.own)}
    edges = []
    for name, batch in found.by_stage.items():
        end = numbers[batch]
        made = {number: links.edges.get((of, batch), 0) for of, number in numbers.items() if {of, batch} <= visible}
        before = [
            models.ChainEdge(begin=begin, end=end, tokens=tokens)
            for begin, tokens in made.items()
            if tokens and begin < end
        ]
        if grouping := found.groups.get(name):
            of = found.batch_of(grouping.of)
            tokens = links.made.get(of, 0) if {of, batch} <= visible else 0
            before.append(models.ChainEdge(begin=numbers[of], end=end, tokens=tokens, group=True))
        edges += before or [models.ChainEdge(begin=end - 1, end=end)]
    return edges
