"""Hook for a Slurm cluster behind SSH: one connection, commands under the login profile, and files as their input."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from airflow.providers.common.compat.sdk import BaseHook
from asgiref.sync import sync_to_async

from airflow_provider_picas.hooks import ssh
from airflow_provider_picas.lifecycle.backoff import Backoff
from airflow_provider_picas.sansio import drive, drive_async
from airflow_provider_picas.slurm import jobs, remote, sending, submission_folder
from airflow_provider_picas.slurm.remote import (
    Command,
    NoSessionError,
    Operation,
    Output,
    Pause,
    RemoteError,
    Send,
    Step,
    UnreachableError,
)
from airflow_provider_picas.tokens.text import one_line

if TYPE_CHECKING:
    import paramiko
    from airflow.providers.ssh.hooks.ssh import SSHHook

Result = TypeVar("Result")

FIRST_RECONNECT, LONGEST_RECONNECT = 2.0, 15.0  # seconds
CONNECT_TRIES = 8  # by a task, if a login node does not answer: more than a minute in total
SESSION_PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8)  # seconds between tries to open a session that sshd refuses
THREADS = 8  # for a trigger's connection
SEND_TIMEOUT = 60.0  # seconds to send files, and one more for each SEND_RATE bytes
SEND_RATE = 50_000
_LARGEST_OUTPUT = 16_000_000  # bytes; no Slurm command answers with more


class SlurmHook(BaseHook):
    """Slurm's commands on a login node, over one SSH connection that is closed with the hook.

    :param ssh_conn_id: a connection of type ``ssh``. Airflow's SSH provider checks the host's key.

    Methods take ``operation``: a generator that yields steps on the cluster; ``step``: one of them; ``text``: shell code;
    ``plan``: a submission to make; ``base_key`` and ``folder``: the key of a submission without its number, and the remote
    folder; ``client``: an open SSH connection.

    Use it as a context manager. Methods raise ``slurm.remote.RemoteError``; ``UnreachableError`` if trying later may
    help.
    """

    def __init__(self, ssh_conn_id: str = "ssh_default") -> None:
        super().__init__()
        self.ssh_conn_id = ssh_conn_id
        self._client: paramiko.SSHClient | None = None
        self._opening = threading.Lock()

    def __enter__(self) -> SlurmHook:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        if self._client is not None:
            self._drop(self._client)

    def _drop(self, client: paramiko.SSHClient) -> None:
        """Close a connection. If another one was opened in the meantime, that one stays open."""
        if self._client is client:
            self._client = None
        ssh.close(self.ssh, client)

    @cached_property
    def ssh(self) -> SSHHook:
        """Airflow's SSH hook with the connection's settings."""
        return ssh.read(self.ssh_conn_id)

    @property
    def place(self) -> str:
        """The name of the cluster in errors."""
        return ssh.place(self.ssh)

    @property
    def client(self) -> paramiko.SSHClient | None:
        """The connection, if one is open."""
        return self._client if self._client is not None and _active(self._client) else None

    def get_conn(self) -> paramiko.SSHClient:
        """The connection. It is opened on first use, and again after it was lost."""
        client = self.client
        if client is None:
            self.close()
            client = self._client = self._connect()
        return client

    def _connect(self) -> paramiko.SSHClient:
        backoff = Backoff(FIRST_RECONNECT, LONGEST_RECONNECT, most=CONNECT_TRIES)
        while True:
            try:
                return ssh.connect(self.ssh)
            except UnreachableError as error:
                if (pause := backoff.again()) is None:
                    raise
                self.log.warning("%s Trying again.", error)
                time.sleep(pause)

    def connect_once(self) -> paramiko.SSHClient:
        """Open a connection and keep it as the hook's. Raises LoginError or UnreachableError."""
        self._client = ssh.connect(self.ssh)
        return self._client

    def do(self, operation: Operation[Result]) -> Result:
        """Carry out an operation's steps and return its result."""
        return drive(operation, self.perform)

    def run(self, text: str, timeout: float = 60.0) -> Output:
        """Run shell code under the login profile. ``timeout`` in seconds. Quote values in it with ``remote.quote``."""
        return self.perform(Command(text, timeout))

    def adopt(self, base_key: str, folder: str | None) -> submission_folder.SubmitResult | None:
        """The submission of an earlier try; None if there is none."""
        return self.do(submission_folder.adopt(base_key, folder))

    def submit(self, plan: submission_folder.Plan) -> submission_folder.SubmitResult:
        """Submit pilots, or adopt the submission of an earlier try."""
        return self.do(submission_folder.submit(plan))

    def count_pilots(self) -> tuple[int, int]:
        """The numbers of pending and running pilots of this package for the connection's user."""
        return self.do(jobs.count_pilots())

    def perform(self, step: Step) -> Output:
        """Carry out one step. Raises RemoteError."""
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return Output(0)
        return self.carry_out(step, self.get_conn())

    def carry_out(self, step: Command | Send, client: paramiko.SSHClient) -> Output:
        """Carry out a step over a connection. Thread-safe."""
        marker = remote.new_marker()
        if isinstance(step, Command):
            self.log.debug("On %s: %s", self.place, step.text)
            line = remote.wrap(step.text, marker)
            return self._exchange(client, marker, line, _Limit(step.timeout, "A command"))
        seconds = SEND_TIMEOUT + sum(len(file.content) for file in step.files) // SEND_RATE
        limit, content = _Limit(seconds, "Sending files"), sending.stdin(step.files, marker)
        return sending.outcome(self._exchange(client, marker, sending.line(marker), limit, content))

    def _exchange(
        self, client: paramiko.SSHClient, marker: str, line: str, limit: _Limit, stdin: Iterable[bytes] = ()
    ) -> Output:
        """Run a command line in a session, which is closed when this returns: some sites allow one session at a time."""
        import paramiko

        try:
            with self._limited(client, limit), self._session(client, limit.seconds) as channel:
                channel.exec_command(line)
                _write(channel, stdin)
                stdout, stderr = _read(channel)
        except paramiko.ChannelException as error:
            raise NoSessionError(
                f"{self.place} did not open a session ({one_line(str(error))}). Its sshd may allow too few (MaxSessions);"
                " ask the site."
            ) from None
        except (paramiko.SSHException, OSError, EOFError) as error:
            self._drop(client)
            raise UnreachableError(
                f"The connection to {self.place} was lost: {one_line(str(error)) or type(error).__name__}."
            ) from None
        _check_size(self.place, stdout, stderr)
        try:
            return remote.unwrap(stdout.decode("utf-8", "replace"), stderr.decode("utf-8", "replace"), marker)
        except RemoteError as error:
            if not _active(client):
                raise UnreachableError(f"The connection to {self.place} was lost.") from None
            raise type(error)(f"{self.place}: {error}") from None

    def _session(self, client: paramiko.SSHClient, timeout: float) -> paramiko.Channel:
        """Open a session. An sshd that allows one at a time may not have noticed yet that the last one has ended."""
        import paramiko

        transport = client.get_transport()
        if transport is None:
            raise EOFError
        for pause in (*SESSION_PAUSES, None):
            try:
                with self._opening:  # of two concurrent refusals, paramiko reports the reason of only one
                    # Later than `_limited`, which has the better error.
                    return transport.open_session(timeout=timeout + ssh.CLOSE_TIMEOUT)
            except paramiko.ChannelException:
                if pause is None:
                    raise
                time.sleep(pause)
        raise AssertionError("the last one returns or raises")

    @contextmanager
    def _limited(self, client: paramiko.SSHClient, limit: _Limit) -> Iterator[None]:
        """Close the connection if the block takes longer: paramiko waits for many responses without a timeout.

        Raises UnreachableError in that case. The next step opens another connection.
        """
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            client.close()

        timer = threading.Timer(limit.seconds, expire)
        timer.daemon = True
        timer.start()
        try:
            yield
        except Exception:
            if not expired.is_set():
                raise
        finally:
            timer.cancel()
        if expired.is_set():
            self._drop(client)
            raise UnreachableError(
                f"{limit.what} on {self.place} did not finish within {limit.seconds:g} s."
                " The login node or Slurm may hang; try again later."
            )


