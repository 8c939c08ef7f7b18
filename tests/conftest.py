"""The real parts that integration and end-to-end tests share, started when a test first asks for them.

CouchDB is the one that ``PICAS_TEST_COUCHDB_URL`` names (with an admin's login in it), else Apache CouchDB where a
Docker engine answers, else the embedded server. Slurm and sshd likewise come from Docker or run natively. Airflow
is a native one.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from stack import docker, native, paths, processes
from stack.airflow import Airflow
from stack.cluster import Cluster
from stack.couchdb import CouchDB, CouchDBAdmin
from stack.docker import DockerStack, engine_answers
from stack.pool import Pool

RUN = paths.RUN / f"tests-{os.getpid()}"
COUCHDB_URL = "PICAS_TEST_COUCHDB_URL"
BASE_PATH = "/base/path"
# Parsing is most of what an idle Airflow does. A file that changes is parsed again at once all the same, and a new one is found
# after ``refresh_interval``. On a busy machine a file may take longer to load than the 30 s that Airflow allows.
PARSE_SELDOM = {
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "120",
    "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "120",
    "AIRFLOW__DAG_PROCESSOR__DAG_FILE_PROCESSOR_TIMEOUT": "180",
}
LONGEST = re.compile("tests/e2e/test_(demo|page|runs).py")
LONG = re.compile("tests/e2e/|tests/chaos/test_(feed_soak|stopping)")

# Before the first import of Airflow, which makes its home where this says.
os.environ["AIRFLOW_HOME"] = str(RUN / "airflow-home")
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
# Operators that a test runs itself have no Airflow that keeps a Variable.
os.environ["AIRFLOW__PICAS__DEPLOYMENT"] = "tests"
# Triggers that a test runs itself may fire at once.
os.environ["AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL"] = "0"

settings.register_profile("any_speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any_speed")


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--all``: also the tests that are left out where nothing has changed that they test."""
    parser.addoption("--all", action="store_true", help="also the embedded server's tests when the server is unchanged")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """``--dist loadfile`` gives each file to one worker; here all that share an API server go to the same one."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            shared = nodeid.startswith("tests/integration/plugins/")
            return "one API server" if shared else super()._split_scope(nodeid)

    config.option.loadscopereorder = False
    return Scheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let xdist's workers begin with what takes longest, and end with unit tests; between them, files with many tests first."""
    if hasattr(config, "workerinput"):
        sizes = Counter(item.path for item in items)
        items.sort(
            key=lambda i: (
                not LONGEST.match(i.nodeid), not LONG.match(i.nodeid), "/unit/" in i.nodeid,
                0 if LONGEST.match(i.nodeid) else -sizes[i.path], i.path,
            )
        )  # fmt: skip


def pytest_report_header() -> list[str]:
    """What the tests run on."""
    if os.environ.get(COUCHDB_URL):
        couchdb = CouchDBAdmin.from_url(os.environ[COUCHDB_URL]).url
    else:
        couchdb = "Apache CouchDB in Docker" if engine_answers() else "embedded server"
    cluster = "Docker" if engine_answers() else "native"
    return [f"CouchDB: {couchdb}; Slurm and sshd: {cluster}; logs: {RUN}"]


@pytest.fixture(scope="session")
def run_folder() -> Iterator[Path]:
    """Where the parts of this session live. What killed sessions have left is ended first."""
    for folder in paths.RUN.glob("tests-*/"):
        if not processes.alive(int(folder.name.removeprefix("tests-"))):
            native.sweep(folder)
            shutil.rmtree(folder, ignore_errors=True)
    RUN.mkdir(parents=True, exist_ok=True)
    yield RUN
    native.sweep(RUN)


@pytest.fixture(scope="session")
def docker_stack(run_folder: Path) -> DockerStack:
    """Folder, keys and ports of the stack in containers."""
    stack = DockerStack(run_folder / "docker")
    stack.prepare()
    return stack


# What pytest-docker asks for.


@pytest.fixture(scope="session")
def docker_compose_command(docker_stack: DockerStack) -> str:
    return shlex.join(["docker", "compose", "--env-file", str(docker_stack.environment_file)])


