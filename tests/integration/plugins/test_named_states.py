"""The page on a pool with states that have names of their own: the table shows them, and can be filtered by them."""

from __future__ import annotations

import time
from typing import Any

import pytest

from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.tokens import documents
from stack.pool import Pool
from tests.integration.plugins.conftest import CONN, Page
from tests.integration.plugins.server import ApiServer

STATUS = ("downloading", "launched", "processing", "downloading", "todo")


@pytest.fixture
def page(server: ApiServer, pool: Pool, picas_default: str) -> Page:
    server.connect(CONN, pool, profile="grid_lrt")
    hook = PicasHook(profile="grid_lrt")
    hook.deploy_views()
    now = int(time.time())
    tokens: list[dict[str, Any]] = [
        {"_id": f"t{n}", "type": "SKSP", "status": status, "lock": now * (status != "todo"), "done": 0, "output": ""}
        for n, status in enumerate(STATUS)
    ]
    hook.do(hook.pool.write([documents.encode(token) for token in tokens]))
    return Page(server, pool, hook, server.run())


def test_the_table_shows_names_and_finds_the_tokens_of_one(page: Page) -> None:
    scope = {"conn_id": CONN, "batch": "SKSP"}

    def rows(**query: Any) -> dict[str, tuple[str, str | None]]:
        return {row["id"]: (row["state"], row["name"]) for row in page.ask("batch/tokens", **scope, **query)["tokens"]}

    names = [status if status in ("downloading", "launched") else None for status in STATUS]
    states = ["locked"] * 4 + ["todo"]
    everything = {f"t{n}": pair for n, pair in enumerate(zip(states, names, strict=True))}
    assert rows() == everything
    downloading = {"t0": ("locked", "downloading"), "t3": ("locked", "downloading")}
    assert rows(state="locked", name="downloading") == rows(name="downloading") == downloading
    assert rows(state="todo", name="downloading") == rows(name="no such name") == {}
    first = page.ask("batch/tokens", **scope, name="downloading", limit=1)
    assert [row["id"] for row in first["tokens"]] == ["t0"]
    assert list(rows(name="downloading", limit=1, cursor=first["next"])) == ["t3"]
    assert page.get("batch/tokens", **scope, sort="ended", name="downloading").status == 422
    token = page.ask("token", id="t1", **scope)
    assert (token["state"], token["name"]) == ("locked", "launched")
