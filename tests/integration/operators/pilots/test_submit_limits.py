"""A site that refuses jobs for now: submit limits in Slurm's accounting, a closed partition. Nothing fails for good."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, TaskDeferred

from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.hooks.pilots import PilotsHook, credential_files
from airflow_provider_picas.hooks.slurm import SlurmHook
from airflow_provider_picas.operators.pilots import PicasSubmitPilotsOperator
from airflow_provider_picas.operators.tokens import PicasPushTokensOperator
from airflow_provider_picas.sensors.tokens import PicasTokenStateSensor
from airflow_provider_picas.slurm import sbatch_record
from airflow_provider_picas.slurm.sbatch_calls import SubmissionRefusedError
from airflow_provider_picas.submissions import wait as decisions
from airflow_provider_picas.submissions.resubmit import resubmit
from airflow_provider_picas.submissions.submission import Submission
from airflow_provider_picas.tokens.waiting import Outcome
from airflow_provider_picas.triggers.tokens import PicasTokenStateTrigger
from stack import native, processes
from stack.cluster import Cluster
from stack.pool import Pool
from tests.conftest import set_connection
from tests.integration.tasks import context

pytestmark = pytest.mark.usefixtures("picas_default", "limited")

LIMIT = 120  # seconds to wait for anything
HELD = "#!/bin/bash\n#SBATCH --hold\nsleep 600\n"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster that enforces the limits of its accounting."""
    folder = tmp_path_factory.mktemp("limited") / "cluster"
    with Cluster(folder, nodes=1, settings={"AccountingStorageEnforce": "limits,qos"}) as cluster:
        account(cluster, "add", "account", "science")
        account(cluster, "add", "user", cluster.user, "account=science")
        yield cluster


@pytest.fixture
def limited(site: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmHook]:
    """A connection to it, without limits and jobs at the end."""
    set_connection(monkeypatch, "limited", native.ssh_connection(site))
    with SlurmHook("limited") as hook:
        yield hook
        hook.run('scancel --user="$UID"')
        site.run("scontrol", "update", "PartitionName=normal", "State=UP")
        for limit in LIMITS.values():
            account(site, *[word.replace("=1", "=-1") for word in limit])


def account(site: Cluster, *words: str) -> None:
    """Change something in the accounting; the controller knows it when sacctmgr is back."""
    done = site.run("sacctmgr", "--immediate", *words)
    assert done.returncode == 0 or "Nothing modified" in done.stdout, done.stdout + done.stderr


LIMITS = {
    "AssocMaxSubmitJobLimit": ["modify", "account", "science", "set", "MaxSubmitJobs=1"],
    "QOSMaxSubmitJobPerUserLimit": ["modify", "qos", "normal", "set", "MaxSubmitJobsPerUser=1"],
    "QOSGrpSubmitJobsLimit": ["modify", "qos", "normal", "set", "GrpSubmitJobs=1"],
}


def submit(folder: Path, task_id: str, text: str = HELD) -> Any:
    script = folder / "pilot.sh"
    script.write_text(text)
    account = {"account": "science"}
    operator = PicasSubmitPilotsOperator(task_id=task_id, script=str(script), ssh_conn_id="limited", sbatch=account)
    return operator.execute(context(task_id, run_id=str(folder)))


@pytest.mark.parametrize("reason", LIMITS)
def test_a_submit_limit_that_is_reached_is_tried_again(
    site: Cluster, limited: SlurmHook, tmp_path: Path, reason: str
) -> None:
    first = submit(tmp_path, "first")
    account(site, *LIMITS[reason])
    with pytest.raises(AirflowException, match=reason) as failure:
        submit(tmp_path, "second")
    assert not isinstance(failure.value, AirflowFailException), "Airflow would not retry"
    limited.run(f"scancel {first['job_ids'][0]}")
    assert len(submit(tmp_path, "second")["job_ids"]) == 1


