"""The DAG of the word count on sites with one fault each: what its tasks report, and what remains on the cluster."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException

from airflow_provider_picas.couchdb import errors
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.operators.pilots import PicasSubmitPilotsOperator
from airflow_provider_picas.operators.tokens import PicasPushTokensOperator
from airflow_provider_picas.sensors.tokens import PicasTokenStateSensor
from airflow_provider_picas.tokens.counts import Counts
from stack import native, paths
from stack.cluster import Cluster
from stack.pool import Pool
from tests.conftest import set_connection
from tests.integration.faults import Relay, profile, small_disk
from tests.integration.tasks import context

FILES = [__file__, str(Path(__file__).parent.with_name("tasks.py"))]


@pytest.fixture(autouse=True)
def password(site: Cluster, pool: Pool, picas_default: str, spider: str) -> Iterator[str]:
    """The pool's password. When the test is over, it is nowhere on the cluster."""
    yield pool.password
    kept = [path for path in site.home.rglob("*") if path.is_file() and pool.password.encode() in path.read_bytes()]
    assert kept == []


@pytest.fixture(autouse=True)
def run_id(request: pytest.FixtureRequest) -> str:
    """The run of the DAG: tests share a cluster, and submissions are found by it."""
    return str(request.node.name)


def push(run_id: str) -> dict[str, Any]:
    output: dict[str, Any] = PicasPushTokensOperator(task_id="push", inputs=FILES).execute(context(run_id=run_id))
    return output


def submit(run_id: str, batch: dict[str, Any], conn_id: str = "picas_default", **sbatch: Any) -> dict[str, Any]:
    script = paths.PROJECT / "dags" / "spider_pilot.sh"
    options = {"time": "00:05:00", "cpus-per-task": 1, **sbatch}
    pilots = PicasSubmitPilotsOperator(
        task_id="pilots", ssh_conn_id="spider", batch=batch, script=str(script), pilots=2, sbatch=options, picas_conn_id=conn_id
    )  # fmt: skip
    output: dict[str, Any] = pilots.execute(context("pilots", run_id=run_id))
    return output


def wait(run_id: str, batch: dict[str, Any]) -> None:
    sensor = PicasTokenStateSensor(task_id="wait", batch=batch, poke_interval=0.5, timeout=120)
    sensor.execute(context("wait", run_id=run_id))


def test_the_first_dag_runs_without_sacct(site: Cluster, tmp_path: Path, run_id: str) -> None:
    for name in ("sbatch", "squeue", "scontrol", "scancel"):
        script = tmp_path / name
        script.write_text(f'#!/bin/bash\nexec "{site.folder}/site/prefix/bin/{name}" "$@"\n')
        script.chmod(0o755)
    with profile(site, f"export PATH={tmp_path}:/usr/local/bin:/usr/bin:/bin"):
        batch = push(run_id)
        submit(run_id, batch)
        wait(run_id, batch)
    assert PicasHook().count(batch["batch"]) == Counts(done=2)


def test_a_wrong_password_is_named_by_the_push(pool: Pool, monkeypatch: pytest.MonkeyPatch, run_id: str) -> None:
    set_connection(monkeypatch, "picas_default", native.picas_connection(replace(pool, password="wr0ng")))
    with pytest.raises(
        errors.UnauthorizedError, match="Check login and password of connection 'picas_default'"
    ) as caught:
        push(run_id)
    assert "wr0ng" not in str(caught.value)
    assert pool.tokens() == []


def test_a_full_home_leaves_no_half_files(site: Cluster, run_id: str) -> None:
    batch = push(run_id)
    folder = site.home / "picas-pilots"
    with small_disk(folder, "64k"):
        filler = folder / "filler"
        subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=4096"], stderr=subprocess.DEVNULL, check=False)
        with pytest.raises(AirflowException, match=r"(?i)no space left"):
            submit(run_id, batch)
        assert list(folder.iterdir()) == [filler], "no half file, and no credentials"
        filler.unlink()
        submit(run_id, batch)
        wait(run_id, batch)
        assert not [path for path in folder.rglob("picasconfig.py*")]
    assert PicasHook().count(batch["batch"]) == Counts(done=2)


def test_compute_nodes_that_cannot_reach_the_database(
    pool: Pool, site: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run_id: str
) -> None:
    host, _, port = pool.url.rpartition("//")[2].rpartition(":")
    batch = push(run_id)
    with closing(Relay((host, int(port)))) as relay:
        behind = replace(pool, url=f"http://127.0.0.1:{relay.port}")
        set_connection(monkeypatch, "behind", native.picas_connection(behind))
        pilots = submit(run_id, batch, "behind", hold=True)
    for job in pilots["job_ids"]:
        site.run("scontrol", "release", job)
    with pytest.raises(AirflowException, match="2 tokens are waiting and no pilots remain to run them"):
        wait(run_id, batch)
    said = capsys.readouterr().out
    assert "clear the task that submits them" in said
    assert "Connection refused" in said.partition("The ends of the pilots' logs:")[2]
