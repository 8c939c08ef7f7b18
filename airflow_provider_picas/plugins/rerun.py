"""Run failed tokens again, in Airflow's own ways: by clearing tasks of their run, or by a run of ``picas_rerun_failed``."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from airflow.utils.session import create_session
from fastapi import HTTPException

from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.plugins import access
from airflow_provider_picas.plugins.access import Viewer
from airflow_provider_picas.plugins.action import Action, need_dag, pilots_alive, skipped, tokens, trigger
from airflow_provider_picas.plugins.models import Done, Link, Plan, RunBatch
from airflow_provider_picas.tokens.selection import EditReport, Selection
from airflow_provider_picas.tokens.states import State

RERUN_DAG = "picas_rerun_failed"
MOST_KEYS = 1_000  # in the configuration of a run
_SUBMITTED = (
    "pilots are submitted again, from the DAG and files as they are now (with a versioned DAG bundle: as in this run)."
)
WAITS = frozenset({"running", "deferred", "up_for_reschedule", "queued", "scheduled", "restarting"})


@dataclass(frozen=True)
class _Again:
    """How chosen tokens run again. ``task_ids``: task instances to clear, with their downstream."""

    selection: Selection
    report: EditReport
    task_ids: Sequence[Any]
    cleared: Sequence[str]
    text: str
    alive: bool = False  #: pilots are alive that would take the tokens
    without_pilots: Sequence[Any] = ()  #: task instances to clear if these have ended meanwhile


async def plan_rerun(action: Action) -> Plan:
    """What would run again, and how."""
    again = await _again(action)
    number = again.report.changed
    lines = [f"{tokens(number)} in error will run again. Their attempts and logs are kept.", again.text]
    lines += skipped(again.report)
    title = f"Rerun {tokens(number)}"
    return Plan(title=title, lines=lines, tokens=number, tasks=list(again.cleared), possible=number > 0)


async def rerun(action: Action) -> Done:
    """Reset the chosen tokens, and see to it that pilots take them."""
    again, scope = await _again(action), action.viewer.scope
    if not again.report.changed:
        raise HTTPException(409, "None of the chosen tokens is in error any more.")
    if scope.dag_id is None or scope.run_id is None:
        return await _rerun_by_dag(action, again)
    report = await action.edit(lambda hook: hook.editor.reset(again.selection, reason=action.reason, keep_logs=True))
    text, task_ids = f"{tokens(report.changed)} will run again.", again.task_ids
    if again.alive and not await pilots_alive(action):
        task_ids = again.without_pilots  # the last pilot found no token just before
    if task_ids:
        try:
            await _clear(action, task_ids, dry_run=False)
        except HTTPException as error:
            raise HTTPException(error.status_code, f"{text} But no task was cleared. {error.detail}") from None
    run = f"/dags/{quote(scope.dag_id, safe='')}/runs/{quote(scope.run_id, safe=':+')}"
    return Done(text=text, tokens=report.changed, links=[Link(label="The run", href=run)])


async def _again(action: Action) -> _Again:
    selection = await action.selection(State.ERROR)
    report = await action.edit(lambda hook: _preview(hook, selection))
    scope = action.viewer.scope
    if scope.dag_id is None or scope.run_id is None:
        await need_dag(action, RERUN_DAG)
        if selection.ids and len(selection.ids) > MOST_KEYS:
            raise HTTPException(422, f"Choose at most {MOST_KEYS:,} tokens, or all.")
        return _Again(selection, report, (), (), f"A run of the DAG {RERUN_DAG} submits the same pilots as before.")
    named = await asyncio.to_thread(_tasks_of, action.viewer)
    alive, waits = await pilots_alive(action), await _waits(action, named)
    chosen, text = _to_clear(named, alive, waits, whole=action.body.all)
    without_pilots, _ = _to_clear(named, 0, waits, whole=action.body.all)
    cleared = await _clear(action, chosen, dry_run=True) if chosen else []
    return _Again(selection, report, chosen, cleared, text, bool(alive), without_pilots)


def _preview(hook: PicasHook, selection: Selection) -> EditReport:
    """What a reset would do; of a whole batch only its count is read."""
    if selection.ids is not None:
        return hook.editor.reset(selection, keep_logs=True, dry_run=True)
    return EditReport(changed=hook.count_existing(selection.batch).error)


def _tasks_of(viewer: Viewer) -> list[RunBatch]:
    """What the tasks of the run do with the batch."""
    scope = viewer.scope
    with create_session() as session:
        found = list(access.batches_of_run(session, str(scope.dag_id), str(scope.run_id)))
    return [named for named in found if (named.conn_id, named.batch) == (scope.conn_id, scope.batch)]


async def _waits(action: Action, named: Sequence[RunBatch]) -> bool:
    """True if a task of the run waits for the batch now."""
    scope = action.viewer.scope
    path = f"dags/{quote(str(scope.dag_id), safe='')}/dagRuns/{quote(str(scope.run_id), safe='')}/taskInstances"
    for task in (each for each in named if each.role == "wait"):
        at = f"{path}/{quote(task.task_id, safe='')}" + (f"/{task.map_index}" if task.map_index >= 0 else "")
        if (await action.host.call("GET", at)).get("state") in WAITS:
            return True
    return False


def _to_clear(named: Sequence[RunBatch], alive: int, waits: bool, *, whole: bool) -> tuple[list[Any], str]:
    """The task instances that are cleared with their downstream, and a sentence about it."""
    roles = {role: [task for task in named if task.role == role] for role in ("push", "pilots", "wait")}
    if alive and waits:
        return [], f"{alive:,} pilots of the run take them immediately; no task is cleared."
    if alive and roles["wait"]:
        return _marks(
            roles["wait"]
        ), f"{alive:,} pilots take them immediately. The wait is cleared with its downstream."
    if whole and roles["push"]:
        return _marks(roles["push"]), f"The push is cleared with its downstream: {_SUBMITTED}"
    if roles["pilots"]:
        return _marks(roles["pilots"]), f"The pilots' task is cleared with its downstream: {_SUBMITTED}"
    if roles["wait"]:
        return _marks(
            roles["wait"]
        ), "The wait is cleared with its downstream. No task of the run submits pilots: submit pilots yourself."
    return [], "No task is cleared, since none of the run is known to wait for the batch."


def _marks(named: Sequence[RunBatch]) -> list[Any]:
    return [task.task_id if task.map_index < 0 else [task.task_id, task.map_index] for task in named]


async def _clear(action: Action, task_ids: Sequence[Any], *, dry_run: bool) -> list[str]:
    """Clear task instances as Airflow's own button does. Returns their names."""
    scope = action.viewer.scope
    body = {"dry_run": dry_run, "dag_run_id": scope.run_id, "task_ids": list(task_ids), "include_downstream": True}
    body |= {"only_failed": False, "reset_dag_runs": True}
    answer = await action.host.call("POST", f"dags/{quote(str(scope.dag_id), safe='')}/clearTaskInstances", body)
    return [_name(task) for task in answer["task_instances"]]


def _name(task: dict[str, Any]) -> str:
    index = task.get("map_index", -1)
    return f"{task['task_id']} [{index}]" if index >= 0 else str(task["task_id"])


async def _rerun_by_dag(action: Action, again: _Again) -> Done:
    scope, hook = action.viewer.scope, await action.hook()
    conf: dict[str, Any] = {"picas_conn_id": scope.conn_id, "database": hook.database, "dry_run": False}
    conf |= {"batch": scope.batch} if scope.batch else {"whole_pool": True}
    if again.selection.ids is not None:
        conf["keys"] = list(again.selection.ids)
    link = await trigger(action, RERUN_DAG, conf)
    return Done(text=f"{tokens(again.report.changed)} will run again.", tokens=again.report.changed, links=[link])
