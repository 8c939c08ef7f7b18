"""Decides whether and after how long a request to CouchDB is sent again, for the hooks of tasks and of triggers."""

from __future__ import annotations

from airflow_provider_picas.couchdb import errors, http
from airflow_provider_picas.couchdb.http import Request


class Retries:
    """The tries of one request. Hooks only send it and sleep."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._sent = 0
        self._waited = 0  # of these, for an index: not failures

    def after(
        self, error: errors.CouchDBError, retry_after: str | None = None, *, building: bool = False
    ) -> float | None:
        """Seconds until the request is sent again; None if it is not, and ``error`` is its result.

        ``retry_after``: the server's header. ``building``: the request waits for an index, however long that takes.
        """
        self._sent += 1
        if building:
            self._waited += 1
        elif not http.worth_repeating(self._request, error, self._sent - self._waited):
            return None
        return http.wait_before(min(self._sent, http.TRIES) + 1, retry_after)
