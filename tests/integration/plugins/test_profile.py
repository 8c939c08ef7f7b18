"""The page on a pool of another shape: its batches are the values of a field, which ids do not name."""

from __future__ import annotations

import time
from typing import Any

import pytest

from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.tokens import documents
from stack.pool import Pool
from stack.processes import wait_for
from tests.integration.plugins.conftest import CONN, Page
from tests.integration.plugins.server import ApiServer

NOW = int(time.time())


@pytest.fixture
def page(server: ApiServer, pool: Pool, picas_default: str) -> Page:
    """Tokens of two workflows, and a run that waits for one of them."""
    server.connect(CONN, pool, profile="picas_cortex")
    hook = PicasHook(profile="picas_cortex")
    hook.deploy_views()
    run_id = server.run()
    server.name_batch(run_id, "push", CONN, pool.database, "ddcal")
    tokens = [token(f"token_ddcal_{n}_2026-11-29_04:12:0{n}", "ddcal") for n in range(3)]
    tokens[0] |= {"lock": NOW, "done": NOW + 5, "exit_code": 0}
    tokens[1] |= {"lock": NOW, "done": NOW + 5, "exit_code": 3}
    tokens.append(token("token_imaging_3_2026-11-29_04:12:03", "imaging"))
    hook.do(hook.pool.write([documents.encode(one) for one in tokens]))
    return Page(server, pool, hook, run_id)


def token(name: str, workflow: str) -> dict[str, Any]:
    return {"_id": name, "type": "token", "workflow": workflow, "lock": 0, "done": 0, "exit_code": "", "scrub_count": 0}


def test_the_page_shows_one_workflow(page: Page) -> None:
    scope = {"conn_id": CONN, "batch": "ddcal"}
    counts = page.ask("batch", **scope)["counts"]
    assert {name: counts[name] for name in ("todo", "locked", "done", "error")} == {
        "todo": 1, "locked": 0, "done": 1, "error": 1,
    }  # fmt: skip
    shown = page.ask("batch/tokens", **scope)["tokens"]
    assert sorted((row["id"].split("_")[2], row["state"]) for row in shown) == [
        ("0", "done"),
        ("1", "error"),
        ("2", "todo"),
    ]
    (failed,) = page.ask("batch/tokens", state="error", **scope)["tokens"]
    assert page.ask("token", id=failed["id"], **scope)["state"] == "error"
    assert page.ask("batch/causes", **scope)["causes"][0]["tokens"] == 1
    assert page.ask("batch/tokens", order="latest", **scope)["tokens"] is not None
    assert {row["batch"] for row in page.ask("pools/batches", **{**scope, "batch": None})["batches"]} == {
        "ddcal",
        "imaging",
    }
    assert page.ask("batch/why", **scope)["sentences"]
    wait_for(lambda: page.ask("batch/pilots", **scope)["building"] is None, what="The index of the page", seconds=60)
    bars = page.ask("batch/pilots", **scope)["bars"]
    assert sorted((bar["token"].split("_")[2], bar["state"]) for bar in bars) == [("0", "done"), ("1", "error")]
    of_run = {**scope, "dag_id": page.of_run["dag_id"], "run_id": page.run_id, "user": "viewer"}
    assert page.get("token", id=failed["id"], **of_run).status == 200
    other = "token_imaging_3_2026-11-29_04:12:03"
    assert page.get("token", id=other, **of_run).status == 404, "it is of another workflow"
