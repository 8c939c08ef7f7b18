"""The stack in containers, with the interface that the demo needs. See NativeStack for its methods."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path

from stack import processes, word_count
from stack.airflow import ADMIN, START_SECONDS
from stack.airflow_api import AirflowApi
from stack.docker import DockerStack, engine_answers
from stack.pool import Pool
from stack.processes import StackError

USER = "picas_user"


class ContainedStack:
    """``DockerStack`` with a pool for the demo. Raises StackError if no Docker engine answers."""

    def __init__(self, folder: Path, *, database: str) -> None:
        if not engine_answers():
            raise StackError(
                "No Docker engine answers, or its compose plugin is missing: check `docker info` and"
                " `docker compose version`. `make demo` without STACK=docker needs neither."
            )
        self.password = secrets.token_urlsafe(16)
        self.docker = DockerStack(folder, database=database, couchdb_login=(USER, self.password))

    @property
    def api(self) -> AirflowApi:
        return self.docker.airflow_api

    @property
    def login(self) -> tuple[str, str]:
        return ADMIN, self.docker.airflow_passwords[ADMIN]

    def start(self, wait_for: Iterable[str] = ()) -> None:
        self.docker.stop()  # containers of a demo that was killed
        self.docker.prepare()
        self.docker.start()
        try:
            processes.wait_for(self.api.healthy, what="Airflow", seconds=START_SECONDS)
            for dag_id in wait_for:
                processes.wait_for(lambda dag_id=dag_id: self.api.has_dag(dag_id), what=f"DAG {dag_id}", seconds=60)  # type: ignore[misc]
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        self.docker.stop()

    def connect(self, database: str) -> Pool:
        """Create the pool. Airflow in its container already has both connections."""
        self.docker.couchdb.create_user(USER, self.password)
        self.docker.couchdb.create_database(database, members=[USER], admins=[USER])
        return Pool(self.docker.couchdb.url, database, USER, self.password)

    def count(self, files: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Count on a login node, since the files are in the image."""
        program = Path(word_count.__file__).read_text()
        ended = self.docker.run("python3", "-c", program, *files, timeout=120)
        if ended.returncode:
            raise StackError(f"The direct count on the login node failed:\n{ended.stderr[-2000:]}")
        answer: dict[str, tuple[int, int]] = {
            file: (lines, words) for file, (lines, words) in json.loads(ended.stdout).items()
        }
        return answer
