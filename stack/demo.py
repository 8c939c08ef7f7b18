"""``make demo``: the whole stack, and one run of the DAG ``picas_word_count``, watched live and checked.

Exits with code 0 only if the results were correct. In a terminal the stack runs until Ctrl-C. It leaves no process
behind; if it is killed, the next start cleans up.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from stack import install, paths
from stack.airflow_api import AirflowApi
from stack.commands import exit_code
from stack.pool import Pool, Watch
from stack.processes import StackError
from stack.progress import Progress

DAG = "picas_word_count"
DATABASE = "picas_demo"
RUN_SECONDS = 600.0
POLL_SECONDS = 0.2  # between two checks of the tokens
POLLS = 3  # checks of the tokens for each check of the tasks, which is more expensive for Airflow
ENDED_TASKS = ("success", "failed", "upstream_failed", "skipped")


class Stack(Protocol):
    """The interface of a stack, native or in Docker."""

    @property
    def api(self) -> AirflowApi:
        """Airflow's REST API."""

    @property
    def login(self) -> tuple[str, str]:
        """User and password of the Airflow UI."""

    def start(self, wait_for: Iterable[str] = ()) -> None:
        """Start everything, or leave nothing running and raise StackError."""

    def stop(self) -> None:
        """End everything."""

    def connect(self, database: str) -> Pool:
        """Create a pool and Airflow's connections to it and to the cluster."""

    def count(self, files: Sequence[str]) -> Mapping[str, tuple[int, int]]:
        """Lines and words of files on the cluster, counted without it."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m stack.demo", description=__doc__)
    parser.add_argument("--stack", choices=("native", "docker"), default="native")
    parser.add_argument("--limit", type=int, help="maximum number of files to count")
    parser.add_argument("--folder", type=Path, default=paths.RUN / "demo", help="where to run; default: %(default)s")
    arguments = parser.parse_args()
    interrupt_once()

    def work() -> int:
        install.check_python()
        folder = arguments.folder.resolve()
        with only_one(folder.with_suffix(".lock")) as announce:
            stack = make_stack(arguments.stack, folder)
            return demo(stack, {"limit": arguments.limit} if arguments.limit else {}, announce)

    return exit_code(work)


def interrupt_once() -> None:
    """Let Ctrl-C, SIGTERM and SIGHUP stop everything that was started; later signals do not interrupt this."""

    def interrupt(*_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)


@contextmanager
def only_one(path: Path) -> Iterator[Callable[[str], None]]:
    """Hold the demo's lock. Yields a function that records for later starts where this demo runs.

    The lock is released when the process ends, in any way. Raises StackError while another demo holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            where = path.read_text() or "It is still starting."
            raise StackError(f"A demo is running already. {where}") from None

        def announce(text: str) -> None:
            path.write_text(text)

        announce(f"It is starting (process {os.getpid()}).")
        try:
            yield announce
        finally:
            announce("")


def make_stack(kind: str, folder: Path) -> Stack:
    """Install the requirements of this kind of stack, and create one without starting it. Raises StackError."""
    if kind == "docker":
        from stack.contained import ContainedStack

        return ContainedStack(folder, database=DATABASE)
    print("Installing missing parts", flush=True)
    install.install([part for part in install.PARTS if part != "browser"])
    from stack.native import NativeStack

    return NativeStack(folder, dags=paths.PROJECT / "dags")


def demo(stack: Stack, conf: Mapping[str, object], announce: Callable[[str], None]) -> int:
    """Start the stack, run the DAG, show and check its results; returns the exit code."""
    begin = time.monotonic()
    print("Starting CouchDB, Slurm and Airflow", flush=True)
    try:
        stack.start((DAG,))
        user, password = stack.login
        address = f"Airflow is at {stack.api.url} (user {user}, password {password})."
        announce(address)
        print(f"  ready after {time.monotonic() - begin:.0f} s. {address}", flush=True)
        right = run(stack, conf)
        if sys.stdout.isatty():
            print(f"\n{address}\nPress Ctrl-C to stop everything.", flush=True)
            wait_for_interrupt()
    finally:
        print("Stopping", flush=True)
        stack.stop()
    return 0 if right else 1


def wait_for_interrupt() -> None:
    """Wait for Ctrl-C."""
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        print()


