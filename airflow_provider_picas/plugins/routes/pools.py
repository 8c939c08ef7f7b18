"""The pools that a user may see, and their batches."""

from __future__ import annotations

from typing import Annotated

from airflow.api_fastapi.core_api.security import GetUserDep
from fastapi import APIRouter, HTTPException, Query

from airflow_provider_picas.plugins import answers
from airflow_provider_picas.plugins.access import ViewerDep
from airflow_provider_picas.plugins.models import BatchesAnswer, PoolsAnswer

router = APIRouter(tags=["pools"])


@router.get("/pools", operation_id="pools")
async def pools(user: GetUserDep) -> PoolsAnswer:
    """The pools of all connections of type ``picas`` that the user may read."""
    return await answers.pools.pools(user)


@router.get("/pools/batches", operation_id="batches")
async def batches(viewer: ViewerDep, cursor: Annotated[str | None, Query(max_length=2_000)] = None) -> BatchesAnswer:
    """The batches of a pool, those that changed last first."""
    if viewer.scope.batch is not None:
        raise HTTPException(422, "The list of batches is that of a pool: leave `batch` out.")
    return await answers.pools.batches(viewer, cursor)
