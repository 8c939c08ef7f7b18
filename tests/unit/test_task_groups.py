"""The tasks of a run with stages."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk import DAG

from airflow_provider_picas.assets import pool_asset
from airflow_provider_picas.options import PilotOptions, PilotStage, PilotWatch, Scaling
from airflow_provider_picas.task_groups import picas_run
from airflow_provider_picas.tokens.chain import Chain, ChainCounts
from airflow_provider_picas.tokens.counts import Counts, ErrorBudget
from airflow_provider_picas.tokens.waiting import Outcome, Terms


def test_each_stage_has_tasks_of_its_own() -> None:
    stages = {
        "calibration": PilotStage(
            command="./calibrate",
            sbatch={"time": "01:00:00"},
            scaling=Scaling(pilots=3),
            least_work=5,
            max_errors=2,
            outlets=[pool_asset("couchdb.example.org", "calibrated")],
        ),
        "imaging": PilotStage(script="image.sh", watch=PilotWatch(resubmit=7)),
    }
    with DAG("d") as dag:
        picas_run(inputs=["a"], command="./observe", stages=stages)
    tasks: dict[str, Any] = {name.removeprefix("picas_run."): task for name, task in dag.task_dict.items()}
    parts = ("ready", "pilots", "wait", "collect", "stop")
    assert set(tasks) >= {f"{stage}.{part}" for stage in stages for part in parts}
    assert (tasks["pilots"].stages, tasks["pilots"].stage) == (["calibration", "imaging"], None)
    ready, pilots, wait = (tasks[f"calibration.{part}"] for part in ("ready", "pilots", "wait"))
    assert {(task.stage, tuple(task.stages)) for task in (ready, pilots, wait)} == {
        ("calibration", ("calibration", "imaging"))
    }
    assert (ready.ready, ready.pilots, pilots.pilots, pilots.command) == (5, False, 3, "./calibrate")
    assert (wait.least_work, wait.resubmit, wait.max_errors) == (5, 100, 2)
    assert [asset.uri for asset in wait.outlets] == ["picas://couchdb.example.org/calibrated"]
    assert tasks["imaging.wait"].resubmit == 7
    assert ready.downstream_task_ids >= {"picas_run.calibration.pilots"}
    assert tasks["push"].downstream_task_ids >= {"picas_run.calibration.ready", "picas_run.imaging.ready"}
    assert "picas_run.imaging.ready" not in tasks["calibration.wait"].downstream_task_ids, "stages run side by side"


def test_a_stage_may_have_a_batch_of_any_name() -> None:
    stages = {
        "calibration": PilotStage(command="./calibrate"),
        "imaging": PilotStage(script="image.sh", batch="imaging"),
    }
    with DAG("d") as dag:
        picas_run(inputs=["a"], command="./observe", stages=stages)
    given = [task.stages for task in dag.task_dict.values() if getattr(task, "stages", None)]
    assert given == [{"calibration": "", "imaging": "imaging"}] * 7


def test_stages_that_cannot_be_are_refused_when_the_dag_is_parsed() -> None:
    with DAG("d"), pytest.raises(ValueError, match="name of one of its tasks: wait"):
        picas_run(inputs=["a"], command="true", stages={"wait": PilotStage(command="true")})
    for arguments in ({}, {"command": "true", "script": "x"}, {"command": "true", "least_work": 0}):
        with pytest.raises(ValueError, match="PilotStage"):
            PilotStage(**arguments)
    with pytest.raises(ValueError, match="max_errors"):
        PilotStage(command="true", max_errors=-1)
    assert PilotStage(command="true", pilot=PilotOptions(wait_for_work=60)).waves == 100


@pytest.mark.parametrize(
    ("own", "closed", "ready"),
    [
        (Counts(todo=9), False, False),
        (Counts(todo=10), False, True),
        (Counts(done=20), False, False),
        (Counts(todo=1), True, True),
        (Counts(), True, True),
    ],
)
def test_a_stage_is_ready_for_pilots_when_enough_tokens_wait_or_no_more_can_appear(
    own: Counts, closed: bool, ready: bool
) -> None:
    chain = Chain("b", ("imaging",), "imaging")
    terms = Terms("b.imaging", None, ErrorBudget(0), chain=chain, ready=10)
    found = ChainCounts({"b": Counts(done=1), "b.imaging": own}, closed=closed)
    assert (terms.evaluate(terms.completeness(found)).outcome is Outcome.READY) == ready
