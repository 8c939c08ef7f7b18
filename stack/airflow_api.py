"""A client of Airflow's REST API for the demo and the tests. Standard library only."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

TIMEOUT = 60.0  # seconds: a busy api-server on 2 cores may take long for one response
ENDED = frozenset({"success", "failed"})


class AirflowApiError(RuntimeError):
    """Airflow refused a request; ``status`` is the HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class AirflowApi:
    """One Airflow, as one user. ``url`` has no trailing slash. The first request gets the token.

    ``execution_url`` is that of the API which tasks use, with a trailing slash, if another server has it.
    """

    def __init__(self, url: str, user: str, password: str, *, execution_url: str = "") -> None:
        self.url = url
        self.execution_url = execution_url or f"{url}/execution/"
        self.user = user
        self.password = password
        self._token = ""

    # Requests

    def request(self, method: str, path: str, body: object = None, *, query: Mapping[str, object] | None = None) -> Any:
        """Send one request to ``/api/v2/<path>``; returns the parsed JSON, or None for an empty answer."""
        if not self._token:
            login = {"username": self.user, "password": self.password}
            self._token = self._send("POST", "/auth/token", login)["access_token"]
        suffix = "?" + urllib.parse.urlencode(query, doseq=True) if query else ""
        return self._send(method, f"/api/v2/{path}{suffix}", body)

    def _send(self, method: str, path: str, body: object = None) -> Any:
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        try:
            content = self._open(request)
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")[:500]
            raise AirflowApiError(f"Airflow answered {error.code} to {method} {path}: {text}", error.code) from error
        return json.loads(content) if content else None

    @staticmethod
    def _open(request: urllib.request.Request) -> bytes:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=TIMEOUT) as answer:
            content: bytes = answer.read()
        return content

    def healthy(self) -> bool:
        """True if all components are healthy; False also while nothing answers yet."""
        try:
            health = self._send("GET", "/api/v2/monitor/health")
            # The API for tasks is built at its first request, which takes seconds: send it before a task does.
            self._open(urllib.request.Request(f"{self.execution_url}health"))
        except (OSError, AirflowApiError):
            return False
        return all(part.get("status") == "healthy" for part in health.values())

    # DAGs and their runs

    def has_dag(self, dag_id: str) -> bool:
        """True if the DAG has been parsed and can be triggered."""
        try:
            return not self.request("GET", f"dags/{dag_id}")["is_stale"]
        except AirflowApiError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return False
            raise

    def import_errors(self) -> dict[str, str]:
        """Stack traces of DAG files that do not load, by file name."""
        errors = self.request("GET", "importErrors")["import_errors"]
        return {error["filename"]: error["stack_trace"] for error in errors}

    def trigger(self, dag_id: str, conf: Mapping[str, object] | None = None) -> str:
        """Start a run by hand; returns its run id."""
        body = {"logical_date": None, "conf": dict(conf or {})}
        return str(self.request("POST", f"dags/{dag_id}/dagRuns", body)["dag_run_id"])

    def pause(self, dag_id: str) -> None:
        """Keep the scheduler from starting runs of this DAG."""
        self.request("PATCH", f"dags/{dag_id}", {"is_paused": True})

    def unpause(self, dag_id: str) -> None:
        """Let the scheduler start runs of this DAG."""
        self.request("PATCH", f"dags/{dag_id}", {"is_paused": False})

    def parse(self, dag_id: str) -> None:
        """Have the DAG's file parsed soon. Its asset watchers start after the first time that it was parsed unpaused."""
        self.request("PUT", f"parseDagFile/{quote(self.request('GET', f'dags/{dag_id}')['file_token'])}")

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        """All runs of the DAG, by hand or scheduled, up to 100."""
        runs: list[dict[str, Any]] = self.request("GET", f"dags/{dag_id}/dagRuns", query={"limit": 100})["dag_runs"]
        return runs

    def run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        run: dict[str, Any] = self.request("GET", f"dags/{dag_id}/dagRuns/{quote(run_id)}")
        return run

    def wait_for_run(self, dag_id: str, run_id: str, *, seconds: float = 600, every: float = 0.5) -> dict[str, Any]:
        """Wait until the run has ended; returns it. Raises TimeoutError, naming the tasks' states, when it has not."""
        deadline = time.monotonic() + seconds
        while (run := self.run(dag_id, run_id))["state"] not in ENDED:
            if time.monotonic() > deadline:
                states = {task["task_id"]: task["state"] for task in self.tasks(dag_id, run_id)}
                raise TimeoutError(f"{run_id} of {dag_id} is still {run['state']} after {seconds:g} s; tasks: {states}")
            time.sleep(every)
        return run

    def set_run_state(self, dag_id: str, run_id: str, state: str) -> None:
        """Mark the run ``success`` or ``failed``, or queue it again (``queued``)."""
        self.request("PATCH", f"dags/{dag_id}/dagRuns/{quote(run_id)}", {"state": state})

    # Task instances

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """All task instances of the run."""
        answer = self.request("GET", f"dags/{dag_id}/dagRuns/{quote(run_id)}/taskInstances", query={"limit": 1000})
        instances: list[dict[str, Any]] = answer["task_instances"]
        return instances

    def task(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> dict[str, Any]:
        """One task instance. Raises KeyError when the run has none of that name."""
        for instance in self.tasks(dag_id, run_id):
            if (instance["task_id"], instance["map_index"]) == (task_id, map_index):
                return instance
        raise KeyError(task_id)

    def wait_for_task(
        self, dag_id: str, run_id: str, task_id: str, states: Sequence[str], *, seconds: float = 300, every: float = 0.3
    ) -> dict[str, Any]:
        """Wait until the task is in one of these states; returns it. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while (task := self.task(dag_id, run_id, task_id))["state"] not in states:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{task_id} of {run_id} is {task['state']} after {seconds:g} s, not {list(states)}")
            time.sleep(every)
        return task

    def set_task_state(self, dag_id: str, run_id: str, task_id: str, state: str) -> None:
        """Mark one task ``success``, ``failed`` or ``skipped``."""
        self.request("PATCH", f"dags/{dag_id}/dagRuns/{quote(run_id)}/taskInstances/{task_id}", {"new_state": state})

    def clear(
        self, dag_id: str, run_id: str, task_ids: Sequence[str], *, downstream: bool = False, only_failed: bool = False
    ) -> None:
        """Let these tasks run again."""
        body = {
            "dry_run": False,
            "dag_run_id": run_id,
            "task_ids": list(task_ids),
            "include_downstream": downstream,
            "only_failed": only_failed,
            "reset_dag_runs": True,
        }
        self.request("POST", f"dags/{dag_id}/clearTaskInstances", body)

    def question(self, dag_id: str, run_id: str, task_id: str) -> dict[str, Any]:
        """A task's question to a person: subject, body, options. Raises AirflowApiError if it has none."""
        answer: dict[str, Any] = self.request("GET", self._question(dag_id, run_id, task_id))
        return answer

    def answer(self, dag_id: str, run_id: str, task_id: str, option: str) -> None:
        """Answer a task's question."""
        body = {"chosen_options": [option], "params_input": {}}
        self.request("PATCH", self._question(dag_id, run_id, task_id), body)

    @staticmethod
    def _question(dag_id: str, run_id: str, task_id: str) -> str:
        return f"dags/{dag_id}/dagRuns/{quote(run_id)}/taskInstances/{task_id}/-1/hitlDetails"

    def log(self, dag_id: str, run_id: str, task_id: str, attempt: int = 1, map_index: int = -1) -> str:
        """The log of one attempt as text: time, level and event, and what was raised."""
        path = f"dags/{dag_id}/dagRuns/{quote(run_id)}/taskInstances/{task_id}/logs/{attempt}"
        content = self.request("GET", path, query={"full_content": "true", "map_index": map_index})["content"]
        return "\n".join(line if isinstance(line, str) else readable(line) for line in content)

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value") -> Any:
        """The task's return value, or the value under another key."""
        path = f"dags/{dag_id}/dagRuns/{quote(run_id)}/taskInstances/{task_id}/xcomEntries/{quote(key)}"
        return self.request("GET", path, query={"deserialize": "false"})["value"]

    def xcom_keys(self, dag_id: str, run_id: str, task_id: str) -> list[str]:
        path = f"dags/{dag_id}/dagRuns/{quote(run_id)}/taskInstances/{task_id}/xcomEntries"
        return [entry["key"] for entry in self.request("GET", path)["xcom_entries"]]

    # Connections

    def add_connection(self, conn_id: str, conn_type: str, **fields: object) -> None:
        """Create a connection, or replace the one of that name. ``extra`` may be a mapping."""
        if isinstance(fields.get("extra"), Mapping):
            fields["extra"] = json.dumps(fields["extra"])
        body = {"connection_id": conn_id, "conn_type": conn_type, **fields}
        # Asked first: after a request that meets a unique constraint, the api-server may keep SQLite locked for as long as others
        # wait for it.
        path = f"connections/{quote(conn_id)}"
        try:
            self.request("GET", path)
        except AirflowApiError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            self.request("POST", "connections", body)
        else:
            self.request("PATCH", path, body)

    def remove_connection(self, conn_id: str) -> None:
        """Delete a connection, if it exists."""
        try:
            self.request("DELETE", f"connections/{quote(conn_id)}")
        except AirflowApiError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise

    def test_connection(self, conn_id: str) -> tuple[bool, str]:
        """The result of the connection form's Test button."""
        known = self.request("GET", f"connections/{quote(conn_id)}")
        as_the_form = {**known, "port": known["port"] or 0, "extra": known["extra"] or "{}"}
        answer = self.request("POST", "connections/test", as_the_form)
        return bool(answer["status"]), str(answer["message"])


def readable(event: Mapping[str, Any]) -> str:
    """One event of a task's log."""
    text = f"{str(event.get('timestamp', ''))[11:23]} {event.get('level', ''):<7} {event.get('event')}"
    for error in event.get("error_detail") or ():
        places = [f"{frame['filename']}:{frame['lineno']} in {frame['name']}" for frame in error.get("frames", [])]
        text += "".join(f"\n    {place}" for place in places[-4:])
        text += f"\n    {error['exc_type']}: {error['exc_value']}"
    return text


def quote(part: str) -> str:
    return urllib.parse.quote(part, safe="")
