"""What the page does with a batch, and what it leaves in Airflow: cleared tasks, runs, the audit log."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from airflow_provider_picas.couchdb import batch_pilots
from airflow_provider_picas.operators.pilots import PicasSubmitPilotsOperator
from airflow_provider_picas.operators.tokens import PicasPushTokensOperator
from airflow_provider_picas.plugins import answers
from airflow_provider_picas.sensors.tokens import PicasTokenStateSensor
from airflow_provider_picas.tokens.states import State, state_of
from stack import native, processes
from stack.cluster import Cluster
from stack.couchdb import CouchDBAdmin
from stack.docker import DockerStack
from tests.integration.faults import Fault, Proxy
from tests.integration.lives import NOW, change, fill
from tests.integration.plugins.conftest import CONN, Page
from tests.integration.plugins.server import DAG
from tests.integration.plugins.test_batch import lease
from tests.integration.tasks import context

PILOTS = {"submission": "s.1", "folder": "/h/s.1", "submitted": "2026-01-01T00:00:00+00:00", "job_ids": ["12"]}


def act(page: Page, action: str, body: Mapping[str, Any], user: str = "admin", **query: Any) -> Any:
    """The plan and what came of the action."""
    scope = {**page.of_run, **query}
    planned = page.server.post(f"batch/actions/{action}/plan", body, user=user, **scope)
    assert planned.status == 200, planned.body
    reply = page.server.post(f"batch/actions/{action}", body, user=user, **scope)
    assert reply.status == 200, reply.body
    return planned.json, reply.json


def refused(page: Page, action: str, body: Mapping[str, Any], **query: Any) -> str:
    """The sentence with which the plan and the action are refused."""
    replies = [
        page.server.post(f"batch/actions/{action}{end}", body, **{**page.of_run, **query}) for end in ("/plan", "")
    ]
    assert all(reply.status in (404, 409, 422) for reply in replies), [reply.body for reply in replies]
    assert replies[0].json == replies[1].json
    return str(replies[0].json["detail"])


def states(page: Page) -> dict[str, str]:
    found = page.hook.do(page.hook.pool.batch_documents("b"))[0]
    return {token["_id"][2:]: str(state_of(token)) for token in found}


def end_tasks(page: Page) -> None:
    for task_id, state in (("push", "success"), ("pilots", "success"), ("wait", "failed")):
        page.server.api().set_task_state(DAG, page.run_id, task_id, state)


def task_states(page: Page) -> dict[str, str | None]:
    return {task["task_id"]: task["state"] for task in page.server.api().tasks(DAG, page.run_id)}


def name_all(page: Page) -> None:
    for task_id in ("pilots", "wait"):
        page.server.name_batch(page.run_id, task_id, CONN, page.pool.database, "b", role=task_id)


def audit(page: Page, event: str) -> list[tuple[str, str | None, str | None, dict[str, Any]]]:
    rows = page.server.rows("select owner, dag_id, run_id, extra from log where event = ? order by id", event)
    found = [(owner, dag_id, run_id, json.loads(extra)) for owner, dag_id, run_id, extra in rows]
    return [row for row in found if row[3]["database"] == page.pool.database]


# -- rerun ------------------------------------------------------------------------------------------------------------


def test_all_failed_tokens_run_again_by_clearing_the_push(page: Page) -> None:
    fill(page.hook, {State.DONE: 1, State.ERROR: 2})
    name_all(page)
    end_tasks(page)
    plan, done = act(page, "rerun", {"all": True}, user="user")
    assert (plan["tokens"], plan["possible"], sorted(plan["tasks"])) == (2, True, ["pilots", "push", "wait"])
    assert "The push is cleared" in plan["lines"][1]
    assert (done["tokens"], done["text"]) == (2, "2 tokens will run again.")
    assert done["links"][0]["href"].startswith(f"/dags/{DAG}/runs/manual__")
    assert states(page) == {"00000000": "done", "00000001": "todo", "00000002": "todo"}
    reason = page.hook.get("b:00000001")["attempts"][-1]["reason"]
    assert reason == "reset: by user on the page"
    assert task_states(page) == {"push": None, "pilots": None, "wait": None}
    (entry,) = audit(page, "picas.rerun")
    assert entry[:3] == ("user", DAG, page.run_id)
    assert (entry[3]["asked"], entry[3]["result"], entry[3]["batch"]) == (
        {"all": True},
        "2 tokens will run again.",
        "b",
    )


def test_the_tokens_of_a_cause_run_again_on_the_same_pilots(page: Page) -> None:
    tokens = fill(page.hook, {State.ERROR: 3})
    change(page.hook, tokens[1], error=[{"time": NOW, "message": "disk full"}])
    name_all(page)
    end_tasks(page)
    causes = {cause["cause"]: cause["id"] for cause in page.ask("batch/causes")["causes"]}
    plan, done = act(page, "rerun", {"cause": causes["disk full (exit code 3)"]})
    assert (plan["tokens"], sorted(plan["tasks"]), done["tokens"]) == (1, ["pilots", "wait"], 1)
    assert states(page) == {"00000000": "error", "00000001": "todo", "00000002": "error"}
    assert task_states(page) == {"push": "success", "pilots": None, "wait": None}


def test_pilots_that_live_take_them_and_no_task_is_cleared(page: Page) -> None:
    tokens = fill(page.hook, {State.ERROR: 2, State.DONE: 1})
    name_all(page)
    end_tasks(page)
    lease(page, "p1", running={"b:00000000": {}})
    page.server.rows("update task_instance set state = 'deferred' where run_id = ? and task_id = 'wait'", page.run_id)
    plan, done = act(page, "rerun", {"ids": [tokens[0], tokens[2]]})
    assert (plan["tokens"], plan["tasks"], done["tokens"]) == (1, [], 1)
    assert plan["lines"][1:] == [
        "1 pilots of the run take them immediately; no task is cleared.",
        "1 skipped: is done (b:00000002).",
    ]
    assert task_states(page) == {"push": "success", "pilots": "success", "wait": "deferred"}


def test_without_a_run_the_providers_dag_does_it(page: Page) -> None:
    tokens = fill(page.hook, {State.ERROR: 2})
    plan, done = act(page, "rerun", {"ids": [tokens[1]]}, user="op", dag_id=None, run_id=None)
    assert (plan["tokens"], plan["tasks"]) == (1, [])
    run = max(page.server.api().runs("picas_rerun_failed"), key=lambda run: run["run_after"])
    wanted = {"batch": "b", "keys": [tokens[1]], "dry_run": False, "picas_conn_id": CONN}
    assert {name: run["conf"][name] for name in wanted} == wanted
    assert (run["triggering_user_name"], run["conf"]["database"]) == ("op", page.pool.database)
    assert "picas_rerun_failed" in done["links"][0]["href"]


def test_what_is_not_in_error_or_not_in_the_batch_is_refused(page: Page) -> None:
    fill(page.hook, {State.DONE: 1})
    fill(page.hook, {State.ERROR: 1}, batch="b2")
    assert refused(page, "rerun", {}) == "No tokens were selected."
    assert "not in this batch" in refused(page, "rerun", {"ids": ["b2:00000000"]})
    assert "not in this batch" in refused(page, "rerun", {"ids": ["_design/Monitor"]})
    scope = page.of_run
    assert page.server.post("batch/actions/rerun/plan", {"all": True}, **scope).json["possible"] is False
    assert page.server.post("batch/actions/rerun", {"all": True}, **scope).status == 409
    assert audit(page, "picas.rerun")[-1][3]["result"].startswith("refused: None of the chosen")


def test_a_login_that_may_only_read_is_named(page: Page, couchdb: CouchDBAdmin) -> None:
    fill(page.hook, {State.ERROR: 1})
    name_all(page)
    end_tasks(page)
    guard = {"validate_doc_update": "function () { throw({forbidden: 'this pool is read-only'}); }"}
    couchdb.request("PUT", f"/{page.pool.database}/_design/guard", guard)
    reply = page.server.post("batch/actions/rerun", {"all": True}, **page.of_run)
    assert (reply.status, "read-only" in reply.json["detail"]) == (409, True)
    assert task_states(page)["wait"] == "failed"
    assert "read-only" in audit(page, "picas.rerun")[-1][3]["result"]
    why = page.ask("batch", **page.of_run)["actions"]["rerun"]
    assert (why["allowed"], "read-only" in why["why_not"]) == (False, True)


# -- the others -------------------------------------------------------------------------------------------------------


def test_tokens_of_a_silent_pilot_are_released_and_of_a_living_one_not(page: Page) -> None:
    tokens = fill(page.hook, {State.LOCKED: 3})
    for token, pilot in zip(tokens, ("dead", "dead", "alive"), strict=True):
        change(page.hook, token, pilot=pilot, claim=f"{'0' * 16}-{NOW}", slurm_job_id="")
    running = {token: {"seconds": 1} for token in tokens}
    lease(page, "dead", renewed=page.hook.now() - 1_000, running=running, job=None)
    lease(page, "alive", running=running, job=None)
    assert "Drain or cancel" in refused(page, "release", {"pilot": "alive"})
    assert refused(page, "release", {"pilot": "nobody"}) == "This batch has no such pilot."
    assert refused(page, "release", {}) == "Specify the pilot whose tokens to release."
    plan, done = act(page, "release", {"pilot": "dead"})
    assert (plan["tokens"], done["tokens"]) == (2, 2)
    assert states(page) == {"00000000": "todo", "00000001": "todo", "00000002": "locked"}
    assert page.hook.get(tokens[0])["attempts"][-1]["reason"] == "reset: released by admin on the page"


def test_all_tokens_of_dead_pilots_are_released_however_many(page: Page) -> None:
    number = answers.pilots.MOST_LOCKED + 2
    tokens = fill(page.hook, {State.LOCKED: number}, pilot="dead", claim=f"{'0' * 16}-{NOW}", slurm_job_id="")
    lease(page, "dead", renewed=page.hook.now() - 1_000, running={tokens[0]: {"seconds": 1}}, job=None)
    plan, done = act(page, "release", {"all": True})
    assert (plan["tokens"], done["tokens"]) == (number, number)
    assert page.hook.count("b").todo == number


def test_the_priority_of_waiting_tokens_is_set(page: Page) -> None:
    tokens = fill(page.hook, {State.TODO: 2, State.DONE: 1})
    assert refused(page, "priority", {"all": True}) == "Enter the new priority."
    plan, done = act(page, "priority", {"ids": tokens[1:], "priority": 5})
    assert (plan["tokens"], plan["lines"][-1], done["tokens"]) == (1, "1 skipped: is done (b:00000002).", 1)
    assert [page.hook.get(token).get("priority") for token in tokens] == [None, 5, None]
    assert act(page, "priority", {"all": True, "priority": -1})[1]["tokens"] == 2
    assert audit(page, "picas.priority")[1][3]["asked"] == {"ids": tokens[1:], "priority": 5}


def test_pilots_are_drained(page: Page) -> None:
    fill(page.hook, {State.LOCKED: 1})
    assert "No pilots are known" in refused(page, "drain", {})
    page.hook.do(batch_pilots.note(page.hook.pool, "b", {**PILOTS, "ssh_conn_id": "spider"}))
    lease(page, "p1")
    plan, _ = eventually(lambda: act(page, "drain", {}))
    assert "Submissions: s.1." in plan["lines"]
    assert page.hook.get("_local/picas-submission-s.1")["drain"] is True
    assert audit(page, "picas.drain")[-1][3]["result"].startswith("The pilots of s.1 stop")


def eventually(ask: Any) -> Any:
    """The answer of ``ask`` once it is one: readings are shared for some seconds."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return ask()
        except AssertionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def test_a_finished_batch_is_archived_by_the_providers_dag(page: Page) -> None:
    fill(page.hook, {State.DONE: 2})
    fill(page.hook, {State.TODO: 1}, batch="c")
    page.server.api().unpause("picas_archive_batches")
    assert page.server.post("batch/actions/archive/plan", {}, **{**page.scope, "batch": "c"}).json["possible"] is False
    plan, done = act(page, "archive", {}, dag_id=None, run_id=None)
    assert plan["tokens"] == 2
    assert "picas_archive_batches" in done["links"][0]["href"]
    run = max(page.server.api().runs("picas_archive_batches"), key=lambda run: run["run_after"])
    assert (run["conf"]["batch"], run["conf"]["days"]) == ("b", 0)


