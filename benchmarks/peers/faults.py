"""What remains of the work when a process of a system is killed with SIGKILL: a worker, the server, or the client that
submitted the work.

A killed server is started again. Nobody else does anything: neither a person nor a script submits the work again. Each
task notes its start and its end in a file. A task is lost if it never ends, and unknown if its end is recorded nowhere
that a new client could read.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from airflow_provider_picas.hooks.picas import PicasHook
from benchmarks import pilot_folder
from benchmarks.measure import Goal, Result
from benchmarks.peers import rates
from benchmarks.server import CONN_ID, Server
from stack import install, paths, processes
from stack.cluster import pids
from stack.couchdb import CouchDB

TASKS = 40
WORKERS = 2
KILLED_AFTER = 6  # tasks that have ended before the kill
LEASE = 15  # seconds, of our pilots: the least time until the tokens of a dead one are released
QUIET = 45.0  # seconds without a start or an end, after which nothing more is expected
SIDES = ("worker", "server", "client")


@dataclass
class Outcome:
    """What remained of the work."""

    lost: int  #: tasks that never ended
    twice: int  #: tasks that ended more than once
    unknown: int  #: tasks that ended, without a record of it

    def __str__(self) -> str:
        return f"{self.lost} lost, {self.twice} run twice, {self.unknown} unknown"


class Marks:
    """The file in which tasks note their starts and ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def command(self, name: str) -> list[str]:
        """The command of a task; a shell expression is its name."""
        text = f'echo "start {name}" >> {self.path}; sleep 0.4; echo "end {name}" >> {self.path}'
        return ["/bin/sh", "-c", text]

    def ends(self) -> Counter[str]:
        """How often each task has ended."""
        lines = self.path.read_text().splitlines()
        return Counter(line.split()[1] for line in lines if line.startswith("end "))

    def wait_until(self, number: int) -> None:
        """Wait until some tasks have ended."""
        processes.wait_for(lambda: len(self.ends()) >= number, what=f"{number} ends of tasks", seconds=120)

    def wait_until_quiet(self) -> None:
        """Wait until all tasks have ended, or nothing has happened for a while."""
        size, since = -1, time.monotonic()
        while len(self.ends()) < TASKS and time.monotonic() - since < QUIET:
            if size != (size := self.path.stat().st_size):
                since = time.monotonic()
            time.sleep(0.5)

    def outcome(self, recorded: int) -> Outcome:
        """What remained, with this number of records of ended tasks."""
        ends = self.ends()
        return Outcome(TASKS - len(ends), sum(count > 1 for count in ends.values()), max(0, len(ends) - recorded))


def run(server: Server, pairs: int) -> Iterator[Result]:
    """Kill each side of each system once. The database is an embedded server, which is killed, too."""
    install.install(["picas", "peers"])
    for side in SIDES:
        found = {rates.NAMES[name]: _outcome(system, side) for name, system in SYSTEMS.items()}
        figures = {name: "not a process of its own" if one is None else str(one) for name, one in found.items()}
        ours = found[rates.NAMES["pilots"]]
        assert ours is not None
        yield Result(
            f"SIGKILL to {'a' if side == 'worker' else 'the'} {side} amid {TASKS} tasks: lost or unknown with pilots",
            figures,
            float(ours.lost + ours.unknown),
            Goal(0),
            unit="tasks",
        )


def _outcome(system: Callable[[Path, Marks, str], Outcome | None], side: str) -> Outcome | None:
    with rates.folder() as place:
        return system(place, Marks(place / "marks"), side)


# -- HyperQueue --------------------------------------------------------------------------------------------------------


def _hyperqueue(place: Path, marks: Marks, side: str) -> Outcome | None:
    """Server and workers are one process, as HyperQueue's Python API starts them."""
    if side == "worker":
        return None
    commands = [marks.command(str(number)) for number in range(TASKS)]
    started = [_start("hyperqueue_program", place, "serve", place, WORKERS)]
    try:
        _line(started[0], "ready")
        client = _start("hyperqueue_program", place, "submit", place)
        started.append(client)
        _give(client, commands)
        job = _line(client, "job ")
        marks.wait_until(KILLED_AFTER)
        _kill(started[0] if side == "server" else client)
        if side == "server":
            started.append(_start("hyperqueue_program", place, "serve", place, WORKERS))
            _line(started[-1], "ready")
        marks.wait_until_quiet()
        return marks.outcome(_asked(place, job))
    finally:
        rates.end(started)


def _asked(place: Path, job: str) -> int:
    """The number of finished tasks of a job that a new client is told; 0 if the server does not know the job."""
    argv = rates.argv("hyperqueue_program", "ask", place, job)
    try:
        answer = subprocess.run(argv, capture_output=True, text=True, cwd=paths.PROJECT, timeout=30, check=False)
    except subprocess.TimeoutExpired:
        return 0
    return int(answer.stdout.split()[-1]) if answer.returncode == 0 and answer.stdout.split() else 0


