"""The DAGs of the tests of the page: no scheduler runs them, the tests write what their tasks would have left."""

from airflow.sdk import dag

from airflow_provider_picas.operators.tokens import PicasPushTokensOperator
from airflow_provider_picas.sensors.tokens import PicasTokenStateSensor


@dag(schedule=None)
def paged():
    push = PicasPushTokensOperator(task_id="push", inputs=["a"], picas_conn_id="paged")
    pilots = PicasPushTokensOperator(task_id="pilots", inputs=["a"], picas_conn_id="paged")
    wait = PicasTokenStateSensor(task_id="wait", batch=push.output, picas_conn_id="paged")
    push >> pilots >> wait


paged()
