"""Commands on the cluster that write without end: both hooks stop them at a limit, with bounded memory."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable

import pytest

from airflow_provider_picas.hooks.slurm import SlurmAsyncHook, SlurmHook
from airflow_provider_picas.slurm.remote import Command, Output, RemoteError, UnreachableError


def run(conn_id: str, *commands: str) -> list[Output | RemoteError]:
    """What becomes of each command, over one connection."""
    with SlurmHook(conn_id) as hook:
        return [outcome(lambda text=text: hook.perform(Command(text, 120))) for text in commands]


def outcome(perform: Callable[[], Output]) -> Output | RemoteError:
    try:
        return perform()
    except RemoteError as error:
        return error


def run_async(conn_id: str, *commands: str) -> list[Output | RemoteError]:
    async def one(hook: SlurmAsyncHook, text: str) -> Output | RemoteError:
        try:
            return await hook.perform(Command(text, 120))
        except RemoteError as error:
            return error

    async def all_of_them() -> list[Output | RemoteError]:
        async with SlurmAsyncHook(conn_id) as hook:
            return [await one(hook, text) for text in commands]

    return asyncio.run(all_of_them())


@pytest.mark.parametrize("way", [run, run_async])
@pytest.mark.parametrize("stream", ["", " >&2"])
def test_a_command_that_writes_hundreds_of_megabytes_is_stopped(
    spider: str, way: Callable[..., list[Output | RemoteError]], stream: str
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    flood, after = way(spider, f"echo before; yes | head -c 700000000{stream}; echo after", "echo fine")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB
    assert isinstance(flood, RemoteError)
    assert not isinstance(flood, UnreachableError)  # asking again would not help
    assert "it wrote more than 16,000,000 bytes" in str(flood)
    assert isinstance(after, Output)
    assert after.stdout.strip() == "fine"


@pytest.mark.parametrize("way", [run, run_async])
def test_a_command_that_writes_much_is_read_whole(spider: str, way: Callable[..., list[Output | RemoteError]]) -> None:
    (output,) = way(spider, "yes | head -c 15000000; yes | head -c 15000000 >&2; exit 3")
    assert isinstance(output, Output)
    assert (output.code, len(output.stdout)) == (3, 15_000_000)
    assert output.stderr.count("y") == 7_500_000
