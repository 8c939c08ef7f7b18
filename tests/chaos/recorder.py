"""The proxy between one client and the database in a random round: it hurts requests, and records what was carried out."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import socket
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Sequence
from email.utils import formatdate, parsedate_to_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.chaos.history import FINISHED, Claimed, Write, state
from tests.chaos.plan import Delay
from tests.integration.faults import Fault, Serving

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}
TIMEOUT = 90.0  # seconds: longer than a long poll of a wait

Choice = Callable[[int], Fault | Delay | int | None]


class Clock:
    """How far the database's clock is from this machine's, as its clients see it."""

    def __init__(self) -> None:
        self.shift = 0.0  # seconds

    def date(self, given: str) -> str:
        """A ``Date`` header by the shifted clock."""
        return formatdate(parsedate_to_datetime(given).timestamp() + self.shift, usegmt=True) if self.shift else given


class Recorder(Serving):
    """A proxy in front of one node, or of several in turn. Use it as a context manager.

    ``choose`` says what happens to the n-th request; None: nothing. ``writes`` are the results that came through.
    """

    def __init__(self, upstreams: Sequence[str], clock: Clock, choose: Choice | None = None) -> None:
        self.choose = choose
        self.clock = clock
        self.writes: list[Write] = []
        self.claims: dict[str, Claimed] = {}  #: by claim: a later write of the same one is no claim
        self.requests = 0
        self.hurt: Counter[str] = Counter()
        self.partition: str | None = (
            None  #: "refuse": connections break; "silent": nothing is answered until it is over
        )
        self._upstreams = itertools.cycle([urllib.parse.urlsplit(url) for url in upstreams])
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.recorder = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def next_request(self) -> tuple[Fault | Delay | int | None, Any]:
        """What happens to the next request, and where it goes."""
        with self._lock:
            self.requests += 1
            fault = self.choose(self.requests) if self.choose else None
            if fault is not None:
                self.hurt["status" if isinstance(fault, int) else getattr(fault, "name", "DELAY").lower()] += 1
            return fault, next(self._upstreams)

    def note_silenced(self) -> None:
        """Count a request that arrived while the client was cut off."""
        with self._lock:
            self.hurt["silenced"] += 1

    def record(self, method: str, path: str, body: bytes, status: int | None, content: bytes) -> None:
        """Note the claims and results in a request. ``status`` None: whether it was carried out is not known."""
        sent = [doc for doc in _documents(method, path, body) if doc.get("claim")]
        rows = _rows(content) if sent else {}
        for doc in sent:
            outcome, now, found = "refused", round(time.time(), 3), state(doc)
            if status is None or status == 202 or status >= 500:
                outcome = "unknown"
            elif status == 201 and rows.get(doc["_id"], {}).get("rev"):
                outcome = "accepted"
            with self._lock:
                if found in FINISHED:
                    self.writes.append(Write(doc["_id"], doc["claim"], outcome, now, doc.get("exit_code")))
                elif found == "locked":
                    self.claims.setdefault(doc["claim"], Claimed(doc["_id"], doc["claim"], outcome, now))


def _documents(method: str, path: str, body: bytes) -> list[dict[str, Any]]:
    if method not in ("PUT", "POST") or not body:
        return []
    try:
        value = json.loads(body)
    except ValueError:
        return []
    bulk = method == "POST" and urllib.parse.urlsplit(path).path.endswith("/_bulk_docs")
    docs = value.get("docs", []) if bulk else [value] if method == "PUT" else []
    return [doc for doc in docs if isinstance(doc, dict) and not str(doc.get("_id", "_")).startswith("_")]


def _rows(content: bytes) -> dict[str, dict[str, Any]]:
    with contextlib.suppress(ValueError):
        rows = json.loads(content)
        return {row["id"]: row for row in (rows if isinstance(rows, list) else [rows]) if "id" in row}
    return {}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    recorder: Recorder


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        pass

    def relay(self) -> None:
        recorder = self.server.recorder
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if recorder.partition:
            recorder.note_silenced()
            return self._partitioned(recorder)
        fault, upstream = recorder.next_request()
        if fault is Fault.DROP:
            return self._break_off()
        if isinstance(fault, int):
            return self._answer(
                fault, [("Content-Type", "application/json")], b'{"error":"injected","reason":"a proxy"}'
            )
        if isinstance(fault, Delay) and not fault.answer:
            time.sleep(fault.seconds)
        found = self._ask(recorder, upstream, body)
        if isinstance(fault, Delay) and fault.answer:
            time.sleep(fault.seconds)
        if found is None or fault is Fault.LOSE or recorder.partition:
            return self._break_off()
        status, headers, content = found
        self._answer(status, headers, content, cut=fault is Fault.CUT)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = relay

    def _ask(self, recorder: Recorder, upstream: Any, body: bytes) -> tuple[int, list[tuple[str, str]], bytes] | None:
        """The server's answer; None if it gives none."""
        connection = http.client.HTTPConnection(str(upstream.hostname), upstream.port, timeout=TIMEOUT)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        try:
            connection.connect()
        except OSError:
            return None  # nothing was carried out
        try:
            connection.request(self.command, self.path, body or None, headers)
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException):
            recorder.record(self.command, self.path, body, None, b"")
            return None
        finally:
            connection.close()
        recorder.record(self.command, self.path, body, response.status, content)
        kept = [(name, value) for name, value in response.getheaders() if name.lower() not in _HOP_BY_HOP]
        return response.status, [(name, self._dated(name, value)) for name, value in kept], content

    def _dated(self, name: str, value: str) -> str:
        return self.server.recorder.clock.date(value) if name.lower() == "date" else value

    def _partitioned(self, recorder: Recorder) -> None:
        while recorder.partition == "silent":
            time.sleep(0.1)
        self._break_off()

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, *, cut: bool = False) -> None:
        with contextlib.suppress(OSError):  # the client may have given up
            self.send_response_only(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self._break_off()

    def _break_off(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
