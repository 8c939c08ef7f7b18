"""A token pool, read directly from CouchDB, so that demo and tests do not depend on the provider."""

from __future__ import annotations

import base64
import json
import threading
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any

from airflow_provider_picas.tokens.states import State, state_of

TIMEOUT = 60.0  # seconds
HEARTBEAT = 5_000  # milliseconds between heartbeats on a quiet feed


@dataclass(frozen=True)
class Pool:
    """A database, and a user that is a member of it. ``url`` is the server's, with no trailing slash."""

    url: str
    database: str
    user: str
    password: str = field(repr=False)

    def get(self, path: str) -> Any:
        """The parsed answer to a GET of ``<database>/<path>``. Raises OSError."""
        with self.open(path) as answer:
            return json.load(answer)

    def open(self, path: str) -> Any:
        login = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        request = urllib.request.Request(f"{self.url}/{self.database}/{path}")
        request.add_header("Authorization", f"Basic {login}")
        return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=TIMEOUT)

    def tokens(self) -> list[dict[str, Any]]:
        """All tokens of the pool."""
        rows = self.get("_all_docs?include_docs=true")["rows"]
        return [row["doc"] for row in rows if row["doc"].get("type") == "token"]


class Watch:
    """Follows a pool's changes from a thread: the state of each token, and when it was first seen in it.

    Times are seconds since 1970, by this machine's clock. Use it as a context manager.
    """

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.first_claim: float | None = None
        self.last_end: float | None = None
        self._states: dict[str, State | None] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="pool-watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopped.set()  # the thread ends with the next line of the feed, or with this process

    def counts(self) -> Counter[State | None]:
        """Tokens by state; None for those in no state."""
        return Counter(list(self._states.values()))

    def _follow(self) -> None:
        since: Any = 0
        while not self._stopped.is_set():
            query = f"feed=continuous&include_docs=true&heartbeat={HEARTBEAT}&since={since}"
            try:
                with self.pool.open(f"_changes?{query}") as feed:
                    for line in feed:
                        if self._stopped.is_set():
                            return
                        since = self._read(line, since)
            except (OSError, HTTPException, ValueError):
                time.sleep(0.5)  # the server is unavailable for a moment: continue where the feed broke

    def _read(self, line: bytes, since: Any) -> Any:
        if not line.strip():
            return since
        change = json.loads(line)
        if "last_seq" in change:
            return change["last_seq"]
        document = change.get("doc") or {}
        if document.get("type") == "token":
            self._note(document["_id"], state_of(document), time.time())
        return change["seq"]

    def _note(self, token_id: str, state: State | None, now: float) -> None:
        previous = self._states.get(token_id)
        self._states[token_id] = state
        if state == previous:
            return
        if state is not State.TODO and self.first_claim is None:
            self.first_claim = now
        if state in (State.DONE, State.ERROR):
            self.last_end = now
