"""One batch of ten thousand, a hundred thousand and a million tokens: pushed, counted, run, waited for, collected, reset
and archived.

Each step runs in a process of its own, which reports its seconds and its peak memory. The CPU of a step includes
bringing the index up to date. By itself, CouchDB compacts only large files, so its automatic compaction is
switched off, and all sizes are compacted once, as a step. Pilots run real processes for a sample of the tokens; the
others are written as done in bulk, while a wait of the batch is open. Also a program, which does one step:
``python -m benchmarks.size STEP NUMBER [FOLDER]``. ``PICAS_BENCH_SIZES="1000 10000"`` sets other sizes.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.operators.tokens import (
    PicasCollectTokensOperator,
    PicasDeleteTokensOperator,
    PicasPushTokensOperator,
    PicasResetTokensOperator,
)
from airflow_provider_picas.tokens import views
from airflow_provider_picas.triggers.tokens import PicasTokenStateTrigger
from benchmarks import bulk, pilot_folder
from benchmarks.measure import Goal, Result, clock
from benchmarks.push import inputs
from benchmarks.server import CONN_ID, Server, context
from stack import paths, processes
from stack.pool import Pool

SIZES = tuple(int(size) for size in os.environ.get("PICAS_BENCH_SIZES", "10000 100000 1000000").split())
BATCH = "bench"
SAMPLE = 2_000  # tokens that pilots run in real processes
PILOTS = 2
PATIENCE = 3_600.0  # seconds for one step
LINEAR = Goal(1.5)

STEPS = {
    "push": "pushed",
    "index": "first count, which builds the index",
    "sample": f"run by {PILOTS} pilots ({SAMPLE:,} of them)",
    "finish": "written as done in bulk, until the wait's event",
    "collect": "collected into a file",
    "reset": "reset",
    "compact": "compacted by CouchDB after that, database and views",
    "archive": "archived and deleted",
}
"""The steps that take longer for more tokens, in order, with what they do."""


@dataclass
class Taken:
    """What a step took."""

    seconds: float
    memory: float  #: peak of its process, in MB
    tokens: int
    cpu: float | None = None  #: seconds of CPU of its process and the server; None if that runs on another machine
    more: dict[str, float] = field(default_factory=dict)


def run(server: Server, pairs: int) -> Iterator[Result]:
    """Measure the largest size once, and the smaller ones in between, the smallest ``pairs`` times."""
    taken: dict[int, list[dict[str, Taken]]] = {size: [] for size in SIZES}
    smallest, *larger = SIZES
    for turn in range(max(pairs, len(larger))):
        if turn < pairs:
            taken[smallest].append(_batch(server, smallest))
        if turn < len(larger):
            taken[larger[turn]].append(_batch(server, larger[turn]))
    for step, what in STEPS.items():
        if step in taken[smallest][0]:
            yield _linear(step, what, taken)
    yield _constant("count", "a later count of the batch", taken)
    yield _constant("event", "from the last token's write to the wait's event", taken)
    yield _memory(taken)


def _linear(step: str, what: str, taken: dict[int, list[dict[str, Taken]]]) -> Result:
    """The cost of a token in the batch where it is highest, compared with the smallest batch.

    It is the CPU time, if that is known: a machine with other work changes it little.
    """
    figures, costs, seconds = {}, [], []
    for size, runs in taken.items():
        steps = [steps[step] for steps in runs]
        seconds.append(median(one.seconds / one.tokens for one in steps))
        costs.append(median((one.cpu or 0.0) / one.tokens for one in steps))
        memory = max(one.memory for one in steps)
        shown = [f"{1 / seconds[-1]:,.0f} tokens/s", f"{costs[-1] * 1e3:.2f} ms CPU" if costs[-1] else ""]
        figures[f"{size:,}"] = ", ".join([*filter(None, shown), *([f"{memory:.0f} MB"] if memory else [])])
    compared = costs if all(costs) else seconds
    kind = "CPU" if all(costs) else "time"
    name = f"{what}: {kind} of a token to that in the smallest batch"
    return Result(name, figures, max(compared) / compared[0], LINEAR if step != "compact" else None)


def _constant(what: str, name: str, taken: dict[int, list[dict[str, Taken]]]) -> Result:
    """Seconds that should not depend on the number of tokens, and may at most grow by as much as ``LINEAR`` allows."""
    found = {size: median(steps["finish"].more[what] for steps in runs) for size, runs in taken.items()}
    figures = {f"{size:,}": f"{seconds * 1_000:,.1f} ms" for size, seconds in found.items()}
    return Result(f"{name}, for the largest batch", figures, found[SIZES[-1]] * 1_000, unit="ms")


def _memory(taken: dict[int, list[dict[str, Taken]]]) -> Result:
    """The peak memory of the process that needs the most more for a larger batch."""
    wait = {size: max(steps["finish"].more["wait memory"] for steps in runs) for size, runs in taken.items()}
    most, worst = 0.0, ""
    for step in taken[SIZES[0]][0]:
        peaks = {size: max(steps[step].memory for steps in runs) for size, runs in taken.items()}
        if peaks[SIZES[-1]] - peaks[SIZES[0]] >= most:
            most, worst = peaks[SIZES[-1]] - peaks[SIZES[0]], step
    figures = {f"a wait of {size:,}": f"{peak:.0f} MB" for size, peak in wait.items()}
    return Result(
        "peak memory, largest batch more than smallest", {"most": worst, **figures}, most, Goal(50), unit="MB"
    )


def _batch(server: Server, number: int) -> dict[str, Taken]:
    """All steps for one batch in a pool of its own."""
    folder = paths.RUN / f"bench-size-{os.getpid()}"
    folder.mkdir(parents=True)
    found: dict[str, Taken] = {}
    try:
        with server.without_compaction(), server.pool(views=True) as pool:
            for step in STEPS:
                if step == "compact" and not server.compacts:
                    continue
                before = server.cpu()
                taken = _do(step, number, folder, pool, server)
                if before is not None:
                    if step != "push":  # the next step is to build the index
                        PicasHook(CONN_ID).count(BATCH)
                    taken.cpu = (server.cpu() or 0.0) - before + taken.more.get("cpu", 0.0)
                found[step] = taken
                print(
                    f"  {number:,} tokens, {step}: {taken.tokens:,} in {taken.seconds:.2f} s, {taken.memory:.0f} MB",
                    flush=True,
                )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return found


def _do(step: str, number: int, folder: Path, pool: Pool, server: Server) -> Taken:
    if step == "sample":
        return _sample(pool, folder, number)
    if step == "compact":
        return Taken(server.compact(pool.database, [views.PROVIDER, views.MONITOR]), 0.0, number)
    return _finish(number, folder) if step == "finish" else _step(step, number, folder)


# -- steps -------------------------------------------------------------------------------------------------------------


def _start(step: str, number: int, folder: Path) -> subprocess.Popen[str]:
    # Triggers hold their event back for some seconds after their start, until Airflow is ready for it; here it always is.
    env = {**os.environ, "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "0"}
    argv = [sys.executable, "-m", "benchmarks.size", step, str(number), str(folder)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=env)


def _report(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The report of a step's process. Raises RuntimeError if it failed."""
    try:
        output, _ = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    if process.returncode:
        raise RuntimeError(f"The step {process.args!r} ended with code {process.returncode}.")
    report: dict[str, Any] = json.loads(output.splitlines()[-1])
    return report