def test_pilots_that_a_wait_has_seen_are_cancelled_on_the_cluster(
    page: Page, spider: str, cluster: Cluster | DockerStack
) -> None:
    page.server.send("DELETE", f"/api/v2/connections/{spider}")
    page.server.api().add_connection(spider, **native.ssh_connection(cluster))
    push = PicasPushTokensOperator(task_id="push", inputs=[1, 2], batch="b")
    batch: Any = push.execute(context(run_id=page.pool.database))
    command, pilot = "echo hello; sleep 600", {"lease": 9}
    submit = PicasSubmitPilotsOperator(
        task_id="pilots", command=command, pilot=pilot, pilots=2, batch=batch, ssh_conn_id=spider
    )
    submitted = submit.execute(context("pilots", run_id=page.pool.database))
    processes.wait_for(lambda: page.hook.count("b").locked == 2, what="The start of two tokens", seconds=120)
    PicasTokenStateSensor(task_id="wait", batch=batch, pilots=submitted).poke(context("wait"))
    processes.wait_for(
        lambda: page.ask("batch")["pilots"]["source"] == "slurm", what="Slurm's answer on the page", seconds=60
    )
    summary = page.ask("batch")["pilots"]
    assert (summary["running"], summary["waiting"], summary["ended"]) == (2, 0, 0)
    pilots = page.ask("batch/pilots")["pilots"]
    assert [(pilot["state"], len(pilot["now"])) for pilot in pilots] == [("working", 1)] * 2

    def tails() -> list[Any]:
        return [run["tail"] for pilot in page.ask("batch/pilots")["pilots"] for run in pilot["now"]]

    processes.wait_for(lambda: tails() == ["hello\n"] * 2, what="The output of the commands", seconds=120)
    plan, _ = act(page, "cancel", {}, user="op", dag_id=None, run_id=None)
    assert plan["lines"][1] == "2 tokens are interrupted and wait again. This does not count as a failed attempt."
    processes.wait_for(lambda: page.hook.count("b").todo == 2, what="The release of two tokens", seconds=120)


def test_a_pilot_that_ends_while_tokens_are_reset_is_replaced(page: Page) -> None:
    """The last pilot of the run finds no token a moment before they wait again."""
    fill(page.hook, {State.ERROR: 1})
    name_all(page)
    end_tasks(page)
    lease(page, "p1", running={"b:00000000": {}})
    page.server.rows("update task_instance set state = 'deferred' where run_id = ? and task_id = 'wait'", page.run_id)
    with Proxy(page.pool.url) as proxy:
        page.server.connect(CONN, replace(page.pool, url=proxy.url))
        proxy.hurt(Fault.HOLD, on="_bulk_docs")
        with ThreadPoolExecutor(1) as threads:
            rerun = threads.submit(page.server.post, "batch/actions/rerun", {"all": True}, **page.of_run)
            processes.wait_for(lambda: proxy.held, what="The reset", seconds=60)
            lease(page, "p1", ended=True)
            proxy.let_go.set()
            reply = rerun.result()
    page.server.connect(CONN, page.pool)
    assert (reply.status, reply.json["tokens"]) == (200, 1)
    assert task_states(page) == {"push": None, "pilots": None, "wait": None}
