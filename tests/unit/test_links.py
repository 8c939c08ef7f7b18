"""The targets of a task's links. The end-to-end tests check that Airflow shows them."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_picas import links
from airflow_provider_picas.couchdb.settings import Settings
from tests.integration.tasks import context

URL = "https://couch.example.org/db"
FAUXTON = f"{URL}/_utils/#database/a%2Fb%2Bc/_all_docs"
OWN, MONITORING = "https://pool.example.org/", "https://graphs.example.org/d/1"


@pytest.mark.parametrize(
    ("fields", "xcoms"),
    [
        ({}, {"picas_pool_url": FAUXTON}),
        ({"web_ui": OWN}, {"picas_pool_url": OWN}),
        ({"monitoring_url": MONITORING}, {"picas_pool_url": FAUXTON, "picas_monitoring_url": MONITORING}),
    ],
)
def test_addresses_are_stored_without_credentials(fields: dict[str, Any], xcoms: dict[str, str]) -> None:
    of_task = context()
    links.push_links(of_task, Settings(URL, "a/b+c", "me", "s3cret", **fields))
    assert of_task["ti"].xcoms == xcoms


def test_the_rerun_of_a_run_is_a_tab_of_its_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example.org/prod/")
    of_task = context(dag_id="my dag", run_id="manual__2026-01-01T00:00:00+00:00")
    links.push_rerun(of_task)
    tab = "/prod/dags/my%20dag/runs/manual__2026-01-01T00:00:00+00:00/plugin/picas-run"
    assert of_task["ti"].xcoms == {"picas_rerun_url": f"{tab}?picas_do=rerun"}
