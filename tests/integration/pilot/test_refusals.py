"""What a pilot does when the database refuses its claims, misses a view, shows an old copy, or builds an index."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from airflow_provider_picas.lifecycle.transitions import Token
from airflow_provider_picas.pilot.claims import EMPTY_QUERIES, Claims
from airflow_provider_picas.pilot.conflicts import Conflicts
from airflow_provider_picas.pilot.errors import Unreachable
from airflow_provider_picas.tokens.states import State
from stack import couchdb
from tests.integration.faults import Proxy
from tests.integration.pilots import COUNT, Pool, Submission, session_of_a_pilot, unpack, until

FORBID = """function (doc, old, user) {
  if (doc.pilot && doc.input == "forbidden") { throw({forbidden: "tokens like this are not for pilots"}); }
}"""
TIMEOUT = json.dumps(
    {"error": "timeout", "reason": "The request could not be processed in a reasonable amount of time."}
)


@pytest.fixture
def proxy(server: couchdb.CouchDBAdmin) -> Iterator[Proxy]:
    with Proxy(server.url) as between:
        yield between


def forbid(pool: Pool) -> None:
    design = {"language": "javascript", "validate_doc_update": FORBID}
    assert pool.request("PUT", "_design/forbid", design)[0] == 201


def claims_sent(proxy: Proxy) -> int:
    return sum("_bulk_docs" in request for request in proxy.requests)


# --- claims that are forbidden ---------------------------------------------------------------------------------------


def test_a_forbidden_claim_is_said_once_and_stepped_over(pool: Pool, proxy: Proxy, behind_proxy: Submission) -> None:
    forbid(pool)
    pool.push([{"input": "forbidden", "priority": 1}] * 8 + [{}] * 3)
    behind_proxy.write_credentials(proxy.url)
    assert behind_proxy.run(COUNT) == 0, behind_proxy.log()
    assert behind_proxy.runs().total() == 3
    assert pool.states() == {State.TODO: 8, State.DONE: 3}
    assert behind_proxy.log().count("does not allow this pilot to claim") == 1
    assert "tokens like this are not for pilots" in behind_proxy.log()
    assert claims_sent(proxy) <= 8 + 3 + 3


def test_a_pilot_that_may_claim_nothing_ends(pool: Pool, proxy: Proxy, behind_proxy: Submission) -> None:
    forbid(pool)
    pool.push([{"input": "forbidden"}] * 9)
    behind_proxy.write_credentials(proxy.url)
    assert behind_proxy.run(COUNT) == os.EX_NOPERM, behind_proxy.log()
    assert "does not allow this login to claim any token (forbidden: tokens like this" in behind_proxy.log()
    assert claims_sent(proxy) <= 9
    assert pool.leases()[0]["ended"] is True


def test_a_claim_that_is_refused_for_a_while_is_tried_again(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool.push([{}, {}])
    with session_of_a_pilot(pool, pool.server.url) as session:
        database = session.database
        claims = Claims(session, False, Conflicts(session))
        bulk = database.bulk

        def refuse(docs: Any) -> Any:
            return 201, {doc["_id"]: {"id": doc["_id"], "error": "internal_server_error"} for doc in docs}

        monkeypatch.setattr(database, "bulk", refuse)
        assert claims.take(2, lambda doc: True, 0) == []
        monkeypatch.setattr(database, "bulk", bulk)
        assert claims.take(2, lambda doc: True, 0) == []
        assert database.skips_for_now(), "so the pilot does not end"
        database._skipped_until = dict.fromkeys(database._skipped_until, 0.0)
        assert len(claims.take(2, lambda doc: True, 0)) == 2


# --- views -------------------------------------------------------------------------------------------------------------


def test_a_missing_view_is_asked_for_again(pool: Pool, proxy: Proxy) -> None:
    """A node that was away has not been told of the design documents yet."""
    pool.push([{}, {}])
    with session_of_a_pilot(pool, proxy.url) as session:
        claims = Claims(session, True, Conflicts(session))
        proxy.rewrite = lambda request, status, content: (
            (404, b'{"error":"not_found","reason":"missing"}') if "/_view/" in request else (status, content)
        )
        with pytest.raises(Unreachable, match="has no view"):
            claims.take(1, lambda doc: True, 0)
        proxy.rewrite = lambda request, status, content: (status, content)
        assert len(claims.take(1, lambda doc: True, 0)) == 1
        assert any("Monitor" in request for request in proxy.requests)
        tokens: list[Token] = []
        until(lambda: tokens.extend(claims.take(1, lambda doc: True, 0)) or tokens)
        proxy.requests.clear()

        def asks_its_own_view() -> bool:
            claims.take(1, lambda doc: True, 0)
            return any("airflow-picas-1" in request for request in proxy.requests)

        until(asks_its_own_view)


def as_a_cluster(request: str, content: bytes) -> bytes:
    """What a database of three copies says of itself, and the content of other answers as it is."""
    if request.split(" ")[1].strip("/").count("/"):
        return content
    return json.dumps({**json.loads(content), "cluster": {"q": 2, "n": 3, "w": 2, "r": 2}}).encode()


def test_a_copy_that_lags_is_not_believed_that_nothing_is_left(
    pool: Pool, proxy: Proxy, behind_proxy: Submission
) -> None:
    pool.push([{}] * 3)
    empty = 0

    def rewrite(request: str, status: int, content: bytes) -> tuple[int, bytes]:
        nonlocal empty
        if "/_view/todo" in request and empty < 4:  # the fifth look has the last word
            empty += 1
            return 200, b'{"total_rows":0,"offset":0,"rows":[]}'
        return status, as_a_cluster(request, content)

    proxy.rewrite = rewrite
    behind_proxy.write_credentials(proxy.url)
    file = unpack(behind_proxy) / "claims.py"
    file.write_text(file.read_text().replace("EMPTY_FOR = 5, 15.0", "EMPTY_FOR = 5, 5.0"))
    assert behind_proxy.run(COUNT) == 0, behind_proxy.log()
    assert pool.states() == {State.DONE: 3}
    looks = proxy.requests[-60:]
    assert sum("/_view/counts" in request for request in looks) >= EMPTY_QUERIES
    assert proxy.connections > EMPTY_QUERIES


def test_a_pilot_goes_on_when_an_index_is_built(pool: Pool, proxy: Proxy, behind_proxy: Submission) -> None:
    """CouchDB answers 500 to whoever asks for a view after a minute."""
    pool.push([{}] * 3)
    refused = 0

    def rewrite(request: str, status: int, content: bytes) -> tuple[int, bytes]:
        nonlocal refused
        if "/_view/" in request and refused < 5:
            refused += 1
            return 500, TIMEOUT.encode()
        return status, content

    proxy.rewrite = rewrite
    behind_proxy.write_credentials(proxy.url)
    assert behind_proxy.run(COUNT) == 0, behind_proxy.log()
    assert pool.states() == {State.DONE: 3}
    assert refused == 5
    assert behind_proxy.log().count("reasonable amount of time") == 1
