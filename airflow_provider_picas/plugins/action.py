"""One action of one user: what was chosen, and the ways to carry it out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from fastapi import HTTPException

from airflow_provider_picas.couchdb import page
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.plugins import answers
from airflow_provider_picas.plugins.access import Viewer
from airflow_provider_picas.plugins.host import Host
from airflow_provider_picas.plugins.live import PoolReader, reader_for
from airflow_provider_picas.plugins.models import ActionBody, ActionName, Link
from airflow_provider_picas.plugins.overview import pilots_of
from airflow_provider_picas.submissions import seen
from airflow_provider_picas.tokens.selection import EditReport, Selection, UnknownBatchError
from airflow_provider_picas.tokens.states import State
from airflow_provider_picas.tokens.text import number_of, one_line

_ALIVE = frozenset({"idle", "working"})


@dataclass(frozen=True)
class Action:
    """One action of one user."""

    name: ActionName
    viewer: Viewer
    body: ActionBody
    host: Host

    @property
    def reader(self) -> PoolReader:
        """The reader of the pool."""
        return reader_for(self.viewer.scope.conn_id, self.viewer.scope.database)

    @property
    def reason(self) -> str:
        """For the attempts of tokens that it resets."""
        return f"by {one_line(self.viewer.name, 100)} on the page"

    async def hook(self) -> PicasHook:
        """The hook for edits, which run in a thread."""
        hook = await self.reader.hook()
        return PicasHook(self.viewer.scope.conn_id, database=hook.settings.database)

    async def edit(self, change: Callable[[PicasHook], EditReport]) -> EditReport:
        """Run an edit in a thread."""
        hook = await self.hook()
        try:
            return await asyncio.to_thread(change, hook)
        except UnknownBatchError as error:
            raise HTTPException(404, one_line(str(error), 500)) from None

    async def selection(self, state: State) -> Selection:
        """The tokens in this state that were chosen. Raises HTTPException if none were."""
        scope, chosen = self.viewer.scope, self.body
        states = frozenset({state})
        if chosen.all:
            return Selection(scope.batch, states)
        ids = chosen.ids
        if ids is None and chosen.cause:
            ids = await answers.causes.ids_of_cause(scope, chosen.cause)
        if not ids:
            raise HTTPException(422, "No tokens were selected.")
        profile = await self.reader.profile()
        if not all(page.in_scope(token, scope.batch, profile) for token in ids):
            raise HTTPException(422, "A selected token is not in this batch.")
        return Selection(scope.batch, states, tuple(dict.fromkeys(ids)))


def tokens(number: int, one: str = "", more: str = "") -> str:
    """A number of tokens, for a sentence, with its verb for one or for several."""
    return f"{number_of(number, 'token')} {one if number == 1 else more}".rstrip()


def skipped(report: EditReport) -> list[str]:
    """Why tokens that were chosen stay as they are."""
    return report.lines("chosen")[1:]


async def pilots_alive(action: Action) -> int:
    """How many pilots of the batch live and take tokens now."""
    batch = action.viewer.scope.batch
    action.reader.readings.drop("pilots")
    known = await pilots_of(action.reader, batch)
    leases = seen.of_batch(known.leases, batch, known.submissions)
    return sum(seen.state_of(lease, known.now) in _ALIVE for lease in leases)


async def need_dag(action: Action, dag_id: str) -> None:
    """Raise HTTPException unless the user may read the DAG, and it runs."""
    try:
        dag = await action.host.call("GET", f"dags/{dag_id}")
    except HTTPException as error:
        raise HTTPException(
            409, f"This takes the provider's DAG {dag_id}, and the right to run it. {error.detail}"
        ) from None
    if dag.get("is_paused"):
        raise HTTPException(409, f"The DAG {dag_id} is paused. Unpause it first.")


async def trigger(action: Action, dag_id: str, conf: dict[str, Any]) -> Link:
    """Start a run of a DAG, as the user."""
    run = await action.host.call("POST", f"dags/{dag_id}/dagRuns", {"logical_date": None, "conf": conf})
    return Link(label=f"The run of {dag_id}", href=f"/dags/{dag_id}/runs/{quote(run['dag_run_id'], safe=':+')}")
