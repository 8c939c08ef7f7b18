"""One attempt: a command with its own folder, session and environment."""

import collections
import errno
import json
import os
import select
import signal
import subprocess
import time
from contextlib import suppress
from typing import Any, Deque, Dict, List, Optional, Tuple

from airflow_provider_picas.lifecycle import new_tokens
from airflow_provider_picas.lifecycle.json_values import Doc, number
from airflow_provider_picas.lifecycle.pilot_config import Config
from airflow_provider_picas.lifecycle.transitions import Ended, Token
from airflow_provider_picas.pilot.environment import read_file, read_json, token_environment, with_variables, write_file
from airflow_provider_picas.pilot.processes import Processes, signal_group
from airflow_provider_picas.pilot.scratch import remove_tree

PROGRESS_BYTES = 4096
TOKEN, OUTPUT, PROGRESS = "token.json", "output.json", "progress.json"  # in the folder of an attempt
OWN_FILES = frozenset([TOKEN, OUTPUT, PROGRESS, new_tokens.FILE])


class Tail:
    """The last bytes of a stream."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._chunks: Deque[bytes] = collections.deque()
        self._kept = 0
        self._total = 0

    def add(self, data: bytes) -> None:
        """Append the next bytes."""
        self._chunks.append(data)
        self._total += len(data)
        self._kept += len(data)
        while self._chunks and self._kept - len(self._chunks[0]) >= self._most:
            self._kept -= len(self._chunks.popleft())

    def read(self, descriptor: int) -> bool:
        """Read the available data, at most a few pipe buffers; False at the end of the stream."""
        for _ in range(16):
            try:
                data = os.read(descriptor, 65536)
            except BlockingIOError:
                return True
            if not data:
                return False
            self.add(data)
        return True

    def end(self, most: int) -> bytes:
        """The last bytes, for another thread than the one that adds them."""
        parts: List[bytes] = []
        for chunk in reversed(list(self._chunks)):
            parts.insert(0, chunk)
            if sum(map(len, parts)) >= most:
                break
        return b"".join(parts)[-most:]

    def value(self) -> bytes:
        """The bytes that are kept, after a line that says how many were dropped."""
        data = b"".join(self._chunks)
        if self._total <= self._most or not self._most:
            return data
        return f"[{self._total - self._most:,} bytes omitted]\n".encode("ascii") + data[-self._most :]


class Run:
    """One attempt: a command with its own folder, session and environment."""

    def __init__(self, token: Token, folder: str, files: str, config: Config, processes: Processes) -> None:
        self.token = token
        self.folder = folder
        self.made = self.started = time.monotonic()
        self._files = files
        self._config = config
        self._processes = processes
        self._token_file = os.path.join(folder, TOKEN)
        self._output_file = os.path.join(folder, OUTPUT)
        self._tokens_file = os.path.join(folder, new_tokens.FILE)
        self._progress_file = os.path.join(folder, PROGRESS)
        self._as_made: Tuple[int, ...] = ()  # the folder's inode, owner and mode
        self._left_none = False  # the command has ended, and so have all processes that it started
        self._streams: Tuple[Tail, ...] = ()  # stdout and stderr, once the command runs
        self._pipes: List[int] = []  # the ends of stdout and stderr that are read
        self._stop: Optional[Tuple[str, float]] = None  # the reason, and the seconds until SIGKILL

    def prepare(self, spare: Optional[str] = None) -> None:
        """Create the folder: the token as JSON, and links to the submission's files. Raises OSError.

        ``spare``: the empty folder of an earlier run, which gets a new name. On a disk, that costs a tenth of making one.
        """
        if spare is None or not _rename(spare, self.folder):
            os.mkdir(self.folder, 0o700)
        self._as_made = _identity(self.folder)
        write_file(self._token_file, json.dumps(self.token.doc).encode("ascii"))
        for name in self._config.files:
            os.symlink(os.path.join(self._files, name), os.path.join(self.folder, name))

    def clean(self) -> Optional[str]:
        """Remove the folder; or empty it and return its path for another run, if the command left it unchanged and no
        process is left that could write into it."""
        with suppress(OSError):
            names = os.listdir(self.folder)
            if all(name in OWN_FILES or name in self._config.files for name in names):
                for name in names:
                    os.unlink(os.path.join(self.folder, name))
                if self._left_none and _identity(self.folder) == self._as_made:
                    return self.folder
                os.rmdir(self.folder)
                return None
        remove_tree(self.folder)
        return None

    def stop(self, why: str, grace: float) -> None:
        """End the command: SIGTERM now, SIGKILL after ``grace`` seconds. Thread-safe; the first reason is kept."""
        first = self._stop
        self._stop = (why, grace) if first is None else (first[0], min(first[1], grace))

    @property
    def stopped(self) -> Optional[str]:
        """Why it is being stopped, or None."""
        return self._stop[0] if self._stop else None

    def progress(self) -> Any:
        """The progress that the command reports, or None."""
        return read_json(self._progress_file, PROGRESS_BYTES)[0]

    def tail(self, most: int) -> str:
        """The end of the command's output so far: half of ``most`` bytes of stdout, and of stderr."""
        ends = [stream.end(most // 2).decode("utf-8", "replace") for stream in self._streams]
        return "\n".join(text for text in ends if text)

    def execute(self, env: Dict[bytes, bytes]) -> Ended:
        """Run the command to its end, then end all processes that it left behind. Raises OSError if no process can be
        created."""
        self.started = time.monotonic()
        try:
            process = self._start(env)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ENOEXEC):
                raise
            code = 127 if error.errno in (errno.ENOENT, errno.ENOTDIR) else 126
            return Ended("exit", code, 0.0, err=f"{error}\n".encode("utf-8", "replace"))
        out, err = self._streams = Tail(self._config.log_bytes), Tail(self._config.log_bytes)
        try:
            how = self._watch(process.pid, {self._pipes[0]: out, self._pipes[1]: err})
        finally:
            self._processes.ended(process)
            close_all(self._pipes)
        seconds = time.monotonic() - self.started
        code = process.returncode if process.returncode >= 0 else 128 - process.returncode  # as in a shell
        result = read_json(self._output_file, self._config.output_bytes)
        made = self._made() if how == "exit" and code == 0 else new_tokens.Made()
        return Ended(how, code, seconds, out.value(), err.value(), *result, made=made)

    def _made(self) -> new_tokens.Made:
        """The tokens that the command has made."""
        data, fault = read_file(self._tokens_file, new_tokens.MOST_BYTES, "let several tokens make them")
        if fault:
            return new_tokens.Made((), fault)
        config = self._config
        return new_tokens.read_list(data, self.token.doc, config.stages, config.pool_profile())

    def _start(self, env: Dict[bytes, bytes]) -> "subprocess.Popen[bytes]":
        command = self._config.command
        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        own = {
            "PICAS_TOKEN_FILE": self._token_file,
            "PICAS_OUTPUT_FILE": self._output_file,
            "PICAS_TOKENS_FILE": self._tokens_file,
            "PICAS_PROGRESS_FILE": self._progress_file,
            "PICAS_ATTEMPT": str(self.token.attempt),
        }
        (out, out_end), (err, err_end) = os.pipe(), os.pipe()  # cheaper than subprocess.PIPE
        self._pipes = [out, err]
        options: Doc = {"cwd": self.folder, "stdout": out_end, "stderr": err_end, "start_new_session": True}
        options["mark"] = b"PICAS_TOKEN_FILE=" + os.fsencode(self._token_file)
        try:
            return self._spawn(argv, env, own, options)
        except OSError:
            close_all(self._pipes)
            raise
        finally:
            close_all([out_end, err_end])

    def _spawn(
        self, argv: List[str], env: Dict[bytes, bytes], own: Dict[str, str], options: Doc
    ) -> "subprocess.Popen[bytes]":
        try:
            environment = with_variables(env, dict(token_environment(self.token.doc), **own))
            return self._processes.start(argv, env=environment, **options)
        except OSError as error:
            if error.errno != errno.E2BIG:
                raise
            # The job's environment leaves no room for the token's fields.
            own.update(token_environment({"_id": self.token.id}), PICAS_OMITTED="PICAS_INPUT PICAS_FIELD_*")
            return self._processes.start(argv, env=with_variables(env, own), **options)

    def _watch(self, pid: int, tails: Dict[int, Tail]) -> str:
        """Read the command's output until it has ended; returns how it ended. Keeps its zombie, so that the pid is not
        reused."""
        limit = number(self.token.doc.get("time_limit"), self._config.time_limit or 0)
        how, kill_at = "exit", None
        poll, pipes, nap = select.poll(), set(tails), 0.0005
        for descriptor in tails:
            os.set_blocking(descriptor, False)
            poll.register(descriptor, select.POLLIN)
        only_killed = False  # only SIGKILL can have ended it: no other signal had time to
        while not _ended(pid):
            if pipes:
                for descriptor, _ in poll.poll(100):
                    if not tails[descriptor].read(descriptor):
                        poll.unregister(descriptor)
                        pipes.discard(descriptor)
            else:  # it has closed both: most commands end right then
                time.sleep(nap)
                nap = min(nap * 2, 0.05)
            now = time.monotonic()
            if self._stop is None and 0 < limit < now - self.started:
                self.stop("time limit", self._config.kill_after)
            # The pilot may have been frozen since then: a command that ended by itself has a result.
            if self._stop is not None and not _ended(pid):
                only_killed = self._stop[1] == 0 and (kill_at is None or only_killed)
                how, grace = self._stop
                kill_at = self._terminate(pid, kill_at, now, grace)
        if only_killed and _ended(pid) == os.CLD_EXITED:
            how = "exit"  # it ended a moment before the signal
        signal_group(pid, signal.SIGKILL)
        self._left_none = self._processes.end_orphans(pid)
        for descriptor in pipes:
            tails[descriptor].read(descriptor)
        return how

    @staticmethod
    def _terminate(pid: int, kill_at: Optional[float], now: float, grace: float) -> float:
        """Send SIGTERM the first time, and SIGKILL when it is due; returns when it is due."""
        if kill_at is None and grace > 0:
            signal_group(pid, signal.SIGTERM)
        kill_at = now + grace if kill_at is None else min(kill_at, now + grace)
        if now >= kill_at:
            signal_group(pid, signal.SIGKILL)
        return kill_at


def _ended(pid: int) -> int:
    """How a child ended: CLD_EXITED or another of waitid's codes; 0 while it runs. Keeps its zombie."""
    found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return found.si_code if found else 0


def _rename(folder: str, name: str) -> bool:
    try:
        os.rename(folder, name)
    except OSError:  # something has removed it, such as a job that cleans the node
        return False
    return True


def _identity(folder: str) -> Tuple[int, ...]:
    found = os.lstat(folder)
    return found.st_dev, found.st_ino, found.st_mode, found.st_uid, found.st_gid


def close_all(descriptors: List[int]) -> None:
    """Close files."""
    for descriptor in descriptors:
        os.close(descriptor)
