"""Pilots on short tokens, ours and the PiCaS client's: the same process is spawned for each token on both sides."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.operators.tokens import PicasPushTokensOperator
from airflow_provider_picas.tokens.counts import Counts
from airflow_provider_picas.triggers.feed import feed_for
from benchmarks import pilot_folder
from benchmarks.measure import Goal, Result, in_pairs, medians, ratio
from benchmarks.server import CONN_ID, Server, context, cpu_of
from stack import paths

PILOTS = (1, 2, 4, 8, 32)
OUR_TOKENS, THEIR_TOKENS = 4_000, 250
TOKENS_A_PILOT, THEIR_TOKENS_A_PILOT = 1_000, 20
"""At least this number of tokens: pilots that start and end are a part of the cost."""
SERVER_MS = 2.0  # milliseconds of the server's CPU for a token
PILOT_MS = 1.0  # milliseconds of a pilot's CPU for a token, beside its process
SPAWNS = 300
PATIENCE = 300.0  # seconds for one measurement
LOOK = 0.2  # seconds between two queries of the database's last change


@dataclass
class Taken:
    """The cost of a run of pilots, per token."""

    seconds: float = 0.0  #: from the first command's start to the last token's end
    pilot: float = 0.0  #: milliseconds of the pilots' CPU, without the commands' and what it takes to start and end
    commands: float = 0.0  #: milliseconds of the commands' CPU
    server: float | None = None  #: milliseconds of the server's CPU; None if it runs on another machine
    requests: float | None = None  #: None if the server does not count them
    conflicts: float | None = None


@dataclass
class Tally:
    """All measurements of one side."""

    runs: list[Taken] = field(default_factory=list)

    def figure(self, name: str, digits: int = 2) -> str:
        """The median of a figure, or a note that there is none."""
        known = [value for taken in self.runs if (value := getattr(taken, name)) is not None]
        return f"{median(known):.{digits}f}" if known else "not counted"


def run(server: Server, pairs: int) -> Iterator[Result]:
    """Tokens per second and their cost with several numbers of pilots, compared with the client."""
    for number in PILOTS:
        theirs, ours = Tally(), Tally()
        found = in_pairs(lambda: _theirs(server, number, theirs), lambda: _ours(server, number, ours), pairs)  # noqa: B023
        client, pilots = (1 / seconds for seconds in medians(found))
        some = f"{number} pilot{'s' * (number > 1)}"
        yield Result(
            f"short tokens with {some} against the PiCaS client's, by rate",
            {
                "pilots": f"{pilots:,.0f} tokens/s",
                "picas": f"{client:,.0f} tokens/s",
                "requests a token": f"{ours.figure('requests', 3)} and {theirs.figure('requests')}",
                "conflicts a token": f"{ours.figure('conflicts', 3)} and {theirs.figure('conflicts', 3)}",
            },
            ratio(found),
            Goal(4, at_least=True),
            pairs=found,
        )
        if server.cpu() is not None:
            yield _cost(f"the server's CPU for a token, {some}", "server", SERVER_MS, ours, theirs)
        yield _cost(f"a pilot's CPU for a token beside its process, {some}", "pilot", PILOT_MS, ours, theirs)
    tally = Tally()
    found = in_pairs(_spawn, lambda: _ours(server, 1, tally), pairs)
    spawn, whole = medians(found)
    yield Result(
        "a token's cost beside its process, with one pilot",
        {
            "whole token": f"{whole * 1e3:.2f} ms",
            "process alone": f"{spawn * 1e3:.2f} ms",
            "CPU of the process": f"{tally.figure('commands')} ms",
        },
        median(token - process for process, token in found) * 1e6,
        unit="µs",
        pairs=found,
    )


def _cost(name: str, figure: str, limit: float, ours: Tally, theirs: Tally) -> Result:
    """A cost in milliseconds for a token, with the client's beside it."""
    runs = zip(theirs.runs, ours.runs, strict=True)
    pairs = [(getattr(one, figure) or 0.0, getattr(other, figure) or 0.0) for one, other in runs]
    figures = {"picas": f"{theirs.figure(figure)} ms", "pilots": f"{ours.figure(figure)} ms"}
    return Result(f"{name}, in ms", figures, medians(pairs)[1], Goal(limit), pairs=pairs)


def _spawn() -> float:
    """Seconds to run only the process."""
    started = time.perf_counter()
    for _ in range(SPAWNS):
        subprocess.run(["/bin/sh", "-c", _command(Path("/dev/null"))], stdin=subprocess.DEVNULL, check=True)
    return (time.perf_counter() - started) / SPAWNS


def _command(mark: Path) -> str:
    """The command for each token: the first one leaves a mark."""
    return f"test -e {mark} || : > {mark}"


def _ours(server: Server, number: int, tally: Tally) -> float:
    folder, start = _folder(), _start_cpu(server)
    with server.pool(views=True) as pool:
        tokens = max(OUR_TOKENS, number * TOKENS_A_PILOT)
        batch = push_tokens(tokens)
        command = _command(folder / "mark")
        taken = _measure(
            server,
            folder,
            lambda: pilot_folder.start(pool, folder, number, batch=batch, command=command),
            tokens,
            pool.database,
            batch,
        )
        taken.pilot -= number * start * 1e3 / tokens
    logs = "".join(path.read_text() for path in folder.glob("pilot-*.log"))
    lost = sum(int(conflicts) for conflicts in re.findall(r"Claims lost to other pilots: (\d+)", logs))
    taken.conflicts = lost / tokens
    shutil.rmtree(folder)
    tally.runs.append(taken)
    return taken.seconds


