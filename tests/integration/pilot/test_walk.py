"""Pilots walk through a large batch by the ids of its tokens, and query the view for what is left."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from airflow_provider_picas.lifecycle.json_values import Doc
from airflow_provider_picas.pilot import walk
from airflow_provider_picas.pilot.claims import Claims
from airflow_provider_picas.pilot.conflicts import Conflicts
from airflow_provider_picas.pilot.walk import Walk
from airflow_provider_picas.tokens.states import State
from stack import couchdb
from tests.integration.faults import Proxy
from tests.integration.pilots import Pool, session_of_a_pilot

MANY = Walk.LEAST + 200
NEIGHBOURS_FROM = 5_000  # ids from here on share a number in the view
VIEW = "_design/airflow-picas-1/_view/todo"


@pytest.fixture
def proxy(server: couchdb.CouchDBAdmin) -> Iterator[Proxy]:
    with Proxy(server.url) as proxy:
        yield proxy


def take(claims: Claims, wanted: int = 10) -> list[str]:
    """Claim some tokens; their ids."""
    return [token.id for token in claims.take(wanted, lambda doc: True, 9)]


def index(pool: Pool) -> None:
    """Bring the view up to date, as the query of a wait does."""
    assert pool.request("GET", f"{VIEW}?limit=0")[0] == 200


def test_a_large_batch_is_claimed_by_ids(pool: Pool, proxy: Proxy) -> None:
    pool.push([{"input": place} for place in range(MANY)])
    with session_of_a_pilot(pool, proxy.url) as session:
        claims = Claims(session, False, Conflicts(session))
        taken = take(claims)  # from the view, which shows that all have one class and one priority
        proxy.requests.clear()
        first, second = take(claims), take(claims)
        updates = [request for request in proxy.requests if "/_view/" in request and "update=false" not in request]
    for some in (first, second):
        assert sorted(some) == some
        passed = [name for name in sorted(pool.docs()) if some[0] <= name <= some[-1] and name not in taken]
        assert passed == some, "there are others between them"
    assert not updates, "the index is brought up to date for each claim"


def test_many_walks_claim_each_token_once(pool: Pool, server: couchdb.CouchDBAdmin) -> None:
    pool.push([{"input": place} for place in range(MANY)])
    taken = Counter[str]()
    with ExitStack() as stack:
        sessions = [stack.enter_context(session_of_a_pilot(pool, server.url)) for _ in range(4)]
        walks = [Claims(session, False, Conflicts(session)) for session in sessions]
        while found := [name for claims in walks for name in take(claims, 20)]:
            taken.update(found)
    assert taken == Counter(sorted(pool.docs()))
    assert pool.states() == {State.LOCKED: MANY}


@pytest.mark.parametrize("late", [{"priority": 1}, {"priority": 1, "cores": 2}])
def test_a_late_token_of_a_higher_priority_goes_first(
    pool: Pool, server: couchdb.CouchDBAdmin, monkeypatch: pytest.MonkeyPatch, late: Doc
) -> None:
    pool.push([{"input": place} for place in range(MANY)])
    monkeypatch.setattr(Walk, "CHECK", 0.0)
    monkeypatch.setattr(walk, "LOAD", 0.0)
    with session_of_a_pilot(pool, server.url) as session:
        claims = Claims(session, False, Conflicts(session))
        take(claims)
        take(claims)
        pool.push([{**late, "batch": "b"}], "b:late")
        index(pool)
        claims._heads_until = 0.0  # a second passes
        assert take(claims)[0].startswith("b:late")


def test_a_token_of_a_lower_priority_is_not_taken_by_its_id(pool: Pool, server: couchdb.CouchDBAdmin) -> None:
    """It is seen in the walk although the view as it was does not show it yet."""
    pool.push([{"input": place} for place in range(MANY)])
    with session_of_a_pilot(pool, server.url) as session:
        claims = Claims(session, False, Conflicts(session))
        others = {*pool.docs()} - {*take(claims), *take(claims)}
        low = {f"{name}-low" for name in pool.docs()}
        token = {"type": "token", "lock": 0, "done": 0, "hostname": "", "scrub_count": 0, "exit_code": "", "batch": "b"}
        docs = [{"_id": name, **token, "priority": -1} for name in low]
        assert pool.request("POST", "_bulk_docs", {"docs": docs})[0] == 201
        claims._heads_until = 0.0
        while others and (some := take(claims)):
            assert not low & set(some)
            others -= set(some)
            claims._heads_until = 0.0
        assert not others
        assert set(take(claims)) < low


def test_each_token_has_its_turn(pool: Pool, proxy: Proxy) -> None:
    """Walks go on forever in a batch that grows. A token behind them is found in the view."""
    pool.push([{"input": place} for place in range(MANY)])
    with session_of_a_pilot(pool, proxy.url) as session:
        claims = Claims(session, False, Conflicts(session))
        take(claims, 1)
        claims._heads_until = 0.0
        proxy.requests.clear()
        for _ in range(Walk.PAGES + 1):
            take(claims, 1)
        updates = [request for request in proxy.requests if "group_level" in request and "update=false" not in request]
    assert len(updates) == 1, proxy.requests


def test_checks_that_take_long_are_rare(pool: Pool, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a database that is busy, all pilots would ask for the priorities every few seconds, and keep it busy."""

    def is_check(request: str) -> bool:
        return "group_level" in request and "update=false" in request

    def answer(request: str, status: int, content: bytes) -> tuple[int, bytes]:
        if is_check(request):
            time.sleep(0.2)
        return status, content

    monkeypatch.setattr(Walk, "CHECK", 0.0)
    pool.push([{"input": place} for place in range(MANY)])
    proxy.rewrite = answer
    with session_of_a_pilot(pool, proxy.url) as session:
        claims = Claims(session, False, Conflicts(session))
        for _ in range(6):  # the first one from the view
            take(claims, 1)
    assert sum(map(is_check, proxy.requests)) == 1, proxy.requests


