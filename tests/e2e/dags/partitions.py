"""A DAG that starts for each observation whose image is done. Airflow has partition keys from 3.3 on."""

from airflow.sdk import dag, task

from airflow_provider_picas.assets import stage_asset

IMAGES = stage_asset("picas.example.org", "sky", "imaging", each_group=True)

try:
    from airflow.sdk import PartitionedAssetTimetable
except ImportError:
    SCHEDULE = [IMAGES]
else:
    SCHEDULE = PartitionedAssetTimetable(assets=IMAGES)


@task
def key(dag_run=None):
    return getattr(dag_run, "partition_key", None) or "none"


@dag(schedule=SCHEDULE, catchup=False)
def after_image():
    key()


after_image()
