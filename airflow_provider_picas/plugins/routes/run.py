"""Which batches a DAG run, or one of its task instances, is about."""

from __future__ import annotations

from typing import Annotated

from airflow.api_fastapi.core_api.security import GetUserDep
from airflow.utils.session import create_session
from fastapi import APIRouter, HTTPException, Query

from airflow_provider_picas.plugins import access
from airflow_provider_picas.plugins.models import RunAnswer, RunBatch

router = APIRouter(tags=["run"])

Name = Annotated[str, Query(min_length=1, max_length=250)]


@router.get("/run", operation_id="run")
def run(
    dag_id: Name,
    run_id: Name,
    user: GetUserDep,
    task_id: Annotated[str | None, Query(max_length=250)] = None,
    map_index: int | None = None,
) -> RunAnswer:
    """The batches that the tasks of a run have named; each once."""
    if not access.may_read_run(user, dag_id):
        raise HTTPException(403, "You may not read the task instances and XComs of this DAG.")
    with create_session() as session:
        found: dict[tuple[str, str, str | None], RunBatch] = {}
        for batch in access.batches_of_run(session, dag_id, run_id, task_id, map_index):
            found.setdefault((batch.conn_id, batch.database, batch.batch), batch)
    return RunAnswer(batches=list(found.values()))
