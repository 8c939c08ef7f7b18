"""The example chain in a real Airflow: each stage's pilots are submitted when its tokens appear."""

from __future__ import annotations

from collections import Counter

from airflow.sdk.execution_time.context import OutletEventAccessor
from playwright.sync_api import Page, expect

from airflow_provider_picas.tokens.states import State, state_of
from stack import native, processes
from stack.airflow import Airflow
from stack.cluster import Cluster
from stack.docker import DockerStack
from stack.pool import Pool
from stack.ui import SECONDS, serious_findings

DAG = "picas_stages"
AFTER = "after_image"

expect.set_options(timeout=SECONDS * 1000)


def test_a_chain_of_stages_from_observations_to_images(
    airflow: Airflow, cluster: Cluster | DockerStack, pool: Pool, admin: Page
) -> None:
    airflow.connect("picas_default", **native.picas_connection(pool))
    airflow.connect("spider", **native.ssh_connection(cluster))
    for dag in (DAG, AFTER):
        processes.wait_for(lambda: airflow.api.has_dag(dag), what=f"DAG {dag}", seconds=240)  # noqa: B023
    run = airflow.api.trigger(DAG, {"observations": 2})
    states = {task["task_id"]: task["state"] for task in airflow.api.tasks(DAG, run)}
    assert airflow.api.wait_for_run(DAG, run)["state"] == "success", states
    report = airflow.api.xcom(DAG, run, "report")
    assert report["images"] == 2
    assert report["worst"] < 0.05
    tokens = {token["_id"]: token for token in pool.tokens()}
    assert Counter(token.get("stage") for token in tokens.values()) == {None: 2, "calibration": 20, "imaging": 2}
    assert {state_of(token) for token in tokens.values()} == {State.DONE}
    for token in tokens.values():
        if token.get("stage") == "calibration":
            assert tokens[token["parent"]]["claim"] == token["parent_claim"]
    lists = [token["new_tokens"] for token in tokens.values() if "new_tokens" in token]
    assert Counter((found["pending"], found["tokens"]) for found in lists) == {(False, 10): 2}
    for group in ("obs000", "obs001"):
        (token,) = [token for token in tokens.values() if token.get("group_name") == group]
        assert len(token["input"]["members"]) == 10
        assert token["output"]["subbands"] >= 9
    check_partitions(airflow)
    check_page(admin, pool, next(str(token["batch"]) for token in tokens.values() if "stage" not in token))


def check_partitions(airflow: Airflow) -> None:
    """Each image has started a run of another DAG, with its observation as the key; before Airflow 3.3, all started one."""
    keys = ["obs000", "obs001"] if hasattr(OutletEventAccessor, "add_partitions") else ["none"]
    processes.wait_for(lambda: len(airflow.api.runs(AFTER)) == len(keys), what=f"Runs of {AFTER}", seconds=180)
    runs = [run["dag_run_id"] for run in airflow.api.runs(AFTER)]
    assert {airflow.api.wait_for_run(AFTER, run)["state"] for run in runs} == {"success"}
    assert sorted(airflow.api.xcom(AFTER, run, "key") for run in runs) == keys


def check_page(admin: Page, pool: Pool, batch: str) -> None:
    """The page shows the stages, with the way to one of them and back."""
    admin.goto(f"plugin/picas?picas_conn=picas_default&picas_db={pool.database}&picas_batch={batch}")
    rows = admin.get_by_role("list", name="Stages").get_by_role("listitem")
    expect(rows).to_have_count(3)
    expect(rows.nth(1)).to_contain_text("20 of 20 done")
    expect(rows.nth(1)).to_contain_text("20 tokens made by the pushed batch")
    expect(rows.nth(2)).to_contain_text("one token for each group of calibration")
    assert serious_findings(admin) == []
    rows.nth(2).get_by_role("link", name="imaging").focus()
    admin.keyboard.press("Enter")
    expect(admin.locator("[data-state=done]")).to_have_text("2")
    admin.get_by_role("navigation", name="Chain of stages").get_by_role("link", name=batch).click()
    expect(admin.locator("[data-state=done]")).to_have_text("2")
    expect(admin.get_by_role("navigation", name="Chain of stages")).to_have_count(0)
    admin.set_viewport_size({"width": 390, "height": 844})  # a phone
    card = admin.locator(".picas .card", has=admin.get_by_role("list", name="Stages"))
    expect(card).to_be_visible()
    assert card.evaluate(
        "card => card.scrollWidth <= card.clientWidth && card.getBoundingClientRect().right <= innerWidth"
    )
