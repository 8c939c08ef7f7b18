"""Registers the page with Airflow.

Every process of Airflow imports this module, so it imports nothing heavy: FastAPI and the page's own code are imported
when the API server receives the first request for the page.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from airflow.providers.common.compat.sdk import AirflowPlugin

from airflow_provider_picas import links

PREFIX = "/picas"
BUNDLE = Path(__file__).parents[1] / "www" / "dist" / "picas.js"

Asgi = Callable[..., Awaitable[None]]


class LazyApp:
    """An ASGI application that is made at the first request.

    It remembers the application that it is mounted in, so that actions can call Airflow's own API.
    """

    def __init__(self) -> None:
        self._app: Asgi | None = None
        self._lock = threading.Lock()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        scope["picas_host"] = scope.get("app")
        await self._made()(scope, receive, send)

    def _made(self) -> Asgi:
        with self._lock:
            if self._app is None:
                from airflow_provider_picas.plugins.app import create_app  # heavy, and only for the API server

                self._app = create_app()
            return self._app


def _react_apps() -> list[dict[str, Any]]:
    """The page in the navigation and as a tab; none if the bundle was not built."""
    try:
        bundle = BUNDLE.stat()
    except OSError:
        return []
    static = f"{links.base_path()}{PREFIX}/static"
    version = f"{bundle.st_size:x}-{bundle.st_mtime_ns:x}"  # browsers keep the bundle until this changes
    page = {"bundle_url": f"{static}/{BUNDLE.name}?v={version}", "icon": f"{static}/icon.svg"}
    return [
        {**page, "name": "PiCaS", "destination": "nav", "url_route": "picas"},
        {**page, "name": "Tokens", "destination": "dag_run", "url_route": links.RUN_TAB},
        {**page, "name": "Tokens", "destination": "task_instance", "url_route": "picas-task"},
    ]


class PicasPlugin(AirflowPlugin):
    """The page "PiCaS" in the navigation, and the tab "Tokens" of DAG runs and task instances."""

    name = "picas"
    fastapi_apps = [{"app": LazyApp(), "url_prefix": PREFIX, "name": "PiCaS"}]
    react_apps = _react_apps()
