"""What operators report to OpenLineage, if its client is installed."""

from __future__ import annotations

import pytest

from airflow_provider_picas import lineage
from airflow_provider_picas.assets import pool_asset, to_openlineage
from airflow_provider_picas.couchdb.settings import Settings

pytest.importorskip("airflow.providers.openlineage")

SETTINGS = Settings(url="https://picas.surfsara.nl:6984", database="group/pool", login="me", password="secret")


def test_a_pool_is_named_as_its_asset() -> None:
    dataset, asset = lineage.pool(SETTINGS), to_openlineage(pool_asset("picas.surfsara.nl:6984", "group/pool"))
    assert (dataset.namespace, dataset.name) == (asset.namespace, asset.name)
    assert "secret" not in str(dataset)


@pytest.mark.parametrize(
    ("path", "namespace", "name"),
    [("/data/out.jsonl", "file", "/data/out.jsonl"), ("s3://bucket/a/b", "s3://bucket", "a/b")],
)
def test_files_become_datasets(path: str, namespace: str, name: str) -> None:
    dataset = lineage.file(path)
    assert (dataset.namespace, dataset.name) == (namespace, name)


def test_operators_report_inputs_and_outputs() -> None:
    from airflow_provider_picas.operators.tokens import PicasCollectTokensOperator, PicasPushTokensOperator

    push = PicasPushTokensOperator(task_id="push", inputs=[1])
    assert push.get_openlineage_facets_on_complete(None) is None  # it has not run
    push._settings = SETTINGS
    found = push.get_openlineage_facets_on_complete(None)
    assert found is not None
    assert ([item.name for item in found.inputs], [item.name for item in found.outputs]) == ([], ["group/pool"])
    collect = PicasCollectTokensOperator(task_id="collect", path="/data/out.csv")
    collect._settings = SETTINGS
    found = collect.get_openlineage_facets_on_complete(None)
    assert found is not None
    assert ([item.name for item in found.inputs], [item.name for item in found.outputs]) == (
        ["group/pool"],
        ["/data/out.csv"],
    )