def test_pilots_of_an_array_begin_at_their_shares(pool: Pool, server: couchdb.CouchDBAdmin) -> None:
    """They start at the same time. At random places they would often read the same tokens."""
    pool.push([{"input": place} for place in range(MANY)])
    begun = []
    with ExitStack() as stack:
        sessions = [stack.enter_context(session_of_a_pilot(pool, server.url, (place, 5))) for place in range(5)]
        pilots = [Claims(session, False, Conflicts(session)) for session in sessions]
        for claims in pilots:
            take(claims, 1)  # from the view
        for claims in pilots:
            begun.append(int(take(claims)[0].partition(":")[2]))
        assert sum(claims.conflicts for claims in pilots) == 0
    expected = [MANY * place // 5 for place in range(5)]
    assert all(abs(one - other) < 10 for one, other in zip(begun, expected, strict=True)), begun


def test_ids_without_numbers_have_no_shares(pool: Pool, server: couchdb.CouchDBAdmin) -> None:
    """The pilots begin at random places: a number would be before all of these ids, the same place for each pilot."""
    pool.push([{"_id": f"b:night-{place:04d}"} for place in range(MANY)])
    begun = set()
    for place in range(4):
        with session_of_a_pilot(pool, server.url, (place, 4)) as session:
            claims = Claims(session, False, Conflicts(session))
            take(claims, 1)
            begun |= {int(name.rpartition("-")[2]) // 50 for name in take(claims)}
    assert len(begun) > 1


def push_neighbours(pool: Pool, tokens: int, **fields: object) -> None:
    pool.push([{"_id": f"b:{NEIGHBOURS_FROM + place:08d}", **fields} for place in range(tokens)])


def first_in_the_view(claims: Claims) -> str:
    """The id of the first candidate that a query of the view finds."""
    claims._heads_until = 0.0
    return str(next(iter(claims._find(1)))[0]["_id"])


def test_walks_do_not_meet_at_the_first_of_a_hundred_neighbours(pool: Pool, server: couchdb.CouchDBAdmin) -> None:
    """They have one number in the view, so a random number alone leads to the first of them."""
    push_neighbours(pool, MANY)
    with session_of_a_pilot(pool, server.url) as session:
        claims = Claims(session, False, Conflicts(session))
        take(claims, 1)
        places = {claims._walk._random_place() for _ in range(60)}
    assert len(places) > 2 * MANY // 100, places


@pytest.mark.parametrize("tokens", [50, 250, MANY])
@pytest.mark.parametrize("classes", [None, ["2//"]])
def test_pilots_do_not_meet_at_the_first_of_a_hundred_neighbours(
    pool: Pool, server: couchdb.CouchDBAdmin, tokens: int, classes: list[str] | None
) -> None:
    """Also where few wait, others are before them, and pilots take some classes only."""
    push_neighbours(pool, tokens, cores=2, priority=1)
    pool.push([{"input": place} for place in range(MANY)])
    with session_of_a_pilot(pool, server.url, classes=classes) as session:
        claims = Claims(session, False, Conflicts(session))
        begun = Counter(first_in_the_view(claims) for _ in range(30))
    assert all(int(name.partition(":")[2]) >= NEIGHBOURS_FROM for name in begun)
    assert len(begun) >= 15, begun
    assert max(begun.values()) <= 8, begun


def test_skipped_rows_cost_no_documents(pool: Pool, proxy: Proxy) -> None:
    """CouchDB reads the documents of rows that it skips, too."""
    push_neighbours(pool, 250)
    with session_of_a_pilot(pool, proxy.url) as session:
        claims = Claims(session, False, Conflicts(session))
        for _ in range(5):
            first_in_the_view(claims)
    skipping = [request for request in proxy.requests if "skip=" in request and "skip=0" not in request]
    assert skipping
    assert not [request for request in skipping if "include_docs" in request]


def test_other_tokens_of_a_priority_go_before_those_that_a_pilot_died_with(
    pool: Pool, server: couchdb.CouchDBAdmin
) -> None:
    """A dead pilot leaves neighbours, which the first query may find alone."""
    push_neighbours(pool, 90, priority=1, scrub_count=1, attempts=[{"reason": "reaped"}])
    pool.push([{"priority": 1, "batch": "b"}] * 5, "b:clean")
    pool.push([{"input": place} for place in range(9)])
    with session_of_a_pilot(pool, server.url) as session:
        claims = Claims(session, False, Conflicts(session))
        found = [token.id for _ in range(5) for token in claims.take(1, lambda doc: True, 0)]
    assert sorted(found) == [f"b:clean:{place:04d}" for place in range(5)]


def test_the_only_token_of_the_highest_priority_goes_first_in_a_large_batch(
    pool: Pool, server: couchdb.CouchDBAdmin
) -> None:
    """A query that begins at a random place passes it."""
    pool.push([{"input": place} for place in range(MANY)])
    pool.push([{"priority": 1, "batch": "b"}], "b:urgent")
    with session_of_a_pilot(pool, server.url) as session:
        assert take(Claims(session, False, Conflicts(session)), 1)[0].startswith("b:urgent")
