"""Runs that a real Airflow starts because something happened in a pool."""

from __future__ import annotations

import time

import pytest

from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.tokens import documents
from stack import native, processes
from stack.airflow import Airflow
from stack.pool import Pool
from tests.conftest import set_connection

DAG = "after_batch"
SECONDS = 180  # that the first event may take: the triggerer has tried before there was a connection


def complete(hook: PicasHook, batch: str) -> None:
    """Push a batch of one token, and finish it."""
    hook.push([documents.new_token({"input": 0}, batch=batch, push=batch, ordinal=0)])
    token = hook.get(f"{batch}:00000000")
    now = int(time.time())
    hook.do(hook.pool.put({**token, "lock": now, "done": now, "exit_code": 0}))


def test_a_complete_batch_starts_a_run(airflow: Airflow, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = native.picas_connection(pool)
    airflow.connect("picas_events", **fields)
    hook = PicasHook(set_connection(monkeypatch, "picas_events", fields))
    hook.deploy_views()
    complete(hook, "other")
    for number, batch in enumerate(("watched-1", "watched-2"), start=1):
        complete(hook, batch)
        processes.wait_for(lambda: len(airflow.api.runs(DAG)) == number, what=f"The run for {batch}", seconds=SECONDS)  # noqa: B023
        run = max(airflow.api.runs(DAG), key=lambda found: found["run_after"])
        assert airflow.api.wait_for_run(DAG, run["dag_run_id"])["state"] == "success"
        assert run["run_type"] == "asset_triggered"
        counts = {"todo": 0, "locked": 0, "done": 1, "error": 0}
        assert airflow.api.xcom(DAG, run["dag_run_id"], "payloads") == [
            {"event": "complete", "database": pool.database, "batch": batch, "counts": counts}
        ]
