"""A thousand pilots on a real Slurm: their submission, the checks of a wait, and their cancellation, beside ten pilots.

Two nodes with 500 CPUs each take them all, so that all jobs run at the same time; they only sleep. Debian's
slurm-wlm-emulator would show a thousand nodes, but the one of Debian 12 does not start: it shares Slurm's library with
slurmctld, and that one is built without front-end nodes. ``PICAS_BENCH_PILOTS="5 50"`` sets other numbers.
"""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow_provider_picas.hooks.slurm import SlurmHook
from airflow_provider_picas.operators.pilots import PicasCancelPilotsOperator, PicasSubmitPilotsOperator
from airflow_provider_picas.operators.tokens import PicasPushTokensOperator
from airflow_provider_picas.slurm.remote import Output
from airflow_provider_picas.triggers.tokens import PicasTokenStateTrigger
from benchmarks import slurm_site
from benchmarks.measure import Goal, Result
from benchmarks.server import CONN_ID, Server, context
from stack import paths, processes
from stack.cluster import Cluster

FEW, MANY = (int(number) for number in os.environ.get("PICAS_BENCH_PILOTS", "10 1000").split())
NODES = 2
WATCHED = 60.0  # seconds of the wait, with all pilots running
STARTING = 600.0  # seconds for all jobs to start, or to end
SCRIPT = "#!/bin/bash\n#SBATCH --time=120\nexec sleep 7200\n"
SAME = Goal(1.5)


@dataclass
class Traffic:
    """What went over SSH."""

    commands: int = 0
    slowest: float = 0.0
    bytes: int = 0  #: of their output
    begin: float = field(default_factory=time.monotonic)
    lasted: float = 0.0

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Count all commands of this process meanwhile."""
        carry_out = SlurmHook.carry_out

        def counted(hook: SlurmHook, step: Any, client: Any) -> Output:
            begin = time.monotonic()
            output = carry_out(hook, step, client)
            self.commands += 1
            self.slowest = max(self.slowest, time.monotonic() - begin)
            self.bytes += len(output.stdout) + len(output.stderr)
            return output

        SlurmHook.carry_out = counted  # type: ignore[method-assign,assignment]
        self.begin = time.monotonic()
        try:
            yield
        finally:
            SlurmHook.carry_out = carry_out  # type: ignore[method-assign]
            self.lasted = time.monotonic() - self.begin

    def __str__(self) -> str:
        return (
            f"{self.lasted:.1f} s, {self.commands} commands (slowest {self.slowest:.2f} s, {self.bytes / 1e3:,.0f} kB)"
        )


@dataclass
class Life:
    """What some pilots took, from their submission to their end."""

    submitted: Traffic
    started: float  #: seconds from the submission until all ran
    watched: Traffic
    memory: float  #: MB that the wait's process grew
    cancelled: Traffic
    ended: float  #: seconds from the cancellation until no job was left


def run(server: Server, pairs: int) -> Iterator[Result]:
    """Few pilots, then many. Each is measured once."""
    folder = paths.RUN / f"bench-many-{os.getpid()}"
    cpus = -(-MANY // NODES)
    try:
        with Cluster(folder / "cluster", nodes=NODES, cpus=cpus) as cluster, server.pool(views=True):
            slurm_site.connect(cluster)
            (folder / "sleep.sh").write_text(SCRIPT)
            few, many = (_life(cluster, folder / "sleep.sh", number) for number in (FEW, MANY))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sides = {f"{FEW:,}": few, f"{MANY:,}": many}
    for what, name in (("submission", "submitted"), (f"{WATCHED:g} s of a wait", "watched"), ("cancel", "cancelled")):
        traffic = {side: getattr(life, name) for side, life in sides.items()}
        ratio = traffic[f"{MANY:,}"].commands / max(1, traffic[f"{FEW:,}"].commands)
        figures = {side: str(one) for side, one in traffic.items()}
        yield Result(f"{what}: ssh commands with {MANY:,} pilots to {FEW}", figures, ratio, SAME)
    yield _seconds("from the submission until all pilots ran", {side: life.started for side, life in sides.items()})
    yield _seconds("from the cancellation until no job was left", {side: life.ended for side, life in sides.items()})
    yield Result(
        f"memory of a wait's process with {MANY:,} pilots more than before",
        {f"{FEW:,}": f"{few.memory:.1f} MB"},
        many.memory,
        Goal(50),
        unit="MB",
    )


def _seconds(what: str, seconds: dict[str, float]) -> Result:
    *_, many = seconds.values()
    return Result(f"{what} (Slurm's time)", {side: f"{taken:.1f} s" for side, taken in seconds.items()}, many, unit="s")


def _life(cluster: Cluster, script: Path, number: int) -> Life:
    """Submit pilots, watch them while they run, and cancel them."""
    push = PicasPushTokensOperator(task_id=f"push-{number}", inputs=[1], picas_conn_id=CONN_ID)
    batch: Any = push.execute(context(f"push-{number}"))
    submit = PicasSubmitPilotsOperator(
        task_id=f"pilots-{number}",
        script=str(script),
        pilots=number,
        ssh_conn_id=slurm_site.CONN_ID,
        picas_conn_id=CONN_ID,
    )
    submitted, watched, cancelled = Traffic(), Traffic(), Traffic()
    with submitted.measure():
        pilots: Any = submit.execute(context(f"pilots-{number}"))
    begin = time.monotonic()
    _wait_for_jobs(cluster, "RUNNING", number)
    started = time.monotonic() - begin
    before = _memory()
    with watched.measure():
        asyncio.run(_watch(batch, pilots))
    grown = _memory() - before
    cancel = PicasCancelPilotsOperator(task_id="cancel", pilots=pilots, picas_conn_id=CONN_ID)
    begin = time.monotonic()
    with cancelled.measure():
        cancel.execute(context("cancel"))
    _wait_for_jobs(cluster, "all", 0)
    return Life(submitted, started, watched, grown, cancelled, time.monotonic() - begin)


def _wait_for_jobs(cluster: Cluster, state: str, number: int) -> None:
    """Wait until this number of jobs is in a state."""

    def there() -> bool:
        listed = cluster.run("squeue", "--noheader", "--array", f"--states={state}", "--format=%i %T").stdout
        jobs = [
            line
            for line in listed.splitlines()
            if state != "all" or line.split()[1] in ("PENDING", "RUNNING", "COMPLETING")
        ]
        time.sleep(0.2)
        return len(jobs) == number

    processes.wait_for(there, what=f"{number} jobs in state {state}", seconds=STARTING)


async def _watch(batch: dict[str, Any], pilots: dict[str, Any]) -> None:
    """A wait for the batch, of which no token will be done."""
    trigger = PicasTokenStateTrigger(
        CONN_ID, batch["database"], batch["batch"], batch["tokens"], 0, time.time() + 3_600, pilots=pilots
    )

    async def event() -> None:
        async for found in trigger.run():
            raise RuntimeError(f"The wait ended with {found.payload}.")

    with suppress(TimeoutError):
        await asyncio.wait_for(event(), WATCHED)


def _memory() -> float:
    """The memory of this process in MB."""
    gc.collect()
    return processes.memory(os.getpid()) / 1e6
