"""Tasks on pools of other shapes: tokens of GRID_LRT and of several workflows, beside plain ones in the same database."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_picas.couchdb import page
from airflow_provider_picas.couchdb.errors import SettingsError
from airflow_provider_picas.couchdb.page import Part
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.lifecycle.profile import SHIPPED
from airflow_provider_picas.operators.tokens import (
    PicasCollectTokensOperator,
    PicasPushTokensOperator,
    PicasResetTokensOperator,
)
from airflow_provider_picas.sensors.tokens import PicasTokenStateSensor
from airflow_provider_picas.slurm.credentials import picasconfig
from airflow_provider_picas.tokens import documents, waiting
from airflow_provider_picas.tokens.counts import Counts, of_documents
from airflow_provider_picas.tokens.selection import Selection
from airflow_provider_picas.tokens.states import State
from airflow_provider_picas.triggers.feed import feed_for
from airflow_provider_picas.triggers.tokens import PicasTokenStateTrigger
from stack import install, native, paths
from stack.couchdb import CouchDBAdmin
from stack.pool import Pool
from tests.conftest import set_connection
from tests.integration import lives
from tests.integration.pilots import Pool as PilotsPool
from tests.integration.pilots import Submission
from tests.integration.tasks import context
from tests.unit.tokens.test_profiles import pool_documents

CAL = "SKSP_pref_cal1"


@pytest.fixture(autouse=True)
def settle_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "SETTLE_SECONDS", 0.1)


def write(hook: PicasHook, tokens: list[dict[str, Any]]) -> None:
    rows = hook.do(hook.pool.write([documents.encode(token) for token in tokens]))
    assert all(row.error is None for row in rows), rows


def token(name: str, **fields: Any) -> dict[str, Any]:
    return {"_id": name, "type": "token", "lock": 0, "done": 0, "exit_code": "", "scrub_count": 0, **fields}


@pytest.fixture
def hooks(picas_default: str) -> dict[str, PicasHook]:
    """Hooks for one pool by profile. It has 500 documents of all shapes, mostly in usual states."""
    made = {name: PicasHook(profile=name) for name in SHIPPED}
    for hook in made.values():
        hook.deploy_views()
    storable = (one for one in pool_documents(500, seed=9, odd=0.02) if "\\ud800" not in json.dumps(one))
    write(made["picas"], [one for one in storable if all(abs(v) < 10**300 for v in one.values() if isinstance(v, int))])
    return made


def everything(hook: PicasHook) -> list[dict[str, Any]]:
    profile = hook.settings.profile
    whole = [one for one in PicasHook(profile="picas").token_pages(None) for one in one]
    return [one for one in whole if profile.is_token(one)]


@pytest.mark.parametrize("name", SHIPPED)
def test_counts_and_lists_are_those_of_the_profile(hooks: dict[str, PicasHook], name: str) -> None:
    """Each profile sees the same database in its own way: counts, batches, lists by state, and pages of the table."""
    hook = hooks[name]
    profile, tokens = hook.settings.profile, everything(hook)
    assert len(tokens) > 100
    by_batch: dict[str, list[dict[str, Any]]] = {}
    for one in tokens:
        if batch := profile.batch_of(one):
            by_batch.setdefault(batch, []).append(one)
    assert len(by_batch) >= 2 or name == "picas"
    assert hook.count() == of_documents(tokens, profile)
    assert hook.batches() == {batch: of_documents(some, profile) for batch, some in by_batch.items()}
    # Plain lists go by ids alone, also for tokens whose field names another batch than their id.
    batches: dict[str | None, list[dict[str, Any]]] = (
        {None: tokens} if profile.is_default else {None: tokens, **by_batch}
    )
    for batch, some in batches.items():
        assert hook.count(batch) == of_documents(some, profile)
        for state in State:
            wanted = sorted(one["_id"] for one in some if profile.state_of(one) == state)
            assert sorted(hook.token_ids(state, batch)) == wanted
            assert sorted(one["_id"] for one in hook.tokens(state, batch)) == wanted
            assert paged(hook, Part(batch, state)) == paged(hook, Part(batch, state, descending=True))[::-1] == wanted
        stateless = sorted(one["_id"] for one in some if profile.state_of(one) is None)
        assert sorted(hook.stateless_ids(batch)) == stateless
        if batch is not None:
            assert sorted(one["_id"] for one in hook.batch_documents(batch)) == sorted(one["_id"] for one in some)
        selected = hook.editor.select(Selection(batch, frozenset({State.DONE, State.ERROR})))
        ended = sorted(one["_id"] for one in some if profile.state_of(one) in ("done", "error"))
        assert sorted(one["_id"] for one in selected) == ended


def paged(hook: PicasHook, part: Part) -> list[str]:
    """The ids on all pages of the table, of seven rows each."""
    found: list[str] = []
    while True:
        tokens, after = hook.do(page.page(hook.pool, part, 7))
        found += [one["_id"] for one in tokens]
        if after is None:
            return found
        part = Part(part.batch, part.state, part.prefix, after, part.descending)


def test_plain_pools_get_no_other_views(picas_default: str) -> None:
    hook = PicasHook()
    assert sorted(hook.deploy_views().written) == ["Monitor", "airflow-picas-1", "airflow-picas-page-1"]
    assert PicasHook(profile="grid_lrt").deploy_views().written == [
        "airflow-picas-1-grid_lrt",
        "airflow-picas-page-1-grid_lrt",
    ]


def test_a_campaign_is_pushed_waited_for_reset_and_collected(picas_default: str) -> None:
    """The tokens are GRID_LRT's: their type is the campaign's, and their status says what became of them."""
    hook = PicasHook(profile="grid_lrt")
    push = PicasPushTokensOperator(
        task_id="push", tokens=[{"OBSID": f"L{n}", "ABN": n} for n in range(3)], batch=CAL, profile="grid_lrt"
    )
    batch = push.execute(context())
    write(hook, [token("other:1"), token("t_targ_1", type="SKSP_targ1", status="error", lock=5, done=6)])
    made = list(hook.batch_documents(CAL))
    assert {one["type"] for one in made} == {CAL}
    assert hook.count(CAL) == Counts(todo=3)
    now = int(time.time())
    first, second, third = made
    write(hook, [
        {**first, "lock": now, "done": now, "status": "done", "output": 0, "exit_code": 0},
        {**second, "lock": now, "done": now, "status": "error", "output": 3, "exit_code": 0},
        {**third, "lock": now, "status": "downloading"},
    ])  # fmt: skip
    assert hook.count(CAL) == Counts(locked=1, done=1, error=1, named=(("locked", "downloading", 1),))
    reset = PicasResetTokensOperator(task_id="reset", batch=batch, profile="grid_lrt")
    assert reset.execute(context("reset"))["ids"] == [second["_id"]]
    again = hook.get(second["_id"])
    assert (again["lock"], again["done"], again["status"], again["output"], again["scrub_count"]) == (
        0,
        0,
        "todo",
        "",
        1,
    )
    write(hook, [{**hook.get(one["_id"]), "lock": now, "done": now, "status": "done", "output": 0} for one in made[1:]])
    sensor = PicasTokenStateSensor(task_id="wait", batch=batch, profile="grid_lrt", poke_interval=0.1, timeout=120)
    assert sensor.execute(context("wait")) == {"todo": 0, "locked": 0, "done": 3, "error": 0}
    collect = PicasCollectTokensOperator(
        task_id="collect", batch=batch, fields=["OBSID"], profile="grid_lrt", max_errors=0
    )
    rows = collect.execute(context("collect"))["rows"]
    assert sorted((row["OBSID"], row["state"]) for row in rows) == [("L0", "done"), ("L1", "done"), ("L2", "done")]


def test_a_deferred_wait_follows_a_workflow_by_its_field(picas_default: str) -> None:
    """Ids do not name the workflow: the feed still wakes the wait, and other workflows do not count."""
    hook = PicasHook(profile="picas_cortex")
    hook.deploy_views()
    tokens = [token(f"token_ddcal_{n}_2026", workflow="ddcal") for n in range(3)]
    write(hook, [*tokens, token("token_imaging_0_2026", workflow="imaging")])
    trigger = PicasTokenStateTrigger("picas_default", None, "ddcal", 3, 0, time.time() + 180, profile="picas_cortex")
    trigger = PicasTokenStateTrigger(**trigger.serialize()[1])

    async def run() -> Any:
        waited = asyncio.ensure_future(anext(aiter(trigger.run())))
        feed = feed_for("picas_default", None, "picas_cortex")
        while not feed.queries:
            await asyncio.sleep(0.05)
        now = int(time.time())
        done = [{**one, "lock": now, "done": now, "exit_code": 0} for one in hook.tokens("todo", "ddcal")]
        await asyncio.to_thread(write, hook, done)
        return (await waited).payload

    assert asyncio.run(run()) == {
        "outcome": "complete", "counts": {"todo": 0, "locked": 0, "done": 3, "error": 0}, "expected": 3,
    }  # fmt: skip


def test_followers_hear_of_the_batches_of_a_field(picas_default: str) -> None:
    hook = PicasHook(profile="picas_cortex")
    hook.deploy_views()

    async def run() -> Any:
        async with feed_for("picas_default", None, "picas_cortex").follow() as follower:
            await anext(follower)
            await asyncio.to_thread(write, hook, [token("token_imaging_0_2026", workflow="imaging")])
            while True:
                touched = await anext(follower)
                if touched.counts.get("imaging"):
                    return touched.counts["imaging"]

    assert asyncio.run(asyncio.wait_for(run(), 60)) == Counts(todo=1)


def test_a_token_that_would_not_be_one_of_the_pool_is_not_pushed(picas_default: str) -> None:
    def push(profile: Any, batch: str, **fields: Any) -> Any:
        return PicasPushTokensOperator(
            task_id="push", tokens=[fields], batch=batch, profile=profile, on_existing="replace"
        ).execute(context())

    of_one_type = {"base": "grid_lrt", "name": "cal", "types": [CAL]}
    with pytest.raises(AirflowFailException, match="would not be a waiting token of the pool: profile 'cal'"):
        push(of_one_type, "SKSP_targ1")
    assert push(of_one_type, CAL)["tokens"] == 1
    with pytest.raises(AirflowFailException, match="has 'imaging' in the field 'workflow'"):
        push("picas_cortex", "ddcal", workflow="imaging")
    assert push("picas_cortex", "ddcal", workflow="ddcal")["tokens"] == 1
    with pytest.raises(SettingsError, match="`profile` is invalid: there is no profile 'grid'"):
        push("grid", "b")


def test_the_profile_of_a_connection(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a name, or as an object, which the form of the UI stores as text."""
    fields = native.picas_connection(pool)

    def settings(**extra: Any) -> Any:
        known = fields.get("extra") or {}
        set_connection(monkeypatch, "shaped", {**fields, "extra": {**known, **extra}})
        return PicasHook("shaped").settings

    assert settings(profile="grid_lrt").profile == SHIPPED["grid_lrt"]
    shape = {"base": "picas_cortex", "name": "by_task", "batch_field": "task_type"}
    assert settings(profile=shape).profile == settings(profile=json.dumps(shape)).profile
    assert settings(profile=shape).profile.batch_field == "task_type"
    assert settings(profile="").profile.is_default
    with pytest.raises(SettingsError, match="its extra 'profile' is invalid: there is no profile 'other'"):
        settings(profile="other")
    with pytest.raises(SettingsError, match="the extras 'profile' and 'design_document'"):
        settings(profile="grid_lrt", design_document="cal")


