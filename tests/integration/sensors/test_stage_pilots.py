"""The pilots of a stage on a real cluster: submitted for its tokens, and again for those that appear after they have ended."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred

from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.hooks.slurm import SlurmHook
from airflow_provider_picas.operators.pilots import PicasSubmitPilotsOperator
from airflow_provider_picas.submissions.stop import drained
from airflow_provider_picas.tokens import chain, documents
from stack import processes
from stack.pool import Pool
from tests.integration.sensors.test_chains import Waiting, exists, finish
from tests.integration.tasks import context

pytestmark = pytest.mark.usefixtures("picas_default", "spider")


def test_pilots_are_submitted_again_for_the_tokens_that_appear_later(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain, "LOOK_EVERY", 0.5)
    hook = PicasHook()
    hook.deploy_views()
    hook.push(documents.new_token({"input": n}, batch="b", push="p", ordinal=n, key=f"{n}") for n in range(2))
    batch = {"database": hook.settings.database, "batch": "b", "tokens": 2}
    stage: dict[str, Any] = {"batch": batch, "stages": ["s"], "stage": "s"}

    def submit() -> Any:
        operator = PicasSubmitPilotsOperator(
            task_id="pilots", command="true", ssh_conn_id="spider", pilot={"lease": 5}, **stage
        )
        return operator.execute(context("pilots", run_id=pool.database))

    assert submit()["submission"] is None, "no token of the stage waits"
    ready = Waiting(batch, deferrable=False, stages=["s"], stage="s", ready=1, pilots=False)
    finish("b:0", "x")
    assert ready.end()["batch"] == "b.s"
    pilots = submit()
    wait = Waiting(
        batch, deferrable=False, stages=["s"], stage="s", pilots=pilots, least_work=1, resubmit=3, timeout=200
    )
    with SlurmHook("spider") as remote:
        name = pilots["submission"]

        def jobs(states: str) -> list[str]:
            listed = f"squeue --noheader --all --states={states} --format=%j"
            return [job for job in remote.run(listed).stdout.split() if job.startswith(name)]

        processes.wait_for(lambda: hook.get("b.s:x")["done"] > 0, what="The first token", seconds=240)
        processes.wait_for(lambda: not jobs("pending,running,completing"), what="The pilots' end", seconds=240)
        assert wait.waits
        finish("b:1", "y")
        exists("b.s:y")
        processes.wait_for(lambda: hook.get("b.s:y")["done"] > 0, what="The second token", seconds=120)
    assert wait.end() == {"todo": 0, "locked": 0, "done": 2, "error": 0}
    assert hook.get("b.s:x")["slurm_job_id"] != hook.get("b.s:y")["slurm_job_id"]


@pytest.mark.parametrize("deferrable", [False, True])
def test_pilots_that_wait_for_work_end_with_the_chain(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, deferrable: bool
) -> None:
    """No more tokens can appear, so the wait drains them. They notice it long before they renew their leases, and may be
    submitted again when tokens are reset."""
    monkeypatch.setattr(chain, "LOOK_EVERY", 0.5)
    hook = PicasHook()
    hook.deploy_views()
    hook.push([documents.new_token({"input": 1}, batch="b", push="p", ordinal=0, key="0")])
    batch = {"database": hook.settings.database, "batch": "b", "tokens": 1}
    pilot = {"lease": 3600, "wait_for_work": 3600}
    operator = PicasSubmitPilotsOperator(
        task_id="pilots", command="true", ssh_conn_id="spider", pilot=pilot, batch=batch, stages=["s"]
    )
    pilots = operator.execute(context("pilots", run_id=pool.database))
    wait = Waiting(batch, deferrable=deferrable, stages=["s"], pilots=pilots, timeout=200)
    assert wait.end() == {"todo": 0, "locked": 0, "done": 1, "error": 0}
    with SlurmHook("spider") as remote:
        assert remote.run(f"ls {pilots['folder']}/credentials").stdout == "", "pilots remain"
        listed = remote.run("squeue --noheader --all --states=pending,running --format=%j").stdout
        assert pilots["submission"] not in listed
    assert hook.do(drained(hook.pool, pilots["submission"])) is False, "only by a person"
    flag = f"_local/picas-submission-{pilots['submission']}"
    assert hook.do(hook.pool.local_documents(flag))[0] == [], "or they would drain those that are submitted again"


def test_a_stage_gets_its_pilots_when_there_is_room(pool: Pool) -> None:
    hook = PicasHook()
    hook.deploy_views()
    hook.push([documents.new_token({"input": 1}, batch="b.s", push="p", ordinal=0)])
    busy: dict[str, Any] = {"command": "true", "ssh_conn_id": "spider", "sbatch": {"begin": "now+1hour"}}
    blocking = PicasSubmitPilotsOperator(task_id="busy", **busy).execute(context("busy", run_id=pool.database))
    operator = PicasSubmitPilotsOperator(
        task_id="pilots", command="true", ssh_conn_id="spider", batch="b", stages=["s"], stage="s", max_pilots=1
    )
    with SlurmHook("spider") as remote:
        with pytest.raises(TaskDeferred) as deferred:
            operator.execute(context("pilots", run_id=pool.database))
        assert deferred.value.method_name == "execute_again"
        assert blocking
        remote.run(f"scancel {' '.join(blocking['job_ids'])}")
        # Pilots of other tests may count, too.
        processes.wait_for(lambda: sum(remote.count_pilots()) == 0, what="Room for a pilot", seconds=240)
    output = operator.execute_again(context("pilots", run_id=pool.database))
    assert output
    assert output["job_ids"]
    processes.wait_for(lambda: hook.count("b.s").done == 1, what="The token of the stage", seconds=240)
