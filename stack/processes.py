"""Starts and ends the processes of a stack, by pid, so that none is left behind.

Every process has the folder of its stack in its environment (``PICAS_STACK``), and so do its children: processes that a
killed demo left running are found by that mark, never by name.
"""

from __future__ import annotations

import fcntl
import functools
import os
import random
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

MARK = "PICAS_STACK"


class StackError(RuntimeError):
    """A part of the stack did not start or stop correctly; the message says which, and where its log is."""


def free_port(host: str = "127.0.0.1") -> int:
    """A port on which nothing listens now. No other call gets it while this process lives.

    It is below the ports that the kernel assigns to outgoing connections, so that none of these takes it from a server
    that is about to start, or is down for a while.
    """
    for _ in range(100):
        port = random.randrange(15_000, 32_000)
        if not _reserve(port):
            continue
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise StackError(f"No free port was found on {host} between 15000 and 32000.")


_reserved: set[int] = set()


def _reserve(port: int) -> bool:
    """Take a port for this process: an Airflow binds its own up to a minute after it was chosen. False if it is taken."""
    if port in _reserved:
        return False
    try:
        fcntl.lockf(_ports_file(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)  # this byte, until the process ends
    except OSError:
        return False
    _reserved.add(port)
    return True


@functools.cache
def _ports_file() -> int:
    path = Path(tempfile.gettempdir()) / f"picas-stack-ports-{os.getuid()}"
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)


def free_ports(count: int) -> list[int]:
    """Distinct free ports."""
    return [free_port() for _ in range(count)]


def start(
    argv: list[str], *, folder: Path, name: str, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start a process in its own session. Its output goes to ``<folder>/log/<name>.log``.

    ``env`` is added to this process's environment, without Airflow's connections: they contain secrets.
    """
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("AIRFLOW_CONN_")}
    log = log_path(folder, name)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env={**inherited, **(env or {}), MARK: str(folder)},
            start_new_session=True,
        )


def log_path(folder: Path, name: str) -> Path:
    return folder / "log" / f"{name}.log"


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log, for an error message."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError as error:
        return f"(no log: {error})"


def wait_for(probe: Callable[[], object], *, what: str, seconds: float, process: subprocess.Popen[bytes] | None = None,
             log: Path | None = None) -> None:  # fmt: skip
    """Call ``probe`` until it returns something true. Raises StackError after ``seconds``, or if ``process`` has ended."""
    deadline = time.monotonic() + seconds
    while not probe():
        ended = process is not None and process.poll() is not None
        if ended or time.monotonic() > deadline:
            why = f"ended with code {process.returncode}" if ended and process else f"was not ready after {seconds:g} s"
            raise StackError(f"{what} {why}." + (f" The end of {log}:\n{tail(log)}" if log else ""))
        time.sleep(0.05)


def answers(host: str, port: int) -> bool:
    """True if something accepts connections there."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((host, port)) == 0


def alive(pid: int) -> bool:
    """True if the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def memory(pid: int, figure: str = "VmRSS") -> int:
    """Bytes of memory of a process: resident now, or at most (``VmHWM``). 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    match = re.search(rf"^{figure}:\s+(\d+) kB", status, re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def marked(folder: Path) -> list[int]:
    """Pids of all processes with the mark of this folder, except this one."""
    mark = f"{MARK}={folder}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0") and alive(int(entry.name)):
                    found.append(int(entry.name))
            except OSError:
                continue  # ended meanwhile, or another user's
    return found


def end(pids: Iterable[int], seconds: float = 10) -> None:
    """Send SIGTERM, and SIGKILL to processes that still exist after ``seconds``."""
    pids = list(pids)
    for sig, wait in ((signal.SIGTERM, seconds), (signal.SIGKILL, 5.0)):
        pids = [pid for pid in pids if alive(pid)]
        for pid in pids:
            try:
                os.kill(pid, sig)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + wait
        while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
            time.sleep(0.05)


def session(leader: int) -> list[int]:
    """Pids of all processes in the session that ``start`` opened for this one, also after the leader has ended.

    Also finds processes that have overwritten their environment with a process title, as Airflow's components do.
    """
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [pid for pid in pids if session_id(pid) == leader and alive(pid)]


def session_id(pid: int) -> int:
    """The session that a process belongs to; 0 when it has ended."""
    try:
        return os.getsid(pid)
    except OSError:
        return 0


def end_session(leader: int, seconds: float = 10) -> None:
    """End all processes of a session; twice, since one may have started another in the meantime."""
    for _ in range(2):
        end(session(leader), seconds)


def sweep(folder: Path) -> None:
    """End all processes with the mark of this folder, and those without it that share a session with one of them."""
    pids = set(marked(folder))
    for leader in {session_id(pid) for pid in pids}:
        if leader in pids or not alive(leader):  # never the session of a person, or of this process
            pids.update(session(leader))
    end(pids, seconds=3)
