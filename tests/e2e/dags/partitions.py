"""A DAG that starts for each observation whose image is done. Airflow has partition keys from 3.3 on."""

from airflow.sdk import dag, task
from airflow.sdk.execution_time.context import OutletEventAccessor

from airflow_provider_picas.assets import stage_asset

IMAGES = stage_asset("picas.example.org", "sky", "imaging", each_group=True)

if hasattr(OutletEventAccessor, "add_partitions"):
    from airflow.sdk import PartitionedAssetTimetable

    SCHEDULE = PartitionedAssetTimetable(assets=IMAGES)
else:
    SCHEDULE = [IMAGES]


@task
def key(dag_run=None):
    return getattr(dag_run, "partition_key", None) or "none"


@dag(schedule=SCHEDULE, catchup=False)
def after_image():
    key()


after_image()
