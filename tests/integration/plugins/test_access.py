"""Who may see what of the page, and change what."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import pytest

from airflow_provider_picas.plugins.openapi import FILE
from stack.install import AIRFLOW_PINS
from tests.integration.plugins.conftest import CONN, Page
from tests.integration.plugins.server import BASE_PATH, DAG

ROUTES = sorted(json.loads(FILE.read_text())["paths"])
SEEN = [path.removeprefix("/api/") for path in ROUTES if "{action}" not in path]
SCOPED = [path for path in SEEN if path not in ("run", "pools")]
ACTIONS = ["rerun", "release", "drain", "cancel", "priority", "archive"]
QUERY = {"id": "b:00000000", "name": "x"}
FORBIDDEN = "You may not see this."


def test_there_is_no_answer_without_a_user(page: Page) -> None:
    query = {**page.of_run, **QUERY}
    assert {path: page.get(path, None, **query).status for path in SEEN} == dict.fromkeys(SEEN, 401)
    for action in ACTIONS:
        assert page.server.post(f"batch/actions/{action}", {}, user=None, **page.of_run).status == 401
        assert page.server.post(f"batch/actions/{action}/plan", {}, user=None, **page.of_run).status == 401


def test_a_viewer_sees_the_batch_of_a_run_and_nothing_else(page: Page) -> None:
    """A viewer may read DAGs, not connections."""
    for path in SCOPED:
        assert page.get(path, "viewer", **page.of_run, **QUERY, tail=1).status not in (401, 403), path
        for narrower in (
            page.scope,
            {**page.of_run, "batch": "c"},
            {**page.of_run, "batch": None},
            {**page.of_run, "database": None},
            {**page.of_run, "database": "_users"},
            {**page.of_run, "conn_id": "other"},
            {**page.of_run, "run_id": "no such run"},
            {**page.of_run, "dag_id": "no such dag"},
        ):
            reply = page.server.get(path, user="viewer", **{**narrower, **QUERY})
            assert (reply.status, reply.json["detail"][: len(FORBIDDEN)]) == (403, FORBIDDEN), (path, narrower)


def test_who_may_read_the_connection_sees_all_of_its_pool(page: Page) -> None:
    for path in SCOPED:
        assert page.get(path, "op", **QUERY).status not in (401, 403), path


@pytest.mark.parametrize("action", ACTIONS)
def test_a_viewer_may_look_and_not_act(page: Page, action: str) -> None:
    for end in ("", "/plan"):
        reply = page.server.post(f"batch/actions/{action}{end}", {}, user="viewer", **page.of_run)
        assert reply.status == 403
        assert "edit the task instances" in reply.json["detail"]


def test_an_xcom_that_names_another_connection_opens_nothing(page: Page) -> None:
    """People who may edit XComs may not read connections by that."""
    run_id = page.server.run()
    page.server.name_batch(run_id, "push", "picas_secret", page.pool.database, "b")
    asked = {**page.of_run, "conn_id": "picas_secret", "run_id": run_id}
    assert page.server.get("batch", user="user", **asked).status == 403
    assert page.server.get("run", user="user", dag_id=DAG, run_id=run_id).json == {"batches": []}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-PiCaS-Request": "0"},
        {"X-PiCaS-Request": "1", "Origin": "https://evil.example.org"},
        {"X-PiCaS-Request": "1", "Origin": "null"},
        {"X-PiCaS-Request": "1", "Sec-Fetch-Site": "cross-site"},
        {"X-PiCaS-Request": "1", "Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
def test_a_page_of_another_origin_cannot_act_with_a_users_cookie(page: Page, headers: dict[str, str]) -> None:
    for end in ("", "/plan"):
        path = f"/picas/api/batch/actions/drain{end}"
        reply = page.server.send("POST", path, {}, user="admin", headers=headers, **page.of_run)
        assert (reply.status, "X-PiCaS-Request" in reply.json["detail"]) == (403, True)
    allowed = {
        "X-PiCaS-Request": "1",
        "Origin": page.server.url.removesuffix(BASE_PATH),
        "Sec-Fetch-Site": "same-origin",
    }
    path = "/picas/api/batch/actions/drain/plan"
    assert page.server.send("POST", path, {}, user="admin", headers=allowed, **page.of_run).status != 403


@pytest.mark.parametrize("batch", ["_design", "a:b", ":"])
def test_a_batch_has_a_batchs_name(page: Page, batch: str) -> None:
    assert page.get("batch", batch=batch).status == 422


def test_the_run_names_its_batches_once(page: Page) -> None:
    page.server.name_batch(page.run_id, "wait", CONN, page.pool.database, "b", role="wait")
    page.server.name_batch(page.run_id, "pilots", CONN, page.pool.database, "c", label="C's files")
    answer: Any = page.server.get("run", user="viewer", dag_id=DAG, run_id=page.run_id).json["batches"]
    assert [(found["batch"], found["task_id"], found["label"]) for found in answer] == [
        ("b", "push", "b"),
        ("c", "pilots", "C's files"),
    ]
    of_task = page.server.get("run", user="viewer", dag_id=DAG, run_id=page.run_id, task_id="wait").json["batches"]
    assert [(found["batch"], found["role"]) for found in of_task] == [("b", "wait")]


@pytest.mark.skipif(
    f"apache-airflow-core=={version('apache-airflow-core')} " not in AIRFLOW_PINS.read_text(),
    reason="FastAPI's versions describe the same routes differently: compared with the pinned one",
)
def test_the_description_of_the_routes_is_the_committed_one() -> None:
    from airflow_provider_picas.plugins.openapi import description

    assert json.loads(description()) == json.loads(FILE.read_text()), (
        "run `python -m airflow_provider_picas.plugins.openapi` and commit the file"
    )
