"""Whole runs in a real Airflow: mapped side by side, rerun by clearing and by the shipped DAG, and archived."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_picas.tokens.counts import of_documents
from airflow_provider_picas.tokens.states import State, state_of
from stack import native, processes
from stack.airflow import Airflow
from stack.airflow_api import AirflowApi, quote
from stack.cluster import Cluster
from stack.couchdb import CouchDBAdmin
from stack.docker import DockerStack
from stack.pool import Pool

RERUN = "picas_rerun_failed"
ARCHIVE = "picas_archive_batches"
MONITORING = "https://graphs.example.org/d/pool"
ENDED = ["success", "failed", "upstream_failed", "skipped"]


@pytest.fixture
def api(airflow: Airflow, pool: Pool) -> AirflowApi:
    """Airflow with a connection to the pool of this test."""
    airflow.connect("picas_default", **native.picas_connection(pool), extra={"monitoring_url": MONITORING})
    for dag_id in ("rerun_by_clearing", "runs_side_by_side", RERUN, ARCHIVE):
        processes.wait_for(lambda dag_id=dag_id: airflow.api.has_dag(dag_id), what=f"DAG {dag_id}", seconds=60)
    return airflow.api


def finish(couchdb: CouchDBAdmin, pool: Pool, exit_code: int, *, every: int = 1, ago: int = 0) -> None:
    """Write results into the tokens that wait, as pilots do: into each, or every so manieth."""
    waiting = [token for token in pool.tokens() if state_of(token) is State.TODO]
    for token in waiting[::every]:
        ended = int(time.time()) - ago
        result = {**token, "lock": ended, "done": ended, "exit_code": exit_code}
        status, answer = couchdb.request("PUT", f"/{pool.database}/{token['_id']}", result)
        assert status == 201, answer


def states_of(api: AirflowApi, dag_id: str, run: str) -> dict[Any, str]:
    return {
        (task["task_id"], task["map_index"]) if task["map_index"] >= 0 else task["task_id"]: task["state"]
        for task in api.tasks(dag_id, run)
    }


def mapped_xcom(api: AirflowApi, dag_id: str, run: str, task_id: str, map_index: int) -> Any:
    path = f"dags/{dag_id}/dagRuns/{quote(run)}/taskInstances/{task_id}/xcomEntries/return_value"
    return api.request("GET", path, query={"map_index": map_index, "deserialize": "false"})["value"]


def events(api: AirflowApi, run: str) -> list[str]:
    """The tasks that have made an event of an asset in a run."""
    found = api.request("GET", "assets/events", query={"source_dag_id": "rerun_by_clearing", "limit": 100})[
        "asset_events"
    ]
    return [event["source_task_id"] for event in found if event["source_run_id"] == run]


def test_clearing_the_push_runs_just_what_failed(api: AirflowApi, couchdb: CouchDBAdmin, pool: Pool) -> None:
    dag_id = "rerun_by_clearing"
    run = api.trigger(dag_id)
    api.wait_for_task(dag_id, run, "wait", ["deferred"])
    assert events(api, run) == [], "the tokens are not done"

    def links_of_wait() -> dict[str, str | None]:
        found = api.request("GET", f"dags/{dag_id}/dagRuns/{quote(run)}/taskInstances/wait/links")["extra_links"]
        return dict(found)

    # Airflow answers None for a link that it could not look up at that moment.
    rerun = "Rerun failed tokens"

    def links_are_there() -> bool:
        return all(address for name, address in links_of_wait().items() if name != rerun)

    processes.wait_for(links_are_there, what="The links of the wait", seconds=60)
    links = links_of_wait()
    assert not links[rerun], "no token has failed yet"
    assert links["Token pool"] == f"{pool.url}/_utils/#database/{pool.database}/_all_docs"
    assert links["Monitoring"] == MONITORING
    finish(couchdb, pool, 1, every=4)
    finish(couchdb, pool, 0)
    assert api.wait_for_run(dag_id, run)["state"] == "failed"
    processes.wait_for(lambda: links_of_wait()[rerun], what="The link to the rerun", seconds=60)
    assert str(links_of_wait()[rerun]).endswith("/plugin/picas-run?picas_do=rerun")
    before = {token["_id"]: token for token in pool.tokens()}
    failed = {token_id for token_id, token in before.items() if token["exit_code"] == 1}
    assert len(failed) == 5

    api.clear(dag_id, run, ["push"], downstream=True)
    processes.wait_for(lambda: of_documents(pool.tokens()).todo == 5, what="The reset", seconds=60)
    after = {token["_id"]: token for token in pool.tokens()}
    assert {token_id for token_id in after if state_of(after[token_id]) is State.TODO} == failed
    assert {i: after[i] for i in after if i not in failed} == {i: before[i] for i in before if i not in failed}
    finish(couchdb, pool, 0)
    assert api.wait_for_run(dag_id, run)["state"] == "success"
    assert events(api, run) == ["wait"]


def test_runs_side_by_side_and_the_failed_one_again(
    api: AirflowApi, airflow: Airflow, cluster: Cluster | DockerStack, pool: Pool
) -> None:
    airflow.connect("spider", **native.ssh_connection(cluster))
    dag_id = "runs_side_by_side"
    run = api.trigger(dag_id)
    assert api.wait_for_run(dag_id, run)["state"] == "failed"
    states = states_of(api, dag_id, run)
    tasks = ("push", "pilots", "wait", "collect", "stop")
    assert {task: states["picas_run." + task, 0] for task in tasks} == dict.fromkeys(tasks, "success")
    assert [states["picas_run." + task, 1] for task in ("wait", "collect")] == ["failed", "failed"]
    shown = {(task["task_id"], task["map_index"]): task["rendered_map_index"] for task in api.tasks(dag_id, run)}
    for task in tasks:
        assert (shown["picas_run." + task, 0], shown["picas_run." + task, 1]) == ("a, b", "c, bad")
    good, bad = (mapped_xcom(api, dag_id, run, "picas_run.collect", index) for index in (0, 1))
    assert [(row["input"], row["output.name"]) for row in good["rows"]] == [("a", "a"), ("b", "b")]
    assert [(row["input"], row["state"]) for row in bad["rows"]] == [("c", "done"), ("bad", "error")]
    (group,) = bad["errors"]
    assert (group["cause"], group["tokens"]) == ("exit code 3: no file <path>", 1)
    assert group["log"]["tail"] == f"no file /data/{group['ids'][0]}"

    before = {token["_id"]: token for token in pool.tokens()}
    form = {"dag_id": dag_id, "run_id": run, "error_pattern": "no file"}
    rerun = api.trigger(RERUN, form)
    body = wait_for_question(airflow, rerun, "confirm")["body"]
    assert "**1 token** of batch" in body
    assert "- 1: ` exit code 3: no file <path> `" in body
    assert "The same pilots as: ` picas-" in body
    assert "sbatch --parsable" in body
    api.answer(RERUN, rerun, "confirm", "Reject")
    assert api.wait_for_run(RERUN, rerun)["state"] == "success"
    assert {token["_id"]: token for token in pool.tokens()} == before

    rerun = api.trigger(RERUN, form)
    wait_for_question(airflow, rerun, "confirm")
    api.answer(RERUN, rerun, "confirm", "Approve")
    assert api.wait_for_run(RERUN, rerun)["state"] == "success", states_of(api, RERUN, rerun)
    states = states_of(api, RERUN, rerun)
    assert (states["same_pilots"], states["pilots"]) == ("success", "skipped")
    after = {token["_id"]: token for token in pool.tokens()}
    assert {token_id for token_id in after if after[token_id] != before[token_id]} == set(group["ids"])
    again = after[group["ids"][0]]
    assert (state_of(again), again["output"], again["scrub_count"]) == (State.DONE, {"name": "bad"}, 1)
    assert again["attempts"][0]["exit_code"] == 3
    assert rerun in again["attempts"][0]["reason"]


def wait_for_question(airflow: Airflow, run: str, task_id: str) -> dict[str, Any]:
    """What the rerun asks, once it does, and once the scheduler knows that the task's process has ended.

    Airflow 3.3.2 takes the end of that process for the end of the next one, if an answer comes before. A person is slower.
    """
    airflow.api.wait_for_task(RERUN, run, task_id, ["awaiting_input", "deferred"])
    key = f"TaskInstanceKey(dag_id='{RERUN}', task_id='{task_id}', run_id='{run}'"
    ended = f"Received executor event with state success for task instance {key}"
    log = processes.log_path(airflow.folder, "airflow")
    processes.wait_for(
        lambda: ended in log.read_text(errors="replace"), what="The end of the asking process", seconds=60
    )
    return airflow.api.question(RERUN, run, task_id)


def failed_batch(api: AirflowApi, couchdb: CouchDBAdmin, pool: Pool) -> str:
    """The batch of a run that failed, since a quarter of its 20 tokens did."""
    dag_id = "rerun_by_clearing"
    run = api.trigger(dag_id)
    api.wait_for_task(dag_id, run, "wait", ["deferred"])
    finish(couchdb, pool, 1, every=4)
    finish(couchdb, pool, 0)
    assert api.wait_for_run(dag_id, run)["state"] == "failed"
    return str(api.xcom(dag_id, run, "push")["batch"])


def test_some_tokens_of_a_batch_then_the_others_with_another_command(
    api: AirflowApi, airflow: Airflow, cluster: Cluster | DockerStack, couchdb: CouchDBAdmin, pool: Pool
) -> None:
    airflow.connect("spider", **native.ssh_connection(cluster))
    batch = failed_batch(api, couchdb, pool)
    failed = sorted(token["_id"] for token in pool.tokens() if token["exit_code"] == 1)

    # Errors that were not chosen do not fail a rerun.
    form = {"batch": batch, "keys": failed[:2], "dry_run": False}
    for exit_code, state in ((1, "failed"), (0, "success")):
        rerun = api.trigger(RERUN, form)
        api.wait_for_task(RERUN, rerun, "wait", ["deferred"])
        assert [token["_id"] for token in pool.tokens() if state_of(token) is State.TODO] == failed[:2]
        finish(couchdb, pool, exit_code)
        assert api.wait_for_run(RERUN, rerun)["state"] == state
    assert of_documents(pool.tokens()).error == len(failed) - 2 == 3

    # Without a batch in the form, it is chosen.
    rerun = api.trigger(RERUN, {"command": 'echo "{}" > "$PICAS_OUTPUT_FILE"'})
    question = wait_for_question(airflow, rerun, "choose")
    assert question["options"] == [batch]
    assert f"3 of 20 failed: ` {batch} `" in question["body"]
    api.answer(RERUN, rerun, "choose", batch)
    assert "**Pilots:** 1 new" in wait_for_question(airflow, rerun, "confirm")["body"]
    api.answer(RERUN, rerun, "confirm", "Approve")
    assert api.wait_for_run(RERUN, rerun)["state"] == "success"
    assert states_of(api, RERUN, rerun)["pilots"] == "success"
    assert of_documents(pool.tokens()).done == 20


def test_rerun_without_a_batch_fails_and_says_so(api: AirflowApi, pool: Pool) -> None:
    for form, words in (
        ({"dry_run": False}, "`batch` is empty"),
        ({"dag_id": "rerun_by_clearing", "run_id": "no such run"}, "Airflow has no run"),
    ):
        rerun = api.trigger(RERUN, form)
        assert api.wait_for_run(RERUN, rerun)["state"] == "failed"
        assert words in api.log(RERUN, rerun, "choose")


def test_old_batches_are_archived(api: AirflowApi, couchdb: CouchDBAdmin, pool: Pool, tmp_path: Path) -> None:
    old, new = (api.trigger("rerun_by_clearing") for _ in range(2))
    api.wait_for_task("rerun_by_clearing", old, "wait", ["deferred"])
    api.wait_for_task("rerun_by_clearing", new, "wait", ["deferred"])
    kept = api.xcom("rerun_by_clearing", new, "push")["batch"]
    waiting = [token for token in pool.tokens() if token["batch"] != kept]
    for token in waiting:
        ended = int(time.time()) - 3 * 86_400
        couchdb.request(
            "PUT", f"/{pool.database}/{token['_id']}", {**token, "lock": ended, "done": ended, "exit_code": 0}
        )
    foreign = {"_id": "we ird:1", "batch": "we ird", "type": "token", "lock": ended, "done": ended, "exit_code": 0}
    couchdb.request("PUT", f"/{pool.database}/we%20ird:1", foreign)  # a name that a push would not give
    api.request("POST", "variables", {"key": "picas_archive", "value": str(tmp_path)})
    try:
        api.unpause(ARCHIVE)
        run = api.trigger(ARCHIVE, {"days": 2})
        assert api.wait_for_run(ARCHIVE, run)["state"] == "success"
    finally:
        api.request("DELETE", "variables/picas_archive")
    output = mapped_xcom(api, ARCHIVE, run, "archive", 0)
    assert (output["batch"], output["archived"], output["deleted"]) == (waiting[0]["batch"], 20, 20)
    assert [file.name for file in tmp_path.iterdir()] == [Path(output["archive"]).name]
    assert {token["batch"] for token in pool.tokens()} == {kept, "we ird"}
    finish(couchdb, pool, 0)
    api.wait_for_run("rerun_by_clearing", new)
