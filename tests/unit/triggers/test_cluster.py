"""One connection a cluster: who has to wait for whom."""

from __future__ import annotations

import asyncio
import time

from airflow_provider_picas.slurm.remote import Pause
from airflow_provider_picas.triggers.cluster import SESSIONS, cluster_for


def test_a_pause_takes_no_session() -> None:
    async def pause() -> None:
        async with cluster_for("nowhere").use() as cluster:
            await asyncio.gather(*(cluster.perform(Pause(0.3)) for _ in range(3 * SESSIONS)))

    begin = time.monotonic()
    asyncio.run(pause())
    assert time.monotonic() - begin < 0.8
