"""One API server for all tests of the page, and pools with a connection and a run that uses them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_picas.hooks.picas import PicasHook
from stack import paths
from stack.pool import Pool
from tests.integration.plugins.server import DAG, ApiServer, Reply

CONN = "paged"
"""The connection that the tasks of the DAG use."""


@pytest.fixture(scope="session")
def server(run_folder: Path) -> Iterator[ApiServer]:
    """A running API server."""
    dags = run_folder / "paged-dags"
    dags.mkdir(exist_ok=True)
    (dags / "tests").symlink_to(Path(__file__).parent / "dags")
    for name in ("picas_rerun_failed.py", "picas_archive_batches.py"):
        (dags / name).symlink_to(paths.PROJECT / "dags" / name)
    started = ApiServer(run_folder / "paged", Path(sys.prefix), dags)
    started.start()
    yield started
    started.stop()


@dataclass
class Page:
    """The page of one pool: ``scope`` is its batch ``b`` by the connection, ``of_run`` the same by a run."""

    server: ApiServer
    pool: Pool
    hook: PicasHook
    run_id: str

    @property
    def scope(self) -> dict[str, Any]:
        return {"conn_id": CONN, "database": self.pool.database, "batch": "b"}

    @property
    def of_run(self) -> dict[str, Any]:
        return {**self.scope, "dag_id": DAG, "run_id": self.run_id}

    def get(self, path: str, user: str | None = "admin", **query: Any) -> Reply:
        return self.server.get(path, user=user, **{**self.scope, **query})

    def ask(self, path: str, **query: Any) -> Any:
        """The answer, which must be one."""
        reply = self.get(path, **query)
        assert reply.status == 200, (reply.status, reply.body[:500])
        return reply.json


@pytest.fixture
def page(server: ApiServer, pool: Pool, picas_default: str) -> Page:
    """A pool with the provider's views; a run whose push names the batch ``b`` of it."""
    return page_of(server, pool, picas_default)


def page_of(server: ApiServer, pool: Pool, conn_id: str) -> Page:
    """A pool with the provider's views, and a run on this server whose push names the batch ``b`` of it."""
    server.connect(CONN, pool)
    hook = PicasHook(conn_id)
    hook.deploy_views()
    run_id = server.run()
    server.name_batch(run_id, "push", CONN, pool.database, "b")
    return Page(server, pool, hook, run_id)
