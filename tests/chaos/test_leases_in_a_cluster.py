"""Leases on a real CouchDB cluster of three nodes, of which one is away: it lacks the newest leases, then and later.

``_local`` documents are not brought up to date when it is back.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_picas.couchdb.errors import CouchDBError
from airflow_provider_picas.reaping import News
from airflow_provider_picas.tokens.states import State
from stack.couchdb import CouchDBAdmin
from tests.chaos.couchdb_nodes import CouchDBNodes, cluster_or_skip
from tests.integration.test_living_pilots import LEASE, Site, new_pool, new_site
from tests.integration.test_pilot import Pool, until


@pytest.fixture
def nodes() -> Iterator[CouchDBNodes]:
    with cluster_or_skip() as found:
        yield found


@pytest.fixture
def pool(nodes: CouchDBNodes) -> Iterator[Pool]:
    """A pool for one test."""
    with new_pool(CouchDBAdmin.from_url(nodes[0].url)) as made:
        yield made
        nodes.mend()


@pytest.fixture
def site(nodes: CouchDBNodes, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """The pilot at work uses the first node, those that look for the dead another one."""
    addresses = [nodes[place].address for place in (0, 1, 1)]
    with new_site(pool, tmp_path, addresses, monkeypatch) as made:
        look = made.look_once

        def patiently() -> News:
            try:
                return look()
            except CouchDBError as error:  # a node that was just started answers no view
                return News(outage=str(error))

        made.look_once = patiently  # type: ignore[method-assign]
        yield made


def kill_pilot(site: Site) -> None:
    """It is dead for the others, whichever finds it first, within its lease and 5 s."""
    killed = time.monotonic()
    site.working.pilots[0].kill()
    until(lambda: site.look_once().reaped or site.looking.runs(), 60)
    print(f"given back {time.monotonic() - killed:.1f} s after the kill, with a lease of {LEASE} s")
    assert time.monotonic() - killed < LEASE + 5
    until(lambda: site.pool.states() == {State.DONE: 1}, 60)
    (attempt,) = site.pool.get("b:0000")["attempts"]
    assert "was not heard for" in attempt["reason"]


def test_a_node_that_was_away_has_old_leases(nodes: CouchDBNodes, site: Site) -> None:
    site.begin()
    nodes[2].kill()
    site.renew(3)
    nodes.restart(nodes[2])
    time_with_old_leases = time.monotonic() + LEASE
    for place, proxy in enumerate(site.proxies):
        proxy.redirect(nodes[2 if place else 0].address)
    until(lambda: site.look() and time.monotonic() > time_with_old_leases, 60)
    site.readings(10)
    site.renew(2)
    assert site.pool.states() == {State.LOCKED: 1}
    kill_pilot(site)


def test_whoever_is_cut_off_with_a_node_takes_nobody_for_dead(nodes: CouchDBNodes, site: Site) -> None:
    site.begin()
    nodes.cut(nodes[1])
    until(lambda: "(202)" in (site.look().outage or ""), 60)
    until(lambda: "cannot be renewed" in site.looking.log(), 60)
    nodes.heal()
    site.readings(3)
    site.renew(2)
    site.check()


def test_a_pilot_that_is_cut_off_with_a_node_stops_its_work(nodes: CouchDBNodes, site: Site) -> None:
    """Its renewals are seen by nobody on the other side, where it counts as dead."""
    for proxy in site.proxies:
        proxy.redirect(nodes[0].address)
    site.worker.redirect(nodes[2].address)
    site.begin()
    nodes.cut(nodes[2])
    until(lambda: "is lost: work on b:0000 stops" in site.working.log(), 60)
    assert not site.looking.runs(), "it was run by both at the same time"
    until(lambda: site.look_once().reaped or site.looking.runs(), 60)
    until(lambda: site.looking.runs().total() == 1, 60)
    nodes.heal()
    until(lambda: site.pool.states() == {State.DONE: 1}, 60)
