"""Refused logins: all hooks of the process together try them again only from time to time.

CouchDB 3.5 locks an account for five minutes after five failed logins from one address, and many waits share a process.
"""

from __future__ import annotations

from dataclasses import dataclass

from airflow_provider_picas.couchdb import errors
from airflow_provider_picas.couchdb.settings import Settings
from airflow_provider_picas.lifecycle.backoff import Backoff

FIRST_PAUSE, LONGEST_PAUSE = 30.0, 120.0
"""Seconds until a refused login is tried again; each pause is twice the one before. Four tries in any five minutes."""

_Login = tuple[str, str | None, str]


@dataclass
class _Refusal:
    error: errors.CouchDBError
    backoff: Backoff
    retry_at: float


class Refusals:
    """The refused logins. Times are in seconds, by any clock that all callers share."""

    def __init__(self) -> None:
        self._known: dict[_Login, _Refusal] = {}

    def known(self, settings: Settings, now: float) -> errors.CouchDBError | None:
        """The error for this login, while it is too early to try it again."""
        refusal = self._known.get(_login(settings))
        if refusal is None or now >= refusal.retry_at:
            return None
        known = refusal.error
        return type(known)(str(known), status=known.status, error=known.error, reason=known.reason)

    def note(self, settings: Settings, error: errors.CouchDBError, now: float) -> None:
        """Record that the login was refused, unless only the request was."""
        if not isinstance(error, errors.UnauthorizedError) and "locked" not in error.reason:
            return
        before = self._known.get(_login(settings))
        if before is not None and now < before.retry_at:
            return  # this request was under way when another was refused
        backoff = before.backoff if before else Backoff(FIRST_PAUSE, LONGEST_PAUSE, jitter=(1.0, 1.0))
        self._known[_login(settings)] = _Refusal(error, backoff, now + backoff.pause())

    def forget(self, settings: Settings) -> None:
        """Record that the login was accepted."""
        self._known.pop(_login(settings), None)


def _login(settings: Settings) -> _Login:
    return settings.url, settings.login, settings.password
