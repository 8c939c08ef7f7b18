"""A real API server of Airflow with the page, on SQLite, and four users, one of each role."""

from __future__ import annotations

import copy
import json
import secrets
import shutil
import sqlite3
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from airflow_provider_picas.links import PAGE_KEY
from stack import native, processes
from stack.airflow import Airflow
from stack.airflow_api import AirflowApi
from stack.pool import Pool

USERS = ("admin", "op", "user", "viewer")
START_SECONDS = 480.0
DAG = "paged"
BASE_PATH = "/airflow"  # as behind a proxy that shows Airflow below a path


@dataclass
class Reply:
    """The answer to a request."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class ApiServer:
    """``start`` fills the database of a new Airflow with the DAGs of the tests, and starts ``airflow api-server``."""

    def __init__(self, folder: Path, venv: Path, dags: Path) -> None:
        self.folder = folder
        self.airflow = Airflow(
            folder,
            dags=dags,
            venv=venv,
            base_path=BASE_PATH,
            env={
                "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{user}:{user}" for user in USERS),
                "AIRFLOW__SECRETS__BACKEND": "",
                "AIRFLOW__SECRETS__BACKEND_KWARGS": "",
            },
        )
        self.url = self.airflow.url
        self.passwords = {user: secrets.token_urlsafe(12) for user in USERS}
        self.process: subprocess.Popen[bytes] | None = None
        self._tokens: dict[str, str] = {}
        self._command = str(venv / "bin" / "airflow")

    def start(self) -> None:
        processes.sweep(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        passwords = self.folder / "passwords.json"
        passwords.touch(mode=0o600)
        passwords.write_text(json.dumps(self.passwords))
        env = self.airflow.environ()
        try:
            for name, words in (("migrate", ["db", "migrate"]), ("parse", ["dag-processor", "--num-runs", "1"])):
                step = processes.start([self._command, *words], folder=self.folder, name=name, env=env, cwd=self.folder)
                self.process = step
                assert step.wait(START_SECONDS) == 0, processes.tail(processes.log_path(self.folder, name), 40)
            self._serve(env, 1)
        except BaseException:
            self.stop()
            raise

    def _serve(self, env: Mapping[str, str], workers: int) -> None:
        name = f"api-{workers}"
        self.process = processes.start(
            [self._command, "api-server", "--apps", "core", "--workers", str(workers)],
            folder=self.folder, name=name, env=env, cwd=self.folder,
        )  # fmt: skip
        processes.wait_for(
            self._ready,
            what="The API server",
            seconds=START_SECONDS,
            process=self.process,
            log=processes.log_path(self.folder, name),
        )

    def another(self, *, workers: int) -> ApiServer:
        """Another API server on the same database, with this number of workers; it is running."""
        second = copy.copy(self)
        second.airflow = copy.copy(self.airflow)
        second.airflow.port = processes.free_port()
        second.airflow.url = second.url = f"http://127.0.0.1:{second.airflow.port}{BASE_PATH}"
        second._tokens = {}
        try:
            second._serve(second.airflow.environ(), workers)
        except BaseException:
            second.stop()
            raise
        return second

    def stop(self) -> None:
        if self.process is not None:
            processes.end_session(self.process.pid, seconds=5)
            self.process.wait()

    def _ready(self) -> bool:
        try:
            return self.send("GET", "/api/v2/monitor/health", user=None).status == 200
        except OSError:
            return False

    # -- requests -----------------------------------------------------------------------------------------------------

    def api(self, user: str = "admin") -> AirflowApi:
        """Airflow's own API, as this user."""
        return AirflowApi(self.url, user, self.passwords[user])

    def token(self, user: str) -> str:
        """The user's session, which a browser keeps in a cookie."""
        if user not in self._tokens:
            login = {"username": user, "password": self.passwords[user]}
            answer = self.send("POST", "/auth/token", login, user=None)
            self._tokens[user] = answer.json["access_token"]
        return self._tokens[user]

    def send(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        user: str | None = "admin",
        headers: Mapping[str, str] | None = None,
        **query: Any,
    ) -> Reply:
        """Send one request with the user's cookie, as a browser does. Query parameters that are None are left out."""
        try:
            with self._open(method, path, body, user, headers, query) as answer:
                endless = answer.headers.get_content_type() == "text/event-stream"
                return Reply(answer.status, answer.headers, answer.readline() if endless else answer.read())
        except urllib.error.HTTPError as error:
            return Reply(error.code, cast("Mapping[str, str]", error.headers), error.read())

    def open(self, path: str, *, user: str | None = "admin", **query: Any) -> Any:
        """The answer to a GET, to be read and closed by the caller."""
        return self._open("GET", path, None, user, None, query)

    def _open(
        self,
        method: str,
        path: str,
        body: object,
        user: str | None,
        headers: Mapping[str, str] | None,
        query: Mapping[str, Any],
    ) -> Any:
        asked = {name: value for name, value in query.items() if value is not None}
        target = self.url + path + ("?" + urllib.parse.urlencode(asked) if asked else "")
        all_headers = {"Accept": "application/json", "Content-Type": "application/json", **(headers or {})}
        if user:
            all_headers["Cookie"] = f"_token={self.token(user)}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(target, data=data, headers=all_headers, method=method)
        return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60)

    def get(self, path: str, *, user: str | None = "admin", **query: Any) -> Reply:
        """GET of a route of the page."""
        return self.send("GET", f"/picas/api/{path}", user=user, **query)

    def post(self, path: str, body: object, *, user: str | None = "admin", **query: Any) -> Reply:
        """POST to a route of the page, as the page does."""
        return self.send("POST", f"/picas/api/{path}", body, user=user, headers={"X-PiCaS-Request": "1"}, **query)

    # -- what Airflow has ---------------------------------------------------------------------------------------------

    def connect(self, conn_id: str, pool: Pool, **extra: str) -> None:
        """Make a connection to this pool, in Airflow's database."""
        fields = {
            **native.picas_connection(pool),
            "connection_id": conn_id,
            **({"extra": json.dumps(extra)} if extra else {}),
        }
        api = self.api()
        self.send("DELETE", f"/api/v2/connections/{conn_id}")
        api.request("POST", "connections", fields)

    def run(self) -> str:
        """A new run of the DAG; nothing executes its tasks."""
        return self.api().trigger(DAG)

    def name_batch(
        self, run_id: str, task_id: str, conn_id: str, database: str, batch: str | None, **more: Any
    ) -> None:
        """What a task leaves in its XCom."""
        value = {"picas_conn_id": conn_id, "database": database, "batch": batch, "role": "push", **more}
        path = f"dags/{DAG}/dagRuns/{urllib.parse.quote(run_id)}/taskInstances/{task_id}/xcomEntries"
        self.api().request("POST", path, {"key": PAGE_KEY, "value": value, "map_index": -1})

    def rows(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Rows of Airflow's database."""
        with sqlite3.connect(self.folder / "airflow.db", timeout=60) as database:
            return database.execute(statement, values).fetchall()
