"""Fifty waits, for a batch each, that all look after the same pilots."""

from airflow.sdk import dag

from airflow_provider_picas.operators.pilots import PicasSubmitPilotsOperator
from airflow_provider_picas.sensors.tokens import PicasTokenStateSensor

BATCHES = [f"b{number:02}" for number in range(50)]


@dag(schedule=None, catchup=False, params={"gate": ""})
def fifty_waits():
    """The pilots' tokens end when there is a file."""
    pilots = PicasSubmitPilotsOperator(
        task_id="pilots",
        command='until [ -e "$PICAS_INPUT" ]; do sleep 0.2; done',
        pilots=2,
        pilot={"lease": 30},
        ssh_conn_id="spider",
    )
    PicasTokenStateSensor.partial(task_id="wait", pilots=pilots.output, deferrable=True, timeout=1_800).expand(
        batch=BATCHES
    )


fifty_waits()
