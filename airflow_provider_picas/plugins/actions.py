"""What a user may do with a batch. Each action has a plan, which changes nothing and says what would happen.

Whatever Airflow does itself, such as clearing tasks, is done by its own API as the user. Every action is recorded in its
audit log.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from airflow.models.log import Log
from airflow.utils.session import create_session
from fastapi import HTTPException
from sqlalchemy.exc import SQLAlchemyError

from airflow_provider_picas.couchdb import errors
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.hooks.pilots import PilotsHook
from airflow_provider_picas.plugins import access, answers
from airflow_provider_picas.plugins.action import Action, need_dag, pilots_alive, skipped, tokens, trigger
from airflow_provider_picas.plugins.models import ActionName, Done, Plan
from airflow_provider_picas.plugins.overview import pilots_of
from airflow_provider_picas.plugins.rerun import plan_rerun, rerun
from airflow_provider_picas.slurm.earlier_submission import objection
from airflow_provider_picas.slurm.remote import RemoteError
from airflow_provider_picas.submissions import stop
from airflow_provider_picas.submissions.submission import Submission
from airflow_provider_picas.tokens.selection import EditReport, Selection
from airflow_provider_picas.tokens.states import State
from airflow_provider_picas.tokens.text import one_line

log = logging.getLogger(__name__)

ARCHIVE_DAG = "picas_archive_batches"

# -- release, priority ------------------------------------------------------------------------------------------------


async def _held(action: Action) -> tuple[Selection, str]:
    """The tokens that dead pilots hold, and the state of the one that was named. Raises HTTPException if it may live."""
    scope, name = action.viewer.scope, action.body.pilot
    if not (name or action.body.all):
        raise HTTPException(422, "Specify the pilot whose tokens to release.")
    held, states = await answers.pilots.held(scope)
    if not name:
        dead = [tokens for pilot, tokens in held.items() if states.get(pilot) in ("silent", "ended")]
        return _locked(scope.batch, [token for some in dead for token in some], "No dead pilot holds tokens."), ""
    state = states.get(name, "unknown" if name in held else None)
    if state is None:
        raise HTTPException(404, "This batch has no such pilot.")
    if state not in ("silent", "ended", "unknown"):
        raise HTTPException(
            409, f"The pilot is {state}, so it may finish its tokens. Drain or cancel the pilots instead."
        )
    return _locked(scope.batch, held.get(name, []), "The pilot holds no tokens."), state


def _locked(batch: str | None, ids: Sequence[str], none: str) -> Selection:
    """These running tokens. Raises HTTPException with ``none`` if there are none."""
    if not ids:
        raise HTTPException(409, none)
    return Selection(batch, frozenset({State.LOCKED}), tuple(ids))


async def _plan_release(action: Action) -> Plan:
    selection, state = await _held(action)
    number = len(selection.ids or ())
    of = "the pilot holds" if action.body.pilot else "silent or ended pilots hold"
    lines = [f"{tokens(number)} that {of} will wait again, for other pilots."]
    if state == "unknown":
        lines.append("It has no lease, so it is unknown whether it is alive. If it is, its results may be lost.")
    return Plan(title=f"Release {tokens(number)}", lines=lines, tokens=number)


async def _release(action: Action) -> Done:
    selection, _ = await _held(action)
    report = await action.edit(
        lambda hook: hook.editor.reset(selection, reason=f"released {action.reason}", keep_logs=True)
    )
    return Done(text=f"{tokens(report.changed, 'waits', 'wait')} again.", tokens=report.changed)


def _priority_of(action: Action) -> float:
    if action.body.priority is None:
        raise HTTPException(422, "Enter the new priority.")
    return action.body.priority


async def _plan_priority(action: Action) -> Plan:
    priority, selection = _priority_of(action), await action.selection(State.TODO)
    if selection.ids is None:
        counts = await (await action.reader.hook()).count(selection.batch)
        report = EditReport(changed=counts.todo)
    else:
        report = await action.edit(lambda hook: hook.editor.update(selection, {"priority": priority}, dry_run=True))
    number = report.changed
    lines = [
        f"{tokens(number)} waiting will get priority {priority:g}. Higher ones are claimed first.",
        *skipped(report),
    ]
    return Plan(title=f"Set the priority of {tokens(number)}", lines=lines, tokens=number, possible=number > 0)


async def _priority(action: Action) -> Done:
    priority, selection = _priority_of(action), await action.selection(State.TODO)
    report = await action.edit(lambda hook: hook.editor.update(selection, {"priority": priority}))
    return Done(text=f"{tokens(report.changed, 'has', 'have')} priority {priority:g} now.", tokens=report.changed)


# -- drain, cancel, archive -------------------------------------------------------------------------------------------


async def _submissions(action: Action) -> list[Submission]:
    """The submissions whose pilots are stopped. Raises HTTPException if there are none."""
    known = await pilots_of(action.reader, action.viewer.scope.batch)
    found = []
    for record in known.records:
        try:
            submission = Submission.parse(record["pilots"])
        except ValueError:
            continue  # others may write local documents, too
        if submission and not record.get("ended") and action.body.submission in (None, submission.key):
            found.append(submission)
    if not found:
        raise HTTPException(409, "No pilots are known to have been submitted for this batch, or their wait is over.")
    return found


async def _to_stop(action: Action) -> tuple[list[Submission], int, int]:
    """The submissions whose pilots would stop, the number of live pilots, and the number of running tokens."""
    found, alive = await _submissions(action), await pilots_alive(action)
    counts = await (await action.reader.hook()).count(action.viewer.scope.batch)
    return found, alive, counts.locked


async def _plan_drain(action: Action) -> Plan:
    found, alive, held = await _to_stop(action)
    lines = [
        f"Running pilots ({alive:,}) finish their current tokens and stop; pending ones stop when they start.",
        f"{tokens(held, 'is', 'are')} running. No wait submits these pilots again. Pilots of a PiCaS client cannot be drained.",
    ]
    return Plan(title="Drain the pilots", lines=[*lines, f"Submissions: {_keys(found)}."], tokens=held)


def _keys(found: Sequence[Submission]) -> str:
    return ", ".join(one_line(submission.key) for submission in found)


async def _drain(action: Action) -> Done:
    found = await _submissions(action)
    hook = await action.reader.hook()
    for submission in found:
        flag: Any = stop.drain(hook.pool, submission.key)
        await hook.do(flag)
    return Done(text=f"The pilots of {_keys(found)} stop when they have finished their tokens.")


async def _plan_cancel(action: Action) -> Plan:
    found, alive, held = await _to_stop(action)
    lines = [
        f"All Slurm jobs of {_keys(found)} are cancelled. Running pilots: {alive:,}.",
        f"{tokens(held, 'is interrupted and waits', 'are interrupted and wait')} again. This does not count as a failed attempt.",
        "No wait submits these pilots again.",
    ]
    return Plan(title="Cancel the pilots", lines=lines, tokens=held)


async def _cancel(action: Action) -> Done:
    found, hook = await _submissions(action), await action.hook()
    if not action.viewer.by_run:
        for submission in found:
            if not access.may_use_connection(action.viewer.user, submission.ssh_conn_id):
                raise HTTPException(403, "This requires permission to read the connection to the cluster.")
    batch = action.viewer.scope.batch
    try:
        for submission in found:
            await asyncio.to_thread(_cancel_one, hook, batch, submission)
    except RemoteError as error:
        raise HTTPException(502, f"The jobs could not be cancelled. {one_line(str(error), 500)}") from None
    return Done(text=f"The pilots of {_keys(found)} are cancelled. Their tokens are released within a minute.")


def _cancel_one(hook: PicasHook, batch: str | None, submission: Submission) -> None:
    with PilotsHook(hook, submission.ssh_conn_id) as hooks:
        if batch and (why := hooks.do(objection(submission.key, submission.folder, batch))):
            raise HTTPException(409, one_line(why, 500))
        hooks.do(stop.drain(hook.pool, submission.key))  # so that no wait submits them again
        hooks.do(stop.cancel(hook.pool, batch, submission, wait=0))


async def _plan_archive(action: Action) -> Plan:
    batch = action.viewer.scope.batch
    if batch is None:
        raise HTTPException(422, "Only a batch can be archived, not the whole pool.")
    await need_dag(action, ARCHIVE_DAG)
    counts = await (await action.reader.hook()).count(batch)
    lines = [
        f"A run of the DAG {ARCHIVE_DAG} writes {tokens(counts.total)} with their attachments to a file and deletes them.",
        "They can be restored from it with PicasRestoreTokensOperator.",
    ]
    finished = counts.total > 0 and counts.finished == counts.total
    if not finished:
        lines.append("This is not possible yet: tokens of the batch wait or run, or are in no state.")
    return Plan(title=f"Archive {tokens(counts.total)}", lines=lines, tokens=counts.total, possible=finished)


async def _archive(action: Action) -> Done:
    plan = await _plan_archive(action)
    if not plan.possible:
        raise HTTPException(409, plan.lines[-1])
    scope, hook = action.viewer.scope, await action.hook()
    conf = {"picas_conn_id": scope.conn_id, "database": hook.database, "batch": scope.batch, "days": 0}
    return Done(
        text=f"{tokens(plan.tokens, 'is', 'are')} being archived.",
        tokens=plan.tokens,
        links=[await trigger(action, ARCHIVE_DAG, conf)],
    )


# -- all --------------------------------------------------------------------------------------------------------------

_PLANS: dict[ActionName, Callable[[Action], Awaitable[Plan]]] = {
    "rerun": plan_rerun, "release": _plan_release, "drain": _plan_drain, "cancel": _plan_cancel,
    "priority": _plan_priority, "archive": _plan_archive,
}  # fmt: skip
_ACTIONS: dict[ActionName, Callable[[Action], Awaitable[Done]]] = {
    "rerun": rerun, "release": _release, "drain": _drain, "cancel": _cancel, "priority": _priority, "archive": _archive,
}  # fmt: skip


async def plan(action: Action) -> Plan:
    """What the action would do."""
    return await _PLANS[action.name](action)


async def act(action: Action) -> Done:
    """Do it. The audit log says who did what before it is done, and how it ended."""
    entry = await asyncio.to_thread(_record, action)
    result = "interrupted"
    try:
        done = await _ACTIONS[action.name](action)
        result = done.text
        return done
    except HTTPException as error:
        result = f"refused: {error.detail}"
        raise
    except errors.ForbiddenError as error:
        result = one_line(str(error), 500)
        raise
    except Exception as error:
        result = f"failed: {one_line(str(error), 500)}"
        raise
    finally:
        action.reader.readings.drop()
        await asyncio.shield(asyncio.to_thread(_record_result, entry, action, result))


def _record(action: Action) -> int:
    scope, user = action.viewer.scope, action.viewer.user
    where: dict[str, Any] = {"dag_id": scope.dag_id, "run_id": scope.run_id} if scope.dag_id else {}
    with create_session() as session:
        entry = Log(
            event=f"picas.{action.name}",
            owner=user.get_name(),
            owner_display_name=user.get_name(),
            extra=_extra(action, None),
            **where,
        )
        session.add(entry)
        session.flush()
        return int(entry.id)


def _record_result(entry: int, action: Action, result: str) -> None:
    """Add how an action ended to its entry. What was done stays done if Airflow's database fails now."""
    try:
        with create_session() as session:
            if (found := session.get(Log, entry)) is not None:
                found.extra = _extra(action, result)
    except SQLAlchemyError as error:
        log.warning("The audit log lacks how picas.%s ended (%s): %s", action.name, result, error)


def _extra(action: Action, result: str | None) -> str:
    scope = action.viewer.scope
    asked = action.body.model_dump(exclude_defaults=True)
    if "ids" in asked:
        asked["ids"] = [*asked["ids"][:20], *(["…"] if len(asked["ids"]) > 20 else [])]
    where = {"connection": scope.conn_id, "database": scope.database, "batch": scope.batch}
    return json.dumps({**where, "asked": asked, "result": result})
