"""An autopilot: submit pilots whenever tokens appear in a pool, as many as there is work for, within limits.

The users who fill the pool do not need Airflow. Needs a connection ``picas_default`` to the pool, with the provider's
views in it (push to it once, or run ``airflow-picas deploy-views``), a connection ``spider`` to a login node, and a
running triggerer. The pilots run the command of the DAG on each token, and exit when no tokens remain.
"""

from airflow.sdk import AssetWatcher, dag

from airflow_provider_picas.assets import pool_asset
from airflow_provider_picas.operators.pilots import PicasSubmitPilotsOperator
from airflow_provider_picas.options import Scaling
from airflow_provider_picas.triggers.events import PicasTokenEventTrigger

WORK = pool_asset(
    "picas.example.org",
    "my_pool",
    name="work in my pool",
    watchers=[AssetWatcher(name="tokens to do", trigger=PicasTokenEventTrigger(event="todo"))],
)


@dag(
    schedule=[WORK],
    catchup=False,
    max_active_runs=1,  # the limits count existing pilots: two concurrent runs would count the same ones
    is_paused_upon_creation=True,
    tags=["picas", "example"],
    doc_md=__doc__,
)
def picas_autopilot():
    PicasSubmitPilotsOperator(
        task_id="pilots",
        ssh_conn_id="spider",
        command='wc -w "$PICAS_INPUT"',
        scaling=Scaling(pilots="auto", tokens_per_pilot=10, max_pilots=20, max_queued=5),
        sbatch={"time": "00:30:00", "cpus-per-task": 1},
    )


picas_autopilot()
