"""Jobs that slurmdbd lists as running although the controller has forgotten them ("runaway jobs") do not block a wait."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_picas.hooks.slurm import SlurmHook
from airflow_provider_picas.operators.pilots import PicasSubmitPilotsOperator
from airflow_provider_picas.operators.tokens import PicasPushTokensOperator
from airflow_provider_picas.sansio import drive
from airflow_provider_picas.sensors.tokens import PicasTokenStateSensor
from airflow_provider_picas.slurm import jobs
from airflow_provider_picas.slurm.jobs import Phase, SlurmStatus
from airflow_provider_picas.slurm.remote import Output, Step, UnreachableError
from airflow_provider_picas.submissions.submission import Submission
from stack import native, processes
from stack.cluster import Cluster
from tests.conftest import set_connection
from tests.integration.tasks import context

pytestmark = pytest.mark.usefixtures("picas_default")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster that forgets ended jobs at once."""
    with Cluster(
        tmp_path_factory.mktemp("forgetful") / "cluster", nodes=1, settings={"MinJobAge": "2", "MessageTimeout": "3"}
    ) as cluster:
        yield cluster


@pytest.fixture
def remote(site: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmHook]:
    set_connection(monkeypatch, "forgetful", native.ssh_connection(site))
    with SlurmHook("forgetful") as hook:
        yield hook


def submit(folder: Path, run_id: str) -> Submission:
    script = folder / "pilot.sh"
    script.write_text("#!/bin/bash\nsleep 600\n")
    operator = PicasSubmitPilotsOperator(
        task_id="pilots", script=str(script), pilots=2, ssh_conn_id="forgetful", credentials="existing"
    )
    watched = Submission.parse(operator.execute(context("pilots", run_id=run_id)))
    assert watched is not None
    return watched


def look(remote: SlurmHook, watched: Submission) -> SlurmStatus:
    return remote.do(jobs.query(watched.key, watched.folder, watched.since))


def lives(found: SlurmStatus) -> set[Phase]:
    return {job.phase for job in found.jobs.values()}


def until(condition: object, what: str) -> None:
    processes.wait_for(condition, what=what, seconds=60)  # type: ignore[arg-type]


def make_runaway(site: Cluster, watched: Submission) -> None:
    """The jobs end while slurmdbd is away, and the controller dies once it has forgotten them."""
    site.stop_accounting()
    site.run("scancel", f"--name={watched.key}")
    until(lambda: not site.run("squeue", "--noheader", "--states=all").stdout, "The controller to forget the jobs")
    now = time.time()
    site.run("sbatch", "--hold", "--wrap=true")  # makes it save its state
    state = site.folder / "state" / "job_state"
    until(lambda: state.exists() and state.stat().st_mtime > now, "The controller's state")
    site.kill_controller()
    site.start_accounting()
    site.start_controller()


def test_a_runaway_job_does_not_keep_a_wait_standing(
    site: Cluster, remote: SlurmHook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: object
) -> None:
    batch = PicasPushTokensOperator(task_id="push", inputs=[1]).execute(context(run_id="runaway"))
    watched = submit(tmp_path, "runaway")
    sacct = ["sacct", "-nX", f"--name={watched.key}", "--format=state"]
    until(lambda: site.run(*sacct).stdout.split() == ["RUNNING"] * 2, "The jobs to run")
    make_runaway(site, watched)
    assert site.run(*sacct).stdout.split() == ["RUNNING"] * 2

    assert lives(look(remote, watched)) == {Phase.RUNNING}, "that is too early to tell"
    monkeypatch.setattr(jobs, "FORGOTTEN_AFTER", 1)
    site.stop_controller()
    try:
        with pytest.raises(UnreachableError, match="squeue does not answer"):
            look(remote, watched)
    finally:
        site.continue_controller()
    until(lambda: lives(look(remote, watched)) == {Phase.ENDED}, "The end of the jobs")
    assert {job.cause for job in look(remote, watched).jobs.values()} == {
        "RUNNING according to sacct, but unknown to Slurm's controller"
    }
    pilots = {
        "ssh_conn_id": "forgetful", "submission": watched.key, "folder": watched.folder, "job_ids": ["1"],
        "submitted": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(watched.since))}+00:00",
    }  # fmt: skip
    sensor = PicasTokenStateSensor(
        task_id="wait", batch=batch, pilots=pilots, poke_interval=1, timeout=60, deferrable=False
    )
    with pytest.raises(AirflowFailException, match="pilot"):
        sensor.execute(context("wait", run_id="runaway"))


def test_a_job_that_squeue_did_not_list_yet(
    site: Cluster, remote: SlurmHook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was submitted after squeue was asked, and before sacct was: it is asked for by its id."""
    monkeypatch.setattr(jobs, "FORGOTTEN_AFTER", 0)
    watched = submit(tmp_path, "early")
    until(lambda: f"{watched.key}" in site.run("sacct", "-nX", "--format=JobName%80").stdout, "The job in sacct")
    asked = 0

    def without_squeue(step: Step) -> Output:
        nonlocal asked
        asked += 1
        output = remote.perform(step)
        rows = [line for line in output.stdout.splitlines() if not line.startswith("Q|")]
        return replace(output, stdout="\n".join(rows)) if isinstance(step, jobs.JobsQuery) else output

    found = drive(jobs.query(watched.key, watched.folder, watched.since), without_squeue)
    assert asked == 2
    assert found.unqueued
    assert lives(found) <= {Phase.WAITING, Phase.RUNNING}
