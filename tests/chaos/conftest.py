"""Faults on the real parts. The cluster is a native one of these tests' own: only such a one can be hurt."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stack import native
from stack.cluster import Cluster
from stack.pool import Pool
from tests.chaos.run import Run, figures

logging.getLogger("paramiko").setLevel(logging.WARNING)


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--rounds=N``: run N random rounds and nothing else; ``--seed=S``: the seed of the first one."""
    parser.addoption("--rounds", type=int, default=0, help="random rounds to run, and nothing else")
    parser.addoption("--parents", type=int, default=40, help="parents in the test of stages")
    parser.addoption("--seed", type=int, default=None, help="seed of the first random round")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With ``--rounds`` only the rounds."""
    if config.getoption("--rounds", 0):
        others = [item for item in items if not item.name.startswith("test_round[")]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of xdist sends its figures to who shows them."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["figures"] = figures


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A worker has ended."""
    figures.extend(getattr(node, "workeroutput", {}).get("figures", []))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The figures."""
    if figures:
        terminalreporter.section("figures")
        for figure in figures:
            terminalreporter.write_line(figure)


@pytest.fixture(scope="session")
def cluster(run_folder: Path) -> Iterator[Cluster]:
    """Two nodes with room for many pilots. With this MessageTimeout a dead node is noticed after about 11 s."""
    with Cluster(run_folder / "cluster", cpus=20, settings={"MessageTimeout": "3"}) as site:
        native.install_picas(site.home)
        yield site


@pytest.fixture
def run(cluster: Cluster, pool: Pool, picas_default: str, spider: str, request: pytest.FixtureRequest) -> Iterator[Run]:
    """A run on an empty pool. Its jobs are gone when the test has ended."""
    made = Run(cluster, pool, re.sub(r"\W+", "_", request.node.name))
    yield made
    made.close()
