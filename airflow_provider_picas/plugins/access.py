"""Who may see a batch, and who may change it.

A user sees what the connection shows them elsewhere in Airflow: whoever may read the connection sees its pools. Others
see the batches of the DAG runs that they may read: those that a task of the run has named in its XCom, if that task
uses this connection. Nothing in an answer depends on whether something exists that the user may not see.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlsplit

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.auth.managers.models.resource_details import (
    ConnectionDetails,
    DagAccessEntity,
    DagDetails,
)
from airflow.api_fastapi.core_api.security import GetUserDep
from airflow.models.connection import Connection
from airflow.models.dag import DagModel
from airflow.models.dagrun import DagRun
from airflow.models.renderedtifields import RenderedTaskInstanceFields
from airflow.models.serialized_dag import SerializedDagModel
from airflow.models.xcom import XComModel
from airflow.providers.common.compat.sdk import conf
from airflow.utils.session import create_session
from fastapi import Depends, HTTPException, Query, Request
from sqlalchemy import select
from sqlalchemy.orm import Session

from airflow_provider_picas.links import PAGE_KEY
from airflow_provider_picas.plugins.models import RunBatch

HEADER = "X-PiCaS-Request"
"""A page of another origin cannot send this header with a user's cookie."""

MOST_RUNS = 2_000  # XComs that are read to find the runs of batches
MOST_NAMED = 1_000  # task instances of a run whose XComs are read

NOT_SEEN = (
    "You may not see this. It takes the right to read this connection, or to read the DAG of a run whose tasks use it for"
    " this batch."
)


@dataclass(frozen=True)
class Scope:
    """What a request is about. ``batch`` None: the whole pool. ``database`` None: the connection's."""

    conn_id: str
    database: str | None = None
    batch: str | None = None
    dag_id: str | None = None
    run_id: str | None = None


def asked_scope(
    conn_id: Annotated[str, Query(min_length=1, max_length=250)],
    database: Annotated[str | None, Query(max_length=250)] = None,
    batch: Annotated[str | None, Query(max_length=250, pattern="^[^_:][^:]*$")] = None,
    dag_id: Annotated[str | None, Query(max_length=250)] = None,
    run_id: Annotated[str | None, Query(max_length=250)] = None,
) -> Scope:
    """The scope in the query of a request."""
    return Scope(conn_id, database or None, batch or None, dag_id or None, run_id or None)


@dataclass(frozen=True)
class Viewer:
    """A user who may see the scope. ``why_not``: why they may not change it, None if they may."""

    scope: Scope
    user: BaseUser
    why_not: str | None
    by_run: bool = False  #: by the rights on the DAG of a run that uses the scope

    @property
    def name(self) -> str:
        """The user's name, for the audit log and for the reason of an edit."""
        return str(self.user.get_name())


def may_see(scope: Annotated[Scope, Depends(asked_scope)], user: GetUserDep) -> Viewer:
    """The user, if they may see the scope. Raises HTTPException 401 or 403."""
    with create_session() as session:
        named = _of_run(scope, session)
        by_run = named and may_read_run(user, str(scope.dag_id))
        if not (by_run or _may_connection("GET", user, scope.conn_id)):
            raise HTTPException(403, NOT_SEEN)
        if by_run and _may_dag("PUT", user, str(scope.dag_id), DagAccessEntity.TASK_INSTANCE):
            return Viewer(scope, user, None, by_run=True)
    if _may_connection("PUT", user, scope.conn_id):
        return Viewer(scope, user, None)
    return Viewer(
        scope,
        user,
        "This requires permission to edit the task instances of the DAG that uses this batch, or to edit the connection.",
    )


def visible_batches(viewer: Viewer, batches: Collection[str]) -> set[str]:
    """Those of these batches of the scope's pool that the user may see, too."""
    scope = viewer.scope
    with create_session() as session:
        if _may_connection("GET", viewer.user, scope.conn_id):
            return set(batches)
        named = batches_of_run(session, str(scope.dag_id), str(scope.run_id))
        place = (scope.conn_id, scope.database)
        seen = {one.batch for one in named if (one.conn_id, one.database) == place}
        return {batch for batch in batches if batch in seen}


