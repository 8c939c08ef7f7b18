"""Who stops a wait in a running Airflow, and what becomes of its pilots and their tokens.

Where the wait is deferred, it is the trigger that is stopped, and that Airflow 3.3 tells, whoever did it; else (``stop_poke``)
it is the task's process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.tokens.documents import new_token
from airflow_provider_picas.tokens.states import State, state_of
from stack import native, processes
from stack.airflow import Airflow
from stack.airflow_api import ENDED, AirflowApi
from stack.cluster import Cluster
from stack.pool import Pool
from tests.chaos.run import tell
from tests.conftest import PARSE_SELDOM

DAGS = Path(__file__).parent / "dags"
BATCHES = [f"b{number:02}" for number in range(50)]  # as in the DAG fifty_waits


@pytest.fixture(scope="module")
def airflow(run_folder: Path) -> Iterator[Airflow]:
    """An Airflow whose components can be killed."""
    standalone = Airflow(run_folder / "airflow", dags=DAGS, env=PARSE_SELDOM)
    standalone.start(["stop_cancel", "stop_poke", "stop_drain", "stop_teardown", "fifty_waits"])
    yield standalone
    standalone.stop()


class Waiting:
    """A run whose wait is deferred, or pokes, and whose pilots hold two tokens, which end when there is the file ``gate``."""

    def __init__(self, api: AirflowApi, cluster: Cluster, pool: Pool, dag_id: str) -> None:
        self.api, self.cluster, self.pool, self.dag_id = api, cluster, pool, dag_id
        self.gate = cluster.home / f"gate-{pool.database}"
        body = {"logical_date": None, "conf": {"gate": str(self.gate)}}
        self.run = str(api.request("POST", f"dags/{dag_id}/dagRuns", body)["dag_run_id"])
        pokes = dag_id == "stop_poke"
        api.wait_for_task(dag_id, self.run, "wait", ["running" if pokes else "deferred"])
        # Before the triggerer, or the sensor, has begun, Airflow has nobody to tell that the task was marked failed.
        self.until(lambda: (" of 3 done" if pokes else " starting") in self.log(), "The start of the wait")
        self.until(lambda: len(self.tokens(State.LOCKED)) == 2, "The claim of two tokens")

    @property
    def key(self) -> str:
        """The submission's key, which is the jobs' name."""
        return str(self.submitted["submission"])

    @property
    def submitted(self) -> dict[str, Any]:
        output: dict[str, Any] = self.api.xcom(self.dag_id, self.run, "pilots")
        return output

    def until(self, condition: Any, what: str, seconds: float = 60) -> None:
        try:
            processes.wait_for(condition, what=what, seconds=seconds)
        except processes.StackError as error:
            pytest.fail(f"{error}\n{self.cluster.run('squeue', '--states=all').stdout}\nThe wait's log:\n{self.log()}")

    def tokens(self, state: State) -> list[str]:
        return [token["_id"] for token in self.pool.tokens() if state_of(token) is state]

    def jobs(self) -> list[str]:
        """Pilots that wait or run."""
        return self.cluster.run("squeue", "--noheader", "--array", f"--name={self.key}", "--format=%i").stdout.split()

    def pilots_live(self, seconds: float) -> None:
        """Check that the pilots and their tokens stay as they are."""
        held = {token["_id"]: token["claim"] for token in self.pool.tokens() if state_of(token) is State.LOCKED}
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert len(self.jobs()) == 2
            now = {token["_id"]: token.get("claim") for token in self.pool.tokens() if state_of(token) is State.LOCKED}
            assert now == held
            time.sleep(1)

    def log(self, attempt: int = 1) -> str:
        return self.api.log(self.dag_id, self.run, "wait", attempt)

    def end(self) -> None:
        """Leave nothing behind."""
        if self.api.run(self.dag_id, self.run)["state"] not in ENDED:
            self.api.set_run_state(self.dag_id, self.run, "failed")
        self.cluster.run("scancel", *self.submitted["job_ids"])
        self.until(lambda: not self.jobs(), "The end of the pilots")


@pytest.fixture
def start(airflow: Airflow, cluster: Cluster, pool: Pool) -> Iterator[Any]:
    """Starts a run of a DAG."""
    airflow.api.add_connection("picas_default", **native.picas_connection(pool))
    airflow.api.add_connection("spider", **native.ssh_connection(cluster))
    made: list[Waiting] = []

    def begin(dag_id: str = "stop_cancel") -> Waiting:
        made.append(Waiting(airflow.api, cluster, pool, dag_id))
        return made[-1]

    yield begin
    for waiting in made:
        waiting.end()


@pytest.mark.parametrize("dag_id", ["stop_cancel", "stop_poke"])
def test_marked_failed_the_pilots_are_cancelled_and_their_tokens_released(start: Any, dag_id: str) -> None:
    waiting: Waiting = start(dag_id)
    at = time.time()
    waiting.api.set_task_state(waiting.dag_id, waiting.run, "wait", "failed")
    waiting.until(lambda: not waiting.jobs(), "The end of the pilots")
    waiting.until(lambda: len(waiting.tokens(State.TODO)) == 3, "The return of the tokens")
    tell(f"marked failed ({dag_id}): no pilot and no locked token {time.time() - at:.1f} s later")
    assert time.time() - at < 45
    waiting.until(lambda: not list(Path(waiting.submitted["folder"], "credentials").iterdir()), "The credentials' end")


def test_marked_failed_with_drain_they_finish_what_they_hold(start: Any) -> None:
    waiting: Waiting = start("stop_drain")
    waiting.api.set_task_state(waiting.dag_id, waiting.run, "wait", "failed")
    logs = [Path(waiting.submitted["folder"], f"pilot-{job}.log") for job in waiting.jobs()]
    waiting.until(lambda: all("is being drained" in log.read_text() for log in logs), "The drain of both pilots")
    waiting.gate.touch()
    waiting.until(lambda: not waiting.jobs(), "The end of the pilots")
    assert (len(waiting.tokens(State.DONE)), len(waiting.tokens(State.TODO))) == (2, 1)
    waiting.until(lambda: not list(Path(waiting.submitted["folder"], "credentials").iterdir()), "The credentials' end")


@pytest.mark.parametrize("dag_id", ["stop_cancel", "stop_poke"])
def test_marked_a_success_the_pilots_are_left_alone(start: Any, dag_id: str) -> None:
    waiting: Waiting = start(dag_id)
    waiting.api.set_task_state(waiting.dag_id, waiting.run, "wait", "success")
    waiting.pilots_live(10)


@pytest.mark.parametrize("dag_id", ["stop_cancel", "stop_poke"])
def test_cleared_the_pilots_are_left_alone_and_watched_again(start: Any, dag_id: str) -> None:
    waiting: Waiting = start(dag_id)
    waiting.api.clear(waiting.dag_id, waiting.run, ["wait"])
    begun = " of 3 done" if dag_id == "stop_poke" else " starting"

    def waits_again() -> bool:
        task = waiting.api.task(waiting.dag_id, waiting.run, "wait")
        return task["try_number"] == 2 and task["state"] in ("running", "deferred") and begun in waiting.log(2)

    waiting.until(waits_again, "The second wait")
    waiting.pilots_live(2)
    waiting.gate.touch()
    assert waiting.api.wait_for_run(waiting.dag_id, waiting.run)["state"] == "success"
    assert len(waiting.tokens(State.DONE)) == 3


def components(airflow: Airflow, name: str) -> list[int]:
    """Pids of a component of this Airflow, by its command line, whoever has started it.

    The API server gives itself a title, in which it has an underscore.
    """
    found = []
    for pid in {pid for process in airflow.processes for pid in processes.session(process.pid)}:
        with suppress(OSError):  # it has ended
            words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            if name in words or name.replace("-", "_") in words:
                found.append(pid)
    return found


def restart(airflow: Airflow, what: str, how: signal.Signals) -> subprocess.Popen[bytes]:
    """End a component and start it again. Returns when both API servers answer, if it was these."""
    pids = components(airflow, what)
    assert pids
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, how)
    processes.wait_for(lambda: not any(map(processes.alive, pids)), what=f"The end of the {what}", seconds=300)
    again = airflow.run(f"{what}-{len(airflow.processes)}", what)
    if what == "api-server":
        airflow.serve_tasks()
        processes.wait_for(airflow.api.healthy, what="The API server's return", seconds=120, process=again)
    else:
        at_work = datetime.now(UTC) + timedelta(seconds=2)  # its first heartbeat is older than its work
        processes.wait_for(
            lambda: heartbeat(airflow.api, what) > at_work, what=f"The {what}'s return", seconds=120, process=again
        )
    return again


def heartbeat(api: AirflowApi, what: str) -> datetime:
    """When the scheduler or the triggerer was last heard of."""
    return datetime.fromisoformat(api.request("GET", "monitor/health")[what][f"latest_{what}_heartbeat"])


@pytest.mark.parametrize(
    ("what", "how"),
    [
        ("triggerer", signal.SIGKILL),
        ("scheduler", signal.SIGKILL),
        ("api-server", signal.SIGTERM),
        ("api-server", signal.SIGKILL),
    ],
)
def test_a_component_that_ends_and_comes_back(start: Any, airflow: Airflow, what: str, how: signal.Signals) -> None:
    waiting: Waiting = start("stop_cancel")
    starts = waiting.log().count(" starting")
    again = restart(airflow, what, how)
    if what == "triggerer":
        waiting.until(lambda: waiting.log().count(" starting") > starts, "The return of the trigger", 120)
    waiting.pilots_live(5)
    waiting.gate.touch()
    assert waiting.api.wait_for_run(waiting.dag_id, waiting.run)["state"] == "success"
    assert again.poll() is None
    assert waiting.api.task(waiting.dag_id, waiting.run, "wait")["try_number"] == 1
    assert len(waiting.tokens(State.DONE)) == 3
    assert not any(token["scrub_count"] for token in waiting.pool.tokens())


def test_a_teardown_cancels_when_the_run_is_marked_failed(start: Any) -> None:
    waiting: Waiting = start("stop_teardown")
    waiting.api.set_run_state(waiting.dag_id, waiting.run, "failed")
    waiting.until(lambda: not waiting.jobs(), "The end of the pilots", 90)
    waiting.until(lambda: len(waiting.tokens(State.TODO)) == 3, "The return of the tokens")
    waiting.until(lambda: not list(Path(waiting.submitted["folder"], "credentials").iterdir()), "The credentials' end")


@pytest.mark.timeout(2400)
def test_fifty_waits_while_components_are_restarted(
    airflow: Airflow, cluster: Cluster, pool: Pool, picas_default: str
) -> None:
    """All finish, each once, and no pilot is touched."""
    airflow.api.add_connection("picas_default", **native.picas_connection(pool))
    airflow.api.add_connection("spider", **native.ssh_connection(cluster))
    gate = cluster.home / f"gate-{pool.database}"
    hook = PicasHook(picas_default)
    hook.deploy_views()
    hook.push(new_token({"input": str(gate)}, batch=batch, push=batch, ordinal=0) for batch in BATCHES)
    api, run = airflow.api, airflow.api.trigger("fifty_waits")

    def waits() -> list[dict[str, Any]]:
        return [task for task in api.tasks("fifty_waits", run) if task["task_id"] == "wait"]

    def claims() -> dict[str, Any]:
        return {token["_id"]: token["claim"] for token in pool.tokens() if state_of(token) is State.LOCKED}

    def jobs() -> list[str]:
        name = api.xcom("fifty_waits", run, "pilots")["submission"]
        return cluster.run("squeue", "--noheader", "--array", f"--name={name}", "--format=%i %T").stdout.split()

    def deferred() -> bool:
        return Counter(task["state"] for task in waits()) == {"deferred": len(BATCHES)}

    processes.wait_for(deferred, what="The deferral of 50 waits", seconds=900)
    processes.wait_for(lambda: len(claims()) == 2, what="The claim of two tokens", seconds=60)
    held, running = claims(), jobs()
    assert len(running) == 4
    last = {}
    for names, how in (
        (["triggerer"], signal.SIGTERM),
        (["scheduler"], signal.SIGTERM),
        (["triggerer", "scheduler"], signal.SIGTERM),
        (["triggerer", "scheduler"], signal.SIGKILL),
    ):
        last |= {name: restart(airflow, name, how) for name in names}
        assert deferred(), Counter(task["state"] for task in waits())
        assert (claims(), jobs()) == (held, running), f"after {how.name} of {' and '.join(names)}"
    begin = time.monotonic()
    gate.touch()
    assert api.wait_for_run("fifty_waits", run, seconds=400)["state"] == "success"
    tell(
        f"50 waits, restarts of triggerer and scheduler: all ended {time.monotonic() - begin:.0f} s after the last token began to"
    )
    assert Counter((task["state"], task["try_number"]) for task in waits()) == {("success", 1): len(BATCHES)}
    assert not any(token["scrub_count"] for token in pool.tokens())
    assert all(process.poll() is None for process in last.values())
