"""Random rounds: ``make chaos ARGS='--rounds=30 --seed=7'`` runs thirty of them, the first with this seed, and nothing else.

Each draws a plan from its seed (``plan.py``) and runs it on the real parts (``rounds.py``); ``history.py`` says whether what
happened was allowed to. The database is the cluster that PICAS_TEST_COUCHDB_CLUSTER names, else the server that
PICAS_TEST_COUCHDB_URL names, else the embedded one. Without ``--rounds`` one short round is a smoke test.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from stack.cluster import Cluster
from stack.couchdb import CouchDB, CouchDBAdmin
from tests.chaos import plan, rounds
from tests.chaos.couchdb_nodes import CouchDBNode, CouchDBNodes, NotHere, urls_from_environment
from tests.chaos.rounds import Figures, Round, Servers
from tests.chaos.run import figures, tell
from tests.conftest import COUCHDB_URL, set_connection

SMOKE_SEED = 3


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each round."""
    count, seed = metafunc.config.getoption("--rounds", 0), metafunc.config.getoption("--seed", None)
    if "seed" in metafunc.fixturenames:
        first = SMOKE_SEED if seed is None else seed
        metafunc.parametrize("seed", range(first, first + max(1, count)), ids=lambda number: f"seed {number}")


@pytest.fixture(scope="module")
def servers(run_folder: Path) -> Iterator[Servers]:
    """The database, which all rounds use."""
    urls, url = urls_from_environment(), os.environ.get(COUCHDB_URL)
    if urls:
        with CouchDBNodes(urls) as nodes:
            yield Servers(urls, nodes.nodes, nodes, f"cluster of {len(urls)} nodes")
    elif url:
        try:
            nodes_here = [CouchDBNode(url)]
        except NotHere as error:
            print(error)
            nodes_here = []
        yield Servers([url], nodes_here, what="one server")
    else:
        with CouchDB(run_folder / "couchdb-of-rounds") as server:
            address = CouchDBAdmin.from_url(f"http://{server.admin}:{server.password}@127.0.0.1:{server.port}")
            node = CouchDBNode(f"http://{address.admin}:{address.password}@127.0.0.1:{server.port}")
            yield Servers([node.url], [node], what="embedded server")
            node.end()  # it may have been started again


@pytest.fixture(scope="module")
def rows() -> Iterator[list[Figures]]:
    """Figures of the rounds so far; the table is printed at the end of the session."""
    found: list[Figures] = []
    yield found
    figures.extend(rounds.table(found))


def test_round(
    seed: int,
    servers: Servers,
    cluster: Cluster,
    spider: str,
    rows: list[Figures],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    short = request.config.getoption("--rounds", 0) == 0
    drawn = plan.draw(seed, nodes=len(servers.nodes), short=short)
    with Round(drawn, servers, cluster.home, lambda name, fields: set_connection(monkeypatch, name, fields)) as made:
        violations = made.check()
        rows.append(made.figures)
        tell(json.dumps({"database": servers.what, **asdict(made.figures)}))
    assert not violations, "\n".join(violations)
