"""The pilot's log, written by a separate thread."""

import collections
import sys
import threading
import time
from contextlib import suppress
from typing import Any, Callable, Deque, List, Optional, Set

from airflow_provider_picas.lifecycle.text import escape

LOG_CHARACTERS = 2000  # limit for one entry in the log; ten times as many for a traceback


class Background:
    """Does work that may block, such as writes to a hanging file system, in a separate thread, so that nothing else
    waits for it.

    ``do`` gets the waiting items, and the number of items that were dropped before them because more than ``most``
    waited.
    """

    def __init__(self, name: str, do: Callable[[List[Any], int], None], most: int = sys.maxsize) -> None:
        self._name = name
        self._do = do
        self._most = most
        self._changed = threading.Condition()
        self._waiting: Deque[Any] = collections.deque()
        self._dropped = 0
        self._busy = False
        self._thread: Optional[threading.Thread] = None

    def add(self, item: Any) -> None:
        """Queue an item. Never blocks."""
        with self._changed:
            self._waiting.append(item)
            if len(self._waiting) > self._most:
                self._waiting.popleft()
                self._dropped += 1
            if self._thread is None:
                with suppress(RuntimeError):  # no thread can be started now: the next item tries again
                    thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                    thread.start()
                    self._thread = thread
            self._changed.notify_all()

    def flush(self, seconds: float) -> bool:
        """Wait until all items are done, at most ``seconds``. True if they are."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._busy, seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: bool(self._waiting))
                items, dropped = list(self._waiting), self._dropped
                self._waiting.clear()
                self._dropped, self._busy = 0, True
            self._do(items, dropped)


def _write_log(entries: List[str], dropped: int) -> None:
    if dropped:
        entries.insert(0, _entry(f"{dropped} entries are missing here: the log could not be written."))
    with suppress(OSError, ValueError):  # a full disk below the job's log must not end the pilot
        sys.stdout.buffer.write("".join(entries).encode("utf-8", "backslashreplace"))
        sys.stdout.flush()


_LOG = Background("log", _write_log, most=1000)


def _shortened(text: str, most: int) -> str:
    """The beginning and the end of a string that is too long."""
    return text if len(text) <= most else f"{text[: most // 2]} [...] {text[-(most // 2) :]}"


def _entry(message: str, details: str = "") -> str:
    lines = [_shortened(message, LOG_CHARACTERS), *_shortened(details, 10 * LOG_CHARACTERS).splitlines()]
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} " + "\n    ".join(map(escape, lines)) + "\n"


def log(message: str, details: str = "") -> None:
    """Write an entry to the job's log: a line, and ``details`` such as a traceback on separate lines.

    Text from tokens, commands and servers is foreign: it is escaped and truncated.
    """
    _LOG.add(_entry(message, details))


class LogOnce:
    """Writes each message to the job's log only once."""

    def __init__(self) -> None:
        self._logged: Set[str] = set()

    def __call__(self, message: str) -> None:
        if message not in self._logged:
            self._logged.add(message)
            log(message)


def flush(seconds: float) -> bool:
    """Wait until all entries are written, at most this long. True if they are."""
    return _LOG.flush(seconds)
