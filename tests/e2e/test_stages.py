"""The example chain in a real Airflow: each stage's pilots are submitted when its tokens appear."""

from __future__ import annotations

from collections import Counter

from airflow_provider_picas.tokens.states import State, state_of
from stack import native, processes
from stack.airflow import Airflow
from stack.cluster import Cluster
from stack.docker import DockerStack
from stack.pool import Pool

DAG = "picas_stages"


def test_a_chain_of_stages_from_observations_to_images(
    airflow: Airflow, cluster: Cluster | DockerStack, pool: Pool
) -> None:
    airflow.connect("picas_default", **native.picas_connection(pool))
    airflow.connect("spider", **native.ssh_connection(cluster))
    processes.wait_for(lambda: airflow.api.has_dag(DAG), what=f"DAG {DAG}", seconds=240)
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
