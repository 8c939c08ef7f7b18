"""Tokens whose ids have a meaning in a URL or on a disk are read, reset, deleted and restored like all others."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_picas.couchdb.errors import NotFoundError
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.operators.tokens import (
    PicasCollectTokensOperator,
    PicasDeleteTokensOperator,
    PicasResetTokensOperator,
    PicasRestoreTokensOperator,
)
from airflow_provider_picas.tokens.counts import Counts
from airflow_provider_picas.tokens.states import State
from tests.integration import lives
from tests.integration.tasks import context

IDS = [".", "..", "...", ".hidden", "../x", "a/../b", "%2e", "plain", "?rev=1", "#", "a b"]
POOL = {"whole_pool": True}


@pytest.fixture
def hook(picas_default: str) -> PicasHook:
    hook = PicasHook(picas_default)
    hook.deploy_views()
    failed = {"type": "token", "scrub_count": 0, "input": "x", **lives.LIVES[State.ERROR]}
    lives.write(hook, [{"_id": name, **failed, "_attachments": _log(name)} for name in IDS])
    return hook


def _log(token_id: str) -> dict[str, Any]:
    """The log that the PiCaS examples attach."""
    data = base64.b64encode(f"log of {token_id}".encode()).decode()
    return {f"logs_{token_id}.err": {"content_type": "text/plain", "data": data}}


def test_tokens_with_odd_ids_are_read(hook: PicasHook) -> None:
    assert [hook.get(name)["_id"] for name in IDS] == IDS
    for name in (".", ".."):
        lives.write(hook, [{**hook.get(name), "_deleted": True}])
        with pytest.raises(NotFoundError, match="no document"):
            hook.get(name)


def test_attachments_of_odd_ids_are_collected(hook: PicasHook, tmp_path: Path) -> None:
    operator = PicasCollectTokensOperator(task_id="collect", attachments=str(tmp_path / "files"), **POOL)
    output = operator.execute(context("collect"))
    assert output["collected"] == len(IDS)
    files = [file for file in (tmp_path / "files").rglob("*") if file.is_file()]
    assert sorted(file.read_text() for file in files) == sorted(f"log of {name}" for name in IDS)
    assert [path.name for path in tmp_path.iterdir()] == ["files"]


def test_tokens_with_odd_ids_are_reset_with_their_logs(hook: PicasHook) -> None:
    operator = PicasResetTokensOperator(task_id="reset", keep_logs=True, **POOL)
    assert operator.execute(context("reset"))["reset"] == len(IDS)
    assert hook.count() == Counts(todo=len(IDS))
    for name in IDS:
        assert "attempt-1.err" in hook.get(name)["_attachments"]


def test_tokens_with_odd_ids_are_archived_deleted_and_restored(hook: PicasHook, tmp_path: Path) -> None:
    operator = PicasDeleteTokensOperator(task_id="delete", archive=str(tmp_path), states="error", **POOL)
    output = operator.execute(context("delete"))
    assert (output["archived"], output["deleted"]) == (len(IDS), len(IDS))
    restore = PicasRestoreTokensOperator(task_id="restore", archive=output["archive"])
    assert restore.execute(context("restore"))["restored"] == len(IDS)
    assert hook.count() == Counts(error=len(IDS))
    whole = list(hook.with_attachments([hook.get(name) for name in IDS]))
    assert {
        token["_id"]: base64.b64decode(token["_attachments"][f"logs_{token['_id']}.err"]["data"]) for token in whole
    } == {name: f"log of {name}".encode() for name in IDS}
