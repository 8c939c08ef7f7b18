"""The processes that commands start, and leave behind."""

import ctypes
import os
import subprocess
import threading
import time
from contextlib import suppress
from typing import Any, Callable, Dict, List, Sequence, Set, Tuple

from airflow_provider_picas.pilot.guard import children_of, children_of_thread, kill_tree
from airflow_provider_picas.pilot.log import log


class Processes:
    """This process's children: those that it started, and those that its commands left behind."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started: Set[int] = set()
        self._runs: Dict[int, bytes] = {}  # commands of tokens, by pid: the unique part of their environment
        self._adopts = False  # this process is the parent of its commands' orphans
        self._no_input = os.open(os.devnull, os.O_RDONLY)  # the standard input of all commands
        self._before = (
            _children()
        )  # processes that the job's setup left running, before this program replaced its shell

    def become_subreaper(self) -> None:
        """Make this process the parent of orphans of its commands, so that it can find them. Best effort."""
        try:
            prctl = ctypes.CDLL(None, use_errno=True).prctl
            self._adopts = prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER, only on Linux
        except (OSError, AttributeError):
            log(
                "No child subreaper here: processes that leave the session of their command may run until the job ends."
            )

    def start(self, argv: Sequence[str], mark: bytes = b"", **options: Any) -> "subprocess.Popen[bytes]":
        """Start a process, which is not killed as an orphan until ``ended`` is called. ``mark``: for a token's command.
        Raises OSError."""
        options = dict({"stdin": self._no_input, "stdout": subprocess.PIPE}, **options)
        with self._lock:
            process = subprocess.Popen(argv, **options)
            self._started.add(process.pid)
            if mark:
                self._runs[process.pid] = mark
        return process

    def ended(self, process: "subprocess.Popen[bytes]") -> None:
        """Call this before waiting for the process."""
        with self._lock:
            self._started.discard(process.pid)
            self._runs.pop(process.pid, None)
            process.wait()

    def end_orphans(self, run: int) -> bool:
        """Kill processes that the command with this pid has left running, in any session. True if no command left any."""
        with self._lock:
            if self._adopts and not _adopted() - self._started - self._before:
                return True
        self._end(_adopted, lambda pid: self._is_of(pid, run))
        return False

    def end_all(self) -> None:
        """Kill all processes that commands have left running. Call this when no command runs any more."""
        self._end(_children, lambda pid: True)

    def _end(self, listed: Callable[[], Set[int]], chosen: Callable[[int], bool]) -> None:
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            # When one is killed, its children become ours, so repeat until none remain.
            orphans = [pid for pid in self._orphans(listed) if chosen(pid)]
            if not orphans:
                return
            for pid in orphans:
                kill_tree(pid)
            time.sleep(0.001)

    def _orphans(self, listed: Callable[[], Set[int]]) -> List[int]:
        orphans = []
        with self._lock:
            for pid in listed() - self._started:
                with suppress(ChildProcessError):
                    if os.waitpid(pid, os.WNOHANG)[0]:
                        self._before.discard(pid)
                    elif pid not in self._before:
                        orphans.append(pid)
        return orphans

    def _is_of(self, pid: int, run: int) -> bool:
        """True if an orphan comes from this command: by its environment or session, or because no other can have left it."""
        with self._lock:
            runs, setup = dict(self._runs), bool(self._before)
        environment = _environment(pid)
        session, started = session_and_start(pid)
        owners = [other for other, mark in runs.items() if mark in environment or other == session]
        if owners:
            return run in owners
        # It has neither. So it is older than the other commands, or belongs to one that has ended; and no process of the setup
        # can have left it.
        return not setup and all(started < session_and_start(other)[1] for other in runs if other != run)


def _children() -> Set[int]:
    return set(children_of("self"))


def _adopted() -> Set[int]:
    """The orphans among the children: the kernel gives them to the first thread. One file to read instead of one per thread."""
    return set(children_of_thread("self", os.getpid()))


def _environment(pid: int) -> List[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []


def session_and_start(pid: int) -> Tuple[int, int]:
    """The session of a process, and when it was started in the kernel's ticks; zeros if it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return int(fields[3]), int(fields[19])
    except (OSError, ValueError, IndexError):
        return 0, 0


def signal_group(pid: int, what: int) -> None:
    """Send a signal to a command and all processes in its process group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, what)