# -- Parsl -------------------------------------------------------------------------------------------------------------


def _parsl(place: Path, marks: Marks, side: str) -> Outcome | None:
    commands = [marks.command(str(number)) for number in range(TASKS)]
    client = _start("parsl_program", place, "submit", place, WORKERS)
    family: set[int] = set()
    try:
        _give(client, commands)
        _line(client, "submitted")
        marks.wait_until(KILLED_AFTER)
        family = _family(client, place)
        os.kill(client.pid if side == "client" else _part(family, side), signal.SIGKILL)
        marks.wait_until_quiet()
        return marks.outcome(0 if side == "client" else _successes(client))
    finally:
        rates.end([client])
        processes.end(family)


def _successes(client: subprocess.Popen[str]) -> int:
    """How many tasks have succeeded as far as the client knows, which may wait for the others forever."""
    try:
        output, _ = client.communicate(timeout=20)
    except subprocess.TimeoutExpired:
        client.kill()
        output, _ = client.communicate()
    return output.count("succeeded")


def _family(client: subprocess.Popen[str], place: Path) -> set[int]:
    """All processes of a run of Parsl: the workers are no children of the client, but have its environment."""
    return pids.descendants({client.pid, *pids.with_environment(**{processes.MARK: str(place)})})


def _part(family: set[int], side: str) -> int:
    """A process of Parsl: the interchange is its server; the workers are children of a pool."""
    lines: dict[int, str] = {}
    parents: dict[int, int] = {}
    for pid in family:
        with suppress(OSError):  # a command has ended
            lines[pid] = Path(f"/proc/{pid}/cmdline").read_text()
            parents[pid] = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    if side == "server":
        return next(pid for pid, line in lines.items() if "interchange" in line)
    pool = next(pid for pid, line in lines.items() if "process_worker_pool" in line and "bash" not in line)
    return next(parent for parent in parents.values() if parents.get(parent) == pool)  # it runs a command


# -- pools of tokens ---------------------------------------------------------------------------------------------------


def _pool(place: Path, marks: Marks, side: str, kind: str) -> Outcome:
    """Pilots, ours or the client's, on an embedded server."""
    with CouchDB(place / "couchdb") as couchdb, Server(couchdb, "embedded").pool(views=True) as pool:
        client = _submitting_process()
        pilots: list[subprocess.Popen[bytes]] = []
        try:
            batch = _line(client, "batch ")
            command = marks.command("$PICAS_TOKEN_ID")
            if kind == "pilots":
                pilots += pilot_folder.start(pool, place / "pilots", WORKERS, batch=batch, command=command, lease=LEASE)
            else:
                pilots += (pilot_folder.start_client(pool, place, number, command) for number in range(WORKERS))
            marks.wait_until(KILLED_AFTER)
            if side == "server":
                couchdb.kill()
                time.sleep(2)
                couchdb.start()
            else:
                _kill(client if side == "client" else pilots[0])
            marks.wait_until_quiet()
            hook = PicasHook(CONN_ID)
            processes.wait_for(lambda: hook.count(batch).locked == 0 or kind == "client", what="Results", seconds=60)
            return marks.outcome(hook.count(batch).done)
        finally:
            rates.end([client, *pilots])


def _submitting_process() -> subprocess.Popen[str]:
    """A process that pushes the tokens, prints their batch, and stays, as a task that waits."""
    program = f"print('batch', push_tokens({TASKS}), flush=True); time.sleep(3600)"
    argv = [sys.executable, "-c", f"import time; from benchmarks.pilots import push_tokens; {program}"]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


SYSTEMS: dict[str, Callable[[Path, Marks, str], Outcome | None]] = {
    "pilots": lambda place, marks, side: _pool(place, marks, side, "pilots"),
    "client": lambda place, marks, side: _pool(place, marks, side, "client"),
    "hyperqueue": _hyperqueue,
    "parsl": _parsl,
}


# -- programs ----------------------------------------------------------------------------------------------------------


def _start(program: str, place: Path, *arguments: object) -> subprocess.Popen[str]:
    with (place / "log").open("ab") as log:
        return subprocess.Popen(
            rates.argv(program, *arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**rates.environment(), processes.MARK: str(place)},
            cwd=paths.PROJECT,
        )


def _give(process: subprocess.Popen[str], commands: list[list[str]]) -> None:
    """Pass the commands on standard input."""
    stdin = _pipe(process.stdin)
    stdin.write(json.dumps(commands))
    stdin.close()
    process.stdin = None


def _line(process: subprocess.Popen[str], begin: str) -> str:
    """The rest of the next line of a program's output that begins so. Raises RuntimeError if it ends before."""
    for line in _pipe(process.stdout):
        if line.startswith(begin):
            return line.removeprefix(begin).strip()
    raise RuntimeError(f"{process.args!r} has ended.")


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def _kill(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
