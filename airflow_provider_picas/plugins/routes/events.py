"""The overview of a batch, pushed to browsers when it changes."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from airflow_provider_picas.couchdb import errors
from airflow_provider_picas.plugins.access import Viewer, ViewerDep
from airflow_provider_picas.plugins.live import reader_for
from airflow_provider_picas.plugins.overview import overview
from airflow_provider_picas.tokens.text import one_line

router = APIRouter(tags=["batch"])

LONGEST = 300.0  # seconds of one answer: the browser then asks again, and its rights are checked again
COMMENT_EVERY = 15.0
PAUSE = 1.0  # between two events
LOOK = 5.0  # at pilots, while the counts do not change


@router.get(
    "/batch/events",
    operation_id="events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}, "description": "Events named overview, with an Overview."}},
)
async def events(viewer: ViewerDep) -> StreamingResponse:
    """Server-sent events: ``overview`` on each change, ``trouble`` with a sentence, and a comment every 15 s."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "X-Content-Type-Options": "nosniff"}
    return StreamingResponse(_events(viewer), media_type="text/event-stream", headers=headers)


async def _events(viewer: Viewer) -> AsyncIterator[str]:
    begin = spoke = time.monotonic()
    last = ""
    yield "retry: 2000\n\n"
    while time.monotonic() - begin < LONGEST and not _server_ends():
        try:
            watch = await reader_for(viewer.scope.conn_id, viewer.scope.database).batch(viewer.scope.batch)
            async with watch.watched():
                found = await overview(viewer)
                event = f"event: overview\ndata: {found.model_dump_json()}\n\n"
                same = found.model_copy(update={"at": 0.0}).model_dump_json()
                if same != last:
                    last, spoke = same, time.monotonic()
                    yield event
                await _wait(LOOK, lambda watch=watch, seen=watch.version: watch.version != seen)  # type: ignore[misc]
        except errors.CouchDBError as error:
            text = one_line(str(error), 1_000)
            if text != last:
                last, spoke = text, time.monotonic()
                yield f"event: trouble\ndata: {text}\n\n"
            await _wait(LOOK, lambda: False)
        if time.monotonic() - spoke >= COMMENT_EVERY:
            spoke = time.monotonic()
            yield ": here\n\n"


async def _wait(seconds: float, over: Callable[[], bool]) -> None:
    """Wait in short steps, so that a server that ends need not wait for this answer."""
    deadline = time.monotonic() + seconds
    await asyncio.sleep(PAUSE)
    while not (over() or _server_ends()) and time.monotonic() < deadline:
        await asyncio.sleep(PAUSE)


def _server_ends() -> bool:
    """True if uvicorn received a signal to stop: it then waits for all responses in progress."""
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return bool(getattr(server, "should_exit", False))
