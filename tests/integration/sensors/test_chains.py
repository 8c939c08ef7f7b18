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

from airflow_provider_picas.couchdb import new_tokens
from airflow_provider_picas.couchdb.http import Request, Response
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.sensors.tokens import PicasTokenStateSensor
from airflow_provider_picas.tokens import chain, documents, waiting
from airflow_provider_picas.tokens.selection import Selection
from stack.processes import wait_for
from tests.integration.lives import finish_unmade
from tests.integration.tasks import context


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "SETTLE_SECONDS", 0.2)
    monkeypatch.setattr(chain, "LOOK_EVERY", 0.5)
    monkeypatch.setattr(chain, "LOOK_AGAIN", 0.2)
    note = chain.Looks.note

    def count(self: chain.Looks, found: chain.ChainCounts, now: float) -> None:
        note(self, found, now)
        LOOKS.append(found.looked)

    monkeypatch.setattr(chain.Looks, "note", count)


LOOKS: list[bool] = []
"""Whether each count of a wait also looked for lists and groups."""


def looks(number: int) -> None:
    """Wait until a wait has looked so often again."""
    before = sum(LOOKS)
    wait_for(lambda: sum(LOOKS) >= before + number, what="The looks of a wait", seconds=120)


@pytest.fixture
def batch(picas_default: str) -> dict[str, Any]:
    """Two tokens, as the push operator hands them on."""
    hook = PicasHook()
    hook.deploy_views()
    hook.push(documents.new_token({"input": n}, batch="b", push="p", ordinal=n, key=f"{n}") for n in range(2))
    return {"database": hook.settings.database, "batch": "b", "tokens": 2}


def finish(name: str, *keys: str, stage: str = "s", code: int = 0, group: str | None = None) -> None:
    """Run a token that names tokens of one stage, and die before these are made."""
    further = {"group": group} if group else {}
    lines = ({"stage": stage, "key": key, **further} for key in keys)
    finish_unmade(PicasHook(), name, lines, {"s": "b.s", "t": "b.t"}, code)


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
        arguments = {"poke_interval": 0.05, "timeout": 300, "stages": ["s", "t"], **arguments}
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
        self._thread.join(300)
        assert not self._thread.is_alive()
        return self.result

    @property
    def waits(self) -> bool:
        return self._thread.is_alive()


def exists(name: str) -> None:
    wait_for(lambda: PicasHook().do(PicasHook().pool.fetch([name])), what=name, seconds=120)


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


@pytest.mark.parametrize("deferrable", [False, True])
def test_a_stage_is_ready_for_pilots_when_its_last_tokens_wait(batch: dict[str, Any], deferrable: bool) -> None:
    waits = Waiting(batch, deferrable=deferrable, stage="s", ready=3, pilots=False)
    finish("b:0", "x", "y")
    exists("b.s:y")
    looks(2)
    assert waits.waits, "fewer than three, and more may appear"
    finish("b:1")
    assert waits.end() == {"batch": "b.s", "database": batch["database"], "tokens": None}
    soon = Waiting(batch, deferrable=deferrable, stage="s", ready=2, pilots=False)
    assert soon.end()["batch"] == "b.s"


def test_a_token_in_error_of_any_stage_fails_the_wait_for_all(batch: dict[str, Any]) -> None:
    waits = Waiting(batch, deferrable=False)
    finish("b:0", "x")
    finish("b:1")
    exists("b.s:x")
    finish("b.s:x", code=3)
    assert "1 of 3 tokens failed (0 allowed) in batch b and its stages" in str(waits.end())


GROUPS = {"t": {"of": "s", "at_least": 0.5}}


def ids() -> set[str]:
    return {token["_id"] for token in PicasHook().batch_documents("b.t")}


@pytest.mark.parametrize("deferrable", [False, True])
def test_a_groups_token_is_made_once_enough_members_have_finished(batch: dict[str, Any], deferrable: bool) -> None:
    both = [Waiting(batch, deferrable=deferrable, groups=GROUPS, stage=stage) for stage in (None, "t")]
    finish("b:0", "x1", "x2", "x3", "x4", group="x")
    exists("b.s:x1")
    finish("b.s:x1")
    finish("b.s:x2", code=1)
    finish("b:1", "y1", "y2", group="y")
    exists("b.t:x")
    token = PicasHook().get("b.t:x")
    states = {member["id"]: member["state"] for member in token["input"]["members"]}
    assert states == {"b.s:x1": "done", "b.s:x2": "error", "b.s:x3": "todo", "b.s:x4": "todo"}
    assert (token["stage"], token["group_of"], token["input"]["group"]) == ("t", "b.s", "x")
    assert ids() == {"b.t:x"}, "not one member of y has finished"
    finish("b.t:x")
    for name in ("b.s:x3", "b.s:x4", "b.s:y1", "b.s:y2"):
        finish(name)
    exists("b.t:y")
    wait_for(lambda: len(PicasHook().get("b.t:x").get("late_members", [])) == 2, what="late members", seconds=120)
    assert PicasHook().get("b.t:x")["late_members"] == [{"id": f"b.s:x{n}", "state": "done"} for n in (3, 4)]
    assert all(wait.waits for wait in both)
    finish("b.t:y")
    assert [wait.end() for wait in both][1] == {"todo": 0, "locked": 0, "done": 2, "error": 0}
    assert ids() == {"b.t:x", "b.t:y"}


