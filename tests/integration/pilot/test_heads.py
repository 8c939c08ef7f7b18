"""The highest priorities of the classes, in as few requests as possible."""

from __future__ import annotations

from airflow_provider_picas.pilot.claims import Claims
from airflow_provider_picas.pilot.conflicts import Conflicts
from airflow_provider_picas.pilot.heads import GROUPS, Heads
from airflow_provider_picas.pilot.log import LogOnce
from stack import couchdb
from tests.integration.pilots import Pool, session_of_a_pilot


def test_a_class_behind_many_priorities_of_another(pool: Pool, server: couchdb.CouchDBAdmin) -> None:
    """More than one response has room for."""
    pool.push([{"priority": place} for place in range(GROUPS + 50)] + [{"cores": 2, "priority": 10_000}])
    with session_of_a_pilot(pool, server.url) as session:
        heads = Heads(session, LogOnce())
        assert heads.read() == [(-10_000, "2//", 1), (-(GROUPS + 49), "//", 1)]
        assert (heads.todo, heads.only, heads.classes_after) == (None, None, None)
        tokens = Claims(session, False, Conflicts(session)).take(1, lambda doc: True, 0)
    assert [token.doc["priority"] for token in tokens] == [10_000]


def test_one_class_and_priority(pool: Pool, server: couchdb.CouchDBAdmin) -> None:
    pool.push([{"priority": 3}] * 4)
    pool.push([{}], batch="other")
    with session_of_a_pilot(pool, server.url) as session:
        heads = Heads(session, LogOnce())
        assert heads.read() == [(-3, "//", 4)]
        assert (heads.todo, heads.only) == (4, (-3, "//", 4))
        pool.push([{"priority": 2}], batch="b:late")
        pool.put({**pool.get("b:late:0000"), "batch": "b"})
        assert heads.read(update=False) == [(-3, "//", 4)]
        assert heads.read() == [(-3, "//", 4)]
        assert (heads.todo, heads.only) == (5, None)


def test_the_tokens_of_chosen_classes_are_counted(pool: Pool, server: couchdb.CouchDBAdmin) -> None:
    pool.push([{"cores": 4, "priority": 1}] * 3 + [{"cores": 4}, {}])
    with session_of_a_pilot(pool, server.url, classes=["4//", "8//"]) as session:
        assert Heads(session, LogOnce()).read() == [(-1, "4//", 3)]


def test_tokens_are_not_counted_while_some_are_skipped(pool: Pool, server: couchdb.CouchDBAdmin) -> None:
    """A group of the view may hold only tokens that are skipped."""
    pool.push([{"priority": 1}, {}, {}])
    with session_of_a_pilot(pool, server.url) as session:
        session.database.skip("b:0000", "is odd")
        assert Heads(session, LogOnce()).read() == [(0, "//", None)]
