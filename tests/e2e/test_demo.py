"""``make demo``, as a person runs it, in a folder of its own: what it prints, how it ends, and what it leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stack import native, paths, processes

SECONDS = 540  # for any step on a busy machine; the stack gives Airflow 480 to start
pytestmark = pytest.mark.timeout(4 * SECONDS)


class Demo:
    """One demo, its output in a file."""

    def __init__(self, folder: Path, name: str = "first") -> None:
        self.folder = folder
        self.output = folder.with_suffix(f".{name}.txt")
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "stack.demo", "--folder", str(folder), "--limit", "60"],
                cwd=paths.PROJECT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def text(self) -> str:
        return self.output.read_text()

    def wait_for(self, text: str) -> None:
        processes.wait_for(lambda: text in self.text(), what=f"{text!r}", seconds=SECONDS, process=self.process,
                           log=self.output)  # fmt: skip

    def end(self) -> int:
        return self.process.wait(timeout=SECONDS)


@pytest.fixture
def folder(run_folder: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    path = run_folder / request.node.name
    yield path
    native.sweep(path)


def left_behind(folder: Path) -> dict[int, bytes]:
    """Processes that have to do with a folder, by what they were started with, in, or have open."""
    places = [str(folder).encode()]
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid() and processes.alive(int(entry.name)):
            try:
                files = [os.fsencode(os.readlink(file)) for file in (entry / "cwd", *(entry / "fd").iterdir())]
                command = (entry / "cmdline").read_bytes()
                known = [command, (entry / "environ").read_bytes(), *files]
            except OSError:
                continue
            if any(place in what for place in places for what in known):
                found[int(entry.name)] = command
    return found


def test_ends_by_itself_with_the_right_results(folder: Path) -> None:
    demo = Demo(folder)
    demo.wait_for("Triggered")
    assert left_behind(folder), "the stack was not found while it ran"
    assert demo.end() == 0, demo.text()
    for text in ("All 60 files agree", "trigger to first claimed token", "to the sensor's success"):
        assert text in demo.text()
    assert not left_behind(folder)
    home = folder / "cluster" / "home"
    assert list(home.rglob("slurm-*.out")), "no pilot has run in this home"
    assert not list(home.rglob("picasconfig.py*")), "the pool's password stays on the cluster"


@pytest.mark.parametrize("signal_", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_at_the_start_leaves_nothing(folder: Path, signal_: signal.Signals) -> None:
    demo = Demo(folder)
    demo.wait_for("Starting")
    processes.wait_for(lambda: left_behind(folder), what="The first process of the stack", seconds=SECONDS)
    demo.process.send_signal(signal_)
    assert demo.end() == 130
    assert not left_behind(folder)


def test_a_killed_demo_is_cleared_away_and_one_that_runs_is_not(folder: Path) -> None:
    killed = Demo(folder)
    killed.wait_for("Triggered")
    killed.process.kill()
    killed.end()
    left = left_behind(folder)
    assert left
    demo = Demo(folder, "second")
    demo.wait_for("ready after")
    assert not [pid for pid in left if processes.alive(pid)]

    # A start while one runs says where that is.
    refused = Demo(folder, "refused")
    assert refused.end() == 1
    address = next(word for word in demo.text().split() if word.startswith("http://127.0.0.1:"))
    assert f"A demo is running already. Airflow is at {address}" in refused.text()
    assert demo.process.poll() is None, "the refused start has ended the other"
    demo.wait_for("Triggered")
    demo.process.terminate()
    assert demo.end() == 130
    assert not left_behind(folder)
