"""A run with pilots of our own, whose wait the tests stop in every way."""

from airflow.sdk import dag

from airflow_provider_picas.operators.pilots import PicasCancelPilotsOperator, PicasSubmitPilotsOperator
from airflow_provider_picas.operators.tokens import PicasPushTokensOperator
from airflow_provider_picas.sensors.tokens import PicasTokenStateSensor


def make(dag_id, on_kill, teardown=False, deferrable=True):
    @dag(dag_id=dag_id, schedule=None, catchup=False, params={"gate": ""})
    def run():
        """The pilots' tokens end when there is a file."""
        push = PicasPushTokensOperator(task_id="push", inputs=["{{ params.gate }}"] * 3)
        pilots = PicasSubmitPilotsOperator(
            task_id="pilots",
            command='until [ -e "$PICAS_INPUT" ]; do sleep 0.2; done',
            batch=push.output,
            pilots=2,
            pilot={"lease": 15},
            ssh_conn_id="spider",
        )
        wait = PicasTokenStateSensor(
            task_id="wait",
            batch=push.output,
            pilots=pilots.output,
            deferrable=deferrable,
            pilots_interval=5,
            on_kill=on_kill,
            poke_interval=10,
            timeout=600,
        )
        if teardown:
            cancel = PicasCancelPilotsOperator(task_id="cancel", pilots=pilots.output, batch=push.output)
            wait >> cancel.as_teardown(setups=pilots)

    return run()


make("stop_cancel", "cancel")
make("stop_poke", "cancel", deferrable=False)
make("stop_drain", "drain")
make("stop_teardown", "leave", teardown=True)
