"""DAGs whose tokens the tests finish by hand: one for each way to wait, and one that the scheduler starts."""

import pendulum
from airflow.sdk import dag

from airflow_provider_picas.operators.tokens import PicasPushTokensOperator
from airflow_provider_picas.sensors.tokens import PicasTokenStateSensor

# Airflow fails a rescheduled sensor if it notices the end of one look only when the next has been queued (apache/airflow#71172,
# open as of 3.3): a second between them is too short on a busy machine.
WAYS = {
    "deferrable": {"deferrable": True},
    "poke": {"deferrable": False, "mode": "poke", "poke_interval": 1},
    "reschedule": {"deferrable": False, "mode": "reschedule", "poke_interval": 10},
}


def make(dag_id, way, **kwargs):
    @dag(dag_id=dag_id, catchup=False, **kwargs)
    def wait_for_tokens():
        push = PicasPushTokensOperator(task_id="push", inputs=["a", "b", "c"])
        PicasTokenStateSensor(task_id="wait", batch=push.output, timeout=120, **way)

    return wait_for_tokens()


for name, way in WAYS.items():
    make(f"wait_{name}", way, schedule=None)

make(
    "wait_scheduled",
    WAYS["deferrable"],
    schedule="@once",
    start_date=pendulum.datetime(2026, 1, 1),
    is_paused_upon_creation=True,
)
