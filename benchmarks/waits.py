"""Waits: the cost of many waits in one process, the delay until they notice the end, and the same with polling once a
minute.

Also a program, which runs the waits in a separate process: ``python -m benchmarks.waits TASK NUMBER``.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

from airflow_provider_picas.couchdb.http import Request, Response
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.hooks.picas_async import PicasAsyncHook
from airflow_provider_picas.tokens import documents
from airflow_provider_picas.triggers import feed
from airflow_provider_picas.triggers.tokens import PicasTokenStateTrigger
from benchmarks.measure import Goal, Result
from benchmarks.server import Server
from stack import native, processes

WAITS, POOLS = 1_000, 10
IDLE = 30.0  # seconds for which nothing happens
FINISHED = 200  # of the waits on one pool, one after the other
ALONE = 20  # ends that a single wait notices
STARTED = 2.0  # seconds after which a wait has its counts
POLLED = 200  # waits that poll; half of them end
POLL = 60.0  # seconds between two polls
CONN_ID = "picas_waits_{}"


def run(server: Server, pairs: int) -> Iterator[Result]:
    """Idle waits on several pools, then ends on one, then the same waits by polling."""
    with _pools(server, POOLS):
        idle = _program("idle", WAITS)
    yield Result(
        f"open feeds of {WAITS:,} waits on {POOLS} pools",
        {"requests an hour and wait": f"{idle['requests_per_hour']:.2f}"},
        idle["feeds"],
        Goal(POOLS),
        unit="feeds",
    )
    yield Result(
        "the same, CPU while nothing happens",
        {"of one core": f"{idle['cpu']:.2%}"},
        idle["cpu"] * 100,
        Goal(5),
        unit="%",
    )
    yield Result("the same, memory more than with one wait", {}, idle["memory"], Goal(100), unit="MB")
    yield Result("the same, requests an hour and wait", {}, idle["requests_per_hour"], Goal(1))
    with _pools(server, 1):
        alone = _program("alone", ALONE)
    yield Result("from the last write to the event, 1 wait", _seconds(alone), median(alone["delays"]), Goal(0.2))
    with _pools(server, 1):
        many = _program("finish", WAITS)
    yield Result(f"the same, {WAITS:,} waits on the pool", _seconds(many), median(many["delays"]), Goal(1))
    with _pools(server, 1):
        polled = _program("poll", POLLED)
    for name, ours, theirs in (
        ("requests an hour and wait", idle["requests_per_hour"], polled["requests_per_hour"]),
        ("bytes of answers an hour and wait", idle["bytes_per_hour"], polled["bytes_per_hour"]),
        ("median delay in s", median(many["delays"]), median(polled["delays"])),
    ):
        yield Result(
            f"polling each {POLL:g} s against ours: {name}",
            {"ours": f"{ours:,.2f}", "polling": f"{theirs:,.2f}"},
            theirs / ours if ours else 0.0,
        )


def _seconds(found: dict[str, Any]) -> dict[str, str]:
    delays = sorted(found["delays"])
    return {"median": f"{median(delays):.3f} s", "worst": f"{delays[-1]:.3f} s", "ends": str(len(delays))}


@contextmanager
def _pools(server: Server, number: int) -> Iterator[None]:
    """Pools with batches for all waits, one token each, and connections to them."""
    with ExitStack() as stack:
        for n in range(number):
            pool = stack.enter_context(server.pool(views=True))
            os.environ[f"AIRFLOW_CONN_{CONN_ID.format(n).upper()}"] = json.dumps(native.picas_connection(pool))
            hook = PicasHook(CONN_ID.format(n))
            batches = [_batch(wait) for wait in range(WAITS) if wait % number == n]
            hook.push(documents.new_token({"input": 0}, batch=batch, push=batch, ordinal=0) for batch in batches)
            hook.count(batches[0])  # builds the index
        yield


def _batch(wait: int) -> str:
    return f"dag.push.scheduled__2026-11-22T00-00-00-{wait:05d}"


def _program(task: str, number: int) -> dict[str, Any]:
    program = [sys.executable, "-m", "benchmarks.waits", task, str(number)]
    # Triggers hold their event back for some seconds after their start, until Airflow is ready for it; here it always is.
    env = {**os.environ, "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "0"}
    answer = subprocess.run(program, stdout=subprocess.PIPE, text=True, check=True, timeout=600, env=env)
    found: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return found


# -- in a process of its own -------------------------------------------------------------------------------------------


@dataclass
class Traffic:
    """The traffic of all asynchronous hooks of this process."""

    requests: int = 0
    bytes: int = 0  #: of responses, without their headers

    def count(self) -> None:
        """Begin to count."""
        real = PicasAsyncHook.send_once

        async def send_once(hook: PicasAsyncHook, request: Request) -> Response:
            self.requests += 1
            answer = await real(hook, request)
            self.bytes += len(answer.body)
            return answer

        PicasAsyncHook.send_once = send_once  # type: ignore[method-assign,assignment]


TRAFFIC = Traffic()


async def wait(number: int, pools: int, began: asyncio.Event) -> float:
    """Run one of our waits. Returns the time of its event."""
    trigger = PicasTokenStateTrigger(
        CONN_ID.format(number % pools), None, _batch(number), 1, max_errors=0, deadline=time.time() + 3_600
    )
    began.set()
    async for event in trigger.run():
        if event.payload["outcome"] != "complete":
            raise RuntimeError(f"A wait ended with {event.payload}.")
    return time.monotonic()


async def poll(number: int, pools: int, began: asyncio.Event) -> float:
    """Run a polling wait: one query per minute, over a separate connection. Returns the time when it saw the end."""
    await asyncio.sleep(random.uniform(0, POLL))
    while True:
        async with PicasAsyncHook(CONN_ID.format(number % pools)) as hook:
            counts = await hook.count(_batch(number))
        began.set()
        if counts.finished:
            return time.monotonic()
        await asyncio.sleep(POLL)


@asynccontextmanager
async def waiting(
    how: Callable[[int, int, asyncio.Event], Coroutine[Any, Any, float]], number: int, pools: int
) -> AsyncIterator[Sequence[asyncio.Future[float]]]:
    """Start ``number`` waits, and yield them once all have begun."""
    signs = [asyncio.Event() for _ in range(number)]
    waits = [asyncio.ensure_future(how(n, pools, signs[n])) for n in range(number)]
    try:
        for sign in signs:
            await sign.wait()
        yield waits
    finally:
        for one in waits:
            one.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


async def idle(number: int) -> dict[str, Any]:
    """Waits for which nothing happens."""
    async with waiting(wait, 1, POOLS):
        await asyncio.sleep(3)
        before = processes.memory(os.getpid())
    async with waiting(wait, number, POOLS):
        await asyncio.sleep(5)  # all have their counts
        TRAFFIC.requests = TRAFFIC.bytes = 0
        cpu, begin = time.process_time(), time.monotonic()
        await asyncio.sleep(IDLE)
        used = (time.process_time() - cpu) / (time.monotonic() - begin)
        polled = TRAFFIC.requests
        feeds, memory = feed.open_feeds(), (processes.memory(os.getpid()) - before) / 1e6
    # All is read again now and then: once, to see what that costs.
    real, feed.READ_AGAIN = feed.READ_AGAIN, 4.0
    async with waiting(wait, number, POOLS):
        await asyncio.sleep(2)
        TRAFFIC.requests = TRAFFIC.bytes = 0
        await asyncio.sleep(4)
        again, size = TRAFFIC.requests, TRAFFIC.bytes
    per_hour = 3_600 / (0.9 * real) / number
    return {
        "feeds": feeds, "cpu": used, "memory": memory, "bytes_per_hour": size * per_hour,
        "requests_per_hour": polled * 3_600 / IDLE / number + again * per_hour,
    }  # fmt: skip


async def alone(number: int) -> dict[str, Any]:
    """One wait after the other, each by itself."""
    hook = PicasHook(CONN_ID.format(0))
    delays = []
    for n in range(number):
        task = asyncio.ensure_future(wait(n, 1, asyncio.Event()))
        await asyncio.sleep(STARTED + random.uniform(0.0, 0.5))
        written = await asyncio.to_thread(_finish, hook, n)
        delays.append(await task - written)
    return {"delays": delays}


async def finish(number: int) -> dict[str, Any]:
    """Many waits. Some of them end, in quick succession."""
    hook = PicasHook(CONN_ID.format(0))
    async with waiting(wait, number, 1) as waits:
        await asyncio.sleep(STARTED)
        some = random.sample(range(number), FINISHED)
        written = [await asyncio.to_thread(_finish, hook, n) for n in some]
        seen = await asyncio.gather(*(waits[n] for n in some))
    return {"delays": [event - write for event, write in zip(seen, written, strict=True)]}


async def polls(number: int) -> dict[str, Any]:
    """The same with polling."""
    hook = PicasHook(CONN_ID.format(0))
    async with waiting(poll, number, 1) as waits:
        requests, size, begin = TRAFFIC.requests, TRAFFIC.bytes, time.monotonic()
        some = random.sample(range(number), number // 2)
        written = [await asyncio.to_thread(_finish, hook, n) for n in some]
        seen = await asyncio.gather(*(waits[n] for n in some))
        per_hour = 3_600 / (time.monotonic() - begin) / number
    return {
        "delays": [event - write for event, write in zip(seen, written, strict=True)],
        "requests_per_hour": (TRAFFIC.requests - requests) * per_hour,
        "bytes_per_hour": (TRAFFIC.bytes - size) * per_hour,
    }


def _finish(hook: PicasHook, number: int) -> float:
    """Finish the token of a wait. Returns the time when it was written."""
    now = int(time.time())
    token = hook.get(f"{_batch(number)}:00000000")
    hook.do(hook.pool.put({**token, "lock": now, "done": now, "exit_code": 0}))
    return time.monotonic()


TASKS: dict[str, Callable[[int], Any]] = {"idle": idle, "alone": alone, "finish": finish, "poll": polls}

if __name__ == "__main__":
    TRAFFIC.count()
    print(json.dumps(asyncio.run(TASKS[sys.argv[1]](int(sys.argv[2])))))
