"""A DAG that starts when a batch of a pool is complete."""

from airflow.sdk import AssetWatcher, dag, task

from airflow_provider_picas.assets import pool_asset
from airflow_provider_picas.triggers.events import PicasTokenEventTrigger

TRIGGER = PicasTokenEventTrigger(event="complete", batch="watched-*", picas_conn_id="picas_events")
POOL = pool_asset("e2e", "events", watchers=[AssetWatcher(name="complete", trigger=TRIGGER)])


@task
def payloads(triggering_asset_events=None):
    return [event.extra["payload"] for event in triggering_asset_events[POOL]]


@dag(schedule=[POOL], catchup=False)
def after_batch():
    payloads()


after_batch()