def may_act(viewer: Annotated[Viewer, Depends(may_see)], request: Request) -> Viewer:
    """The user, if they may change the scope, and if the request comes from the page. Raises HTTPException."""
    if not from_the_page(request):
        raise HTTPException(403, f"Changes require the header {HEADER}: 1, sent by Airflow's own page.")
    if viewer.why_not is not None:
        raise HTTPException(403, viewer.why_not)
    return viewer


def from_the_page(request: Request) -> bool:
    """True if no page of another origin can have sent this request."""
    if request.headers.get(HEADER) != "1" or request.headers.get("sec-fetch-site", "same-origin") not in _SITES:
        return False
    origin = request.headers.get("origin")
    if origin is None:
        return True
    known = {request.headers.get("host"), urlsplit(conf.get("api", "base_url", fallback="") or "").netloc}
    return urlsplit(origin).netloc in known - {None, ""}


_SITES = frozenset({"same-origin", "none"})

ViewerDep = Annotated[Viewer, Depends(may_see)]
ActorDep = Annotated[Viewer, Depends(may_act)]


# -- Airflow's rights -------------------------------------------------------------------------------------------------


def may_read_run(user: BaseUser, dag_id: str) -> bool:
    """True if the user may read the task instances and the XComs of this DAG."""
    return all(_may_dag("GET", user, dag_id, what) for what in (DagAccessEntity.TASK_INSTANCE, DagAccessEntity.XCOM))


def may_use_connection(user: BaseUser, conn_id: str) -> bool:
    """True if the user may read the connection. Airflow 3.1 cannot tell which of many a user may read."""
    return _may_connection("GET", user, conn_id)


def _may_dag(method: Any, user: BaseUser, dag_id: str, entity: DagAccessEntity) -> bool:
    details = DagDetails(id=dag_id, team_name=DagModel.get_team_name(dag_id))
    return get_auth_manager().is_authorized_dag(method=method, access_entity=entity, details=details, user=user)


def _may_connection(method: Any, user: BaseUser, conn_id: str) -> bool:
    details = ConnectionDetails(conn_id=conn_id, team_name=Connection.get_team_name(conn_id))
    return get_auth_manager().is_authorized_connection(method=method, details=details, user=user)


# -- the batches of a run ---------------------------------------------------------------------------------------------


def _of_run(scope: Scope, session: Session) -> bool:
    """True if a task of the run uses this connection for this batch."""
    if not (scope.dag_id and scope.run_id and scope.database):
        return False
    wanted = (scope.conn_id, scope.database, scope.batch)
    return any(
        (named.conn_id, named.database, named.batch) == wanted
        for named in batches_of_run(session, scope.dag_id, scope.run_id)
    )


def batches_of_run(
    session: Session, dag_id: str, run_id: str, task_id: str | None = None, map_index: int | None = None
) -> Iterator[RunBatch]:
    """The batches that the tasks of a run have named, in the order in which the tasks named them.

    People may edit XComs, so an XCom counts only if its task instance uses the connection that it names.
    """
    rows = select(XComModel.task_id, XComModel.map_index, XComModel.value).where(
        XComModel.dag_id == dag_id, XComModel.run_id == run_id, XComModel.key == PAGE_KEY
    )
    if task_id is not None:
        rows = rows.where(XComModel.task_id == task_id)
    if map_index is not None:
        rows = rows.where(XComModel.map_index == map_index)
    found = session.execute(rows.order_by(XComModel.timestamp).limit(MOST_NAMED)).all()
    if not found:
        return
    used = _connections_used(session, dag_id, run_id)
    for task, index, value in found:
        named = _named(value)
        if named is not None and named["conn_id"] in used(task, index):
            yield RunBatch(**named, dag_id=dag_id, run_id=run_id, task_id=task, map_index=index)


