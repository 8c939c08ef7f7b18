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
