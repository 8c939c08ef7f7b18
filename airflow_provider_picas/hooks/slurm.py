"""Hook for a Slurm cluster behind SSH: one connection, commands under the login profile, and files as their input."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook

from airflow_provider_picas.operation import drive, drive_async
from airflow_provider_picas.slurm import jobs, remote, sending, submission
from airflow_provider_picas.slurm.remote import (
    Command,
    NoSessionError,
    Operation,
    Output,
    RemoteError,
    Send,
    Step,
    UnreachableError,
)

if TYPE_CHECKING:
    import paramiko
    from airflow.providers.ssh.hooks.ssh import SSHHook

Result = TypeVar("Result")

CONNECT_TIMEOUT = 30.0  # seconds; from a task the connection's extra ``conn_timeout`` may name another
CONNECT_TRIES = 8  # of a task, for a login node that does not answer: more than a minute
SESSION_PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8)  # seconds between tries to open a session that sshd refuses
CLOSE_TIMEOUT = 5.0  # seconds for the end of a connection
SEND_TIMEOUT = 60.0  # seconds to send files, and one more for each SEND_RATE bytes
SEND_RATE = 50_000
_LARGEST_OUTPUT = 16_000_000  # bytes; more is no answer of a Slurm command


class SlurmHook(BaseHook):
    """Slurm's commands on a login node, over one SSH connection that is closed with the hook.

    :param ssh_conn_id: a connection of type ``ssh``. Airflow's SSH provider checks the host's key.

    Use it as a context manager. Methods raise ``slurm.remote.RemoteError``; ``UnreachableError`` where trying later may help.
    """

    def __init__(self, ssh_conn_id: str = "ssh_default") -> None:
        super().__init__()
        self.ssh_conn_id = ssh_conn_id
        self._client: paramiko.SSHClient | None = None

    def __enter__(self) -> SlurmHook:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        if self._client is not None:
            self._client.close()
        self._client = None

    @cached_property
    def ssh(self) -> SSHHook:
        """Airflow's SSH hook: it reads the connection's fields."""
        import paramiko
        from airflow.providers.ssh.hooks.ssh import SSHHook

        try:
            hook = SSHHook(ssh_conn_id=self.ssh_conn_id)
        except AirflowNotFoundException:
            raise RemoteError(_no_connection(self.ssh_conn_id)) from None
        except (ValueError, paramiko.SSHException) as error:  # such as a host key that is none
            raise RemoteError(f"Connection {self.ssh_conn_id!r} cannot be used: {error}") from None
        hook.conn_timeout = hook.conn_timeout or int(CONNECT_TIMEOUT)  # without, the kernel waits for minutes
        hook.conn_retry_attempts = 1  # it would try a wrong key three times, too, and sites shut such accounts out
        return hook

    @property
    def place(self) -> str:
        """The cluster as errors name it."""
        return f"{self.ssh.username}@{self.ssh.remote_host} (connection {self.ssh_conn_id!r})"

    def get_conn(self) -> paramiko.SSHClient:
        """The connection, opened when it is first needed or was lost."""
        transport = self._client.get_transport() if self._client else None
        if self._client is None or transport is None or not transport.is_active():
            self._client = self._connect()
        return self._client

    def _connect(self) -> paramiko.SSHClient:
        for tries in range(CONNECT_TRIES - 1):
            try:
                return self._connect_once()
            except UnreachableError as error:
                self.log.warning("%s Trying again.", error)
                time.sleep(min(15.0, 2.0 * 2**tries) * random.uniform(0.7, 1.3))
        return self._connect_once()

    def _connect_once(self) -> paramiko.SSHClient:
        import paramiko

        place = self.place
        try:
            return self.ssh.get_conn()
        except paramiko.BadHostKeyException as error:
            raise RemoteError(
                f"The SSH host key of {place} is not the expected one ({error}). If the site has changed it, put the new one in"
                " the connection's extra 'host_key'; else somebody is in between."
            ) from None
        except paramiko.AuthenticationException as error:
            raise RemoteError(
                f"{place} refuses the login ({error}). Check the user name and the key in the connection."
            ) from None
        except paramiko.SSHException as error:
            if "not found in known_hosts" in str(error):
                raise RemoteError(
                    f"The SSH host key of {place} is unknown ({error}). Put it in the connection's extra 'host_key' as"
                    " '<type> <base64>', as `ssh-keyscan` prints it, after comparing it with what the site tells."
                ) from None
            raise UnreachableError(f"{place} cannot be reached: {error}.") from None
        except (OSError, EOFError) as error:
            raise UnreachableError(
                f"{place} cannot be reached ({error or type(error).__name__}). Check host and port, and that the site is up."
            ) from None

    def do(self, operation: Operation[Result]) -> Result:
        """Carry out an operation's steps and return its result."""
        return drive(operation, self.perform)

    def run(self, text: str, timeout: float = 60.0) -> Output:
        """Run shell text under the login profile. ``timeout`` in seconds. Values in it are quoted with ``remote.quote``."""
        return self.perform(Command(text, timeout))

    def adopt(self, base_key: str, folder: str | None) -> submission.Submission | None:
        """What an earlier try has submitted; None when nothing stands."""
        return self.do(submission.adopt(base_key, folder))

    def submit(self, plan: submission.Plan) -> submission.Submission:
        """Submit pilots, or adopt what an earlier try has submitted."""
        return self.do(submission.submit(plan))

    def count_pilots(self) -> tuple[int, int]:
        """How many pilots of this package wait, and how many run, for the connection's user."""
        return self.do(jobs.count_pilots())

    def perform(self, step: Step) -> Output:
        """Carry out one step. Raises RemoteError."""
        if isinstance(step, Command):
            return self._run(step)
        if isinstance(step, Send):
            return self._send(step)
        time.sleep(step.seconds)
        return Output(0)

    def _run(self, command: Command) -> Output:
        self.log.debug("On %s: %s", self.place, command.text)
        marker = remote.new_marker()
        return self._exchange(marker, remote.wrap(command.text, marker), command.timeout, "A command")

    def _send(self, step: Send) -> Output:
        marker = remote.new_marker()
        seconds = SEND_TIMEOUT + sum(len(file.content) for file in step.files) // SEND_RATE
        content = sending.stdin(step.files, marker)
        return sending.outcome(self._exchange(marker, sending.line(marker), seconds, "Sending files", content))

    def _exchange(self, marker: str, line: str, timeout: float, what: str, stdin: Iterable[bytes] = ()) -> Output:
        """Run a command line in a session, which is over when this returns: at some sites there may be one at a time."""
        import paramiko

        transport = self._transport()
        try:
            with self._limited(timeout, what), _session(transport, timeout) as channel:
                channel.exec_command(line)
                _write(channel, stdin)
                stdout, stderr = _read(channel)
        except paramiko.ChannelException as error:
            raise NoSessionError(_no_session(self.place, error)) from None
        except (paramiko.SSHException, OSError, EOFError) as error:
            self.close()
            raise UnreachableError(f"The connection to {self.place} broke: {error or type(error).__name__}.") from None
        _check_size(self.place, stdout, stderr)
        try:
            return remote.unwrap(stdout.decode("utf-8", "replace"), stderr.decode("utf-8", "replace"), marker)
        except RemoteError as error:
            raise type(error)(f"{self.place}: {error}") from None

    def _transport(self) -> paramiko.Transport:
        transport = self.get_conn().get_transport()
        if transport is None:
            raise UnreachableError(f"The connection to {self.place} broke.")
        return transport

    @contextmanager
    def _limited(self, seconds: float, what: str) -> Iterator[None]:
        """Close the connection when what is done takes longer: paramiko waits for many answers without a time-out.

        Raises UnreachableError then. The next step opens another connection.
        """
        client, expired = self._client, threading.Event()

        def expire() -> None:
            expired.set()
            if client is not None:
                client.close()

        timer = threading.Timer(seconds, expire)
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
            self.close()
            raise UnreachableError(
                f"{what} on {self.place} did not end within {seconds:g} s. The login node or Slurm hangs; try later."
            )