@dataclass(frozen=True)
class _Limit:
    """The time limit of an action, and the action's name in errors."""

    seconds: float
    what: str


class SlurmAsyncHook:
    """Slurm's commands on a login node, from a trigger: ``SlurmHook`` in threads, over one connection for all of them.

    :param ssh_conn_id: a connection of type ``ssh``.

    Use it as an asynchronous context manager. Its methods take and raise what those of ``SlurmHook`` do. It tries once to
    connect.
    """

    def __init__(self, ssh_conn_id: str = "ssh_default") -> None:
        self.ssh_conn_id = ssh_conn_id
        self._hook: SlurmHook | None = (
            None  #: the one that has connected; the next one reads the Airflow connection again
        )
        self._lock = asyncio.Lock()
        self._failed: RemoteError | None = None  #: why the last attempt to connect failed
        self._threads = ThreadPoolExecutor(THREADS, "picas-ssh")

    async def __aenter__(self) -> SlurmAsyncHook:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection, which ends all commands on it. Do not use the hook after that."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._hook is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(ssh.CLOSE_TIMEOUT):
                    await asyncio.to_thread(self._hook.close)

    @property
    def connected(self) -> bool:
        """True if there is a connection, as far as is known."""
        return self._hook is not None and self._hook.client is not None

    async def do(self, operation: Operation[Result]) -> Result:
        """Carry out an operation's steps and return its result."""
        return await drive_async(operation, self.perform)

    async def perform(self, step: Step) -> Output:
        """Carry out one step. Raises RemoteError."""
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return Output(0)
        hook, client = await self._connect()
        return await asyncio.get_running_loop().run_in_executor(self._threads, hook.carry_out, step, client)

    async def _connect(self) -> tuple[SlurmHook, paramiko.SSHClient]:
        failed_before = self._failed
        async with self._lock:
            client = self._hook.client if self._hook is not None else None
            if self._hook is None or client is None:
                if self._failed is not None and self._failed is not failed_before:
                    raise self._failed  # from the attempt that this one waited for
                try:
                    self._hook, client = await self._open()
                except RemoteError as error:
                    self._failed = error
                    raise
            return self._hook, client

    async def _open(self) -> tuple[SlurmHook, paramiko.SSHClient]:
        hook = SlurmHook(self.ssh_conn_id)
        try:
            await sync_to_async(lambda: hook.ssh)()  # other threads cannot call Airflow
        except RemoteError:
            raise
        except Exception as error:  # Airflow's API is away
            raise UnreachableError(
                f"Airflow did not provide connection {self.ssh_conn_id!r} ({type(error).__name__}: {error!s:.300})."
            ) from error
        chatty = logging.getLogger("paramiko")
        if chatty.level == logging.NOTSET:
            chatty.setLevel(logging.WARNING)  # paramiko logs each step of each connection
        opening = asyncio.get_running_loop().run_in_executor(self._threads, hook.connect_once)
        try:
            return hook, await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(lambda _: hook.close())  # nobody will use it
            raise


