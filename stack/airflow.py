"""A real Airflow with SQLite, in one folder, on free ports of the loopback interface.

It is ``airflow standalone`` and one more API server, which only tasks use. Within one process the two can block each other:
Airflow 3.3 writes its audit log on the event loop, and a request that holds the lock of the SQLite file needs that loop to end.
Both then wait until SQLite gives up. (Four clients that create variables at once show it.)
"""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stack import paths, processes
from stack.airflow_api import AirflowApi
from stack.processes import StackError

ADMIN = "admin"
VIEWER = "viewer"
START_SECONDS = 480.0

# Light enough for 2 cores beside a cluster, and quick to react: a run is short here.
SETTINGS = {
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__CORE__PARALLELISM": "4",
    "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
    "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
    "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{ADMIN}:admin,{VIEWER}:viewer",
    "AIRFLOW__API__WORKERS": "1",
    "AIRFLOW__API__HOST": "127.0.0.1",
    "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
    "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "30",
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.3",
    # The delay after which Airflow notices that a task's process has ended. If its trigger fires in the meantime, the
    # scheduler mistakes the end of the first part for that of the second, and fails the task (seen with 3.3.2).
    "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
    "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
}


class Airflow:
    """``start`` returns when all components are healthy and the requested DAGs are parsed; ``stop`` ends them all.

    ``dags`` is the DAG folder; ``env`` has more settings (``AIRFLOW__SECTION__KEY``). Secrets do not belong there:
    connections are created through ``api``. Users are admin and viewer, with the passwords in ``passwords``. ``venv`` is
    the environment with Airflow. ``base_path`` is the path below which the server answers, as behind a proxy.
    """

    def __init__(
        self,
        folder: Path,
        *,
        dags: Path,
        env: Mapping[str, str] | None = None,
        port: int | None = None,
        venv: Path = paths.AIRFLOW_VENV,
        base_path: str = "",
    ) -> None:
        self.folder = folder
        self.dags = dags
        self.port = port or processes.free_port()
        self.url = f"http://127.0.0.1:{self.port}{base_path}"
        self._execution_port = processes.free_port()
        self.execution_url = f"http://127.0.0.1:{self._execution_port}{base_path}/execution/"
        self.passwords = {user: secrets.token_urlsafe(12) for user in (ADMIN, VIEWER)}
        self.api = AirflowApi(self.url, ADMIN, self.passwords[ADMIN], execution_url=self.execution_url)
        self._bin = venv / "bin"
        self._settings = dict(env or {})
        self._connections: dict[str, dict[str, Any]] = {}
        self._connections_file = folder / "connections.json"
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, wait_for: Iterable[str] = ()) -> None:
        """Start all components; ``wait_for`` names DAGs. Raises StackError, with nothing left running."""
        processes.sweep(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        passwords = self.folder / "passwords.json"
        passwords.touch(mode=0o600)
        passwords.write_text(json.dumps(self.passwords))
        self._connections_file.touch(mode=0o600)
        self._connections_file.write_text("{}")
        try:
            self.run("airflow", "standalone")
            # Its database exists and its secrets are written before it answers.
            self._wait("Airflow", lambda: processes.answers("127.0.0.1", self.port))
            self.serve_tasks()
            self._wait("Airflow", self.api.healthy)
            for dag_id in wait_for:
                self._wait(f"DAG {dag_id}", lambda dag_id=dag_id: self._parsed(dag_id))
        except BaseException:
            self.stop()
            raise

    def run(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        """Start an Airflow command of this instance, which ends with it. Its output goes to ``log/<name>.log``.

        The shell keeps the mark of the stack, by which a later start finds the session: an API server overwrites its
        environment with a title.
        """
        shell = ["/bin/sh", "-c", '"$@"; exit $?', "sh"]
        process = processes.start(
            [*shell, str(self._bin / "airflow"), *words],
            folder=self.folder, name=name, env=self.environ(), cwd=self.folder,
        )  # fmt: skip
        self.processes.append(process)
        return process

    def serve_tasks(self) -> None:
        """Start the API server that tasks use."""
        self.run("execution", "api-server", "--apps", "execution", "--port", str(self._execution_port))

    def connect(self, conn_id: str, **fields: Any) -> None:
        """Create or replace a connection; ``fields`` are those of Airflow's (``conn_type``, ``host``, ``extra`` …).

        Tasks and triggers read it from a file, as from any secrets backend: a triggerer's first read through Airflow's
        API takes 5 s of CPU, which would distort every measurement. The UI and the Test button use a copy.
        """
        self._connections[conn_id] = fields
        self._write_connections()
        self.api.add_connection(conn_id, **fields, description="A copy: tasks read it from connections.json")

    def disconnect(self, conn_id: str) -> None:
        """Remove a connection, if it exists."""
        self._connections.pop(conn_id, None)
        self._write_connections()
        self.api.remove_connection(conn_id)

    def _write_connections(self) -> None:
        new = self._connections_file.with_suffix(".new")
        new.touch(mode=0o600)
        new.write_text(json.dumps(self._connections))
        new.replace(self._connections_file)

    def stop(self) -> None:
        """End all of its processes, including running tasks."""
        for process in self.processes:
            processes.end_session(process.pid, seconds=5)
            process.wait()
        self.processes.clear()

    def environ(self) -> dict[str, str]:
        """The environment of every Airflow command of this instance, without that of this process."""
        log_ports = [processes.free_port(), processes.free_port()]
        return {
            **SETTINGS,
            "AIRFLOW_HOME": str(self.folder),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.dags),
            # SQLite lets one process write at a time; on a busy machine others wait longer than its 5 s.
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self.folder}/airflow.db?timeout=120",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(self.folder / "passwords.json"),
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": self.execution_url,
            "AIRFLOW__SECRETS__BACKEND": "airflow.secrets.local_filesystem.LocalFilesystemBackend",
            "AIRFLOW__SECRETS__BACKEND_KWARGS": json.dumps({"connections_file_path": str(self._connections_file)}),
            "AIRFLOW__API__PORT": str(self.port),
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__PICAS__DEPLOYMENT": "",  # overrides this process's value: the instance generates its own name
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(log_ports[0]),
            "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(log_ports[1]),
            "PYTHONDONTWRITEBYTECODE": "",  # would cost every component 6 s of CPU
            "PATH": f"{self._bin}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            **self._settings,
        }

    def _wait(self, what: str, probe: object) -> None:
        log = processes.log_path(self.folder, "airflow")
        processes.wait_for(probe, what=what, seconds=START_SECONDS, process=self.processes[0], log=log)  # type: ignore[arg-type]

    def _parsed(self, dag_id: str) -> bool:
        if self.api.has_dag(dag_id):
            return True
        if errors := self.api.import_errors():
            raise StackError("\n".join(f"{file} does not load:\n{trace}" for file, trace in errors.items()))
        return False
