"""The stack as processes of this machine: CouchDB, a Slurm cluster and Airflow, all in one folder."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from airflow_provider_picas.couchdb.settings import host_and_port
from stack import paths, processes, word_count
from stack.airflow import ADMIN, Airflow
from stack.airflow_api import AirflowApi
from stack.cluster import Cluster
from stack.couchdb import CouchDB
from stack.pool import Pool


class Site(Protocol):
    """The login data of a cluster, native or in containers."""

    logins: list[tuple[str, int]]
    host_key: str

    @property
    def user(self) -> str:
        """The account."""

    @property
    def private_key(self) -> Path:
        """The key that opens it."""


class NativeStack:
    """``start`` starts all three; ``connect`` creates a pool, and Airflow's connections to it and to the cluster."""

    def __init__(self, folder: Path, *, dags: Path) -> None:
        self.folder = folder
        self.couchdb = CouchDB(folder / "couchdb")
        self.cluster = Cluster(folder / "cluster", cpus=2)  # so that 4 pilots take both nodes
        self.airflow = Airflow(folder / "airflow", dags=dags)

    @property
    def api(self) -> AirflowApi:
        return self.airflow.api

    @property
    def login(self) -> tuple[str, str]:
        """User and password of the Airflow UI."""
        return ADMIN, self.airflow.passwords[ADMIN]

    def start(self, wait_for: Iterable[str] = ()) -> None:
        """Start everything from scratch, or leave nothing running and raise StackError. ``wait_for`` names DAGs to parse."""
        sweep(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)
        with ThreadPoolExecutor(2) as threads:
            others = [threads.submit(self.couchdb.start), threads.submit(self._start_cluster)]
            try:
                self.airflow.start(wait_for)
                for other in others:
                    other.result()
            except BaseException:
                threads.shutdown(wait=True)
                self.stop()
                sweep(self.folder)  # an interrupt may come after a process has started and before it is known here
                raise

    def _start_cluster(self) -> None:
        self.cluster.start()
        install_picas(self.cluster.home)

    def stop(self) -> None:
        """End all parts that run."""
        with ThreadPoolExecutor(3) as threads:
            for part in (self.airflow, self.cluster, self.couchdb):
                threads.submit(part.stop)

    def connect(self, database: str) -> Pool:
        """Create a pool with its own user, and Airflow's connections ``picas_default`` and ``spider``."""
        user, password = "picas_user", secrets.token_urlsafe(16)
        self.couchdb.create_user(user, password)
        self.couchdb.create_database(database, members=[user], admins=[user])  # of the database: it makes the views
        pool = Pool(self.couchdb.url, database, user, password)
        self.airflow.connect("picas_default", **picas_connection(pool))
        self.airflow.connect("spider", **ssh_connection(self.cluster))
        return pool

    def count(self, files: Iterable[str]) -> dict[str, tuple[int, int]]:
        """Lines and words of each file, counted on this machine."""
        return word_count.count(files)


def install_picas(home: Path) -> None:
    """Install the PiCaS client in the home on the cluster, as a user of a real site does once."""
    (home / "picas-venv").symlink_to(paths.PICAS_VENV)


def install_examples(home: Path) -> None:
    """Install the packages of the example with sunspots there."""
    (home / "sunspots-venv").symlink_to(paths.EXAMPLES_VENV)


def picas_connection(pool: Pool) -> dict[str, Any]:
    """The fields of an Airflow connection to this pool."""
    return {
        "conn_type": "picas",
        **host_and_port(pool.url),
        "schema": pool.database,
        "login": pool.user,
        "password": pool.password,
    }


def ssh_connection(cluster: Site, login_node: int = 0) -> dict[str, Any]:
    """The fields of an Airflow connection to a login node of this cluster."""
    host, port = cluster.logins[login_node]
    extra = {"private_key": cluster.private_key.read_text(), "host_key": cluster.host_key}
    return {"conn_type": "ssh", "host": host, "port": port, "login": cluster.user, "extra": extra}


def sweep(folder: Path) -> None:
    """End processes that a killed stack left running in this folder."""
    for part in ("airflow", "couchdb"):
        processes.sweep(folder / part)
    Cluster(folder / "cluster").clean_up()