@cache
def _start_cpu(server: Server) -> float:
    """Seconds of CPU that a pilot takes to start and to end, without tokens."""
    folder = _folder()
    with server.pool(views=True) as pool:
        (process,) = pilot_folder.start(pool, folder, 1, batch="none", command=["/bin/true"])
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        seconds = cpu_of(process.pid)
        process.wait()
    shutil.rmtree(folder)
    return seconds


def _theirs(server: Server, number: int, tally: Tally) -> float:
    folder = _folder()
    with server.pool(views=True) as pool:
        tokens = max(THEIR_TOKENS, number * THEIR_TOKENS_A_PILOT)
        push_tokens(tokens)
        command = ["/bin/sh", "-c", _command(folder / "mark")]
        before = _counted(server, "httpd_status_codes", "409")
        taken = _measure(
            server,
            folder,
            lambda: [pilot_folder.start_client(pool, folder, place, command) for place in range(number)],
            tokens,
            pool.database,
        )
        after = _counted(server, "httpd_status_codes", "409")
    taken.conflicts = None if before is None or after is None else (after - before) / tokens
    shutil.rmtree(folder)
    tally.runs.append(taken)
    return taken.seconds


def _folder() -> Path:
    folder = paths.RUN / f"bench-{os.getpid()}-{secrets.token_hex(4)}"
    folder.mkdir(parents=True)
    return folder


def push_tokens(tokens: int) -> str:
    """Push a batch, and have it indexed. Returns its id."""
    push = PicasPushTokensOperator(task_id="push", inputs=list(range(tokens)), picas_conn_id=CONN_ID)
    pushed: Any = push.execute(context())
    PicasHook(CONN_ID).count(pushed["batch"])  # the views are indexed
    PicasHook(CONN_ID).count()
    return str(pushed["batch"])


def _measure(
    server: Server,
    folder: Path,
    start: Callable[[], list[subprocess.Popen[bytes]]],
    tokens: int,
    database: str,
    batch: str | None = None,
) -> Taken:
    """Start the pilots, and wait until all tokens are done. Returns the cost per token.

    For our pilots a wait follows the batch, as in Airflow: what it costs the server is part of a token's cost. It and
    the pilots may notice the end seconds later, so the last change of the database is the end. Tokens of the client's
    pilots are counted in the views of ``Monitor``, which these pilots read anyway.
    """
    requests, cpu = requests_of(server), server.cpu()
    processes = start()
    if batch is None:
        asked = _count_until(tokens, folder)
        ended = time.time()
    else:
        with ThreadPoolExecutor() as threads:
            watched = threads.submit(_last_change, server, database, processes)
            asyncio.run(_wait_until(batch, tokens, folder))
            ended, asked = watched.result()
    after = requests_of(server)
    taken = Taken((ended - (folder / "mark").stat().st_mtime) / tokens)
    for process in processes:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        taken.pilot += cpu_of(process.pid) * 1e3 / tokens
        taken.commands += (cpu_of(process.pid, children=True) - cpu_of(process.pid)) * 1e3 / tokens
        process.wait()
    for indexed in {None, batch}:  # what the server has put off belongs to the cost, too
        PicasHook(CONN_ID).count(indexed)
    if cpu is not None:
        taken.server = ((server.cpu() or 0.0) - cpu) * 1e3 / tokens
    if requests is not None and after is not None:
        taken.requests = (after - requests - asked) / tokens
    return taken


def _last_change(server: Server, database: str, processes: list[subprocess.Popen[bytes]]) -> tuple[float, int]:
    """When the last change of the database was seen before these processes ended; and the number of requests."""
    at, last, asked = time.time(), "", 0
    while any(os.waitid(os.P_PID, one.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None for one in processes):
        asked += 1
        now = str(server.admin.request("GET", f"/{database}")[1]["update_seq"]).partition("-")[0]
        if now != last:
            at, last = time.time(), now
        time.sleep(LOOK)
    return at, asked


def _count_until(tokens: int, folder: Path) -> int:
    """Count until all tokens are done. Returns the number of requests."""
    hook, deadline, asked = PicasHook(CONN_ID), time.time() + PATIENCE, 2
    while (done := hook.count().done) < tokens:
        if time.time() > deadline:
            raise _unfinished(folder, done, tokens)
        asked += 2
        time.sleep(0.2 if done < 0.9 * tokens else 0.02)
    return asked


async def _wait_until(batch: str, tokens: int, folder: Path) -> None:
    """Follow the batch as a deferred wait does, until all its tokens are done. Its requests are part of the cost."""
    done = 0
    try:
        async with asyncio.timeout(PATIENCE), feed_for(CONN_ID).subscribe(batch) as updates:
            async for update in updates:
                done = update.counts.done if isinstance(update.counts, Counts) else done
                if done >= tokens:
                    break
    except TimeoutError:
        raise _unfinished(folder, done, tokens) from None


def _unfinished(folder: Path, done: int, tokens: int) -> RuntimeError:
    (log,) = folder.glob("*-0.log")  # of the first pilot
    return RuntimeError(f"{done} of {tokens} tokens are done: {log.read_text()[-1_000:]}")


def requests_of(server: Server) -> float | None:
    """The requests that the server has had; None if it does not count them."""
    return _counted(server, "httpd", "requests")


def _counted(server: Server, *path: str) -> float | None:
    """One of Apache CouchDB's own counters; None for another server."""
    with suppress(KeyError, TypeError):
        _, answer = server.admin.request("GET", f"/_node/_local/_stats/couchdb/{'/'.join(path)}")
        return float(answer["value"])
    return None
