"""Archive and delete the batches that finished long ago, so that the pool stays small.

Each batch is written to its own file in the folder in the Airflow Variable ``picas_archive`` (a path that the workers
share, or a URL such as ``s3://connection@bucket/folder``), and is deleted once that file is complete.
PicasRestoreTokensOperator restores a batch. Only complete batches that this provider pushed are archived: a batch with
a token that waits, runs, or finished recently is skipped.
"""

from datetime import datetime

from airflow.sdk import Param, dag, task

from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.operators.tokens import PicasDeleteTokensOperator
from airflow_provider_picas.tokens.ids import batch_id

DAY = 24 * 60 * 60  # seconds
MOST_BATCHES = 500  # in one run; the next run archives the others


@task
def old_batches(params=None):
    """The batches that finished long enough ago."""
    hook = PicasHook(params["picas_conn_id"], database=params["database"])
    old = []
    for batch, counts in hook.batches().items():
        if params["batch"] and batch != params["batch"]:
            continue
        if counts.finished < counts.total or len(old) == MOST_BATCHES:
            continue
        if batch != batch_id(batch):
            print(f"{batch!r} is skipped: its name does not have the form of this provider's batches.")
            continue
        objection = hook.unfinished(batch, params["days"] * DAY)
        print(f"{batch}: {objection or 'is archived'}")
        if objection is None:
            old.append(batch)
    return old


@dag(
    schedule="@daily",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=True,
    params={
        "days": Param(
            90, type="number", minimum=0, description="Archive batches that finished at least this number of days ago."
        ),
        "picas_conn_id": Param("picas_default", type="string", description="Connection to the pool."),
        "database": Param(None, type=["null", "string"], description="Another database than the connection's."),
        "batch": Param(None, type=["null", "string"], description="Only this batch."),
    },
    tags=["picas"],
    doc_md=__doc__,
)
def picas_archive_batches():
    PicasDeleteTokensOperator.partial(
        task_id="archive",
        archive="{{ var.value.picas_archive }}",
        states=["done", "error"],
        finished_for="{{ params.days * 86400 }}",
        picas_conn_id="{{ params.picas_conn_id }}",
        database="{{ params.database or '' }}",
        max_active_tis_per_dagrun=2,
    ).expand(batch=old_batches())


picas_archive_batches()
