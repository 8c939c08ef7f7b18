"""One token, and its attachments."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, HTTPException, Query
from fastapi.responses import StreamingResponse

from airflow_provider_picas.couchdb import edits
from airflow_provider_picas.lifecycle.ids import has_path
from airflow_provider_picas.plugins import answers
from airflow_provider_picas.plugins.access import ViewerDep
from airflow_provider_picas.plugins.live import PoolReader, reader_for
from airflow_provider_picas.plugins.models import TokenAnswer
from airflow_provider_picas.tokens import attachments, table

router = APIRouter(tags=["token"])

TokenId = Annotated[str, Query(min_length=1, max_length=1_000, pattern="^[^_]")]
NO_ATTACHMENT = "The token has no such attachment."

SAFE = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox; default-src 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "private, no-store",
}
"""Headers of content that others wrote: a browser runs nothing of it, and guesses no type."""


@router.get("/token", operation_id="token")
async def token(viewer: ViewerDep, id: TokenId) -> TokenAnswer:
    """Everything of a token; long values are cut."""
    document = await answers.tokens.document(viewer.scope, id)
    profile = await reader_for(viewer.scope.conn_id, viewer.scope.database).profile()
    return TokenAnswer(**table.details_of(document, viewer.scope.batch, profile))


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
    document = await answers.tokens.document(viewer.scope, id)
    stub = attachments.stubs_of(document).get(name)
    if stub is None or not (has_path(id) and has_path(name)):
        raise HTTPException(404, NO_ATTACHMENT)
    content = _content(reader_for(viewer.scope.conn_id, viewer.scope.database), id, name, tail)
    first = await anext(content, b"")  # before the headers are sent, so that an error has a status
    kind, how = "application/octet-stream", table.how_to_show(name, stub)
    if how == "text":
        kind = "text/plain; charset=utf-8"
    elif how == "picture":
        kind = str(stub["content_type"]).partition(";")[0].strip().lower()
    place = "attachment" if download or how == "download" else "inline"
    headers = {**SAFE, "Content-Disposition": f"{place}; filename*=UTF-8''{_file_name(name)}"}
    return StreamingResponse(_with(first, content), media_type=kind, headers=headers)


def _file_name(name: str) -> str:
    """The name as a single safe part of a path, quoted for a header."""
    return quote(attachments.file_names([name])[name], safe="")


async def _content(reader: PoolReader, token_id: str, name: str, tail: int | None) -> AsyncIterator[bytes]:
    async with reader.using() as hook, hook.stream(edits.attachment(hook.pool, token_id, name)) as pieces:
        if tail is None:
            async for piece in pieces:
                yield piece
            return
        kept: deque[bytes] = deque()
        size = 0
        async for piece in pieces:
            kept.append(piece)
            size += len(piece)
            while size - len(kept[0]) >= tail:
                size -= len(kept.popleft())
    yield b"".join(kept)[-tail:]


async def _with(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece
