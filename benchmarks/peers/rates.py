"""Tasks a second of other systems and of pilots, and the CPU time of all their processes for each task.

All run the same command, a real process for each task, with the same number of workers, in turns. Only pilots and the
PiCaS client write each claim and each result to a database; HyperQueue and Parsl keep them in memory. What survives the
kill of a process is measured by ``faults``. ``PICAS_BENCH_WORKERS="1 4"`` sets other numbers of workers.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from airflow_provider_picas.hooks.picas import PicasHook
from benchmarks import pilot_folder
from benchmarks.measure import Goal, Result
from benchmarks.peers import progress
from benchmarks.peers.control_group import control_group, inside
from benchmarks.peers.progress import Progress, Speed
from benchmarks.pilots import push_tokens
from benchmarks.server import CONN_ID, Server
from stack import install, paths, processes

WORKERS = tuple(int(number) for number in os.environ.get("PICAS_BENCH_WORKERS", "1 2 4 8").split())
SHORT, LONGER = ["/bin/true"], ["/bin/sleep", "0.05"]
LONGER_SECONDS = 0.05
SECONDS = 30  # of a run with the longer command: pilots write gathered results every 3 s, which blurs both ends
NAMES = {
    "bare": "posix_spawn alone",
    "hyperqueue": "HyperQueue",
    "parsl": "Parsl",
    "client": "PiCaS client",
    "pilots": "pilots",
    "slots": "one pilot with slots",
}
SHORT_TASKS = {"bare": 6_000, "hyperqueue": 5_000, "parsl": 4_000, "client": 200, "pilots": 4_000, "slots": 4_000}


def run(server: Server, pairs: int) -> Iterator[Result]:
    """Compare all systems, for both commands and each number of workers."""
    install.install(["picas", "peers"])
    idle = _idle()
    for command in (SHORT, LONGER):
        for workers in WORKERS:
            speeds: dict[str, list[Speed]] = {name: [] for name in NAMES}
            for turn in range(pairs):
                for name in sorted(NAMES, reverse=bool(turn % 2)):
                    speeds[name].append(_speed(server, name, workers, command, idle))
            yield _result(command, workers, speeds)


def _result(command: list[str], workers: int, speeds: dict[str, list[Speed]]) -> Result:
    figures = {
        NAMES[name]: f"{median(one.rate for one in found):,.0f}/s, {median(one.cpu for one in found) * 1e3:.1f} ms CPU"
        for name, found in speeds.items()
    }
    pairs = [(ours.rate, theirs.rate) for ours, theirs in zip(speeds["pilots"], speeds["hyperqueue"], strict=True)]
    name = f"`{' '.join(command)}`, {workers} worker{'s' * (workers > 1)}: pilots against HyperQueue, by rate"
    return Result(name, figures, median(ours / theirs for ours, theirs in pairs), Goal(1, at_least=True), pairs=pairs)


def _idle(seconds: float = 2.0) -> float:
    """CPU seconds a second that this machine uses for everything else."""
    begin = progress.now(0)
    time.sleep(seconds)
    end = progress.now(0)
    return (end.busy - begin.busy) / (end.at - begin.at)


def _speed(server: Server, name: str, workers: int, command: list[str], idle: float) -> Speed:
    """Run one system once."""
    tasks = SHORT_TASKS[name] if command is SHORT else int(workers * SECONDS / LONGER_SECONDS)
    with folder() as place, control_group() as group:
        readings = SYSTEMS[name](Run(server, place, group, workers, tasks, command))
        return progress.speed(readings, 0.0 if group else idle)


@dataclass(frozen=True)
class Run:
    """A run of a system."""

    server: Server
    place: Path  #: an empty folder
    group: Path | None  #: the control group of its processes
    workers: int
    tasks: int
    command: list[str]

    @property
    def server_cpu(self) -> Callable[[], float]:
        """The CPU seconds of CouchDB, which is not in the group."""
        return (lambda: self.server.cpu() or 0.0) if self.group else (lambda: 0.0)


@contextmanager
def folder() -> Iterator[Path]:
    """An empty folder for a run, removed at the end."""
    place = paths.RUN / f"bench-peers-{os.getpid()}-{time.monotonic_ns()}"
    place.mkdir(parents=True)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def argv(program: str, *arguments: object) -> list[str]:
    """The command line of a program of this package in the peers' environment."""
    python = paths.PEERS_VENV / "bin" / "python"
    return [str(python), "-m", f"benchmarks.peers.{program}", *map(str, arguments)]


def environment() -> dict[str, str]:
    """The environment of these programs: Parsl starts its parts from the PATH."""
    return {**os.environ, "PATH": f"{paths.PEERS_VENV / 'bin'}:{os.environ['PATH']}"}


def _program(program: str) -> Callable[[Run], list[Progress]]:
    """Runs tasks with a program of this package."""

    def readings(run: Run) -> list[Progress]:
        given = (run.workers, run.tasks, *run.command)
        whole = argv(program, *given) if program == "spawn" else argv(program, "rate", run.place, *given)
        ended = subprocess.run(
            inside(run.group, whole), capture_output=True, text=True, env=environment(), cwd=paths.PROJECT, check=False
        )
        if ended.returncode:
            raise RuntimeError(f"{program} ended with code {ended.returncode}: {ended.stderr[-1_000:]}")
        return [Progress(*one) for one in json.loads(ended.stdout.splitlines()[-1])]

    return readings


def _pilots(run: Run) -> list[Progress]:
    return _own_pilots(run, run.workers, 1)


def _slots(run: Run) -> list[Progress]:
    return _own_pilots(run, 1, run.workers)


def _own_pilots(run: Run, pilots: int, slots: int) -> list[Progress]:
    with run.server.pool(views=True) as pool:
        batch = push_tokens(run.tasks)
        started = pilot_folder.start(
            pool, run.place / "pilots", pilots, run.group, batch=batch, command=run.command, slots=slots
        )
        return _followed(started, lambda: PicasHook(CONN_ID).count(batch).done, run)


def _client(run: Run) -> list[Progress]:
    with run.server.pool(views=True) as pool:
        push_tokens(run.tasks)
        started = [
            pilot_folder.start_client(pool, run.place, number, run.command, run.group) for number in range(run.workers)
        ]
        return _followed(started, lambda: PicasHook(CONN_ID).count().done, run)


def _followed(started: list[subprocess.Popen[bytes]], count: Callable[[], int], run: Run) -> list[Progress]:
    """The progress of pilots until all tokens are done; then they are ended."""
    try:
        return progress.follow(count, run.tasks, pause=0.4, more=run.server_cpu)
    finally:
        end(started)


def end(started: Sequence[subprocess.Popen[Any]]) -> None:
    """End these processes."""
    processes.end([process.pid for process in started], seconds=12)
    for process in started:
        process.wait()


SYSTEMS: dict[str, Callable[[Run], list[Progress]]] = {
    "bare": _program("spawn"),
    "hyperqueue": _program("hyperqueue_program"),
    "parsl": _program("parsl_program"),
    "client": _client,
    "pilots": _pilots,
    "slots": _slots,
}
