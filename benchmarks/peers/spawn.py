"""Processes that do nothing but ``posix_spawn`` a command and wait for it: what this machine allows at most.

``python -m benchmarks.peers.spawn WORKERS TASKS COMMAND...``
"""

from __future__ import annotations

import json
import mmap
import os
import sys

from benchmarks.peers import progress


def main(workers: int, tasks: int, command: list[str]) -> None:
    """Share the tasks among the workers, and print the progress."""
    shared = mmap.mmap(-1, 8 * workers)
    counts = memoryview(shared).cast("q")
    children = []
    for worker in range(workers):
        child = os.fork()
        if not child:
            for _ in range(worker, tasks, workers):
                os.waitpid(os.posix_spawn(command[0], command, os.environ), 0)
                counts[worker] += 1
            os._exit(0)
        children.append(child)
    readings = progress.follow(lambda: sum(counts), tasks, pause=0.1)
    for child in children:
        os.waitpid(child, 0)
    print(json.dumps(readings))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
