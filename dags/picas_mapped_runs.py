"""Whole runs side by side, one for each list of inputs: each has a batch, pilots, a wait and results of its own.

Needs a connection ``picas_default`` to a pool that the pilots may write to, and a connection ``spider`` to a login
node. A run that fails does not stop the others, and is cleared on its own. The pilots retry a failed token once:
``orbit.py`` then takes smaller steps.
"""

from airflow.sdk import dag, task

from airflow_provider_picas.options import PilotOptions
from airflow_provider_picas.task_groups import picas_run


@task
def families():
    """The eccentricities of four planets and of three comets (Tempel 1, Faye, Encke): the lists of inputs."""
    return [[0.2056, 0.0068, 0.0167, 0.0934], [0.510, 0.576, 0.848]]


@task
def report(results):
    """The largest number of steps in each run."""
    return [max(row["output.steps"] for row in result["rows"]) for result in results]


@dag(schedule=None, catchup=False, tags=["picas", "example"], doc_md=__doc__)
def picas_mapped_runs():
    results = picas_run.partial(
        command="python3 orbit.py",
        files=["orbit.py"],
        pilots=1,
        pilot=PilotOptions(max_retries=1),
        fields=["input", "output.steps"],
        sbatch={"time": "00:10:00", "cpus-per-task": 1},
        ssh_conn_id="spider",
    ).expand(inputs=families())
    report(results)


picas_mapped_runs()
