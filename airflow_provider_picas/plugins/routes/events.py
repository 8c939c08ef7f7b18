"""The overview of a batch, pushed to browsers when it changes."""

from __future__ import annotations

from fastapi import APIRouter, HTTPException
from fastapi.responses import StreamingResponse

from airflow_provider_picas.plugins.access import ViewerDep

router = APIRouter(tags=["batch"])


@router.get(
    "/batch/events",
    operation_id="events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}, "description": "Events named overview, with an Overview."}},
)
async def events(viewer: ViewerDep) -> StreamingResponse:
    """Server-sent events: ``overview`` on each change, and a comment every 15 s."""
    raise HTTPException(501, "Not there yet.")
