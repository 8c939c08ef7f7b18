"""Files reach the cluster over the command channel, with any start-up files of the account and any settings of sshd."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException

from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.hooks.slurm import SlurmAsyncHook, SlurmHook
from airflow_provider_picas.operators.pilots import PicasSubmitPilotsOperator
from airflow_provider_picas.slurm.remote import Command, Output, RemoteFile, Send
from airflow_provider_picas.triggers.cluster import SESSIONS, cluster_for
from stack import native
from stack.cluster import Cluster
from stack.cluster.site import EXTERNAL_SFTP
from tests.conftest import set_connection
from tests.integration.faults import small_disk
from tests.integration.tasks import context

pytestmark = pytest.mark.usefixtures("picas_default", "spider")


@pytest.fixture
def sshd(site: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Starts the second login node's sshd with other settings; returns the id of a connection to it."""

    def restart(**settings: Any) -> str:
        site.stop_sshd(1)
        site.start_sshd(1, **settings)
        return set_connection(monkeypatch, "odd", native.ssh_connection(site, 1))

    yield restart
    site.stop_sshd(1)
    site.start_sshd(1)


@contextmanager
def bashrc(site: Cluster, text: str) -> Iterator[None]:
    """Shell text that bash reads for each command that comes by SSH."""
    file = site.home / ".bashrc"
    assert not file.exists()
    file.write_text(text + "\n")
    try:
        yield
    finally:
        file.unlink()


@pytest.fixture
def held(tmp_path: Path) -> str:
    """A script whose job does not start."""
    (tmp_path / "held.sh").write_text("#!/bin/bash\n#SBATCH --hold\n")
    return str(tmp_path / "held.sh")


def submit(task_id: str, **arguments: Any) -> dict[str, Any]:
    output = PicasSubmitPilotsOperator(task_id=task_id, **arguments).execute(context(task_id))
    assert output is not None
    return output


@pytest.mark.parametrize(
    ("settings", "startup"),
    [
        ({"sftp": EXTERNAL_SFTP}, "echo 'Welcome to the cluster'; echo 'No quota' >&2"),
        ({"sftp": None}, ""),
        ({"max_sessions": 1}, ""),
    ],
    ids=["a .bashrc that prints", "no SFTP", "one session at a time"],
)
def test_files_reach_a_restricted_login_node(
    site: Cluster, sshd: Callable[..., str], held: str, settings: dict[str, Any], startup: str
) -> None:
    with bashrc(site, startup):
        made = submit(f"t{secrets.token_hex(4)}", script=held, ssh_conn_id=sshd(**settings))
        with SlurmHook("odd") as slurm:
            jobs = slurm.run(f"squeue -h --name={made['submission']} -o %i; scancel {' '.join(made['job_ids'])}")
    assert jobs.stdout.split() == made["job_ids"]


def test_a_trigger_works_with_one_session_at_a_time(sshd: Callable[..., str]) -> None:
    async def run() -> list[Output]:
        async with cluster_for(sshd(max_sessions=1)).use() as cluster:
            commands = [cluster.perform(Command(f"sleep 0.1; echo {number}")) for number in range(3 * SESSIONS)]
            return list(await asyncio.gather(*commands))

    assert [output.stdout for output in asyncio.run(run())] == [f"{number}\n" for number in range(3 * SESSIONS)]


def test_a_node_without_sessions_is_reported(sshd: Callable[..., str]) -> None:
    with (
        SlurmHook(sshd(max_sessions=0)) as slurm,
        pytest.raises(Exception, match=r"did not open a session .*MaxSessions"),
    ):
        slurm.run("true")

    async def run() -> list[Any]:
        async with cluster_for("odd").use() as cluster:
            steps = [cluster.perform(Command("true")) for _ in range(2)]
            return await asyncio.gather(*steps, return_exceptions=True)

    assert all("did not open a session" in str(error) for error in asyncio.run(run()))


def test_a_full_home_leaves_no_part_of_a_submission(site: Cluster, tmp_path: Path) -> None:
    """The submission is made as soon as there is room: nothing of the failed one is taken for whole."""
    PicasHook("picas_default").deploy_views()
    (tmp_path / "data").write_bytes(os.urandom(1_200_000))
    folder, task_id = site.home / "small", f"t{secrets.token_hex(4)}"
    wanted: dict[str, Any] = {
        "command": ["true"],
        "files": [str(tmp_path / "data")],
        "remote_folder": "small",
        "ssh_conn_id": "spider",
        "sbatch": {"hold": True},
    }
    with small_disk(folder, "2m"):
        (folder / "others").write_bytes(bytes(1_400_000))
        with pytest.raises(AirflowException, match="No space left on device") as failure:
            submit(task_id, **wanted)
        assert f"{folder}/.picas-" in str(failure.value)
        assert "Free space there" in str(failure.value)
        assert os.listdir(folder) == ["others"], "a part of the submission is left"
        (folder / "others").unlink()
        made = submit(task_id, **wanted)
        assert Path(made["folder"], "data").read_bytes() == (tmp_path / "data").read_bytes()
        with SlurmHook("spider") as slurm:
            slurm.run(f"scancel {' '.join(made['job_ids'])}")


def test_a_file_that_finds_no_room_leaves_the_old_ones(site: Cluster) -> None:
    (site.home / "old").mkdir()
    try:
        first, second = (RemoteFile(f"{site.home}/old/{name}", content) for name, content in (("a", b"1"), ("b", b"2")))
        with bashrc(site, "ulimit -f 64"), SlurmHook("spider") as slurm:  # blocks of 1 KiB
            assert slurm.perform(Send([first, second])).code == 0
            large = RemoteFile(second.path, bytes(200_000))
            output = slurm.perform(Send([RemoteFile(first.path, b"new"), large]))
        assert output == Output(1, stderr=f"{second.path}: File too large\n")
        assert {file.name: file.read_bytes() for file in (site.home / "old").iterdir()} == {"a": b"1", "b": b"2"}
    finally:
        subprocess.run(["rm", "-r", site.home / "old"], check=True)


def test_a_start_up_file_that_reads_the_content_is_reported(site: Cluster) -> None:
    with bashrc(site, "read -r -n 20 -d '' answer"), SlurmHook("spider") as slurm:
        output = slurm.perform(Send([RemoteFile(f"{site.home}/eaten", b"x" * 1_000)]))
    assert output.code == 1
    assert "A start-up file of the account, such as .bashrc, may read the standard input" in output.stderr
    assert not list(site.home.glob("*eaten*"))


@pytest.mark.parametrize("way", ["task", "trigger"])
def test_a_large_file_arrives_unchanged(site: Cluster, way: str) -> None:
    content = os.urandom(33_000_000)
    step = Send([RemoteFile(f"{site.home}/large", content, 0o750), RemoteFile(f"{site.home}/é 'x", b"\0\n\0", 0o600)])

    async def send() -> Output:
        async with SlurmAsyncHook("spider") as hook:
            return await hook.perform(step)

    if way == "task":
        with SlurmHook("spider") as slurm:
            assert slurm.perform(step).code == 0
    else:
        assert asyncio.run(send()).code == 0
    for file in step.files:
        path = Path(file.path)
        assert (path.read_bytes(), path.stat().st_mode & 0o777) == (file.content, file.mode)
        path.unlink()
