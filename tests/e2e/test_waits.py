"""The sensor in a real Airflow: its three ways to wait, and a run that the scheduler has started.

The runs start side by side, since most of their time passes while they wait. Each has a batch of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest

from airflow_provider_picas.tokens import ids
from stack import native, processes
from stack.airflow import Airflow
from stack.airflow_api import AirflowApi
from stack.couchdb import CouchDBAdmin
from stack.pool import Pool

WAYS = {"wait_deferrable": "deferred", "wait_poke": "running", "wait_reschedule": "up_for_reschedule"}
"""The DAGs, each with the state of its wait while it waits."""


@dataclass
class Runs:
    """The runs of this file, in the pool that Airflow's connection names."""

    api: AirflowApi
    couchdb: CouchDBAdmin
    pool: Pool
    ids: dict[str, str]

    def batch(self, dag_id: str, run: str) -> str:
        """The batch of a run whose push has ended."""
        return str(self.api.xcom(dag_id, run, "push")["batch"])

    def tokens(self, batch: str) -> list[dict[str, Any]]:
        return [token for token in self.pool.tokens() if token["batch"] == batch]

    def finish(self, dag_id: str, run: str, exit_codes: list[int]) -> None:
        """Write results into the tokens of a run, one after the other, as pilots do."""
        for token, exit_code in zip(self.tokens(self.batch(dag_id, run)), exit_codes, strict=True):
            now = int(time.time())
            result = {**token, "lock": now, "done": now, "exit_code": exit_code}
            status, answer = self.couchdb.request("PUT", f"/{self.pool.database}/{token['_id']}", result)
            assert status == 201, answer


@pytest.fixture(scope="module")
def runs(
    airflow: Airflow, couchdb: CouchDBAdmin, new_pool: Callable[[], AbstractContextManager[Pool]]
) -> Iterator[Runs]:
    with new_pool() as pool:
        airflow.connect("picas_default", **native.picas_connection(pool))
        assert airflow.api.runs("wait_scheduled") == []
        airflow.api.unpause("wait_scheduled")
        ids = {dag_id: airflow.api.trigger(dag_id) for dag_id in WAYS}
        ids["with an error"] = airflow.api.trigger("wait_deferrable")
        yield Runs(airflow.api, couchdb, pool, ids)


@pytest.mark.parametrize("dag_id", WAYS)
def test_waits_until_all_tokens_have_finished(runs: Runs, dag_id: str) -> None:
    api, run, waiting = runs.api, runs.ids[dag_id], WAYS[dag_id]
    api.wait_for_task(dag_id, run, "wait", [waiting])
    lines = 2 if waiting == "deferred" else 1  # of the task, and of the trigger
    processes.wait_for(
        lambda: api.log(dag_id, run, "wait").count("0 of 3 done, 3 to do") >= lines,
        what="The line on the wait's progress", seconds=60,
    )  # fmt: skip
    runs.finish(dag_id, run, [0, 0, 0])
    finished = time.time()
    wait = api.wait_for_task(dag_id, run, "wait", ["success", "failed"])
    assert wait["state"] == "success", api.log(dag_id, run, "wait")
    assert api.xcom(dag_id, run, "wait") == {"todo": 0, "locked": 0, "done": 3, "error": 0}
    assert datetime.fromisoformat(wait["end_date"]).timestamp() - finished < 30


def test_errors_fail_it_and_are_named(runs: Runs) -> None:
    api, run = runs.api, runs.ids["with an error"]
    api.wait_for_task("wait_deferrable", run, "wait", ["deferred"])
    runs.finish("wait_deferrable", run, [0, 7, 0])
    assert api.wait_for_run("wait_deferrable", run)["state"] == "failed"
    (in_error,) = (token["_id"] for token in runs.pool.tokens() if token["exit_code"] == 7)
    assert in_error in api.log("wait_deferrable", run, "wait")


def test_a_run_that_the_scheduler_starts(runs: Runs) -> None:
    api, dag_id = runs.api, "wait_scheduled"
    processes.wait_for(lambda: api.runs(dag_id), what="The scheduled run", seconds=60)
    (run,) = api.runs(dag_id)
    assert run["run_type"] == "scheduled"
    api.wait_for_task(dag_id, run["dag_run_id"], "wait", ["deferred"])
    runs.finish(dag_id, run["dag_run_id"], [0, 0, 0])
    assert api.wait_for_run(dag_id, run["dag_run_id"])["state"] == "success"


def test_an_airflow_without_a_name_keeps_one(runs: Runs) -> None:
    """Its address is on localhost, as many others' is. A clear finds the batch again."""
    api, run = runs.api, runs.ids["wait_deferrable"]
    name = api.request("GET", "variables/picas_deployment")["value"]
    batch = runs.batch("wait_deferrable", run)
    assert batch == ids.push_id(name, "wait_deferrable", run, "push")
    assert api.wait_for_run("wait_deferrable", run)["state"] == "success"
    api.clear("wait_deferrable", run, ["push"])
    assert api.wait_for_run("wait_deferrable", run)["state"] == "success"
    assert runs.batch("wait_deferrable", run) == batch
    assert len(runs.tokens(batch)) == 3
    assert api.request("GET", "variables/picas_deployment")["value"] == name
