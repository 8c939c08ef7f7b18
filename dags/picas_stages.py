"""A chain of stages on a cluster: observations make tokens for calibration, and groups of these a token for imaging.

Needs a connection ``picas_default`` to a pool that the pilots may write to, and a connection ``spider`` to a login node. The
work is small, but real: an observation is a noisy signal in ten subbands, calibration fits the gain of each and removes it,
and imaging averages the subbands of an observation, as soon as nine of ten are done. ``stage_work.py`` has it. On Airflow 3.3
and later, ``IMAGES`` gets an event for each observation, with its name as the partition key.
"""

from airflow.sdk import Param, dag, task

from airflow_provider_picas.assets import stage_asset
from airflow_provider_picas.options import PilotStage, Scaling
from airflow_provider_picas.task_groups import picas_run

IMAGES = stage_asset("picas.example.org", "sky", "imaging", each_group=True)


@task
def observations(params=None):
    """The inputs: the number of each observation."""
    return list(range(params["observations"]))


@task
def report(images):
    """Show how far the images are from the true signal."""
    rows = images["rows"]
    for row in sorted(rows, key=lambda row: row["output.observation"]):
        print(f"{row['output.observation']}: {row['output.subbands']} subbands, rms {row['output.rms']:.3f}")
    return {"images": len(rows), "worst": max(row["output.rms"] for row in rows)}


@dag(
    schedule=None,
    catchup=False,
    params={"observations": Param(4, type="integer", minimum=1, description="Number of observations")},
    tags=["picas", "example"],
    doc_md=__doc__,
)
def picas_stages():
    work = {"files": ["stage_work.py"], "sbatch": {"time": "00:30:00", "cpus-per-task": 1}}
    images = picas_run(
        inputs=observations(),
        command="python3 stage_work.py observe",
        stages={
            "calibration": PilotStage(
                command="python3 stage_work.py calibrate", least_work=4, scaling=Scaling(pilots=2), **work
            ),
            "imaging": PilotStage(
                command="python3 stage_work.py image",
                group_of="calibration",
                at_least=0.9,
                least_work=4,
                outlets=[IMAGES],
                **work,
            ),
        },
        fields=["output.observation", "output.subbands", "output.rms"],
        ssh_conn_id="spider",
        **work,
    )
    report(images)


picas_stages()
