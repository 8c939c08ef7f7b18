"""Start when a batch in another team's pool is complete, and count its results.

The other team does not need Airflow. Needs a connection ``picas_default`` to their pool, which may be read-only, and a
running triggerer. Their batches are distinguished by the part of the token ids before the colon.
"""

from airflow.sdk import AssetWatcher, dag, task

from airflow_provider_picas.assets import pool_asset
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.triggers.events import PicasTokenEventTrigger

COMPLETE = pool_asset(
    "picas.example.org",
    "their_pool",
    name="their batches",
    watchers=[AssetWatcher(name="batch complete", trigger=PicasTokenEventTrigger(event="complete", batch="*"))],
)


@task
def complete_batches(triggering_asset_events=None):
    """The batches of this run: several may be complete when it starts."""
    payloads = [event.extra["payload"] for event in triggering_asset_events[COMPLETE]]
    return sorted({payload["batch"] for payload in payloads if payload["batch"]})


@task
def report(batch):
    """The results of one batch."""
    counts = PicasHook("picas_default").count(batch)
    print(f"Batch {batch} is complete: {counts}.")
    return counts.as_dict()


@dag(
    schedule=[COMPLETE],
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=True,
    tags=["picas", "example"],
    doc_md=__doc__,
)
def picas_after_batch():
    report.expand(batch=complete_batches())


picas_after_batch()