class SlurmAsyncHook:
    """Slurm's commands on a login node, from a trigger: one asyncssh connection, opened when it is first needed.

    Use it as an asynchronous context manager. Parameters and errors as for ``SlurmHook``.
    """

    def __init__(self, ssh_conn_id: str = "ssh_default") -> None:
        self.ssh_conn_id = ssh_conn_id
        self._connection: Any = None
        self._lock = asyncio.Lock()
        self._failed: RemoteError | None = None  #: why the last try to connect failed

    async def __aenter__(self) -> SlurmAsyncHook:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; the next step opens another."""
        if self._connection is not None:
            await self._close(self._connection)

    async def _close(self, connection: Any) -> None:
        """Close a connection, without waiting long for the other side. If another one was opened meanwhile, it stays."""
        if self._connection is connection:
            self._connection = None
        connection.close()
        with suppress(TimeoutError):
            await asyncio.wait_for(connection.wait_closed(), CLOSE_TIMEOUT)
        connection.abort()

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._connection is not None

    @property
    def place(self) -> str:
        """The cluster as errors name it."""
        return f"the cluster of connection {self.ssh_conn_id!r}"

    async def do(self, operation: Operation[Result]) -> Result:
        """Carry out an operation's steps and return its result."""
        return await drive_async(operation, self.perform)

    async def perform(self, step: Step) -> Output:
        """Carry out one step. Raises RemoteError."""
        if isinstance(step, Command):
            return await self._run(step)
        if isinstance(step, Send):
            return await self._send(step)
        await asyncio.sleep(step.seconds)
        return Output(0)

    async def _connect(self) -> Any:
        import asyncssh

        failed_before = self._failed
        async with self._lock:
            if self._connection is None:
                if self._failed is not None and self._failed is not failed_before:
                    raise self._failed  # of the try that this one waited for
                try:
                    self._connection = await asyncio.wait_for(_ssh_connection(self.ssh_conn_id), CONNECT_TIMEOUT)
                except asyncssh.HostKeyNotVerifiable as error:
                    self._failed = RemoteError(f"The SSH host key of {self.place} is not the expected one ({error}).")
                    raise self._failed from None
                except asyncssh.PermissionDenied as error:
                    self._failed = RemoteError(f"{self.place} refuses the login ({error}).")
                    raise self._failed from None
                except (OSError, asyncssh.Error, TimeoutError) as error:
                    reason = str(error) or type(error).__name__
                    self._failed = UnreachableError(f"{self.place} cannot be reached: {reason}.")
                    raise self._failed from None
            return self._connection

    async def _run(self, command: Command) -> Output:
        marker = remote.new_marker()
        return await self._exchange(marker, remote.wrap(command.text, marker), command.timeout, "A command")

    async def _send(self, step: Send) -> Output:
        marker = remote.new_marker()
        seconds = SEND_TIMEOUT + sum(len(file.content) for file in step.files) // SEND_RATE
        content = b"".join(sending.stdin(step.files, marker))
        return sending.outcome(await self._exchange(marker, sending.line(marker), seconds, "Sending files", content))

    async def _exchange(self, marker: str, line: str, timeout: float, what: str, stdin: bytes = b"") -> Output:
        import asyncssh

        connection = await self._connect()
        given: dict[str, Any] = {"input": stdin} if stdin else {"stdin": asyncssh.DEVNULL}
        try:
            async with asyncio.timeout(timeout):  # also for opening the session, which asyncssh does not limit
                process = await _async_session(connection, line, given)
                stdout, stderr = await _output(process)
        except TimeoutError:
            await self._close(connection)
            raise UnreachableError(f"{what} on {self.place} did not end within {timeout:g} s.") from None
        except (OSError, asyncssh.Error) as error:
            if isinstance(error, asyncssh.ChannelOpenError) and not connection.is_closed():
                raise NoSessionError(_no_session(self.place, error)) from None
            await self._close(connection)
            raise UnreachableError(f"The connection to {self.place} broke: {error or type(error).__name__}.") from None
        _check_size(self.place, stdout, stderr)
        try:
            return remote.unwrap(stdout.decode("utf-8", "replace"), stderr.decode("utf-8", "replace"), marker)
        except RemoteError as error:
            await self._close(connection)
            raise type(error)(f"{self.place}: {error}") from None