def runs_of_batches(user: BaseUser, conn_id: str, database: str) -> dict[str, RunBatch]:
    """The runs that pushed the batches of a pool, by batch, as far as the user may read them; of the latest ones."""
    columns = (XComModel.dag_id, XComModel.run_id, XComModel.task_id, XComModel.map_index, XComModel.value)
    rows = select(*columns).where(XComModel.key == PAGE_KEY).order_by(XComModel.timestamp.desc()).limit(MOST_RUNS)
    found: dict[str, RunBatch] = {}
    may: dict[str, bool] = {}
    with create_session() as session:
        for dag_id, run_id, task_id, index, value in session.execute(rows):
            named = _named(value)
            if named is None or (named["conn_id"], named["database"]) != (conn_id, database) or not named["batch"]:
                continue
            if named["role"] != "push" or named["batch"] in found:
                continue
            if dag_id not in may:
                may[dag_id] = may_read_run(user, dag_id)
            if may[dag_id]:
                where = {"dag_id": dag_id, "run_id": run_id, "task_id": task_id, "map_index": index}
                found[named["batch"]] = RunBatch(**named, **where)
    return found


def _named(value: Any) -> dict[str, Any] | None:
    """The fields of a batch in an XCom; None if it has another form."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    if not isinstance(value, Mapping):
        return None
    named = {"conn_id": value.get("picas_conn_id"), "database": value.get("database"), "batch": value.get("batch")}
    if not (isinstance(named["conn_id"], str) and isinstance(named["database"], str)):
        return None
    if not isinstance(named["batch"], str | None):
        return None
    label, most, expected = (value.get(name) for name in ("label", "max_errors", "expected"))
    shown = label if isinstance(label, str) and label else named["batch"] or named["database"]
    named |= {"max_errors": most if isinstance(most, int | float) else None}
    named |= {"expected": expected if isinstance(expected, int) else None}
    return {**named, "label": str(shown)[:120], "role": str(value.get("role", ""))[:20]}


def _connections_used(session: Session, dag_id: str, run_id: str) -> Any:
    """A function that returns the connections that a task instance uses, by its rendered fields or by its DAG."""
    fields = RenderedTaskInstanceFields
    rows = session.execute(
        select(fields.task_id, fields.map_index, fields.rendered_fields).where(
            fields.dag_id == dag_id, fields.run_id == run_id
        )
    )
    rendered = {(task, index): values for task, index, values in rows}
    in_dag: dict[str, set[str]] = {}

    def used(task: str, index: int) -> set[str]:
        values = rendered.get((task, index))
        if isinstance(values, Mapping) and isinstance(values.get("picas_conn_id"), str):
            return {values["picas_conn_id"]}
        if not in_dag:  # Airflow keeps the rendered fields of the last runs only
            in_dag.update(_in_dag(session, dag_id))
        return in_dag.get(task, set())

    return used


def _in_dag(session: Session, dag_id: str) -> dict[str, set[str]]:
    """The connections that the tasks of a DAG name literally."""
    serialized = SerializedDagModel.get(dag_id, session=session)
    data = serialized.data if serialized is not None else None
    tasks = data.get("dag", {}).get("tasks", []) if isinstance(data, Mapping) else []
    found: dict[str, set[str]] = {"": set()}
    for task in tasks:
        values = task.get("__var", task) if isinstance(task, Mapping) else {}
        partial = values.get("partial_kwargs", {})
        partial = partial.get("__var", partial) if isinstance(partial, Mapping) else {}
        name = values.get("picas_conn_id", partial.get("picas_conn_id"))
        if isinstance(name, str):
            found.setdefault(str(values.get("task_id")), set()).add(name)
    return found


def run_exists(session: Session, dag_id: str, run_id: str) -> bool:
    """True if there is this run."""
    found = session.scalar(select(DagRun.id).where(DagRun.dag_id == dag_id, DagRun.run_id == run_id))
    return found is not None
