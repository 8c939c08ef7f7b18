"""A pool of two workflows whose unmodified pilots make each other's tokens: ours that stand in for them, and picas_cortex's own.

picas_cortex's scripts are not part of this project. To run them, name a folder with its ``src`` in PICAS_TEST_CORTEX.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.hooks.slurm import SlurmHook
from airflow_provider_picas.operators.pilots import PicasSubmitPilotsOperator
from airflow_provider_picas.operators.tokens import PicasCollectTokensOperator, PicasResetTokensOperator
from airflow_provider_picas.sensors.tokens import PicasTokenStateSensor
from airflow_provider_picas.slurm import client_config
from airflow_provider_picas.tokens import waiting
from airflow_provider_picas.tokens.counts import Counts
from stack.cluster import Cluster
from stack.pool import Pool
from tests.integration.tasks import context

STAND_INS = Path(__file__).parent.with_name("two_workflows")
CORTEX = os.environ.get("PICAS_TEST_CORTEX")
FOLDER = "two-workflows"
PROFILE = "picas_cortex"
STAGES = {"imaging": "imaging"}  # the workflow of a stage is its batch


@pytest.fixture(autouse=True)
def settle_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "SETTLE_SECONDS", 3.0)


@pytest.fixture(params=["stand-in", "picas_cortex"])
def folder(request: pytest.FixtureRequest, remote: SlurmHook, site: Cluster, pool: Pool) -> Iterator[str]:
    """The folder on the cluster in which an account has the scripts, with tokens of one workflow in the pool."""
    scripts = STAND_INS if request.param == "stand-in" else Path(CORTEX or "")
    if request.param == "picas_cortex" and not CORTEX:
        pytest.skip("PICAS_TEST_CORTEX names no folder with picas_cortex's scripts")
    place = site.home / FOLDER
    shutil.copytree(scripts, place)
    for master in ("master_ddcal.sh", "master_imaging.sh"):
        shutil.copy(STAND_INS / master, place)
    (place / ".venv").symlink_to(site.home / "picas-venv")
    (place / "observations.txt").write_text("/data/L1\n/data/L2\n/data/L3-bad\n")
    try:
        assert remote.do(client_config.write(pool.url, pool.database, pool.user, pool.password))
        made = remote.run(
            f"cd ~/{FOLDER} && source .venv/bin/activate && python create_views.py workflows"
            " && python push_tokens.py ddcal observations.txt"
        )
        assert made.code == 0, made.stderr
        yield str(place)
    finally:
        remote.run("scancel --me; rm -rf ~/.config/picas")
        shutil.rmtree(place)


def run(name: str, operator: Any, pool: Pool) -> Any:
    return operator.execute(context(name, run_id=pool.database))


def submit(workflow: str, folder: str, pool: Pool, **arguments: Any) -> Any:
    operator = PicasSubmitPilotsOperator(
        task_id=workflow, script=f"{folder}/slurm_{workflow}.sh", workdir=folder, batch=workflow, pilots=2,
        sbatch={"cpus-per-task": 1, "time": "00:05:00"}, ssh_conn_id="spider", credentials="client", profile=PROFILE,
    )  # fmt: skip
    return run(workflow, operator, pool)


def wait(workflow: str, pilots: Any, pool: Pool, **arguments: Any) -> Any:
    sensor = PicasTokenStateSensor(
        task_id="wait", batch=workflow, pilots=pilots, profile=PROFILE, poke_interval=0.5, timeout=180, **arguments
    )
    return run(f"wait_{workflow}", sensor, pool)


def test_both_workflows_of_a_pool_are_run_and_waited_for(folder: str, pool: Pool, picas_default: str) -> None:
    """Their ids hold a time, with colons, and name no batch; the profile selects by the field. Only what fails is run again."""
    hook = PicasHook(profile=PROFILE)
    hook.deploy_views()
    assert hook.batches() == {"ddcal": Counts(todo=3)}
    calibration = submit("ddcal", folder, pool)
    ready = wait("ddcal", False, pool, stages=STAGES, stage="imaging", ready=2)
    assert ready["batch"] == "imaging", "the pilots push its tokens"
    imaging = submit("imaging", folder, pool)
    both = wait("ddcal", [calibration, imaging], pool, stages=STAGES, max_errors=1)
    assert both == {"todo": 0, "locked": 0, "done": 2 + 2, "error": 1}
    calibrated = wait("ddcal", calibration, pool, max_errors=1)
    assert calibrated == {"todo": 0, "locked": 0, "done": 2, "error": 1}
    assert wait("imaging", imaging, pool)["done"] == 2
    collect = PicasCollectTokensOperator(
        task_id="collect", batch="imaging", fields=["MSDATA", "SOLS"], profile=PROFILE, max_errors=0
    )
    rows = run("collect", collect, pool)["rows"]
    assert sorted(row["MSDATA"] for row in rows) == ["/data/L1", "/data/L2"]
    assert all(row["SOLS"].endswith("/outdir/merged.h5") for row in rows)
    (failed,) = hook.tokens("error", "ddcal")
    assert failed["exit_code"] == 3
    assert {name.rpartition(".")[2] for name in failed["_attachments"]} == {"out", "err"}
    again = run("reset", PicasResetTokensOperator(task_id="reset", batch="ddcal", profile=PROFILE), pool)
    assert again["ids"] == [failed["_id"]]
    assert hook.batches() == {"ddcal": Counts(todo=1, done=2), "imaging": Counts(done=2)}
