"""DAGs that the tests rerun: one whose tokens they finish by hand, and two whole runs side by side on the cluster."""

from airflow.sdk import dag, task

from airflow_provider_picas.assets import pool_asset
from airflow_provider_picas.operators.tokens import PicasPushTokensOperator
from airflow_provider_picas.sensors.tokens import PicasTokenStateSensor
from airflow_provider_picas.task_groups import picas_run

# Fails for `bad` until the token was given back once.
COMMAND = """
if [ "$PICAS_INPUT" = bad ] && [ "$PICAS_ATTEMPT" = 1 ]; then echo "no file /data/$PICAS_TOKEN_ID" >&2; exit 3; fi
echo "{\\"name\\": \\"$PICAS_INPUT\\"}" > "$PICAS_OUTPUT_FILE"
"""


@dag(schedule=None)
def rerun_by_clearing():
    pool = pool_asset("couchdb.example.org", "rerun")
    push = PicasPushTokensOperator(task_id="push", inputs=list(range(20)), outlets=[pool])
    PicasTokenStateSensor(task_id="wait", batch=push.output, timeout=120, deferrable=True, outlets=[pool])


@dag(schedule=None)
def runs_side_by_side():
    @task
    def lists():
        return [["a", "b"], ["c", "bad"]]

    picas_run.partial(
        command=COMMAND, pilots="{{ 1 }}", ssh_conn_id="spider", max_errors="{{ 0 }}", fields="input,output.name"
    ).expand(inputs=lists())


rerun_by_clearing()
runs_side_by_side()
