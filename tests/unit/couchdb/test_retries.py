"""Which tries of a request count."""

from __future__ import annotations

import pytest

from airflow_provider_picas.couchdb import errors, http
from airflow_provider_picas.couchdb.http import Request
from airflow_provider_picas.couchdb.retries import Retries

NO_ANSWER = errors.UnavailableError("read timed out")


def test_a_request_has_a_number_of_tries() -> None:
    retries = Retries(Request("GET", "/pool"))
    assert [retries.after(NO_ANSWER) is None for _ in range(http.TRIES_TO_CONNECT)] == [False] * 4 + [True]


@pytest.mark.parametrize("waits", [1, 60])
def test_waits_for_an_index_do_not_count(waits: int) -> None:
    """The last of them may end just after the index is built, and looks like any other request without an answer."""
    retries = Retries(Request("GET", "/pool/_design/Slow/_view/todo"))
    for _ in range(waits):
        assert retries.after(NO_ANSWER, building=True) is not None
    assert [retries.after(NO_ANSWER) is None for _ in range(http.TRIES_TO_CONNECT)] == [False] * 4 + [True]
    assert retries.after(NO_ANSWER, building=True) is not None
