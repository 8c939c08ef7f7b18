"""Leases on a real CouchDB cluster of three nodes, of which one is away: it lacks the newest leases, then and later.

``_local`` documents are not brought up to date when it is back.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_picas.couchdb.errors import CouchDBError
from airflow_provider_picas.lifecycle.pilot_config import Config
from airflow_provider_picas.pilot.access import Access
from airflow_provider_picas.pilot.clock import Clock
from airflow_provider_picas.pilot.database import Database
from airflow_provider_picas.pilot.identity import Identity
from airflow_provider_picas.pilot.lease import Lease
from airflow_provider_picas.pilot.work import Work
from airflow_provider_picas.submissions.watch import PilotStatus
from airflow_provider_picas.tokens.states import State
from stack.couchdb import CouchDBAdmin
from tests.chaos.couchdb_nodes import CouchDBNodes, cluster_or_skip
from tests.integration.pilots import PASSWORD, Pool, new_pool, until
from tests.integration.submissions.test_deaths import READING, Site, new_site


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

        def patiently() -> PilotStatus:
            try:
                return look()
            except CouchDBError as error:  # a node that was just started answers no view
                return PilotStatus(outage=str(error))

        made.look_once = patiently  # type: ignore[method-assign]
        yield made


def test_every_node_returns_the_newest_lease_when_one_was_away(nodes: CouchDBNodes, pool: Pool) -> None:
    """The one that was away has an old lease still."""
    config = Config(command="true", submission="s", lease=60)
    me = Identity("p", "here", None, (0, 1))
    clock, work = Clock(), Work(config)

    databases = [
        Database(Access(node.address, pool.name, pool.member, PASSWORD, ""), config, clock) for node in nodes.nodes
    ]

    def told(place: int) -> list[int]:
        """What a node tells when it is asked often."""
        return [databases[place].leases(["p"])["p"]["counts"]["done"] for _ in range(20)]

    lease = Lease(databases[0], config, me, clock, work)
    for renewal in range(1, 13):  # ten and more are no less than nine, as they would be as text
        if renewal == 8:
            nodes[2].kill()
        work.counts["done"] = renewal
        lease.renew()
    nodes.restart(nodes[2])
    assert [told(place) for place in range(3)] == [[12] * 20] * 3
    nodes[1].kill()
    assert [told(place) for place in (0, 2)] == [[12] * 20] * 2
    for database in databases:
        database._connection.close()


def test_whoever_is_cut_off_with_a_node_takes_nobody_for_dead(nodes: CouchDBNodes, site: Site) -> None:
    site.begin()
    nodes.cut(nodes[1])
    until(lambda: "(202)" in (site.look().outage or ""), 60)
    until(lambda: "cannot be renewed" in site.looking.log(), 60)
    nodes.heal()
    site.readings(3)
    site.renew(2)
    site.check()


def test_old_leases_of_a_node_that_is_cut_off_prove_nothing(nodes: CouchDBNodes, site: Site) -> None:
    """A load balancer has them read from that node, and everything else done by the others, who store what is written."""
    for proxy in site.proxies:
        proxy.redirect(nodes[0].address)
        proxy.spread = {READING: nodes[2].address}
    site.begin()
    nodes.cut(nodes[2])
    site.renew(10)
    nodes.heal()
    site.check()


def test_a_pilot_that_is_cut_off_with_a_node_stops_its_work(nodes: CouchDBNodes, site: Site) -> None:
    """Its renewals are seen by nobody on the other side, where it counts as dead."""
    for proxy in site.proxies:
        proxy.redirect(nodes[0].address)
    site.worker.redirect(nodes[2].address)
    site.begin()
    nodes.cut(nodes[2])
    until(lambda: "has expired. Stopping b:0000" in site.working.log(), 60)
    assert not site.looking.runs(), "it was run by both at the same time"
    until(lambda: site.look_once().reaped or site.looking.runs(), 60)
    until(lambda: site.looking.runs().total() == 1, 60)
    nodes.heal()
    until(lambda: site.pool.states() == {State.DONE: 1}, 60)
