"""One connection and one query of Slurm for all waits on a cluster."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterator

import pytest

from airflow_provider_picas.hooks.slurm import SlurmHook
from airflow_provider_picas.slurm import jobs
from airflow_provider_picas.slurm.jobs import Phase, SlurmStatus
from airflow_provider_picas.slurm.remote import Command, RemoteError, UnreachableError
from airflow_provider_picas.triggers import cluster as module
from airflow_provider_picas.triggers.cluster import cluster_for
from stack.cluster import Cluster
from stack.docker import DockerStack

NUMBER = 5


@pytest.fixture
def keys(remote: SlurmHook) -> Iterator[list[str]]:
    """Job names of several submissions; the last one has two sbatch calls. Their jobs are held."""
    made = [f"picas-test-{secrets.token_hex(4)}.{number}" for number in range(NUMBER)]
    names = [*made, f"{made[-1]}-1"]
    for name in names:
        assert remote.run(f"sbatch --hold --job-name={name} --wrap=true").code == 0
    assert remote.run(f"mkdir -p {made[-1]} && touch {made[-1]}/command.0 {made[-1]}/command.1").code == 0
    yield made
    remote.run(f"for name in {' '.join(names)}; do scancel --name=$name; done; rm -r {made[-1]}")


def test_queries_at_the_same_time_are_one_command(keys: list[str]) -> None:
    async def look() -> None:
        async with cluster_for("spider").use() as shared:
            since = int(time.time()) - 60
            found = await asyncio.gather(*(shared.do(jobs.query(key, key, since)) for key in keys for _ in range(3)))
            assert shared.queries == 1
            numbers = [len(item.jobs) for item in found]
            assert numbers == [1] * 3 * (NUMBER - 1) + [2] * 3
            assert {job.phase for item in found for job in item.jobs.values()} == {Phase.WAITING}
            assert all(item.at >= since and item.sacct_error is None for item in found)
            assert cluster_for("spider") is shared
        assert cluster_for("spider") is not shared

    asyncio.run(look())


def test_more_queries_than_one_command_takes_are_split(keys: list[str]) -> None:
    """Of 1,000 submissions with the longest names that there are, most of which have no jobs."""

    async def look() -> tuple[int, list[SlurmStatus]]:
        since = int(time.time()) - 60
        none = [f"picas-{'x' * 73}-{number:010}.12" for number in range(995)]
        places = {key: f"/home/{'x' * 32}/picas-pilots/{key}" for key in none}
        async with cluster_for("spider").use() as shared:
            found = await asyncio.gather(
                *(shared.do(jobs.query(key, places.get(key, key), since)) for key in [*none, *keys])
            )
            return shared.queries, list(found)

    looks, found = asyncio.run(look())
    assert looks == 5
    assert [len(item.jobs) for item in found[-NUMBER:]] == [1] * (NUMBER - 1) + [2]


def test_a_query_is_what_it_would_be_alone(keys: list[str], remote: SlurmHook) -> None:
    since = int(time.time()) - 60
    alone = [remote.do(jobs.query(key, key, since)) for key in keys]

    async def look() -> list[SlurmStatus]:
        async with cluster_for("spider").use() as shared:
            return list(await asyncio.gather(*(shared.do(jobs.query(key, key, since)) for key in keys)))

    assert [item.jobs for item in asyncio.run(look())] == [item.jobs for item in alone]


def test_many_waits_use_one_connection(remote: SlurmHook) -> None:
    async def ask() -> set[str]:
        async def one() -> str:
            async with cluster_for("spider").use() as shared:
                return (await shared.perform(Command("echo $SSH_CONNECTION; sleep 0.2"))).stdout

        async with cluster_for("spider").use():
            return set(await asyncio.gather(*(one() for _ in range(20))))

    assert len(asyncio.run(ask())) == 1


def test_a_cluster_that_is_away_is_tried_now_and_then(
    remote: SlurmHook, cluster: Cluster | DockerStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_RECONNECT", 60.0)
    remote.run("true")  # it is up

    async def ask() -> None:
        async with cluster_for("spider").use() as shared:
            await shared.perform(Command("true"))
            cluster.stop_sshd(0)
            try:
                with pytest.raises(UnreachableError):
                    await shared.perform(Command("true"))
                with pytest.raises(RemoteError):
                    await shared.do(jobs.query("none", "none", 0))
            finally:
                cluster.start_sshd(0)
            with pytest.raises(UnreachableError):
                await shared.perform(Command("true"))  # not tried yet
            async with asyncio.timeout(20):
                while True:
                    shared._retry_at = 0.0  # as if it had been waited for
                    try:
                        await shared.perform(Command("true"))
                        break
                    except RemoteError:
                        await asyncio.sleep(0.5)

    asyncio.run(ask())
