"""The page's application in the API server: data below ``/api``, the bundle below ``/static``."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response

from airflow_provider_picas import __version__
from airflow_provider_picas.couchdb import errors
from airflow_provider_picas.plugins.routes import actions, batch, events, pools, run, token
from airflow_provider_picas.tokens.text import one_line

WWW = Path(__file__).parents[1] / "www"
_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".map": "application/json"}
_LONGEST_ERROR = 1_000  # characters

static = APIRouter()


@static.get("/static/{name}", include_in_schema=False)
def bundle(name: str) -> Response:
    """A file of the bundle or an icon. They hold no data, so they need no user."""
    path = next((folder / name for folder in (WWW / "dist", WWW / "res") if name in _files(folder)), None)
    if path is None or path.suffix not in _TYPES:
        raise HTTPException(404, "There is no such file.")
    headers = {"Cache-Control": "public, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}
    return Response(path.read_bytes(), media_type=_TYPES[path.suffix], headers=headers)


def _files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()} if folder.is_dir() else set()


def create_app() -> FastAPI:
    """Make the application. Each of its routes but the bundle's checks the user and what they may see."""
    app = FastAPI(title="PiCaS", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    for part in (run, pools, batch, events, token, actions):
        app.include_router(part.router, prefix="/api")
    app.include_router(static)
    app.add_exception_handler(errors.CouchDBError, _couchdb_error)
    return app


async def _couchdb_error(_: Request, error: Exception) -> JSONResponse:
    """An error of the database as a sentence for the user; it names no secrets."""
    status = 404 if isinstance(error, errors.NotFoundError) else 502
    if isinstance(error, errors.UnauthorizedError | errors.ForbiddenError):
        status = 409  # of the connection's login, not of the user
    return JSONResponse({"detail": one_line(str(error), _LONGEST_ERROR)}, status_code=status)
