"""Records on disk the token id of each input of a push, so that a push's memory does not grow with its inputs."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType


class KeyLog:
    """Finds two inputs of a push with the same id. Use it as a context manager.

    The pool alone cannot distinguish them from one input that has another place than in an earlier try of the push.
    """

    def __init__(self) -> None:
        self._base = sqlite3.connect("", isolation_level=None)  # a temporary file, deleted when it is closed
        self._base.executescript(
            "pragma journal_mode = off; create table keys (place integer primary key, hash integer)"
        )

    def __enter__(self) -> KeyLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._base.close()

    def noted(self, requests: Iterable[Mapping[str, bytes]]) -> Iterator[Mapping[str, bytes]]:
        """Pass on the requests of a push, by token id, and record their ids."""
        for request in requests:
            self._base.execute("begin")
            self._base.executemany("insert into keys (hash) values (?)", ((hash(token_id),) for token_id in request))
            self._base.execute("commit")
            yield request

    def duplicate(self) -> tuple[int, int] | None:
        """The positions, from 0, of two inputs with the same id, or None."""
        found = self._base.execute(
            "select min(place), max(place) from keys group by hash having count(*) > 1 order by 1 limit 1"
        ).fetchone()
        return (found[0] - 1, found[1] - 1) if found else None
