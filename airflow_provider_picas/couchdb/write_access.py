"""Finds out whether the login may change tokens, without changing any. Operations, as in ``pool``."""

from __future__ import annotations

from airflow_provider_picas.couchdb import errors, http, page
from airflow_provider_picas.couchdb.http import Operation, Request, json_body
from airflow_provider_picas.couchdb.page import Part
from airflow_provider_picas.couchdb.pool import Document, Pool

_NAME = "airflow-picas-check"
_FEW = 10  # documents that are read to find a token: the first ones may be design documents


def refusal(pool: Pool, batch: str | None) -> Operation[str | None]:
    """Why the database refuses changes by this login; None if it accepts them, or if this is unknown.

    Every login that may read may also write, unless a design document has a ``validate_doc_update`` function. Then it
    is offered a token with an attachment that does not follow. CouchDB calls the functions first, and cannot store it.
    """
    if not (yield from _validates(pool)):
        return None
    tokens, _ = yield from page.page(pool, Part(batch), _FEW)
    if not tokens:
        return None
    token = tokens[0]
    try:
        (row,) = yield from pool.write([json_body(_incomplete(token))])
    except errors.CouchDBError:
        return None  # CouchDB 3.5 fails (500) after the functions have accepted the change
    if row.error in ("forbidden", "unauthorized"):
        return str(http.refused(pool.settings, token["_id"], row.error, row.reason))
    return None


def _validates(pool: Pool) -> Operation[bool]:
    response = yield Request("GET", pool.path("_design_docs"), {"include_docs": "true"})
    return any(document.get("validate_doc_update") for document in response.documents().values())


def _incomplete(token: Document) -> Document:
    """The token with an attachment whose content is announced and missing."""
    missing = {"follows": True, "length": 1, "content_type": "text/plain"}
    return {**token, "_attachments": {**token.get("_attachments", {}), _NAME: missing}}
