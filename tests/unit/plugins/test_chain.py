"""What of a chain of stages a user sees who may see only some of its batches."""

from __future__ import annotations

from airflow_provider_picas.couchdb.chains import Links
from airflow_provider_picas.plugins.answers import chain as answers
from airflow_provider_picas.plugins.models import ChainEdge
from airflow_provider_picas.tokens.chain import Chain
from airflow_provider_picas.tokens.counts import Counts
from airflow_provider_picas.tokens.groups import Grouping

CHAIN = Chain("b", ("s", "t"), groups={"t": Grouping("s")})
COUNTS = {"b": Counts(done=3), "b.s": Counts(todo=1, done=4), "b.t": Counts(done=2)}
LINKS = Links(pending={"b.s": 2}, groups={"b.s": 3}, made={"b.s": 2}, edges={("b", "b.s"): 5, ("b", "b.t"): 1})
ALL = {"b", "b.s", "b.t"}


def test_all_edges_are_shown_to_those_who_may_see_all_batches() -> None:
    assert answers._edges(CHAIN, LINKS, ALL) == [
        ChainEdge(begin=0, end=1, tokens=5),
        ChainEdge(begin=0, end=2, tokens=1),
        ChainEdge(begin=1, end=2, tokens=2, group=True),
    ]
    nodes = answers._nodes(CHAIN, COUNTS, LINKS, ALL)
    assert [(node.pending, node.growing, node.groups, node.made) for node in nodes] == [
        (0, False, None, None),
        (2, False, None, None),
        (0, True, 3, 2),
    ]


def test_nothing_is_said_of_a_batch_that_the_user_may_not_see() -> None:
    visible = {"b", "b.t"}
    assert answers._edges(CHAIN, LINKS, visible) == [
        ChainEdge(begin=0, end=1),
        ChainEdge(begin=0, end=2, tokens=1),
        ChainEdge(begin=1, end=2, group=True),
    ]
    nodes = answers._nodes(CHAIN, COUNTS, LINKS, visible)
    hidden = nodes[1]
    assert (hidden.counts, hidden.pending, hidden.growing) == (None, 0, False)
    assert (nodes[2].growing, nodes[2].groups, nodes[2].at_least) == (False, None, 1.0)
