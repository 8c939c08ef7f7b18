"""The CouchDB for the measurements, and empty pools in it."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from airflow_provider_picas.hooks.picas import PicasHook
from stack import paths
from stack.couchdb import CouchDB, CouchDBAdmin
from stack.pool import Pool

COUCHDB_URL = "PICAS_TEST_COUCHDB_URL"
CONN_ID = "picas_bench"


@dataclass(frozen=True)
class Server:
    """A CouchDB server, with its admin's login; ``name`` says which one it is."""

    admin: CouchDBAdmin
    name: str

    @contextmanager
    def pool(self, *, views: bool = False) -> Iterator[Pool]:
        """An empty pool behind the connection ``CONN_ID``; it is deleted at the end. ``views``: with the provider's."""
        name = f"bench_{secrets.token_hex(6)}"
        pool = Pool(self.admin.url, name, user=name, password=secrets.token_urlsafe(16))
        self.admin.create_user(pool.user, pool.password)
        self.admin.create_database(name, members=[name], admins=[name])
        os.environ[f"AIRFLOW_CONN_{CONN_ID.upper()}"] = json.dumps(
            {"conn_type": "picas", "host": pool.url, "schema": name, "login": pool.user, "password": pool.password}
        )
        try:
            hook = PicasHook(CONN_ID)
            if views:
                hook.deploy_views()
            hook.test_connection()  # the first check of a password takes long
            yield pool
        finally:
            self.admin.delete_database(name)
            self.admin.delete_user(name)


@contextmanager
def couchdb() -> Iterator[Server]:
    """The server in ``PICAS_TEST_COUCHDB_URL``, or else the embedded one, which is stopped at the end."""
    if url := os.environ.get(COUCHDB_URL):
        yield _server(CouchDBAdmin.from_url(url))
        return
    folder = paths.RUN / f"bench-{os.getpid()}"
    try:
        with CouchDB(folder) as embedded:
            yield _server(embedded)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _server(admin: CouchDBAdmin) -> Server:
    _, welcome = admin.request("GET", "/")
    vendor = welcome.get("vendor", {}).get("name", "unknown vendor")
    return Server(admin, f"CouchDB {welcome.get('version')} ({vendor})")


def context(task_id: str = "push") -> Any:
    """The parts of Airflow's context that operators use."""
    ti = types.SimpleNamespace(dag_id="bench", run_id="bench", task_id=task_id, map_index=-1)
    ti.xcom_push = lambda key, value: None
    return {"ti": ti}
