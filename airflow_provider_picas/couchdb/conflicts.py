"""Tokens with revisions in conflict, as nodes of a cluster leave them that did not see each other. Operations, as in ``pool``.

The rules are the pilot's (``picas_pilot.merge``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from airflow_provider_picas.couchdb import errors
from airflow_provider_picas.couchdb.pool import Document, Pool
from airflow_provider_picas.couchdb.protocol import Operation, Request, json_body
from airflow_provider_picas.pilot.picas_pilot import merge, revision_rank


def branches(pool: Pool, document_ids: Sequence[str]) -> Operation[dict[str, list[Document]]]:
    """The revisions of documents that are in conflict, the winner first: mostly one. Those that do not exist are left out."""
    body = json_body({"keys": list(document_ids)})
    answer = yield Request("POST", pool.path("_all_docs"), {"include_docs": "true", "conflicts": "true"}, body)
    found: dict[str, list[Document]] = {}
    for row in answer.json()["rows"]:
        document = row.get("doc")
        if document and document.pop("_conflicts", None):
            answer = yield Request("GET", pool.document_path(row["id"]), {"open_revs": "all"})
            revisions = [one["ok"] for one in answer.json() if "ok" in one and not one["ok"].get("_deleted")]
            found[row["id"]] = sorted(revisions, key=revision_rank, reverse=True)
        elif document:
            found[row["id"]] = [document]
    return found


def settle(
    pool: Pool, revisions: Sequence[Document], may_run: Callable[[Document], bool]
) -> Operation[Document | None]:
    """The token with no revisions in conflict any more; None: later, since a pilot ``may_run`` it under one that lost.

    A result that lost is adopted. Only the winner is written to and only others are deleted, so the token cannot go.
    """
    winner = revisions[0]
    plan = merge(revisions, may_run)
    if plan is None:
        return None
    if plan.new is not None:
        new: Document = dict(plan.new)
        if plan.source is not None and plan.source.get("_attachments"):
            params = {"attachments": "true", "rev": plan.source["_rev"]}
            answer = yield Request("GET", pool.document_path(winner["_id"]), params)
            files = answer.json()["_attachments"]
            parts = ("content_type", "data")
            new["_attachments"] = {name: {part: file[part] for part in parts} for name, file in files.items()}
        (row,) = yield from pool.write([json_body(new)])
        if row.error is not None:
            return None
        winner = {**new, "_rev": row.rev}
    for loser in plan.losers:
        request = Request("DELETE", pool.document_path(loser["_id"]), {"rev": loser["_rev"]}, repeatable=False)
        with suppress(errors.ConflictError, errors.NotFoundError):  # somebody else has deleted it
            yield request
    return winner
