"""Errors of CouchDB, or on the way to it. Every message says what to do next."""

from __future__ import annotations

DATABASE_MISSING = "Database does not exist."
"""CouchDB's reason in a 404 response."""


class CouchDBError(Exception):
    """An error response. ``status`` is HTTP's (0: there was no response); ``error`` and ``reason`` are CouchDB's."""

    def __init__(self, message: str, *, status: int = 0, error: str = "", reason: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.error = error
        self.reason = reason


class UnauthorizedError(CouchDBError):
    """401: no login, or a wrong one."""


class ForbiddenError(CouchDBError):
    """403: the login may not do this, or a validate_doc_update function refused it."""


class NotFoundError(CouchDBError):
    """404: no such database, document or view."""

    @property
    def database_missing(self) -> bool:
        """True if the database does not exist, and not only the document or view."""
        return self.reason == DATABASE_MISSING


class ConflictError(CouchDBError):
    """409: the document has changed, or already exists."""


class TooLargeError(CouchDBError):
    """413: CouchDB, or a proxy in front of it, does not accept a request of this size."""


class LargeResponseError(CouchDBError):
    """The response is larger than any valid one of CouchDB. It was not read completely."""


class UnavailableError(CouchDBError):
    """No connection, no response in time, a broken response, or a status (429, 5xx) that asks to retry later."""


class NotCouchDBError(CouchDBError):
    """The response is not from a CouchDB, but for example from a login page or a proxy."""


class UnexpectedResponseError(NotCouchDBError):
    """The response is JSON, but not in the form of CouchDB's responses."""


class SettingsError(CouchDBError, ValueError):
    """The connection's fields are invalid; the message names the field."""


def is_refusal(error: CouchDBError) -> bool:
    """True if waiting alone does not help: the database was deleted or refuses access, or another server answers."""
    return not isinstance(error, UnavailableError)