def _step(step: str, number: int, folder: Path) -> Taken:
    report = _report(_start(step, number, folder))
    return Taken(report["seconds"], report["memory"], number, more=report)


def _sample(pool: Pool, folder: Path, number: int) -> Taken:
    """The seconds in which pilots run some of the tokens."""
    hook = PicasHook(CONN_ID)
    sample = min(SAMPLE, number // 2)
    started = pilot_folder.start(pool, folder / "pilots", PILOTS, batch=BATCH, command=["/bin/true"])
    try:
        processes.wait_for(lambda: hook.count(BATCH).done > sample // 10, what="The first tokens", seconds=PATIENCE)
        before = hook.count(BATCH).done
        with clock() as taken:
            processes.wait_for(lambda: hook.count(BATCH).done >= sample, what="The sample", seconds=PATIENCE)
            after = hook.count(BATCH).done
    finally:
        for pilot in started:
            pilot.send_signal(signal.SIGTERM)
        for pilot in started:
            pilot.wait()
    return Taken(taken.seconds, 0.0, after - before)


def _finish(number: int, folder: Path) -> Taken:
    """Open a wait, and let another process write all remaining tokens as done."""
    wait = _start("wait", number, folder)
    time.sleep(3)
    try:
        finished = _report(_start("finish", number, folder))
        event = _report(wait)
    finally:
        wait.kill()
        wait.wait()
    more = {
        "event": max(0.0, event["at"] - finished["at"]),
        "count": finished["count"],
        "cpu": finished["cpu"] + event["cpu"],
        "wait memory": event["memory"],
    }
    return Taken(finished["seconds"] + more["event"], finished["memory"], finished["tokens"], more=more)


# -- a step in a process of its own ------------------------------------------------------------------------------------


def push(number: int, folder: Path) -> dict[str, Any]:
    """Push the batch."""
    operator = PicasPushTokensOperator(
        task_id="push", inputs=lambda: inputs(number), batch=BATCH, picas_conn_id=CONN_ID, deploy_views=False
    )
    return {"tokens": operator.execute(context())["tokens"]}


def index(number: int, folder: Path) -> dict[str, Any]:
    """Count the batch: CouchDB builds the index first."""
    hook = PicasHook(CONN_ID)
    return {"tokens": hook.count(BATCH).todo}


def finish(number: int, folder: Path) -> dict[str, Any]:
    """Write each token that is not done as done, as a pilot would."""
    hook = PicasHook(CONN_ID)
    begin = time.time()
    written = bulk.finish(hook, BATCH)
    at = time.time()
    hook.count(BATCH)
    times = []
    for _ in range(20):
        with clock() as counting:
            counts = hook.count(BATCH)
        times.append(counting.seconds)
    if counts.done != number:
        raise RuntimeError(f"{counts} of {number:,} tokens were counted.")
    return {"tokens": written, "at": at, "seconds": at - begin, "count": median(times)}


def wait(number: int, folder: Path) -> dict[str, Any]:
    """Wait for the batch."""

    async def event() -> None:
        trigger = PicasTokenStateTrigger(CONN_ID, None, BATCH, number, max_errors=0, deadline=time.time() + PATIENCE)
        async for found in trigger.run():
            if found.payload["outcome"] != "complete":
                raise RuntimeError(f"The wait ended with {found.payload}.")

    asyncio.run(event())
    return {"at": time.time()}


def collect(number: int, folder: Path) -> dict[str, Any]:
    """Collect the results into a file."""
    operator = PicasCollectTokensOperator(
        task_id="collect", batch=BATCH, path=str(folder / "results.jsonl"), picas_conn_id=CONN_ID
    )
    return {"tokens": operator.execute(context())["collected"]}


def reset(number: int, folder: Path) -> dict[str, Any]:
    """Reset all tokens."""
    operator = PicasResetTokensOperator(task_id="reset", batch=BATCH, states=["done"], picas_conn_id=CONN_ID)
    return {"tokens": operator.execute(context())["reset"]}


def archive(number: int, folder: Path) -> dict[str, Any]:
    """Archive the tokens, and delete them."""
    operator = PicasDeleteTokensOperator(
        task_id="archive", batch=BATCH, archive=str(folder / "archive"), picas_conn_id=CONN_ID
    )
    report = operator.execute(context())
    if report["archived"] != number:
        raise RuntimeError(f"{report['archived']:,} tokens were archived.")
    return {"tokens": report["deleted"]}


TASKS: dict[str, Callable[[int, Path], dict[str, Any]]] = {
    each.__name__: each for each in (push, index, finish, wait, collect, reset, archive)
}


def main(step: str, number: int, folder: Path) -> dict[str, Any]:
    """Do a step. Returns its report."""
    logging.disable(logging.INFO)
    before = time.process_time()
    with clock() as taken:
        report = TASKS[step](number, folder)
    if step not in ("wait", "finish") and report["tokens"] != number:
        raise RuntimeError(f"{step}: {report['tokens']:,} tokens instead of {number:,}.")
    peak = processes.memory(os.getpid(), "VmHWM")
    cpu = time.process_time() - before
    return {"seconds": taken.seconds, "cpu": cpu, "memory": peak / 1e6, **report}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))))
