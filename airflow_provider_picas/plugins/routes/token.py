"""One token, and its attachments."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, HTTPException, Query
from fastapi.responses import StreamingResponse

from airflow_provider_picas.plugins.access import ViewerDep
from airflow_provider_picas.plugins.models import TokenAnswer

router = APIRouter(tags=["token"])

TokenId = Annotated[str, Query(min_length=1, max_length=1_000, pattern="^[^_]")]


@router.get("/token", operation_id="token")
async def token(viewer: ViewerDep, id: TokenId) -> TokenAnswer:
    """Everything of a token; long values are cut."""
    raise HTTPException(501, "Not there yet.")


@router.get(
    "/token/attachment",
    operation_id="attachment",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/octet-stream": {}}, "description": "The attachment."}},
)
async def attachment(
    viewer: ViewerDep,
    id: TokenId,
    name: Annotated[str, Query(min_length=1, max_length=1_000)],
    tail: Annotated[int | None, Query(ge=1, le=1_000_000)] = None,
    download: bool = False,
) -> StreamingResponse:
    """An attachment. ``tail``: only this number of bytes at its end. ``download``: to save it, not to show it."""
    raise HTTPException(501, "Not there yet.")
