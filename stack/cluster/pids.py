"""Finds the processes of a cluster by their environment, their open files and their parents, never by name."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from stack import processes


def _all() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def with_environment(**variables: str) -> set[int]:
    """Pids of the processes that were started with all these environment variables."""
    wanted = {f"{name}={value}".encode() for name, value in variables.items()}
    found = set()
    for pid in _all():
        try:
            if wanted <= set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")):
                found.add(pid)
        except OSError:
            continue  # ended meanwhile, or another user's
    return found


def writing_to(folder: Path, beginning: str, program: str) -> set[int]:
    """Pids of the processes of ``program`` with an open file in ``folder`` whose name starts with ``beginning``.

    sshd and slurmstepd overwrite their environment with their title, but keep their log open.
    """
    found = set()
    for pid in _all():
        try:
            if Path(os.readlink(f"/proc/{pid}/exe")).name.startswith(program):
                files = [os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()]
                if any(file.startswith(f"{folder}/{beginning}") for file in files):
                    found.add(pid)
        except OSError:
            continue
    return found


def descendants(pids: Collection[int]) -> set[int]:
    """Pids of these processes and of all their descendants."""
    children = defaultdict(list)
    for pid in _all():
        try:
            children[int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])].append(pid)
        except OSError:
            continue
    found: set[int] = set()
    todo = list(pids)
    while todo:
        pid = todo.pop()
        if pid not in found:
            found.add(pid)
            todo += children[pid]
    return found


def kill(find: Callable[[], Iterable[int]]) -> None:
    """Send SIGKILL, in this order, to the processes from ``find``, until it returns none: some may just be forking."""
    deadline = time.monotonic() + 10
    while left := [pid for pid in find() if pid != os.getpid() and processes.alive(pid)]:
        if time.monotonic() > deadline:
            raise processes.StackError(f"Processes {left} did not end after SIGKILL: they may hang on disk I/O.")
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
