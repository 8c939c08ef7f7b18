"""Nodes of a real CouchDB cluster are frozen, killed and cut off while pilots on all of them work, and a wait on one reaps."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import asdict

import pytest

from stack.cluster import Cluster
from tests.chaos.couchdb_nodes import CouchDBNodes, cluster_or_skip, until, urls_from_environment
from tests.chaos.plan import Event, Plan
from tests.chaos.rounds import Round, Servers
from tests.chaos.run import tell
from tests.conftest import set_connection

TOKENS = 400
LEASE = 8  # seconds
EVENTS = (
    Event(3, "server freeze", 1, 6),
    Event(13, "server kill", 2, 4),
    Event(21, "cut", 1, 5),
    Event(30, "cut", 0, 2 * LEASE),
)


@pytest.fixture
def nodes() -> Iterator[CouchDBNodes]:
    with cluster_or_skip() as found:
        yield found


def test_a_node_that_is_cut_off_stays_so_until_it_is_healed(nodes: CouchDBNodes) -> None:
    """What the other tests rely on: both sides take writes, the smaller one with 202, and the cut outlives a restart."""
    names = {node.name for node in nodes.nodes}
    cut, other = nodes[2], nodes[0]
    database = f"/cut_{random.randrange(10**9)}"
    assert other.request("PUT", database)[0] == 201
    try:
        nodes.cut(cut)
        assert nodes.joined()[cut.name] == set()
        assert cut.request("PUT", f"{database}/a", {"side": "small"})[0] == 202
        assert other.request("PUT", f"{database}/a", {"side": "large"})[0] == 201
        cut.kill()
        nodes.restart(cut)
        assert nodes.joined()[cut.name] == set()
        assert nodes.joined()[other.name] == names - {cut.name, other.name}
        nodes.heal()
        assert nodes.joined() == {name: names - {name} for name in names}
        until(lambda: other.request("GET", f"{database}/a?conflicts=true")[1].get("_conflicts"), "The conflict")
        cut.freeze()
        assert other.request("PUT", f"{database}/b", {})[0] == 201
        cut.thaw()
        until(cut.is_up, "The node's answer")
    finally:
        nodes.mend()
        other.request("DELETE", database)


def test_nodes_fail_one_after_the_other(
    nodes: CouchDBNodes, cluster: Cluster, spider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three pilots ask one node each, the fourth asks them in turn. No pilot is hurt: nothing may run twice at once."""
    dice = random.Random(9)
    tokens = tuple({"seconds": round(dice.uniform(0.05, 0.6), 2), "failures": 0} for _ in range(TOKENS))
    plan = Plan(9, tokens, LEASE, (1, 1, 1, 1), (0, 1, 2, None), 0.0, EVENTS)
    servers = Servers(urls_from_environment(), nodes.nodes, nodes)
    with Round(plan, servers, cluster.home, lambda name, fields: set_connection(monkeypatch, name, fields)) as run:
        violations = run.check()
    tell(f"nodes of a cluster fail: {json.dumps(asdict(run.figures))}")
    assert not violations, "\n".join(violations)
    assert run.figures.server_faults == len(EVENTS), "the tokens were done before the last fault"
