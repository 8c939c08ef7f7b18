"""Registers the page with Airflow.

Every process of Airflow imports this module, so it imports nothing heavy: FastAPI and the page's own code are imported
when the API server receives the first request for the page.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from airflow.providers.common.compat.sdk import AirflowPlugin, conf

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


def base_path() -> str:
    """The path below which a proxy shows Airflow; empty if there is none."""
    return urlsplit(conf.get("api", "base_url", fallback="") or "").path.rstrip("/")


def _react_apps() -> list[dict[str, Any]]:
    """The page in the navigation and as a tab; none if the bundle was not built."""
    try:
        bundle = BUNDLE.stat()
    except OSError:
        return []
    static = f"{base_path()}{PREFIX}/static"
    version = f"{bundle.st_size:x}-{bundle.st_mtime_ns:x}"  # browsers keep the bundle until this changes
    page = {"bundle_url": f"{static}/{BUNDLE.name}?v={version}", "icon": f"{static}/icon.svg"}
    places = (("PiCaS", "nav", "picas"), ("Tokens", "dag_run", "picas-run"), ("Tokens", "task_instance", "picas-task"))
    return [{**page, "name": name, "destination": where, "url_route": route} for name, where, route in places]


class PicasPlugin(AirflowPlugin):
    """The page "PiCaS" in the navigation, and the tab "Tokens" of DAG runs and task instances."""

    name = "picas"
    fastapi_apps = [{"app": LazyApp(), "url_prefix": PREFIX, "name": "PiCaS"}]
    react_apps = _react_apps()
