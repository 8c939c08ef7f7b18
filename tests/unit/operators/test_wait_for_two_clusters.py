"""A DAG with pilots on two clusters and one wait for both."""

from __future__ import annotations

from airflow.sdk import DAG

from airflow_provider_picas.operators.pilots import PicasSubmitPilotsOperator
from airflow_provider_picas.operators.tokens import PicasPushTokensOperator
from airflow_provider_picas.sensors.tokens import PicasTokenStateSensor


def test_the_wait_comes_after_both_submissions() -> None:
    shape = {"base": "picas_cortex", "name": "tasks", "batch_field": "task_type"}
    with DAG("two_clusters", schedule=None):
        push = PicasPushTokensOperator(task_id="push", inputs=[1], batch="short", profile=shape)
        given = {"command": "true", "batch": push.output, "profile": shape}
        here = PicasSubmitPilotsOperator(task_id="here", ssh_conn_id="spider", **given)
        there = PicasSubmitPilotsOperator(task_id="there", ssh_conn_id="juelich", **given)
        wait = PicasTokenStateSensor(
            task_id="wait", batch=push.output, pilots=[here.output, there.output], profile=shape, deferrable=True
        )
    assert wait.upstream_task_ids == {"push", "here", "there"}
    assert "profile" in wait.template_fields