class Wait:
    """A batch whose pilots have ended at once, and whose site refuses more for now."""

    def __init__(self, site: Cluster, pool: Pool, folder: Path) -> None:
        push = PicasPushTokensOperator(task_id="push", inputs=["a", "b"])
        self.batch: Any = push.execute(context("push", run_id=pool.database))
        self.pilots = submit(folder, "pilots", "#!/bin/bash\n[ ! -e ~/run ] || sleep 600\n")
        watched = Submission.parse(self.pilots)
        assert watched is not None
        self.watched = watched
        self.site = site
        self.until_no_job_is_left()
        site.run("scontrol", "update", "PartitionName=normal", "State=DRAIN")

    def until_no_job_is_left(self) -> None:
        processes.wait_for(lambda: not self.site.run("squeue", "-h").stdout, what="The pilots' end", seconds=LIMIT)

    def open_the_partition(self) -> None:
        self.site.run("scontrol", "update", "PartitionName=normal", "State=UP")

    def resubmit(self, most: int = 1, finished: int = 0) -> str | None:
        hook, batch, watched = PicasHook("picas_default"), self.batch["batch"], self.watched
        credentials = partial(credential_files, watched.folder, hook.settings)
        with PilotsHook(hook, watched.ssh_conn_id) as wait:
            again = resubmit(hook.pool, batch, watched, most=most, finished=finished, credentials=credentials)
            return wait.do(again)

    def names(self) -> list[str]:
        """The names of the jobs that were submitted again."""
        jobs = self.site.run("squeue", "-h", "--states=all", "--format=%j").stdout.split()
        return sorted(name for name in jobs if name.startswith(f"{self.watched.key}-"))


@pytest.fixture
def wait(site: Cluster, pool: Pool, tmp_path: Path) -> Wait:
    return Wait(site, pool, tmp_path)


def test_a_round_that_is_refused_for_now_is_submitted_later(wait: Wait, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):  # the second time, sbatch is not even asked
        with pytest.raises(SubmissionRefusedError, match="partition not available") as refused:
            wait.resubmit()
        assert refused.value.for_now
        assert 0 < refused.value.retry_in <= sbatch_record.RETRY_AFTER
    monkeypatch.setattr(sbatch_record, "RETRY_AFTER", 0.0)
    with pytest.raises(SubmissionRefusedError, match="partition not available"):
        wait.resubmit()
    assert wait.names() == []
    wait.open_the_partition()
    assert wait.resubmit() is None
    assert wait.names() == [f"{wait.watched.key}-1"]
    wait.until_no_job_is_left()
    assert wait.resubmit() == "They were submitted again 1 times, the limit set by `resubmit`."


def test_a_wait_in_a_task_goes_on_until_its_pilots_are_accepted(wait: Wait, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sbatch_record, "RETRY_AFTER", 0.0)
    sensor = PicasTokenStateSensor(task_id="wait", batch=wait.batch, pilots=wait.pilots, resubmit=1)
    task = context("wait")
    sensor._instance = task["ti"]
    assert not sensor.poke(task)
    assert wait.names() == []
    wait.open_the_partition()
    assert not sensor.poke(task)
    assert wait.names() == [f"{wait.watched.key}-1"]


def test_a_deferred_wait_leaves_its_task_until_it_is_worth_another_try(wait: Wait) -> None:
    sensor = PicasTokenStateSensor(task_id="wait", batch=wait.batch, pilots=wait.pilots, resubmit=1, deferrable=True)
    event = {"outcome": Outcome.NO_PILOTS, "counts": {"todo": 2}, "expected": 2}
    before = time.time()
    with pytest.raises(TaskDeferred) as deferred:
        sensor.execute_complete(context("wait"), event, time.time() + 3600)
    _, fields = deferred.value.trigger.serialize()
    assert before < fields["no_pilots_before"] <= time.time() + sbatch_record.RETRY_AFTER
    assert fields["no_pilots_before"] - before > sbatch_record.RETRY_AFTER / 2


def test_a_trigger_says_that_no_pilot_is_left_when_it_is_worth_another_try(
    wait: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decisions, "FIRST_INTERVAL", 0.5)
    at = time.time() + 4
    trigger = PicasTokenStateTrigger(
        "picas_default", None, wait.batch["batch"], 2, 0, time.time() + LIMIT, wait.pilots, no_pilots_before=at
    )

    async def event() -> Any:
        return (await anext(trigger.run())).payload

    assert asyncio.run(event())["outcome"] == Outcome.NO_PILOTS
    assert time.time() >= at