def _active(client: paramiko.SSHClient) -> bool:
    transport = client.get_transport()
    return transport is not None and transport.is_active()


def _check_size(place: str, stdout: bytes, stderr: bytes) -> None:
    if max(len(stdout), len(stderr)) > _LARGEST_OUTPUT:
        raise RemoteError(
            f"A command on {place} was stopped: it wrote more than {_LARGEST_OUTPUT:,} bytes, more than any Slurm command."
            " Check what the login profile prints."
        )


def _write(channel: paramiko.Channel, stdin: Iterable[bytes]) -> None:
    """Write the standard input of a command. It may end before it has read everything: then its output says why."""
    with suppress(OSError):
        for part in stdin:
            channel.sendall(part)
        channel.shutdown_write()


def _read(channel: paramiko.Channel) -> tuple[bytes, bytes]:
    """Read both streams until the command has ended, or until one exceeds the limit.

    The end of the output is not enough: until sshd sends the exit code, the session counts against its MaxSessions.
    """
    parts: dict[str, bytearray] = {"out": bytearray(), "err": bytearray()}
    pause = 0.002
    while True:
        ended = channel.closed or (channel.eof_received and channel.exit_status_ready())
        got = False
        while channel.recv_ready() and len(parts["out"]) <= _LARGEST_OUTPUT:
            parts["out"] += channel.recv(65536)
            got = True
        while channel.recv_stderr_ready() and len(parts["err"]) <= _LARGEST_OUTPUT:
            parts["err"] += channel.recv_stderr(65536)
            got = True
        if (ended and not got) or max(map(len, parts.values())) > _LARGEST_OUTPUT:
            return bytes(parts["out"]), bytes(parts["err"])
        if not got:
            time.sleep(pause)
            pause = min(0.05, pause * 1.5)