def test_a_wait_releases_silent_tokens_as_the_profile_says(picas_default: str) -> None:
    """Their job ids may be those of other systems, or in a field of the pool: Slurm's field alone names a Slurm job."""
    shape = {"base": "grid_lrt", "name": "jobs", "job_field": "jobid"}
    hook = PicasHook(profile=shape)
    hook.deploy_views()
    lock = int(time.time()) - 1_000_000
    held = {"type": CAL, "lock": lock, "status": "locked", "output": ""}
    write(hook, [
        token("t_1", **held, jobid="77", hostname="n1"),
        token("t_2", **held, dirac_job_id="77", hostname="n2", scrub_count=5),
        token("t_3", **{**held, "lock": lock + 2_000_000}),
    ])  # fmt: skip
    status = lives.release_old(hook, CAL)
    assert [name for name, _ in status.reaped] == ["t_1"]
    assert [name for name, _ in status.given_up] == ["t_2"]
    first, second, third = (hook.get(f"t_{n}") for n in (1, 2, 3))
    assert (first["lock"], first["status"], first["output"]) == (0, "todo", "")
    assert "jobid" not in first
    assert first["attempts"][0]["jobid"] == "77"
    assert (second["status"], second["output"], second["dirac_job_id"]) == ("error", -1, "77")
    assert third["lock"] == lock + 2_000_000
    assert hook.count(CAL) == Counts(todo=1, locked=1, error=1)


