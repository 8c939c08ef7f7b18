"""Two DAGs and an asset: one fills a pool each night, the other starts when the tokens of that night are done.

Needs a connection ``picas_default`` to a pool that the pilots may write to, and a connection ``spider`` to a login
node. The event of the asset says which batch is done, so that the second DAG reads the results of that batch, also
when several nights are done at once.
"""

from datetime import datetime

from airflow.sdk import dag, task

from airflow_provider_picas.assets import pool_asset
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.operators.pilots import PicasSubmitPilotsOperator
from airflow_provider_picas.operators.tokens import PicasPushTokensOperator
from airflow_provider_picas.sensors.tokens import PicasTokenStateSensor

CHECKSUMS = pool_asset("picas.example.org", "my_files", name="checksums of my files")


@dag(
    schedule="@daily",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    is_paused_upon_creation=True,
    tags=["picas", "example"],
    doc_md=__doc__,
)
def picas_nightly_checksums():
    push = PicasPushTokensOperator(task_id="push", inputs=["/etc/os-release", "/etc/passwd", "/etc/group"])
    pilots = PicasSubmitPilotsOperator(
        task_id="pilots",
        batch=push.output,
        command="./checksum.sh",
        files=["checksum.sh"],
        pilots=1,
        sbatch={"time": "00:10:00", "cpus-per-task": 1},
        ssh_conn_id="spider",
    )
    wait = PicasTokenStateSensor(task_id="wait", batch=push.output, deferrable=True, outlets=[CHECKSUMS])
    push >> pilots >> wait


@task
def report(triggering_asset_events=None):
    """The checksums of the nights that are done, and in how many of them each file had each checksum."""
    hook = PicasHook("picas_default")
    seen = {}
    for event in triggering_asset_events[CHECKSUMS]:
        for token in hook.tokens("done", event.extra["batch"]):
            nights = seen.setdefault(token["input"], {})
            nights[token["output"]["sha256"]] = nights.get(token["output"]["sha256"], 0) + 1
    return seen


@dag(schedule=[CHECKSUMS], catchup=False, is_paused_upon_creation=True, tags=["picas", "example"], doc_md=__doc__)
def picas_checksum_report():
    report()


picas_nightly_checksums()
picas_checksum_report()
