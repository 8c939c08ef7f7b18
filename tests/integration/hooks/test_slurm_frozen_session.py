"""A login node whose sshd hangs during a session: each step ends in time, and the next one uses a new connection."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from airflow_provider_picas.hooks import slurm
from airflow_provider_picas.hooks.slurm import SlurmAsyncHook, SlurmHook
from airflow_provider_picas.slurm import jobs
from airflow_provider_picas.slurm.remote import Command, RemoteFile, Send, UnreachableError
from airflow_provider_picas.triggers import cluster as module
from airflow_provider_picas.triggers.cluster import cluster_for
from stack.cluster import Cluster
from stack.docker import DockerStack

TIMEOUT = 2.0  # seconds of the steps in these tests
BOUND = 25.0  # seconds until a step has failed, on a slow machine


@pytest.fixture
def freeze(cluster: Cluster | DockerStack) -> Iterator[Callable[[], None]]:
    """Freezes the sessions that are open."""
    if isinstance(cluster, DockerStack):
        pytest.skip("The processes of the login node are in a container.")
    frozen: list[int] = []
    yield lambda: frozen.extend(cluster.freeze_sessions(0))
    assert frozen
    for pid in frozen:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def test_a_command_ends_in_time_and_the_next_reconnects(freeze: Callable[[], None], spider: str) -> None:
    with SlurmHook(spider) as hook:
        hook.run("true")
        freeze()
        begin = time.monotonic()
        with pytest.raises(UnreachableError, match=r"A command on .* did not finish within 2 s"):
            hook.run("true", TIMEOUT)
        assert time.monotonic() - begin < BOUND
        assert hook.run("echo $((6*7))").stdout == "42\n"


def test_a_command_that_takes_too_long_is_ended(spider: str) -> None:
    """Its connection is closed, too: nobody knows why it takes so long."""
    with SlurmHook(spider) as hook:
        before = hook.run("echo $SSH_CONNECTION").stdout
        with pytest.raises(UnreachableError, match="did not finish within 2 s"):
            hook.run("sleep 60", TIMEOUT)
        assert hook.run("echo $SSH_CONNECTION").stdout != before


@pytest.mark.parametrize("opened", [False, True])
def test_sending_files_ends_in_time(
    freeze: Callable[[], None], spider: str, monkeypatch: pytest.MonkeyPatch, opened: bool
) -> None:
    monkeypatch.setattr(slurm, "SEND_TIMEOUT", TIMEOUT)
    with SlurmHook(spider) as hook:
        hook.run("true")
        home = hook.run("pwd").stdout.strip()
        step = Send([RemoteFile(f"{home}/frozen-{opened}", b"content")])
        if opened:
            hook.perform(step)
        freeze()
        begin = time.monotonic()
        with pytest.raises(UnreachableError, match=r"Sending files on .* did not finish within 2 s"):
            hook.perform(step)
        assert time.monotonic() - begin < BOUND
        assert hook.perform(step).code == 0
        assert hook.run(f"cat {home}/frozen-{opened}; rm {home}/frozen-{opened}").stdout == "content"


def test_a_triggers_command_ends_in_time(freeze: Callable[[], None], spider: str) -> None:
    async def run() -> None:
        async with SlurmAsyncHook(spider) as hook:
            await hook.perform(Command("true"))
            freeze()
            async with asyncio.timeout(BOUND):
                with pytest.raises(UnreachableError, match="did not finish within 2 s"):
                    await hook.perform(Command("true", TIMEOUT))
            assert (await hook.perform(Command("echo $((6*7))"))).stdout == "42\n"

    asyncio.run(run())


def test_queries_of_jobs_go_on(freeze: Callable[[], None], spider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The look after one that took long is not put off for a multiple of its time."""
    monkeypatch.setattr(module, "LOAD", 1e6)
    monkeypatch.setattr(module, "LONGEST_PAUSE", 1.0)

    async def run() -> None:
        async with cluster_for(spider).use() as shared:
            await shared.do(jobs.query("none", "none", 0))
            freeze()
            with monkeypatch.context() as short:
                short.setattr(jobs, "QUERY_TIMEOUT", TIMEOUT)
                async with asyncio.timeout(BOUND):
                    with pytest.raises(UnreachableError, match="did not finish within 2 s"):
                        await shared.do(jobs.query("none", "none", 0))
            async with asyncio.timeout(BOUND):
                while True:
                    with suppress(UnreachableError):  # until it connects again, which it does not try at once
                        await shared.do(jobs.query("none", "none", 0))
                        return

    asyncio.run(run())
