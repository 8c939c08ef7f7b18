"""Parsl with its HighThroughputExecutor: this process is the client; the interchange and the workers are others.

Runs where Parsl is: ``python -m benchmarks.peers.parsl_program rate|submit FOLDER WORKERS ...``. A task is a Python
function that spawns the command, which is faster than Parsl's own ``bash_app``. A task is retried once if its worker is
lost, and a silent process is believed dead after ten seconds instead of two minutes.
"""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import as_completed
from pathlib import Path

import parsl  # type: ignore[import-not-found]
from parsl.config import Config  # type: ignore[import-not-found]
from parsl.executors import HighThroughputExecutor  # type: ignore[import-not-found]
from parsl.providers import LocalProvider  # type: ignore[import-not-found]

from benchmarks.peers import progress


@parsl.python_app  # type: ignore[untyped-decorator]
def spawn(command: list[str]) -> int:
    """Run a command. Runs in a worker, so it imports what it needs."""
    import os  # noqa: PLC0415

    _, status = os.waitpid(os.posix_spawn(command[0], command, os.environ), 0)
    return os.waitstatus_to_exitcode(status)


def config(folder: str, workers: int) -> Config:
    """One block of workers on this machine, started at once."""
    executor = HighThroughputExecutor(
        label="workers",
        address="127.0.0.1",
        max_workers_per_node=workers,
        cores_per_worker=1e-6,
        heartbeat_period=2,
        heartbeat_threshold=10,
        worker_logdir_root=folder,
        provider=LocalProvider(init_blocks=1, min_blocks=1, max_blocks=1),
    )
    return Config(executors=[executor], run_dir=folder, retries=1, strategy="none", initialize_logging=False)


def rate(tasks: int, command: list[str]) -> None:
    """Run tasks, and print the progress."""
    spawn(["/bin/true"]).result()  # the workers are up
    futures = [spawn(command) for _ in range(tasks)]
    done = 0

    def count() -> int:
        nonlocal done
        while done < tasks and futures[done].done():
            done += 1
        return done

    print(json.dumps(progress.follow(count, tasks, pause=0.1)), flush=True)


def send() -> None:
    """Submit the commands on standard input (JSON), and print a line for each that succeeded, as soon as it has."""
    futures = [spawn(command) for command in json.load(sys.stdin)]
    print("submitted", flush=True)
    for future in as_completed(futures):
        if future.exception() is None:
            print("succeeded", flush=True)


if __name__ == "__main__":
    what, where, number, *rest = sys.argv[1:]
    os.environ["PYTHONPATH"] = str(Path.cwd())  # of the workers
    with parsl.load(config(where, int(number))):
        if what == "rate":
            rate(int(rest[0]), rest[1:])
        else:
            send()
