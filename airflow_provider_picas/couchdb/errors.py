"""What CouchDB, or the way to it, answers when it does not do what was asked. Every message says what to do next."""

from __future__ import annotations


class CouchDBError(Exception):
    """An answer that is an error. ``status`` is HTTP's (0: there was no answer); ``error`` and ``reason`` are CouchDB's."""

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


class ConflictError(CouchDBError):
    """409: the document changed meanwhile, or exists."""


class TooLargeError(CouchDBError):
    """413: CouchDB, or a proxy before it, takes no request of this size."""


class LargeAnswerError(CouchDBError):
    """The answer is larger than any that CouchDB has reason to send; it was not read to its end."""


class UnavailableError(CouchDBError):
    """No connection, no answer in time, a broken answer, or a status (429, 5xx) that says to come back later."""


class NotCouchDBError(CouchDBError):
    """Something answered that is no CouchDB, such as a login page or a proxy."""


class UnexpectedAnswerError(NotCouchDBError):
    """The answer is JSON, but not of the shape that CouchDB answers with."""


class SettingsError(CouchDBError, ValueError):
    """The connection's fields make no sense; the message names the field."""


def is_refusal(error: CouchDBError) -> bool:
    """Whether waiting alone does not help: the database is gone or closed to us, or something else answers."""
    return not isinstance(error, UnavailableError)