def test_a_groups_token_waits_until_no_more_members_can_appear(batch: dict[str, Any]) -> None:
    waits = Waiting(batch, deferrable=False, groups=GROUPS)
    finish("b:0", "x1", "x2", group="x")
    exists("b.s:x1")
    finish("b.s:x1")
    finish("b.s:x2")
    looks(3)
    assert ids() == set(), "another parent may name more members"
    finish("b:1", "x3", "x4", "x5", group="x")
    exists("b.s:x3")
    looks(3)
    assert ids() == set(), "two of five have finished"
    finish("b.s:x3")
    exists("b.t:x")
    assert len(PicasHook().get("b.t:x")["input"]["members"]) == 5
    assert waits.waits
    for name in ("b.s:x4", "b.s:x5", "b.t:x"):
        finish(name)
    assert waits.end() == {"todo": 0, "locked": 0, "done": 8, "error": 0}


def test_the_token_of_a_group_that_was_archived_is_not_made_again(batch: dict[str, Any]) -> None:
    finish("b:0", "x1", group="x")
    finish("b:1")
    waits = Waiting(batch, deferrable=False, groups=GROUPS)
    exists("b.s:x1")
    finish("b.s:x1")
    exists("b.t:x")
    hook = PicasHook()
    hook.do(hook.pool.put({**hook.get("b.t:x"), "_deleted": True}))
    assert waits.end() == {"todo": 0, "locked": 0, "done": 3, "error": 0}
    assert ids() == set()


def reset(name: str) -> None:
    """What a rerun of a token does."""
    hook = PicasHook()
    since = hook.get(name)["lock"]
    wait_for(lambda: int(time.time()) > since, what="another second: claims and results have whole ones", seconds=10)
    report = hook.editor.reset(Selection.parse("b.s", keys=[name.partition(":")[2]], states=["done", "error"]))
    assert report.changed == 1


def test_a_member_that_runs_again_lets_its_group_run_again_and_no_other(batch: dict[str, Any]) -> None:
    finish("b:0", "x1", "x2", group="x")
    finish("b:1", "y1", group="y")
    waits = Waiting(batch, deferrable=False, groups=GROUPS, max_errors=1)
    exists("b.s:x1")
    exists("b.s:y1")
    finish("b.s:x1")
    finish("b.s:x2", code=1)
    finish("b.s:y1")
    exists("b.t:x")
    exists("b.t:y")
    finish("b.t:x")
    finish("b.t:y")
    assert waits.end() == {"todo": 0, "locked": 0, "done": 6, "error": 1}
    hook = PicasHook()
    before = {name: hook.get(name) for name in ("b:0", "b:1", "b.s:x1", "b.s:y1", "b.t:y")}

    reset("b.s:x2")
    again = Waiting(batch, deferrable=False, groups=GROUPS)
    looks(2)
    assert hook.get("b.t:x")["done"] > 0, "its member has not finished"
    finish("b.s:x2")
    wait_for(lambda: hook.get("b.t:x")["done"] == 0, what="the group, waiting again", seconds=120)
    token = hook.get("b.t:x")
    assert [member["state"] for member in token["input"]["members"]] == ["done", "done"]
    assert token["attempts"][-1]["reason"] == "reset: member b.s:x2 has run again"
    assert again.waits
    finish("b.t:x")
    assert again.end() == {"todo": 0, "locked": 0, "done": 7, "error": 0}
    assert {name: hook.get(name) for name in before} == before


def test_a_failed_parent_that_runs_again_makes_its_tokens_and_changes_no_others(batch: dict[str, Any]) -> None:
    finish("b:0", "x")
    finish("b:1", "lost", code=1)
    waits = Waiting(batch, deferrable=False, max_errors=1)
    exists("b.s:x")
    finish("b.s:x")
    assert waits.end() == {"todo": 0, "locked": 0, "done": 2, "error": 1}
    hook = PicasHook()
    before = {name: hook.get(name) for name in ("b:0", "b.s:x")}
    hook.editor.reset(Selection.parse("b", states=["error"]))
    again = Waiting(batch, deferrable=False)
    finish("b:1", "y")
    exists("b.s:y")
    finish("b.s:y")
    assert again.end() == {"todo": 0, "locked": 0, "done": 4, "error": 0}
    assert {name: hook.get(name) for name in before} == before


def test_many_groups_and_lists_take_few_requests(batch: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What many parents and groups cost a wait does not grow with their number, but for reading the lists."""
    hook, parents = PicasHook(), 40
    hook.do(new_tokens.deploy(hook.pool))
    hook.push(documents.new_token({"input": n}, batch="b", push="p", ordinal=n, key=f"{n}") for n in range(2, parents))
    for number in range(parents):
        finish(f"b:{number}", f"{number}-0", f"{number}-1", group=f"g{number}")
    requests: list[str] = []
    send = PicasHook.send

    def count(self: PicasHook, request: Request) -> Response:
        requests.append(request.path.rpartition("/")[2])
        return send(self, request)

    monkeypatch.setattr(PicasHook, "send", count)
    whole = chain.Chain.parse("b", ["s", "t"], groups=GROUPS)
    assert whole
    hook.do(new_tokens.count_chain(hook.pool, whole, look=True))
    assert requests.count("_bulk_docs") == 2, "the new tokens, and that the lists are carried out"
    assert requests.count("tokens.jsonl") == parents
    assert len(requests) < parents + 15
    for number in range(parents):
        for part in range(2):
            finish(f"b.s:{number}-{part}")
    requests.clear()
    hook.do(new_tokens.count_chain(hook.pool, whole, look=True))
    assert ids() == {f"b.t:g{number}" for number in range(parents)}
    assert requests.count("_bulk_docs") == 1
    assert len(requests) < 25