def _check_size(place: str, stdout: bytes, stderr: bytes) -> None:
    if max(len(stdout), len(stderr)) > _LARGEST_OUTPUT:
        raise RemoteError(
            f"A command on {place} was stopped: it wrote more than {_LARGEST_OUTPUT:,} bytes, no answer of Slurm."
            " Check what the login profile prints."
        )


async def _output(process: Any) -> tuple[bytes, bytes]:
    """What a command writes to stdout and stderr. It is stopped when one of them is larger than ``_LARGEST_OUTPUT``."""

    async def read(stream: Any) -> bytes:
        found = bytearray()
        while len(found) <= _LARGEST_OUTPUT and (piece := await stream.read(1 << 16)):
            found += piece
        if len(found) > _LARGEST_OUTPUT:
            process.channel.abort()  # which ends the other stream, too
        return bytes(found)

    try:
        stdout, stderr = await asyncio.gather(read(process.stdout), read(process.stderr))
        await process.wait_closed()
    finally:
        process.close()
    return stdout, stderr


async def _async_session(connection: Any, line: str, given: dict[str, Any]) -> Any:
    """As ``_session``, with a command that runs in it."""
    import asyncssh

    for pause in SESSION_PAUSES:
        try:
            return await connection.create_process(line, encoding=None, **given)
        except asyncssh.ChannelOpenError:
            if connection.is_closed():
                raise
            await asyncio.sleep(pause)
    return await connection.create_process(line, encoding=None, **given)


