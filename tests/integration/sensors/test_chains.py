"""A wait for tokens that make tokens, on a real pool: it is over only when no token can make more."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from importlib import import_module
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, TaskDeferred

from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.lifecycle.new_tokens import read_list
from airflow_provider_picas.lifecycle.pilot_config import Config
from airflow_provider_picas.lifecycle.transitions import Ended, Token, claim, conclude
from airflow_provider_picas.sensors.tokens import PicasTokenStateSensor
from airflow_provider_picas.tokens import chain, documents, waiting
from stack.processes import wait_for
from tests.integration.tasks import context


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "SETTLE_SECONDS", 0.2)
    monkeypatch.setattr(chain, "LOOK_EVERY", 0.5)
    monkeypatch.setattr(chain, "LOOK_AGAIN", 0.2)


@pytest.fixture
def batch(picas_default: str) -> dict[str, Any]:
    """Two tokens, as the push operator hands them on."""
    hook = PicasHook()
    hook.deploy_views()
    hook.push(documents.new_token({"input": n}, batch="b", push="p", ordinal=n, key=f"{n}") for n in range(2))
    return {"database": hook.settings.database, "batch": "b", "tokens": 2}


def finish(name: str, *keys: str, stage: str = "s", code: int = 0) -> None:
    """What a pilot writes that runs a token and dies before it makes the tokens that the command named."""
    hook = PicasHook()
    doc = claim(hook.get(name), int(time.time()), "pilot", "node", None)
    lines = "\n".join(json.dumps({"stage": stage, "key": key}) for key in keys)
    made = read_list(lines.encode(), doc, {"s": "b.s", "t": "b.t"})
    result = conclude(Token(doc), Ended("exit", code, 0.1, made=made), Config("true", "s"), int(time.time()))
    hook.do(hook.pool.put(result.apply()))


async def run_trigger(trigger: Any) -> dict[str, Any]:
    path, arguments = trigger.serialize()
    module, _, name = path.rpartition(".")
    made = getattr(import_module(module), name)(**json.loads(json.dumps(arguments)))
    async for event in made.run():
        return dict(json.loads(json.dumps(event.payload)))
    raise AssertionError("The trigger ended without an event.")


class Waiting:
    """A wait that runs in a thread."""

    def __init__(self, batch: Any, *, deferrable: bool, **arguments: Any) -> None:
        arguments = {"poke_interval": 0.05, "timeout": 60, "stages": ["s", "t"], **arguments}
        self._sensor = PicasTokenStateSensor(task_id="wait", batch=batch, deferrable=deferrable, **arguments)
        self.result: Any = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self._sensor.execute(context("wait"))
        except TaskDeferred as deferral:
            event = asyncio.run(run_trigger(deferral.trigger))
            try:
                self.result = self._sensor.execute_complete(context("wait"), event, **deferral.kwargs or {})
            except AirflowFailException as error:
                self.result = error
        except AirflowFailException as error:
            self.result = error

    def end(self) -> Any:
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self.result

    @property
    def waits(self) -> bool:
        return self._thread.is_alive()


def exists(name: str) -> None:
    wait_for(lambda: PicasHook().do(PicasHook().pool.fetch([name])), what=name, seconds=30)


@pytest.mark.parametrize("deferrable", [False, True])
def test_a_wait_makes_the_tokens_of_dead_pilots_and_waits_for_them(batch: dict[str, Any], deferrable: bool) -> None:
    waits = Waiting(batch, deferrable=deferrable)
    finish("b:0", "x", "y")
    exists("b.s:x")
    exists("b.s:y")
    finish("b:1")
    finish("b.s:x", "z", stage="t")
    finish("b.s:y")
    exists("b.t:z")
    assert waits.waits
    finish("b.t:z")
    assert waits.end() == {"todo": 0, "locked": 0, "done": 5, "error": 0}


@pytest.mark.parametrize("deferrable", [False, True])
def test_a_wait_for_a_stage_ends_when_its_parents_have_finished(batch: dict[str, Any], deferrable: bool) -> None:
    waits = Waiting(batch, deferrable=deferrable, stage="s")
    none = Waiting(batch, deferrable=deferrable, stage="t")
    finish("b:0", "x")
    exists("b.s:x")
    finish("b.s:x")
    assert waits.waits
    finish("b:1", code=1)
    assert waits.end() == {"todo": 0, "locked": 0, "done": 1, "error": 0}
    assert none.end() == {"todo": 0, "locked": 0, "done": 0, "error": 0}


def test_a_token_in_error_of_any_stage_fails_the_wait_for_all(batch: dict[str, Any]) -> None:
    waits = Waiting(batch, deferrable=False)
    finish("b:0", "x")
    finish("b:1")
    exists("b.s:x")
    finish("b.s:x", code=3)
    assert "1 of 3 tokens failed (0 allowed) in batch b and its stages" in str(waits.end())
