"""The indexes of a pool's views: their progress, and keeping them up to date. Operations, as in ``pool``."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from airflow_provider_picas.couchdb import errors
from airflow_provider_picas.couchdb.http import Operation, Request
from airflow_provider_picas.couchdb.pool import Pool
from airflow_provider_picas.lifecycle.json_values import number
from airflow_provider_picas.tokens import stage_views, views


def info(pool: Pool, design: str, repeatable: bool = True) -> Operation[Mapping[str, Any]]:
    """CouchDB's information about an index (``view_index``): ``updater_running``, ``update_seq``, ``updates_pending`` …"""
    response = yield Request("GET", pool.path("_design", design, "_info"), repeatable=repeatable)
    index: Mapping[str, Any] = response.object(view_index=dict)["view_index"]
    return index


def progress(pool: Pool) -> Operation[str | None]:
    """The index of the pool that is being built, with its progress if the login may read it; None if there is none."""
    of_pool = () if not pool.profile.is_default else (pool.settings.design_document,)
    for design in dict.fromkeys((pool.profile.design, *of_pool)):
        try:
            index = yield from info(pool, design, repeatable=False)
        except errors.NotFoundError:
            continue
        if index.get("updater_running"):
            percent = yield from _percent(pool, design)
            return f"{design} of {pool.settings.place}" + ("" if percent is None else f", {percent} % so far")
    return None


def update_monitor(pool: Pool) -> Operation[None]:
    """Have CouchDB bring the index of ``Monitor`` up to date, without waiting for it, so that its next reader need not."""
    if not pool.profile.is_default:
        return
    with suppress(errors.NotFoundError):
        yield pool.view_request(views.OVERVIEW, views.MONITOR, limit=0, reduce=False, update="lazy")


def update(pool: Pool) -> Operation[None]:
    """Have CouchDB bring the indexes of the pool's views up to date, and wait for it. An index that was never read is left
    alone: it is built when somebody reads it.
    """
    profile = pool.profile
    wanted = {name: next(iter(design["views"])) for name, design in views.design_documents(profile).items()}
    for name, view in {**wanted, profile.stages_design: stage_views.LISTS}.items():
        try:
            index = yield from info(pool, name)
            if index.get("update_seq") != 0:
                yield pool.view_request(view, name, limit=0, reduce=False)
        except errors.NotFoundError as error:
            if error.database_missing:
                raise


def _percent(pool: Pool, design: str) -> Operation[int | None]:
    try:
        response = yield Request("GET", "/_active_tasks", repeatable=False)
    except errors.CouchDBError:
        return None  # only the server's admin may query this
    found = [
        int(number(task.get("progress")))
        for task in response.rows(None)
        if task.get("type") == "indexer"
        and task.get("design_document") == f"_design/{design}"
        and pool.settings.database in str(task.get("database"))
    ]
    return sum(found) // len(found) if found else None
