"""The log of a pilot does not hold up its work."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from airflow_provider_picas.pilot import archive
from airflow_provider_picas.tokens.states import State
from tests.integration.pilots import COUNT, GATE, Pool, Submission, until


@pytest.fixture
def full_pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe that nobody reads, and that takes no more bytes."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(writing, b"." * 4096):
            pass
    os.set_blocking(writing, True)
    yield reading, writing
    os.close(reading)
    os.close(writing)


def start_with_log(submission: Submission, log: int, command: str, **keys: object) -> subprocess.Popen[bytes]:
    """Start a pilot whose log is a file descriptor."""
    config = submission.write_config("pilot-0", command, **keys)
    process = subprocess.Popen(
        [sys.executable, "-I", str(submission.folder / archive.FILE), str(config)],
        stdout=log,
        stderr=log,
        env=submission.environment(),
    )
    submission.pilots.append(process)
    return process


def test_a_log_that_blocks_stops_no_work(pool: Pool, submission: Submission, full_pipe: tuple[int, int]) -> None:
    """Results are written, and a signal is obeyed; what the pipe takes later tells of it."""
    pool.push([{"input": "exit 3"}, {"input": "exit 3"}, {"input": GATE, "priority": -1}])
    process = start_with_log(submission, full_pipe[1], COUNT + '; eval "$PICAS_INPUT"', lease=30)
    until(lambda: pool.states() == {State.ERROR: 2, State.LOCKED: 1})
    until(lambda: submission.runs().total() == 3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert pool.states() == {State.ERROR: 2, State.TODO: 1}
    assert pool.leases()[0]["ended"] is True


def test_entries_that_a_blocked_log_cannot_take_are_counted(full_pipe: tuple[int, int]) -> None:
    text = (
        "import os; from airflow_provider_picas.pilot import log as p\n"
        "p._LOG._most = 10\n"
        "p.log('first'); p._LOG.flush(0.1)\n"
        "while not p._LOG._busy: pass\n"
        "for place in range(25): p.log(f'entry {place}')\n"
        "os.write(2, b'x'); p._LOG.flush(60); os._exit(0)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", text], stdout=full_pipe[1], stderr=subprocess.PIPE)
    assert process.stderr is not None
    assert process.stderr.read(1) == b"x", "logging waited for the pipe"
    os.set_blocking(full_pipe[0], False)
    data = b""
    while process.poll() is None:
        with contextlib.suppress(BlockingIOError):
            data += os.read(full_pipe[0], 65536)
    with contextlib.suppress(BlockingIOError):
        data += os.read(full_pipe[0], 65536)
    lines = [line.partition(" ")[2] for line in data.decode().split("\n")]
    missing = "15 entries are missing here: the log could not be written."
    assert lines[-13:-1] == ["first", missing, *(f"entry {place}" for place in range(15, 25))]
    process.stderr.close()