def _no_connection(ssh_conn_id: str) -> str:
    return (
        f"There is no connection {ssh_conn_id!r}. Make one of type SSH to the cluster's login node, in the UI or by"
        " `airflow connections add`; or name another as ssh_conn_id."
    )


async def _ssh_connection(ssh_conn_id: str) -> Any:
    from airflow.providers.ssh.hooks.ssh import SSHHookAsync

    chatty = logging.getLogger("asyncssh")
    if chatty.level == logging.NOTSET:
        chatty.setLevel(logging.WARNING)  # it logs each command, and each step of each connection
    try:
        return await SSHHookAsync(ssh_conn_id).get_conn()  # type: ignore[no-untyped-call]
    except AirflowNotFoundException:
        raise RemoteError(_no_connection(ssh_conn_id)) from None


def _no_session(place: str, error: Exception) -> str:
    return f"{place} opens no session ({error}). Its sshd may allow too few of them (MaxSessions); ask the site."


def _session(transport: paramiko.Transport, timeout: float) -> paramiko.Channel:
    """Open a session. An sshd that allows one at a time may not have noticed yet that the last one is over."""
    import paramiko

    for pause in SESSION_PAUSES:
        try:
            return transport.open_session(timeout=timeout)
        except paramiko.ChannelException:
            time.sleep(pause)
    return transport.open_session(timeout=timeout)


def _write(channel: paramiko.Channel, stdin: Iterable[bytes]) -> None:
    """Write the standard input of a command, which may end before it has read all: then its output says why."""
    with suppress(OSError):
        for part in stdin:
            channel.sendall(part)
        channel.shutdown_write()


def _read(channel: paramiko.Channel) -> tuple[bytes, bytes]:
    """Read both streams until the command has ended, or one is larger than any is wanted.

    The end of the output is not enough: until sshd tells the exit code, the session counts against its MaxSessions.
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
