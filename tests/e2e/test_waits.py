"""The sensor in a real Airflow: its three ways to wait, and a run that the scheduler has started."""

from __future__ import annotations

import time
from datetime import datetime

import pytest

from airflow_provider_picas.tokens import ids
from stack import native, processes
from stack.airflow import Airflow
from stack.airflow_api import AirflowApi
from stack.couchdb import CouchDBAdmin
from stack.pool import Pool


@pytest.fixture
def api(airflow: Airflow, pool: Pool) -> AirflowApi:
    """Airflow with a connection to the pool of this test."""
    airflow.connect("picas_default", **native.picas_connection(pool))
    return airflow.api


def finish(couchdb: CouchDBAdmin, pool: Pool, exit_codes: list[int]) -> None:
    """Write results into the tokens, one after the other, as pilots do."""
    for token, exit_code in zip(pool.tokens(), exit_codes, strict=True):
        now = int(time.time())
        result = {**token, "lock": now, "done": now, "exit_code": exit_code}
        status, answer = couchdb.request("PUT", f"/{pool.database}/{token['_id']}", result)
        assert status == 201, answer


@pytest.mark.parametrize(
    ("dag_id", "waiting"),
    [("wait_deferrable", "deferred"), ("wait_poke", "running"), ("wait_reschedule", "up_for_reschedule")],
)
def test_waits_until_all_tokens_have_finished(
    api: AirflowApi, couchdb: CouchDBAdmin, pool: Pool, dag_id: str, waiting: str
) -> None:
    run = api.trigger(dag_id)
    api.wait_for_task(dag_id, run, "wait", [waiting])
    lines = 2 if waiting == "deferred" else 1  # of the task, and of the trigger
    processes.wait_for(
        lambda: api.log(dag_id, run, "wait").count("0 of 3 done, 3 to do") >= lines,
        what="The line on the wait's progress", seconds=60,
    )  # fmt: skip
    finish(couchdb, pool, [0, 0, 0])
    finished = time.time()
    wait = api.wait_for_task(dag_id, run, "wait", ["success", "failed"])
    assert wait["state"] == "success", api.log(dag_id, run, "wait")
    assert api.xcom(dag_id, run, "wait") == {"todo": 0, "locked": 0, "done": 3, "error": 0}
    assert datetime.fromisoformat(wait["end_date"]).timestamp() - finished < 30


def test_errors_fail_it_and_are_named(api: AirflowApi, couchdb: CouchDBAdmin, pool: Pool) -> None:
    run = api.trigger("wait_deferrable")
    api.wait_for_task("wait_deferrable", run, "wait", ["deferred"])
    finish(couchdb, pool, [0, 7, 0])
    assert api.wait_for_run("wait_deferrable", run)["state"] == "failed"
    in_error = next(token["_id"] for token in pool.tokens() if token["exit_code"] == 7)
    assert in_error in api.log("wait_deferrable", run, "wait")


def test_a_run_that_the_scheduler_starts(api: AirflowApi, couchdb: CouchDBAdmin, pool: Pool) -> None:
    dag_id = "wait_scheduled"
    assert api.runs(dag_id) == []
    api.unpause(dag_id)
    processes.wait_for(lambda: api.runs(dag_id), what="The scheduled run", seconds=60)
    (run,) = api.runs(dag_id)
    assert run["run_type"] == "scheduled"
    api.wait_for_task(dag_id, run["dag_run_id"], "wait", ["deferred"])
    finish(couchdb, pool, [0, 0, 0])
    assert api.wait_for_run(dag_id, run["dag_run_id"])["state"] == "success"


def test_an_airflow_without_a_name_keeps_one(api: AirflowApi, couchdb: CouchDBAdmin, pool: Pool) -> None:
    """Its address is on localhost, as many others' is. A clear finds the batch again."""
    run = api.trigger("wait_deferrable")
    api.wait_for_task("wait_deferrable", run, "wait", ["deferred"])
    name = api.request("GET", "variables/picas_deployment")["value"]
    batch = api.xcom("wait_deferrable", run, "push")["batch"]
    assert batch == ids.push_id(name, "wait_deferrable", run, "push")
    finish(couchdb, pool, [0, 0, 0])
    assert api.wait_for_run("wait_deferrable", run)["state"] == "success"
    api.clear("wait_deferrable", run, ["push"])
    assert api.wait_for_run("wait_deferrable", run)["state"] == "success"
    assert api.xcom("wait_deferrable", run, "push")["batch"] == batch
    assert len(pool.tokens()) == 3
    assert api.request("GET", "variables/picas_deployment")["value"] == name
