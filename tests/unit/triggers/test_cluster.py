"""One connection for each cluster: who waits for whom."""

from __future__ import annotations

import asyncio

from airflow_provider_picas.slurm.remote import Pause
from airflow_provider_picas.triggers.cluster import SESSIONS, cluster_for


def test_a_pause_takes_no_session() -> None:
    async def pause() -> None:
        async with cluster_for("nowhere").use() as cluster:
            for _ in range(SESSIONS):
                await cluster._sessions.acquire()
            await asyncio.wait_for(cluster.perform(Pause(0)), 30)

    asyncio.run(pause())
