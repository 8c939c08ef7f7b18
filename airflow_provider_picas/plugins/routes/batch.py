"""What a batch looks like: at a glance, by cause, token by token, by pilot and by node."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, HTTPException, Query

from airflow_provider_picas.plugins import answers
from airflow_provider_picas.plugins import overview as at_a_glance
from airflow_provider_picas.plugins.access import ViewerDep
from airflow_provider_picas.plugins.models import (
    CausesAnswer,
    ChainAnswer,
    NodesAnswer,
    Overview,
    PilotsAnswer,
    StateName,
    TokensAnswer,
    WhyAnswer,
)
from airflow_provider_picas.tokens.table import Filter

router = APIRouter(tags=["batch"])

Text = Annotated[str | None, Query(max_length=250)]


@router.get("/batch", operation_id="overview")
async def overview(viewer: ViewerDep) -> Overview:
    """The batch at a glance."""
    return await at_a_glance.overview(viewer)


@router.get("/batch/causes", operation_id="causes")
async def causes(viewer: ViewerDep) -> CausesAnswer:
    """The tokens in error, by cause."""
    return await answers.causes.causes(viewer.scope)


@router.get("/batch/chain", operation_id="chain")
async def chain(viewer: ViewerDep) -> ChainAnswer:
    """The chain of stages that the batch belongs to; without nodes if it belongs to none."""
    return await answers.chain.chain(viewer)


@router.get("/batch/tokens", operation_id="tokens")
async def tokens(
    viewer: ViewerDep,
    state: StateName | None = None,
    key: Text = None,
    cause: Text = None,
    node: Text = None,
    pilot: Text = None,
    min_attempts: Annotated[int | None, Query(ge=0)] = None,
    name: Text = None,
    sort: Literal["id", "ended"] = "id",
    descending: bool = False,
    cursor: Annotated[str | None, Query(max_length=2_000)] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> TokensAnswer:
    """A page of tokens. ``key``: the beginning of the key. ``cause``: the id of a cause. ``name``: the name that the pool
    itself gives to the state, for tokens of profiles with such names. In the order of the times at
    which they ended, there are tokens that have ended only, and no other filter than ``state``."""
    chosen = Filter(
        viewer.scope.batch, key or None, cause or None, node or None, pilot or None, min_attempts, name or None
    )
    if sort == "id":
        return await answers.tokens.tokens(viewer.scope, state, chosen, cursor, limit, descending)
    if chosen.reads or chosen.key:
        raise HTTPException(422, "Filtering and sorting by end time cannot be combined.")
    return await answers.tokens.latest(viewer.scope, state, cursor, limit, descending)


@router.get("/batch/pilots", operation_id="pilots")
async def pilots(viewer: ViewerDep) -> PilotsAnswer:
    """The pilots of the batch, and the runs of its tokens for a timeline."""
    return await answers.pilots.pilots(viewer.scope)


@router.get("/batch/nodes", operation_id="nodes")
async def nodes(viewer: ViewerDep) -> NodesAnswer:
    """The nodes on which tokens of the batch ended."""
    return await answers.nodes.nodes(viewer.scope)


@router.get("/batch/why", operation_id="why")
async def why(viewer: ViewerDep, id: Text = None) -> WhyAnswer:
    """Why a token, or with none the batch, does not run."""
    return await answers.why.why_not(viewer.scope, id or None)
