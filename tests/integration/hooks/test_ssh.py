"""Tasks and triggers read an SSH connection in the same way, and a trigger that cannot log in hands the wait to a task."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred
from cryptography.hazmat.primitives import serialization

from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.hooks.slurm import SlurmAsyncHook, SlurmHook
from airflow_provider_picas.operators.pilots import PicasSubmitPilotsOperator
from airflow_provider_picas.operators.tokens import PicasPushTokensOperator
from airflow_provider_picas.sensors.tokens import PicasTokenStateSensor
from airflow_provider_picas.slurm.remote import Command, RemoteError
from airflow_provider_picas.tokens import documents
from airflow_provider_picas.triggers import cluster as shared
from airflow_provider_picas.triggers.tokens import PicasTokenStateTrigger
from stack import native
from stack.cluster import Cluster
from stack.docker import DockerStack
from stack.pool import Pool
from tests.conftest import set_connection
from tests.integration.tasks import context

LIMIT = 180.0  # seconds that anything may take
PASSPHRASE = "open s3same"
RELAY = """
import os, socket, sys, threading
server = socket.create_connection((sys.argv[1], int(sys.argv[2])))
def copy():
    while data := server.recv(65536): os.write(1, data)
threading.Thread(target=copy, daemon=True).start()
while data := os.read(0, 65536): server.sendall(data)
"""


class Connection:
    """An SSH connection to change, on a machine with a home of its own."""

    def __init__(self, cluster: Cluster | DockerStack, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cluster, self.home, self._monkeypatch = cluster, home, monkeypatch
        self.fields = native.ssh_connection(cluster)
        monkeypatch.setenv("HOME", str(home))
        monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
        (home / ".ssh").mkdir()

    def set(self, **extra: Any) -> None:
        """Set extras, or leave out those that are None."""
        extras = {**self.fields["extra"], **extra}
        kept = {name: value for name, value in extras.items() if value is not None}
        set_connection(self._monkeypatch, "spider", {**self.fields, "extra": kept})

    def file(self, name: str, text: str) -> None:
        """Write a file below ``~/.ssh``."""
        (self.home / ".ssh" / name).write_text(text)
        (self.home / ".ssh" / name).chmod(0o600)


@pytest.fixture
def connection(cluster: Cluster | DockerStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Connection:
    return Connection(cluster, tmp_path, monkeypatch)


def key_file(ssh: Connection) -> None:
    ssh.file("cluster_key", ssh.fields["extra"]["private_key"])
    ssh.set(private_key=None, key_file="~/.ssh/cluster_key")


def known_hosts(ssh: Connection) -> None:
    ssh.file("known_hosts", f"[{ssh.fields['host']}]:{ssh.fields['port']} {ssh.cluster.host_key}\n")
    ssh.set(host_key=None)


def changed_host_key(ssh: Connection) -> None:
    other = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDvJvqNIFdTdPbyv1pYVLGPJX1CzV3WUmwhG2mUwFBKn"
    ssh.file("known_hosts", f"[{ssh.fields['host']}]:{ssh.fields['port']} {other}\n")
    ssh.set(host_key=None, allow_host_key_change=True)


def passphrase(ssh: Connection) -> None:
    key = serialization.load_ssh_private_key(ssh.fields["extra"]["private_key"].encode(), None)
    encryption = serialization.BestAvailableEncryption(PASSPHRASE.encode())
    kinds = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH
    ssh.set(private_key=key.private_bytes(*kinds, encryption).decode(), private_key_passphrase=PASSPHRASE)


def proxy_command(ssh: Connection) -> None:
    (ssh.home / "relay.py").write_text(RELAY)
    command = shlex.join([sys.executable, str(ssh.home / "relay.py"), ssh.fields["host"], str(ssh.fields["port"])])
    ssh.file("config", f"Host nowhere.invalid\n  ProxyCommand {command}\n")
    ssh.fields["host"] = "nowhere.invalid"
    ssh.set()


def options(ssh: Connection) -> None:
    ssh.set(
        disabled_algorithms={"pubkeys": ["rsa-sha2-512"]},
        ciphers=["aes256-ctr"],
        compress="false",
        conn_timeout="20",
        look_for_keys="false",
        cmd_timeout=1,
    )


def not_checked(ssh: Connection) -> None:
    ssh.set(host_key=None, no_host_key_check="true")


def other_port(ssh: Connection) -> None:
    ssh.file("known_hosts", f"{ssh.fields['host']} {ssh.cluster.host_key}\n")
    ssh.set(host_key=None)


def wrong_host_key(ssh: Connection) -> None:
    ssh.set(host_key="ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDvJvqNIFdTdPbyv1pYVLGPJX1CzV3WUmwhG2mUwFBKn")


def no_key_file(ssh: Connection) -> None:
    ssh.set(private_key=None, key_file="~/.ssh/nothing")


def wrong_passphrase(ssh: Connection) -> None:
    passphrase(ssh)
    ssh.set(
        private_key=json.loads(os.environ["AIRFLOW_CONN_SPIDER"])["extra"]["private_key"], private_key_passphrase="no"
    )


def by_task() -> list[str]:
    """What a task gets for a command, twice, over a connection each; or why it cannot log in."""
    answers = []
    with SlurmHook("spider") as hook:
        for _ in range(2):
            try:
                answers.append(hook.run("echo hi").stdout)
            except RemoteError as error:
                return [f"{type(error).__name__}: {error}"]
            hook.close()
    return answers


def by_trigger() -> list[str]:
    """The same for a trigger."""

    async def ask() -> str:
        async with SlurmAsyncHook("spider") as hook:
            return (await hook.perform(Command("echo hi"))).stdout

    try:
        return [asyncio.run(ask()) for _ in range(2)]
    except RemoteError as error:
        return [f"{type(error).__name__}: {error}"]


@pytest.mark.parametrize(
    "setting",
    [key_file, known_hosts, changed_host_key, passphrase, proxy_command, options, not_checked],
    ids=lambda setting: setting.__name__,
)
def test_tasks_and_triggers_log_in_alike(connection: Connection, setting: Callable[[Connection], None]) -> None:
    setting(connection)
    assert by_task() == ["hi\n"] * 2
    assert by_trigger() == ["hi\n"] * 2


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        (other_port, "LoginError: The SSH host key of .* is unknown .*Put it in the connection's extra 'host_key'"),
        (wrong_host_key, "LoginError: The SSH host key of .* is not the expected one"),
        (
            no_key_file,
            r"LoginError: Connection 'spider' cannot be used: this machine has no readable file '/.*' \(key_file\)",
        ),
        (wrong_passphrase, "LoginError: Connection 'spider' cannot be used: Private key provided cannot be read"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_both_say_why_they_cannot_log_in(
    connection: Connection, setting: Callable[[Connection], None], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    setting(connection)
    said = by_task()
    assert re.match(reason, said[0]), said
    assert by_trigger() == said
    for secret in (PASSPHRASE, connection.fields["extra"]["private_key"].splitlines()[2]):
        assert secret not in said[0] + caplog.text


def test_a_trigger_that_cannot_log_in_hands_the_wait_to_a_task(
    connection: Connection, picas_default: str, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host key is known where tasks run, but not where triggers run."""
    monkeypatch.setattr(shared, "LOGIN_PAUSE", 0.1)
    monkeypatch.setattr(shared, "FIRST_RECONNECT", 0.1)
    batch = PicasPushTokensOperator(task_id="push", inputs=["a", "b"]).execute(context("push"))
    (tmp_path / "pilots.sh").write_text("#!/bin/bash\n#SBATCH --hold\n")
    submit = PicasSubmitPilotsOperator(task_id="pilots", script=str(tmp_path / "pilots.sh"), ssh_conn_id="spider")
    connection.set()
    pilots = submit.execute(context("pilots"))
    assert pilots is not None
    wait = PicasTokenStateSensor(
        task_id="wait",
        batch=batch,
        pilots=pilots,
        pilots_interval=0.1,
        poke_interval=0.1,
        timeout=LIMIT,
        deferrable=True,
    )
    with pytest.raises(TaskDeferred) as deferred:
        wait.execute(context("wait"))
    _, arguments = deferred.value.trigger.serialize()
    trigger = PicasTokenStateTrigger(**json.loads(json.dumps(arguments)))

    async def run() -> Any:
        async with asyncio.timeout(LIMIT):
            return (await anext(aiter(trigger.run()))).payload  # type: ignore[attr-defined]

    wrong_host_key(connection)
    event = asyncio.run(run())
    assert event["outcome"] == "unwatched"
    assert re.match("The SSH host key of .* is not the expected one", event["reason"])

    connection.set()
    hook = PicasHook(picas_default)
    now = int(time.time())
    done = [{**token, "lock": now, "done": now, "exit_code": 0} for token in hook.tokens("todo", batch["batch"])]
    threading.Timer(1.0, lambda: hook.do(hook.pool.write([documents.encode(token) for token in done]))).start()
    resumed = PicasTokenStateSensor(
        task_id="wait", batch=batch, pilots=pilots, poke_interval=0.1, timeout=LIMIT, deferrable=True, mode="reschedule"
    )
    counts = resumed.execute_complete(context("wait"), event, **(deferred.value.kwargs or {}))
    assert counts == {"todo": 0, "locked": 0, "done": 2, "error": 0}
    with SlurmHook("spider") as slurm:
        assert slurm.run(f"squeue -h --name={pilots['submission']}").stdout == "", "it has cancelled what did not start"
