"""Rules of the stack that the other tests run on."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stack import couchdb, paths, processes


def test_a_server_that_starts_sees_whole_files_while_it_is_installed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each test session installs it, and others may be starting theirs."""
    target = tmp_path / "couchdb"
    target.mkdir()
    (target / "installed").write_text(hashlib.sha256((couchdb.SOURCE / "package-lock.json").read_bytes()).hexdigest())
    monkeypatch.setattr(paths, "NODE_MODULES", target)
    server = couchdb.install()
    server.write_text("an earlier version")
    os.link(server, tmp_path / "opened")
    couchdb.install()
    assert server.read_bytes() == (couchdb.SOURCE / "server.js").read_bytes()
    assert (tmp_path / "opened").read_text() == "an earlier version", "it was written over"
    written = server.stat().st_ctime_ns
    couchdb.install()
    assert server.stat().st_ctime_ns == written


def test_a_free_port_is_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its server may bind it much later."""
    taken, free = processes.free_port(), processes.free_port()
    processes._reserved.discard(free)
    numbers = iter([taken, free])
    monkeypatch.setattr(processes.random, "randrange", lambda *_: next(numbers))
    assert processes.free_port() == free
    text = f"n = iter([{taken}, {free}]); p.random.randrange = lambda *_: next(n); p.free_port()"
    ended = subprocess.run(
        [sys.executable, "-c", "from stack import processes as p; " + text],
        cwd=paths.PROJECT,
        capture_output=True,
        text=True,
    )
    assert "StopIteration" in ended.stderr, "another process gets neither"


def test_the_memory_of_a_process_is_in_bytes() -> None:
    assert processes.memory(os.getpid()) > 1e6
    assert processes.memory(os.getpid(), "VmHWM") > 1e6
    assert processes.memory(2**30) == 0
