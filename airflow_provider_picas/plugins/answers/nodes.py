"""The nodes on which tokens ended."""

from __future__ import annotations

from airflow_provider_picas.couchdb import errors, page
from airflow_provider_picas.plugins import access, models, page_index
from airflow_provider_picas.plugins.answers.cursors import or_no_views
from airflow_provider_picas.plugins.live import reader_for
from airflow_provider_picas.tokens.text import one_line

NODES_KEPT = 120.0
MOST_NODES = 500


async def nodes(scope: access.Scope) -> models.NodesAnswer:
    """The nodes on which tokens ended, those with the most errors first. Raises HTTPException without the views."""
    reader = reader_for(scope.conn_id, scope.database)
    try:
        found, whole = await page_index.read(
            reader, ("nodes", scope.batch), NODES_KEPT, lambda hook: page.nodes(hook.pool, scope.batch)
        )
    except page_index.IndexBuildingError as error:
        return models.NodesAnswer(nodes=[], building=error.building)
    except errors.NotFoundError as error:
        raise or_no_views(error) from None
    rows = [models.Node(node=one_line(node), done=done, error=error) for node, (done, error) in found.items()]
    rows.sort(key=lambda node: (-node.error, -node.done, node.node))
    return models.NodesAnswer(nodes=rows[:MOST_NODES], partial=not whole or len(rows) > MOST_NODES)
