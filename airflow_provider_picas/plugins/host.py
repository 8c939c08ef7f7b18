"""Airflow's own API, called inside this process as the user who asks: with Airflow's rights, audit log and history."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from fastapi import HTTPException, Request

from airflow_provider_picas.tokens.text import one_line

_FORWARDED = ("cookie", "authorization", "host", "referer", "user-agent")


@dataclass(frozen=True)
class Host:
    """The application that the page is mounted in, as one user."""

    app: Any
    headers: tuple[tuple[bytes, bytes], ...]

    @classmethod
    def of(cls, request: Request) -> Host:
        """The application that got the request, with the credentials of its user."""
        known = [
            (name.encode(), value.encode("latin-1")) for name in _FORWARDED if (value := request.headers.get(name))
        ]
        return cls(request.scope.get("picas_host"), (*known, (b"content-type", b"application/json")))

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """The answer of Airflow's API to a request below ``/api/v2``. Raises HTTPException with its status."""
        status, content = await self._send(
            method, f"/api/v2/{path}", b"" if body is None else json.dumps(body).encode()
        )
        try:
            answer = json.loads(content or b"null")
        except ValueError:
            answer = None
        if status >= 400:
            detail = answer.get("detail") if isinstance(answer, dict) else None
            raise HTTPException(status, f"Airflow refused the request: {one_line(str(detail or status), 500)}")
        return answer

    async def _send(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        """Send a request to the application itself."""
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": unquote(path), "raw_path": path.encode(), "query_string": b"", "root_path": "", "state": {},
            "headers": [*self.headers, (b"content-length", str(len(body)).encode())],
            "client": ("127.0.0.1", 0), "server": ("127.0.0.1", 80),
        }  # fmt: skip
        received: dict[str, Any] = {"status": 500, "body": b""}
        sent = False

        async def receive() -> dict[str, Any]:
            nonlocal sent
            if sent:
                return {"type": "http.disconnect"}
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                received["status"] = message["status"]
            elif message["type"] == "http.response.body":
                received["body"] += message.get("body", b"")

        await self.app(scope, receive, send)
        return received["status"], received["body"]
