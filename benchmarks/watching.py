"""The load of a wait that watches pilots on the cluster and the database, on a real Slurm."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from collections.abc import Iterator
from typing import Any

from airflow_provider_picas.hooks.slurm import SlurmAsyncHook
from airflow_provider_picas.operators.pilots import PicasSubmitPilotsOperator
from airflow_provider_picas.operators.tokens import PicasPushTokensOperator
from airflow_provider_picas.slurm.remote import Output, Step
from airflow_provider_picas.triggers.tokens import PicasTokenStateTrigger
from benchmarks.measure import Result
from benchmarks.server import CONN_ID, Server, context
from benchmarks.waits import Traffic
from stack import native, paths
from stack.cluster import Cluster

TOKENS = 1_000
PILOTS = 4
WORK = "sleep 1"
SSH_CONN_ID = "picas_bench_cluster"


def run(server: Server, pairs: int) -> Iterator[Result]:
    """One wait for many tokens, from the submission to the event. It takes as long as the tokens."""
    folder = paths.RUN / f"bench-cluster-{os.getpid()}"
    try:
        with Cluster(folder) as cluster, server.pool(views=True):
            os.environ[f"AIRFLOW_CONN_{SSH_CONN_ID.upper()}"] = json.dumps(native.ssh_connection(cluster))
            push = PicasPushTokensOperator(task_id="push", inputs=list(range(TOKENS)), picas_conn_id=CONN_ID)
            batch: Any = push.execute(context())
            submit = PicasSubmitPilotsOperator(
                task_id="pilots", command=WORK, batch=batch, pilots=PILOTS,
                ssh_conn_id=SSH_CONN_ID, picas_conn_id=CONN_ID,
            )  # fmt: skip
            pilots: Any = submit.execute(context("pilots"))
            commands: list[Step] = []
            traffic = Traffic()
            traffic.count()
            seconds = asyncio.run(_wait(batch, pilots, commands))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    yield Result(
        f"ssh commands an hour of a wait over {TOKENS:,} tokens of {PILOTS} pilots",
        {
            "commands": f"{len(commands)} in {seconds:.0f} s",
            "requests to the database": f"{traffic.requests} in {seconds:.0f} s",
        },
        len(commands) / seconds * 3_600,
        unit="an hour",
    )


async def _wait(batch: dict[str, Any], pilots: dict[str, Any], commands: list[Step]) -> float:
    """Seconds until the event; records the commands."""
    perform = SlurmAsyncHook.perform

    async def counted(hook: SlurmAsyncHook, step: Step) -> Output:
        commands.append(step)
        return await perform(hook, step)

    SlurmAsyncHook.perform = counted  # type: ignore[method-assign,assignment]
    trigger = PicasTokenStateTrigger(
        CONN_ID, batch["database"], batch["batch"], batch["tokens"], 0, time.time() + 3_600, pilots=pilots
    )
    begin = time.monotonic()
    try:
        async for event in trigger.run():
            if event.payload["outcome"] != "complete":
                raise RuntimeError(f"The wait ended with {event.payload}.")
    finally:
        SlurmAsyncHook.perform = perform  # type: ignore[method-assign]
    return time.monotonic() - begin
