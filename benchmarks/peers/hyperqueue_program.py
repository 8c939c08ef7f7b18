"""HyperQueue by its Python API: the server and its workers, with one core each, are threads of one process.

Runs where HyperQueue is: ``python -m benchmarks.peers.hyperqueue_program rate|serve|submit|ask FOLDER ...``. Its client
learns of the progress once a second. Tasks keep no output.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from hyperqueue import Client, Job, LocalCluster  # type: ignore[import-not-found]
from hyperqueue.cluster import WorkerConfig  # type: ignore[import-not-found]

from benchmarks.peers import progress


def cluster(folder: str, workers: int) -> Any:
    """A server with its workers."""
    found = LocalCluster(folder)
    for _ in range(workers):
        found.start_worker(WorkerConfig(cores=1))
    return found


def submit(client: Any, folder: str, commands: Sequence[Sequence[str]]) -> Any:
    """Submit one job with these tasks; the failure of a task stops no other."""
    job = Job(folder, max_fails=None)
    for command in commands:
        job.program(list(command), stdout=None, stderr=None)
    return client.submit(job)


def follow(client: Any, job_id: int) -> list[progress.Progress]:
    """The progress of a job until it ends."""
    readings: list[progress.Progress] = []

    def note(jobs: dict[Any, Any]) -> None:
        readings.append(progress.now(sum(job["finished"] for job in jobs.values())))

    client.connection.wait_for_jobs((job_id,), note)
    return readings


def rate(folder: str, workers: int, tasks: int, command: list[str]) -> None:
    """Run tasks, and print the progress."""
    with cluster(folder, workers) as started:
        client = started.client()
        job = submit(client, folder, [command] * tasks)
        print(json.dumps(follow(client, job.id)))


def serve(folder: str, workers: int) -> None:
    """Run the server until standard input is closed."""
    with cluster(folder, workers):
        print("ready", flush=True)
        sys.stdin.read()


def send(folder: str) -> None:
    """Submit the commands on standard input (JSON), and wait for them."""
    client = Client(folder)
    job = submit(client, folder, json.load(sys.stdin))
    print("job", job.id, flush=True)
    follow(client, job.id)


def ask(folder: str, job_id: int) -> None:
    """Print how many tasks of a job have finished, once it has ended."""
    print(follow(Client(folder), job_id)[-1].done)


if __name__ == "__main__":
    what, where, *rest = sys.argv[1:]
    if what == "rate":
        rate(where, int(rest[0]), int(rest[1]), rest[2:])
    elif what == "serve":
        serve(where, int(rest[0]))
    elif what == "submit":
        send(where)
    else:
        ask(where, int(rest[0]))