CLAIM_ALL = """
import picasconfig as c
from picas.clients import CouchDB
from picas.iterators import PrioritizedViewIterator
db = CouchDB(url=c.PICAS_HOST_URL, db=c.PICAS_DATABASE, username=c.PICAS_USERNAME, password=c.PICAS_PASSWORD)
for task in PrioritizedViewIterator(db, "urgent", "todo", design_doc="tasks"):
    print(task["task_type"])
"""


def test_our_pilots_and_a_prioritized_view_iterator_agree_on_the_order(
    pool: Pool, couchdb: CouchDBAdmin, picas_default: str, tmp_path: Path
) -> None:
    """The client takes from the view of urgent tokens first. They are among the others, in no order."""
    install.install(["picas"])
    hook = PicasHook(profile={"name": "tasks", "priorities": ['task_type == "urgent"']})
    hook.deploy_views()
    kinds = ["plain", "urgent", "plain", "urgent", "plain", "urgent"]
    tokens = [token(f"b:{n}", batch="b", task_type=kind) for n, kind in enumerate(kinds)]
    write(hook, tokens)
    submission = Submission(tmp_path / "pilots", PilotsPool(couchdb, pool.database, pool.user), password=pool.password)
    try:
        command = 'echo "$PICAS_FIELD_TASK_TYPE" >> "$RUNS"'
        assert submission.run(command, profile=hook.settings.profile.to_json(), max_claim=1) == 0, submission.log()
    finally:
        submission.close()
    ours = (tmp_path / "pilots" / "runs").read_text().split()
    hook.editor.reset(Selection("b", frozenset({State.DONE})))
    condition = "doc.lock == 0 && doc.done == 0"
    maps = {"todo": condition, "urgent": f'{condition} && doc.task_type == "urgent"'}
    body = "function(doc) {{ if (doc.type == 'token') {{ if ({}) {{ emit(doc._id, doc._id); }} }} }}"
    design = {"_id": "_design/tasks", "views": {name: {"map": body.format(text)} for name, text in maps.items()}}
    hook.do(hook.pool.put(design))
    (tmp_path / "picasconfig.py").write_bytes(picasconfig(pool.url, pool.database, pool.user, pool.password))
    argv = [str(paths.PICAS_VENV / "bin" / "python"), "-c", CLAIM_ALL]
    theirs = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split()
    assert ours == theirs == ["urgent"] * 3 + ["plain"] * 3
