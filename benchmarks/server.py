"""The CouchDB for the measurements, and empty pools in it."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.pilot.guard import children_of
from stack import paths
from stack.couchdb import CouchDB, CouchDBAdmin
from stack.pool import Pool

COUCHDB_URL = "PICAS_TEST_COUCHDB_URL"
CONN_ID = "picas_bench"
QUIET = 2.0  # seconds without a compaction: one may follow another
PAUSE = 0.1  # seconds between two queries of the running compactions
PATIENCE = 1_800.0  # seconds for compactions to end
SMOOSH = ("ratio_dbs", "slack_dbs", "ratio_views", "slack_views")
NEVER = "1.0e30"  # a priority that no file reaches


@dataclass(frozen=True)
class Server:
    """A CouchDB server, with its admin's login; ``name`` says which one it is."""

    admin: CouchDBAdmin
    name: str

    def cpu(self) -> float | None:
        """Seconds of CPU that the server and its children have used; None if it runs on another machine."""
        if self._pid is None:
            return None
        pids = [self._pid]
        for pid in pids:
            pids += children_of(pid)
        return sum(cpu_of(pid, children=True) for pid in pids)

    @cached_property
    def compacts(self) -> bool:
        """True for an Apache CouchDB, which compacts by itself (smoosh)."""
        return self.admin.request("GET", "/_node/_local/_config/smoosh")[0] == 200

    @contextmanager
    def without_compaction(self) -> Iterator[None]:
        """Switch automatic compaction off."""
        try:
            for channel in SMOOSH:
                self.admin.request("PUT", f"/_node/_local/_config/smoosh.{channel}/min_priority", NEVER)
            yield
        finally:
            for channel in SMOOSH:
                self.admin.request("DELETE", f"/_node/_local/_config/smoosh.{channel}/min_priority")

    def compact(self, database: str, design_documents: Sequence[str]) -> float:
        """Compact a database and its views. Returns the seconds until the last compaction was seen.

        Raises RuntimeError if CouchDB refuses or takes too long.
        """
        begin = time.monotonic()
        for path in (f"/{database}/_compact", *(f"/{database}/_compact/{name}" for name in design_documents)):
            status, response = self.admin.request("POST", path, {})
            if status != 202:
                raise RuntimeError(f"CouchDB answers {status} to POST {path}: {response}")
        end, last = time.monotonic() + PATIENCE, time.monotonic()
        while time.monotonic() - last < QUIET:
            tasks = self.admin.request("GET", "/_active_tasks")[1]
            if any(task["type"].endswith("compaction") for task in tasks):
                last = time.monotonic()
            if last > end:
                raise RuntimeError(f"CouchDB still compacts after {PATIENCE:g} s: {tasks}")
            time.sleep(PAUSE)
        return max(PAUSE, last - begin)

    @cached_property
    def _pid(self) -> int | None:
        return listening_process(urlsplit(self.admin.url).port or 0)

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


def listening_process(port: int) -> int | None:
    """The process on this machine that listens on a TCP port."""
    rows = [line.split() for table in _tcp_tables() for line in table.read_text().splitlines()[1:]]
    sockets = {f"socket:[{row[9]}]" for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port}
    for folder in Path("/proc").glob("[0-9]*/fd"):
        with suppress(OSError):  # it may have ended, or belong to another user
            for descriptor in folder.iterdir():
                if os.readlink(descriptor) in sockets:
                    return int(folder.parent.name)
    return None


def _tcp_tables() -> list[Path]:
    """The kernel's tables of TCP sockets, of IPv4 and, unless it is switched off, of IPv6."""
    return [path for path in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")) if path.exists()]


def cpu_of(pid: int, *, children: bool = False) -> float:
    """Seconds of CPU that a process has used, also if it is a zombie. ``children``: with those that have ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11 : 15 if children else 13])) / os.sysconf("SC_CLK_TCK")


def context(task_id: str = "push") -> Any:
    """The parts of Airflow's context that operators use."""
    ti = types.SimpleNamespace(dag_id="bench", run_id="bench", task_id=task_id, map_index=-1)
    ti.xcom_push = lambda key, value: None
    return {"ti": ti}
