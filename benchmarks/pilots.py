"""Pilots on short tokens, ours and the PiCaS client's: the same process is spawned for each token on both sides."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.operators.tokens import PicasPushTokensOperator
from airflow_provider_picas.pilot import archive
from airflow_provider_picas.slurm import credentials
from benchmarks.measure import Goal, Result, in_pairs, medians, ratio
from benchmarks.server import CONN_ID, Server, context
from stack import paths

PILOTS = (1, 2, 4, 8)
OUR_TOKENS = 1_000
THEIR_TOKENS = 250
SPAWNS = 300
PATIENCE = 300.0  # seconds for one measurement


@dataclass
class Taken:
    """The cost of a run of pilots, per token."""

    seconds: float = 0.0  #: from the first command's start to the last token's end
    cpu: float = 0.0  #: seconds of pilots and commands
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
    """Tokens per second with several numbers of pilots, compared with the client; then the cost of a token for our pilot."""
    for number in PILOTS:
        theirs, ours = Tally(), Tally()
        found = in_pairs(lambda: _theirs(server, number, theirs), lambda: _ours(server, number, ours), pairs)  # noqa: B023
        client, pilots = (1 / seconds for seconds in medians(found))
        yield Result(
            f"short tokens with {number} pilot{'s' * (number > 1)} against the PiCaS client's, by rate",
            {
                "pilots": f"{pilots:,.0f} tokens/s",
                "picas": f"{client:,.0f} tokens/s",
                "requests a token": f"{ours.figure('requests')} and {theirs.figure('requests')}",
                "conflicts a token": f"{ours.figure('conflicts', 3)} and {theirs.figure('conflicts', 3)}",
            },
            ratio(found),
            Goal(4, at_least=True),
            pairs=found,
        )
    tally = Tally()
    found = in_pairs(_spawn, lambda: _ours(server, 1, tally), pairs)
    spawn, whole = medians(found)
    yield Result(
        "a token's cost beside its process, with one pilot",
        {
            "whole token": f"{whole * 1e3:.2f} ms",
            "process alone": f"{spawn * 1e3:.2f} ms",
            "CPU with process": f"{tally.figure('cpu', 4)} s",
        },
        median(token - process for process, token in found) * 1e6,
        unit="µs",
        pairs=found,
    )


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
    folder = _folder()
    with server.pool(views=True) as pool:
        batch = _push(OUR_TOKENS)
        (folder / "credentials").mkdir(mode=0o700)
        config = credentials.picasconfig(pool.url, pool.database, pool.user, pool.password)
        (folder / "credentials" / credentials.FILE).write_bytes(config)
        settings = {"command": _command(folder / "mark"), "submission": "bench", "batch": batch}
        (folder / "pilot.json").write_text(json.dumps(settings))
        (folder / archive.FILE).write_bytes(archive.build())
        argv = [sys.executable, "-I", str(folder / archive.FILE), str(folder / "pilot.json")]
        taken = _measure(server, folder, [(argv, "")] * number, OUR_TOKENS, batch)
    logs = "".join(path.read_text() for path in folder.glob("pilot-*.log"))
    lost = sum(int(conflicts) for conflicts in re.findall(r"Claims lost to other pilots: (\d+)", logs))
    taken.conflicts = lost / OUR_TOKENS
    shutil.rmtree(folder)
    tally.runs.append(taken)
    return taken.seconds


def _theirs(server: Server, number: int, tally: Tally) -> float:
    folder = _folder()
    with server.pool(views=True) as pool:
        _push(THEIR_TOKENS)
        argv = [str(paths.PICAS_VENV / "bin" / "python"), str(Path(__file__).with_name("client_pilot.py"))]
        access = {"url": pool.url, "database": pool.database, "user": pool.user, "password": pool.password}
        given = json.dumps({**access, "command": ["/bin/sh", "-c", _command(folder / "mark")]})
        before = _counted(server, "httpd_status_codes", "409")
        taken = _measure(server, folder, [(argv, given)] * number, THEIR_TOKENS)
        after = _counted(server, "httpd_status_codes", "409")
    taken.conflicts = None if before is None or after is None else (after - before) / THEIR_TOKENS
    shutil.rmtree(folder)
    tally.runs.append(taken)
    return taken.seconds


def _folder() -> Path:
    folder = paths.RUN / f"bench-{os.getpid()}-{secrets.token_hex(4)}"
    folder.mkdir(parents=True)
    return folder


def _push(tokens: int) -> str:
    push = PicasPushTokensOperator(task_id="push", inputs=list(range(tokens)), picas_conn_id=CONN_ID)
    pushed: Any = push.execute(context())
    PicasHook(CONN_ID).count(pushed["batch"])  # the views are indexed
    PicasHook(CONN_ID).count()
    return str(pushed["batch"])


def _measure(
    server: Server, folder: Path, pilots: list[tuple[list[str], str]], tokens: int, batch: str | None = None
) -> Taken:
    """Start the pilots, each with its input, and wait until all tokens are done. Returns the cost per token.

    The tokens are counted in views that these pilots read anyway: the provider's, which count by batch, for our pilots,
    and those of ``Monitor`` for the client's. Otherwise the database would index each token in views that nothing else
    needs.
    """
    requests = _counted(server, "httpd", "requests")
    processes = []
    for place, (argv, given) in enumerate(pilots):
        with (folder / f"pilot-{place}.log").open("wb") as log:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "SLURM_ARRAY_TASK_ID": str(place), "SLURM_ARRAY_TASK_COUNT": str(len(pilots))},
            )
        assert process.stdin is not None
        process.stdin.write(given.encode())
        process.stdin.close()
        processes.append(process)
    hook, deadline = PicasHook(CONN_ID), time.time() + PATIENCE
    asked = 0
    while (done := hook.count(batch).done) < tokens:
        if time.time() > deadline:
            raise RuntimeError(f"{done} of {tokens} tokens are done: {(folder / 'pilot-0.log').read_text()[-1_000:]}")
        asked += 1
        time.sleep(0.2 if done < 0.9 * tokens else 0.02)
    ended = time.time()
    after = _counted(server, "httpd", "requests")
    taken = Taken((ended - (folder / "mark").stat().st_mtime) / tokens)
    for process in processes:
        _, _, usage = os.wait4(process.pid, 0)
        process.returncode = 0
        taken.cpu += (usage.ru_utime + usage.ru_stime) / tokens
    if requests is not None and after is not None:
        taken.requests = (after - requests - asked * (2 if batch is None else 1)) / tokens
    return taken


def _counted(server: Server, *path: str) -> float | None:
    """One of Apache CouchDB's own counters; None for another server."""
    with suppress(KeyError, TypeError):
        _, answer = server.admin.request("GET", f"/_node/_local/_stats/couchdb/{'/'.join(path)}")
        return float(answer["value"])
    return None