def run(stack: Stack, conf: Mapping[str, object]) -> bool:
    """Trigger the DAG and watch it to its end. True if the results were correct."""
    pool = stack.connect(DATABASE)
    progress = Progress()
    with Watch(pool) as watch:
        triggered = time.time()
        run_id = stack.api.trigger(DAG, conf)
        print(f"Triggered {DAG}: {stack.api.url}/dags/{DAG}/runs/{run_id}", flush=True)
        state = follow(stack.api, run_id, watch, progress, triggered)
    if state != "success":
        print_failure(stack.api, run_id)
        return False
    right = show_results(stack, pool, stack.api.xcom(DAG, run_id, "report"))
    wait = stack.api.task(DAG, run_id, "wait")
    figures = [("trigger to first claimed token", watch.first_claim and watch.first_claim - triggered)]
    if watch.last_end is not None:
        succeeded = datetime.fromisoformat(wait["end_date"]).timestamp()
        figures.append(("last finished token to the sensor's success", succeeded - watch.last_end))
        if watch.first_claim is not None and watch.last_end > watch.first_claim:
            rate = sum(watch.counts().values()) / (watch.last_end - watch.first_claim)
            print(f"  {'tokens a second, by 4 pilots of the PiCaS client':<50} {rate:8.1f}")
    for what, seconds in figures:
        print(f"  {what:<50} {seconds:8.1f} s" if seconds is not None else f"  {what}: not seen")
    return right


def follow(api: AirflowApi, run_id: str, watch: Watch, progress: Progress, triggered: float) -> str:
    """Show tokens and tasks until the run has ended; returns its state. Raises StackError if it takes too long."""
    shown: dict[str, str] = {}
    while time.time() - triggered < RUN_SECONDS:
        states = {task["task_id"]: str(task["state"]) for task in api.tasks(DAG, run_id)}
        for name, state in states.items():
            if state in (*ENDED_TASKS, "deferred") and shown.get(name) != state:
                progress.say(f"  {time.time() - triggered:5.1f} s  {name} {state}")
                shown[name] = state
        if all(state in ENDED_TASKS for state in states.values()):
            progress.clear()
            return str(api.wait_for_run(DAG, run_id)["state"])
        for _ in range(POLLS):
            progress.update(watch.counts())
            time.sleep(POLL_SECONDS)
    raise StackError(f"The run had not finished after {RUN_SECONDS:g} s; its tasks: {shown}.")


def print_failure(api: AirflowApi, run_id: str) -> None:
    """Print the end of the log of each task that failed."""
    for task in api.tasks(DAG, run_id):
        if task["state"] == "failed":
            log = api.log(DAG, run_id, task["task_id"], task["try_number"])
            print(f"\nTask {task['task_id']} failed. The end of its log:\n{log[-2500:]}", file=sys.stderr)


def show_results(stack: Stack, pool: Pool, report: Mapping[str, Any]) -> bool:
    """Print the DAG's result beside a direct count, and compare every token with it. True if all agree."""
    counted = {token["input"]: token["output"] for token in pool.tokens()}
    direct = stack.count(sorted(counted))
    wrong = [
        file for file, (lines, words) in direct.items() if counted[file] != {"lines": lines, "words": words}
    ]  # fmt: skip
    total = {
        "files": len(direct),
        "lines": sum(n for n, _ in direct.values()),
        "words": sum(n for _, n in direct.values()),
    }
    print(f"\n  {'':<34} {'files':>7} {'lines':>10} {'words':>11}")
    for what, row in (("counted by the pilots", report), ("counted directly", total)):
        print(f"  {what:<34} {row['files']:7,} {row['lines']:10,} {row['words']:11,}")
    print("  the longest:")
    for row in report["longest"]:
        print(f"  {'/'.join(row['file'].split('/')[-2:])[-34:]:<34} {'':7} {row['lines']:10,} {row['words']:11,}")
    right = not wrong and all(report[name] == total[name] for name in total) and bool(counted)
    print(
        f"  All {len(direct):,} files agree.\n" if right else f"  These do not agree: {wrong[:5] or 'the totals'}\n",
        flush=True,
    )
    return right


if __name__ == "__main__":
    sys.exit(main())
