"""A sweep over a parameter, in which some tokens fail, and run again with other settings.

Needs a connection ``picas_default`` to a pool that the pilots may write to, and a connection ``spider`` to a login
node. Each token is an orbit of another eccentricity. ``orbit.py`` fails where its steps are too large for the orbit,
and takes smaller ones in the next attempt: only the failed tokens need that time. The token keeps its first attempt,
with the error.
"""

from airflow.sdk import dag, task

from airflow_provider_picas.operators.pilots import PicasResubmitPilotsOperator, PicasSubmitPilotsOperator
from airflow_provider_picas.operators.tokens import (
    PicasCollectTokensOperator,
    PicasPushTokensOperator,
    PicasResetTokensOperator,
)
from airflow_provider_picas.sensors.tokens import PicasTokenStateSensor

ECCENTRICITIES = [tenth / 10 for tenth in range(9)]


@task
def report(orbits):
    """Show the number of steps that each orbit needed."""
    rows = sorted(orbits["rows"], key=lambda row: row["input"])
    for row in rows:
        print(f"{row['input']:.1f}: {row['output.steps']:6,} steps, energy error {row['output.energy_error']:.1e}")
    return {f"{row['input']:.1f}": row["output.steps"] for row in rows}


@dag(schedule=None, catchup=False, tags=["picas", "example"], doc_md=__doc__)
def picas_sweep():
    push = PicasPushTokensOperator(task_id="push", inputs=ECCENTRICITIES)
    pilots = PicasSubmitPilotsOperator(
        task_id="pilots",
        batch=push.output,
        command="python3 orbit.py",
        files=["orbit.py"],
        pilots=2,
        sbatch={"time": "00:10:00", "cpus-per-task": 1},
        ssh_conn_id="spider",
    )
    # Up to half of the tokens may fail here; with more, something else is wrong, and the run fails.
    wait = PicasTokenStateSensor(task_id="wait", batch=push.output, max_errors=0.5, deferrable=True)
    reset = PicasResetTokensOperator(task_id="reset", batch=push.output, reason="smaller steps")
    same_pilots = PicasResubmitPilotsOperator(task_id="same_pilots", batch=push.output)
    wait_again = PicasTokenStateSensor(task_id="wait_again", batch=push.output, deferrable=True)
    collect = PicasCollectTokensOperator(
        task_id="collect", batch=push.output, fields=["input", "output.steps", "output.energy_error"]
    )
    push >> pilots >> wait >> reset >> same_pilots >> wait_again >> collect
    report(collect.output)


picas_sweep()
