"""A pool of another shape through a connection that does not say so: each part takes the profile as an argument."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.operators import rerun
from airflow_provider_picas.operators.tokens import PicasDeleteTokensOperator, PicasRestoreTokensOperator
from airflow_provider_picas.tokens import documents
from airflow_provider_picas.triggers import events
from airflow_provider_picas.triggers.events import PicasTokenEventTrigger
from tests.integration.tasks import context

PROFILE = "picas_cortex"
FINISHED = {"lock": 1, "done": 2}


@pytest.fixture
def hook(picas_default: str, monkeypatch: pytest.MonkeyPatch) -> PicasHook:
    """Tokens of the workflow ``ddcal``, whose ids do not name it: one is done, one in error."""
    monkeypatch.setattr(events, "SAVE_AFTER", 0.5)
    hook = PicasHook(profile=PROFILE)
    hook.deploy_views()
    tokens = [token("token_1", "ddcal", exit_code=0, **FINISHED), token("token_2", "ddcal", exit_code=3, **FINISHED)]
    hook.do(hook.pool.write([documents.encode(one) for one in tokens]))
    return hook


def token(name: str, workflow: str, **fields: Any) -> dict[str, Any]:
    new = {"lock": 0, "done": 0, "exit_code": "", "scrub_count": 0, "hostname": ""}
    return {"_id": name, "type": "token", "workflow": workflow, **new, **fields}


class Store:
    """What Airflow 3.3 keeps for a watched asset."""

    def __init__(self, values: dict[str, Any] | None = None) -> None:
        self.values = values or {}
        self.saved = False

    async def aget(self, key: str) -> Any:
        return self.values.get(key)

    async def aset(self, key: str, value: Any) -> None:
        self.values[key], self.saved = value, True


async def first_event(store: Store) -> dict[str, Any]:
    """The payload of the next event of a new trigger, which has saved its position after it."""
    _, arguments = PicasTokenEventTrigger(event="complete", profile=PROFILE).serialize()
    trigger = PicasTokenEventTrigger(**json.loads(json.dumps(arguments)))
    trigger.asset_state_store = store  # type: ignore[assignment]
    stream = trigger.run()
    try:
        async with asyncio.timeout(60):
            event = await anext(stream)
            coming = asyncio.ensure_future(anext(stream))
            while not store.saved:
                await asyncio.sleep(0.05)
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
            return dict(event.payload)
    finally:
        await stream.aclose()


def test_a_watcher_reports_batches_of_the_profile_also_after_a_restart(hook: PicasHook) -> None:
    store = Store()
    found = asyncio.run(first_event(store))
    assert (found["batch"], found["counts"]["done"], found["counts"]["error"]) == ("ddcal", 1, 1)
    hook.do(hook.pool.write([documents.encode(token("token_3", "imaging", exit_code=0, **FINISHED))]))
    assert asyncio.run(first_event(Store(store.values)))["batch"] == "imaging"


def test_a_watcher_without_a_profile_is_kept_as_before() -> None:
    _, arguments = PicasTokenEventTrigger(event="todo").serialize()
    assert set(arguments) == {"event", "batch", "picas_conn_id", "database"}
    keys = {PicasTokenEventTrigger(profile=shape).shared_stream_key() for shape in (None, PROFILE, {"base": PROFILE})}
    assert len(keys) == 3, "watchers of other shapes do not share a stream"


def test_tokens_of_a_profile_are_archived_and_restored(hook: PicasHook, tmp_path: Path) -> None:
    shape = {"base": "grid_lrt", "name": "campaigns"}
    campaigns = PicasHook(profile=shape)
    campaigns.deploy_views()
    new = {"_id": "c:1", "type": "SKSP", "lock": 0, "done": 0, "status": "todo", "output": ""}
    campaigns.do(campaigns.pool.write([documents.encode(new)]))
    arguments: dict[str, Any] = {"batch": "SKSP", "states": None, "archive": str(tmp_path), "profile": shape}
    archived = PicasDeleteTokensOperator(task_id="delete", **arguments).execute(context())
    assert archived["deleted"] == 1
    restore = PicasRestoreTokensOperator(task_id="restore", archive=archived["archive"], profile=shape)
    assert restore.execute(context())["restored"] == 1
    assert campaigns.count("SKSP").todo == 1


def test_failed_tokens_of_a_profile_are_offered_and_planned(hook: PicasHook) -> None:
    choose = rerun.PicasChooseBatchOperator(task_id="choose", profile=PROFILE)
    offered, text = choose._offer()
    assert offered == ["ddcal"]
    assert "1 of 2 failed" in text
    asked = {name: None for name in ("command", "script", "pilots", "database", "same_pilots")}
    asked |= {"picas_conn_id": "picas_default", "profile": PROFILE}
    preview = {"database": hook.settings.database, "batch": "ddcal", "reset": 1}
    planned = rerun.plan(preview, None, asked)
    assert planned["tokens"] == 1
    assert "exit" in planned["text"]
