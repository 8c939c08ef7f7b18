"""Cursors of the answers' pages, and the answer where the page's views are missing."""

from __future__ import annotations

import base64

from fastapi import HTTPException

from airflow_provider_picas.couchdb import errors

NO_VIEWS = (
    "This needs the page's views, which the pool does not have. An admin of the database creates them with"
    " `airflow-picas deploy-views`; a push does, too."
)


def or_no_views(error: errors.NotFoundError) -> Exception:
    """The error of a request to the page's views: 409 if the pool lacks them."""
    return error if error.database_missing else HTTPException(409, NO_VIEWS)


def cursor_of(text: str | None) -> str | None:
    """A cursor for a place in a list; None at its end."""
    return None if text is None else base64.urlsafe_b64encode(text.encode("utf-8", "surrogatepass")).decode()


def text_of(cursor: str | None) -> str | None:
    """The place that a cursor is for. Raises HTTPException."""
    if cursor is None:
        return None
    try:
        return base64.urlsafe_b64decode(cursor.encode()).decode("utf-8", "surrogatepass")
    except ValueError:
        raise HTTPException(422, "Invalid cursor.") from None
