"""A process that runs waits as a triggerer does: ``python -m tests.chaos.triggerer FOLDER``.

It starts a wait for each line of ``FOLDER/batches`` that has no event in ``FOLDER/events``, adds a line there for each event,
and in ``FOLDER/sizes`` tells every second how much memory and how many sockets it has.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

from airflow_provider_picas.triggers import feed
from airflow_provider_picas.triggers.tokens import PicasTokenStateTrigger
from stack import processes

DATABASE = "soak"


def add(path: Path, *words: object) -> None:
    """Write a line at once, whole."""
    with path.open("ab", buffering=0) as file:
        file.write((" ".join(map(str, words)) + "\n").encode())


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


async def wait(folder: Path, batch: str) -> None:
    trigger = PicasTokenStateTrigger("picas_soak", DATABASE, batch, 1, max_errors=0, deadline=time.time() + 3_600)
    async for event in trigger.run():
        add(folder / "events", batch, json.dumps(event.payload))


async def run(folder: Path) -> None:
    waits: dict[str, asyncio.Task[None]] = {
        line.split()[0]: asyncio.create_task(asyncio.sleep(0)) for line in lines(folder / "events")
    }
    measured = 0.0
    while True:
        for batch in lines(folder / "batches"):
            if batch not in waits:
                waits[batch] = asyncio.create_task(wait(folder, batch))
        for task in waits.values():
            if task.done():
                task.result()
        if time.monotonic() - measured > 1:
            measured = time.monotonic()
            memory = processes.memory(os.getpid()) // 1024
            add(folder / "sizes", os.getpid(), memory, _sockets(), len(asyncio.all_tasks()), feed.open_feeds())
        await asyncio.sleep(0.1)


def _sockets() -> int:
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found += os.readlink(entry).startswith("socket:")
        except OSError:
            continue
    return found


if __name__ == "__main__":
    asyncio.run(run(Path(sys.argv[1])))