@pytest.fixture(scope="session")
def docker_compose_file() -> str:
    return str(docker.COMPOSE_FILE)


@pytest.fixture(scope="session")
def docker_compose_project_name(docker_stack: DockerStack) -> str:
    return docker_stack.project


@pytest.fixture(scope="session")
def docker_setup() -> list[str]:
    return [shlex.join(["up", "--detach", "--wait", *docker.COUCHDB, *docker.CLUSTER])]


@pytest.fixture(scope="session")
def docker_cleanup() -> list[str]:
    return ["logs --no-color --timestamps", "down --volumes --timeout 5"]


@pytest.fixture(scope="session")
def containers(request: pytest.FixtureRequest) -> DockerStack | None:
    """CouchDB and the Slurm site in containers, which pytest-docker starts and removes; None where no Docker engine answers."""
    if not engine_answers():
        return None
    stack: DockerStack = request.getfixturevalue("docker_stack")
    request.getfixturevalue("docker_services")
    return stack


@pytest.fixture(scope="session")
def couchdb(run_folder: Path, containers: DockerStack | None) -> Iterator[CouchDBAdmin]:
    """A CouchDB server, as its admin."""
    if url := os.environ.get(COUCHDB_URL):
        yield CouchDBAdmin.from_url(url)
    elif containers:
        yield containers.couchdb
    else:
        with CouchDB(run_folder / "couchdb") as server:
            yield server


@pytest.fixture(scope="session")
def new_pool(couchdb: CouchDBAdmin) -> Callable[[], AbstractContextManager[Pool]]:
    """Makes an empty database with a user of its own, who may make its views; both go at the end of the ``with``."""

    @contextmanager
    def make() -> Iterator[Pool]:
        name = f"test_{secrets.token_hex(6)}"
        made = Pool(couchdb.url, name, user=name, password=secrets.token_urlsafe(16))
        couchdb.create_user(made.user, made.password)
        couchdb.create_database(name, members=[made.user], admins=[made.user])
        try:
            yield made
        finally:
            couchdb.delete_database(name)
            couchdb.delete_user(made.user)

    return make


@pytest.fixture
def pool(new_pool: Callable[[], AbstractContextManager[Pool]]) -> Iterator[Pool]:
    """A pool for one test."""
    with new_pool() as made:
        yield made


@pytest.fixture
def picas_default(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> str:
    """The id of a connection to ``pool``, for hooks, operators and triggers in this process."""
    return set_connection(monkeypatch, "picas_default", native.picas_connection(pool))


@pytest.fixture(scope="session")
def cluster(run_folder: Path, containers: DockerStack | None) -> Iterator[Cluster | DockerStack]:
    """A Slurm site with two compute nodes and two login nodes. It can reach ``couchdb`` under its URL."""
    if containers:
        yield containers
        return
    with Cluster(run_folder / "cluster") as site:
        native.install_picas(site.home)
        yield site


@pytest.fixture
def spider(cluster: Cluster | DockerStack, monkeypatch: pytest.MonkeyPatch) -> str:
    """The id of a connection to the cluster's first login node, for hooks and operators in this process."""
    return set_connection(monkeypatch, "spider", native.ssh_connection(cluster))


@pytest.fixture(scope="session")
def airflow(run_folder: Path) -> Iterator[Airflow]:
    """A running Airflow with the project's DAGs and those of tests/e2e/dags, and no connections yet.

    It answers below a path, as behind a proxy: the demo's does not.
    """
    dags = run_folder / "dags"
    dags.mkdir(exist_ok=True)
    for name, folder in (("project", paths.PROJECT / "dags"), ("tests", Path(__file__).parent / "e2e" / "dags")):
        (dags / name).symlink_to(folder)
    standalone = Airflow(
        run_folder / "airflow", dags=dags, env=PARSE_SELDOM, venv=Path(sys.prefix), base_path=BASE_PATH
    )
    standalone.start(["picas_word_count", "wait_scheduled"])
    yield standalone
    standalone.stop()


def set_connection(monkeypatch: pytest.MonkeyPatch, conn_id: str, fields: dict[str, Any]) -> str:
    """Make a connection known to Airflow's code in this process; returns its id."""
    monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(fields))
    return conn_id
