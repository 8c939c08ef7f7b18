"""Tokens with conflicting revisions, which result when nodes of a cluster did not see each other. Operations, as in
``pool``.

The rules are in ``lifecycle.conflicts``, and the pilot uses the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from airflow_provider_picas.couchdb import errors
from airflow_provider_picas.couchdb.http import Operation, Request, json_body
from airflow_provider_picas.couchdb.pool import Document, Pool
from airflow_provider_picas.lifecycle.conflicts import merge, winner_first
from airflow_provider_picas.lifecycle.ids import has_path
from airflow_provider_picas.tokens import attachments


def branches(pool: Pool, document_ids: Sequence[str]) -> Operation[dict[str, list[Document]]]:
    """The conflicting revisions of documents, the winner first: mostly one. Missing documents are omitted."""
    found, _ = yield from branches_measured(pool, document_ids)
    return found


def branches_measured(pool: Pool, document_ids: Sequence[str]) -> Operation[tuple[dict[str, list[Document]], int]]:
    """``branches``, and the size of the documents in bytes."""
    documents, size = yield from pool.fetch_measured(document_ids, with_conflicts=True)
    found: dict[str, list[Document]] = {}
    for name, document in documents.items():
        conflicts = document.pop("_conflicts", None)
        if not conflicts:
            found[name] = [document]
            continue
        if has_path(name):
            response = yield Request("GET", pool.document_path(name), {"open_revs": "all"})
            rows = [row for row in response.rows(None, ok=(dict, type(None))) if row.get("ok")]
            revisions = winner_first(response.document(row["ok"]) for row in rows)
        else:
            revisions = [document]
            for rev in map(str, conflicts):
                revisions.append((yield from pool.with_attachments(name, rev, 0, data=False)))
            revisions = winner_first(revisions)
        if revisions:
            found[name] = revisions
    return found, size


def settle(
    pool: Pool, revisions: Sequence[Document], may_run: Callable[[Document], bool]
) -> Operation[Document | None]:
    """Merge a token's revisions and return the token; None: not yet, since a pilot ``may_run`` it under a revision that
    lost.

    A result that lost is adopted. Only the winner is written to and only others are deleted, so the token cannot be
    lost.
    """
    winner = revisions[0]
    plan = merge(revisions, may_run)
    if plan is None:
        return None
    if plan.new is not None:
        files: Mapping[str, Document] = {}
        if plan.source is not None and plan.source.get("_attachments"):
            size = sum(map(attachments.size, attachments.stubs_of(plan.source).values()))
            files = (yield from pool.with_attachments(winner["_id"], plan.source["_rev"], size))["_attachments"]
        new = plan.document(files)
        (row,) = yield from pool.write([json_body(new)])
        if row.error is not None:
            return None
        winner = {**new, "_rev": row.rev}
    for loser in plan.losers:
        if not has_path(loser["_id"]):
            yield from pool.write([json_body({"_id": loser["_id"], "_rev": loser["_rev"], "_deleted": True})])
            continue
        request = Request("DELETE", pool.document_path(loser["_id"]), {"rev": loser["_rev"]}, repeatable=False)
        with suppress(errors.ConflictError, errors.NotFoundError):  # somebody else has deleted it
            yield request
    return winner
