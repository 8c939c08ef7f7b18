"""The shipped DAG ``picas_word_count``, run by a real Airflow on a real cluster with pilots of the PiCaS client."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_picas.hooks.slurm import SlurmHook
from airflow_provider_picas.tokens.states import State, state_of
from stack import native, processes, word_count
from stack.airflow import Airflow
from stack.airflow_api import AirflowApi
from stack.cluster import Cluster
from stack.docker import DockerStack
from stack.pool import Pool

DAG = "picas_word_count"
FILES = 150
PILOTS = 4  # as the DAG says
TASKS = {"list_files", "push", "pilots", "wait", "report"}


@dataclass
class Run:
    """A finished run of the DAG, and what was seen while it ran."""

    api: AirflowApi
    pool: Pool
    id: str
    state: str
    commands: set[bytes] = field(default_factory=set)  # command lines of all processes
    environments: set[bytes] = field(default_factory=set)  # and what their environments hold

    def xcom(self, task_id: str) -> Any:
        return self.api.xcom(DAG, self.id, task_id)


@pytest.fixture(scope="module")
def run(
    airflow: Airflow, cluster: Cluster | DockerStack, new_pool: Callable[[], AbstractContextManager[Pool]]
) -> Iterator[Run]:
    with new_pool() as pool:
        airflow.connect("picas_default", **native.picas_connection(pool))
        airflow.connect("spider", **native.ssh_connection(cluster))
        seen = Run(airflow.api, pool, airflow.api.trigger(DAG, {"limit": FILES}), "running")
        over = threading.Event()
        spy = threading.Thread(target=look_at_processes, args=(seen, over))
        spy.start()
        try:
            seen.state = airflow.api.wait_for_run(DAG, seen.id, seconds=240)["state"]
        finally:
            over.set()
            spy.join()
        yield seen


def look_at_processes(run: Run, over: threading.Event) -> None:
    """Note command lines and environments of all processes, as another user of the machine might."""
    while not over.wait(0.02):
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    run.commands.add((entry / "cmdline").read_bytes())
                    run.environments.update((entry / "environ").read_bytes().split(b"\0"))
                except OSError:
                    continue


def test_all_tasks_succeed(run: Run) -> None:
    states = {task["task_id"]: task["state"] for task in run.api.tasks(DAG, run.id)}
    assert states == dict.fromkeys(TASKS, "success")
    assert run.state == "success"


def test_every_file_is_counted_and_counted_right(run: Run) -> None:
    counted = {token["input"]: token["output"] for token in run.pool.tokens()}
    direct = word_count.count(counted)
    assert counted == {file: {"lines": lines, "words": words} for file, (lines, words) in direct.items()}
    assert len(counted) == FILES
    report = run.xcom("report")
    assert report["files"] == FILES
    assert report["lines"] == sum(lines for lines, _ in direct.values())
    assert report["words"] == sum(words for _, words in direct.values())


def test_the_pilots_are_the_jobs_of_the_submission(run: Run, cluster: Cluster | DockerStack) -> None:
    """All of them run and end well; how they share the tokens is luck: one did all 150 before the others had started."""
    tokens = run.pool.tokens()
    assert {state_of(token) for token in tokens} == {State.DONE}
    [job] = run.xcom("pilots")["job_ids"]
    pilots = {f"{job}_{index}" for index in range(PILOTS)}
    assert {token["slurm_job_id"] for token in tokens} <= pilots

    def ends() -> set[str]:
        return set(cluster.run("sacct", "-nXP", f"--jobs={job}", "--format=JobID,State,ExitCode").stdout.split())

    ended_well = {f"{pilot}|COMPLETED|0:0" for pilot in pilots}
    processes.wait_for(lambda: ends() == ended_well, what=f"The good end of {len(pilots)} pilots", seconds=30)


def test_no_password_stays_on_the_cluster(run: Run, spider: str) -> None:
    folder = run.xcom("pilots")["folder"]
    with SlurmHook(spider) as hook:
        assert hook.run(f"ls -A {folder}/credentials").stdout == ""


def test_the_output_of_push_is_a_small_mapping(run: Run) -> None:
    batch = run.xcom("push")
    assert (batch["database"], batch["tokens"]) == (run.pool.database, FILES)
    assert len(json.dumps(batch)) < 1_000
    assert all(token["_id"].startswith(batch["batch"] + ":") for token in run.pool.tokens())


def test_counts_agree_with_the_clients_own_view(run: Run) -> None:
    rows = run.pool.get("_design/Monitor/_view/overview_total?group=true")["rows"]
    assert {row["key"]: row["value"] for row in rows} == {"done": FILES} == {"done": run.xcom("wait")["done"]}


def test_the_connection_can_be_tested(run: Run) -> None:
    good, message = run.api.test_connection("picas_default")
    assert good, message
    assert run.pool.database in message


class TestNoSecretIsSeen:
    """The password of the pool and the key of the cluster are nowhere but where they belong."""

    @pytest.fixture(params=["password", "key"])
    def secret(self, run: Run, cluster: Cluster | DockerStack, request: pytest.FixtureRequest) -> bytes:
        if request.param == "password":
            return run.pool.password.encode()
        return cluster.private_key.read_bytes().splitlines()[2]

    def test_in_processes(self, run: Run, secret: bytes) -> None:
        assert any(b"airflow" in command for command in run.commands), "nothing was looked at"
        assert any(variable.startswith(b"SLURM_JOB_ID=") for variable in run.environments), "no job was looked at"
        assert not [command for command in run.commands if secret in command]
        assert not [variable for variable in run.environments if secret in variable]

    def test_in_airflow(self, run: Run, airflow: Airflow, secret: bytes) -> None:
        """Logs, and the database with its rendered templates and XComs; the file of connections is the exception."""
        batch = run.xcom("push")["batch"].encode()
        names = {path.name for path in containing(batch, airflow.folder)}
        assert names & {"airflow.db", "airflow.db-wal"}, "no rendered template was looked at"
        assert "attempt=1.log" in names, "no log was looked at"
        assert [path.name for path in containing(secret, airflow.folder)] == ["connections.json"]
        assert (airflow.folder / "connections.json").stat().st_mode & 0o777 == 0o600

    def test_in_slurms_records(self, run: Run, cluster: Cluster | DockerStack, secret: bytes) -> None:
        jobs = ",".join(str(job) for job in run.xcom("pilots")["job_ids"])
        records = {
            "scontrol": cluster.run("scontrol", "--details", "show", "job", jobs),
            "sacct": cluster.run("sacct", "--jobs", jobs, "--long", "--parsable2"),
            "script": cluster.run("sacct", "--jobs", jobs, "--batch-script"),
        }
        for name, record in records.items():
            assert record.returncode == 0, record.stderr
            assert jobs in record.stdout, f"{name} shows nothing of the jobs"
            assert secret.decode() not in record.stdout

    def test_on_the_cluster(self, run: Run, cluster: Cluster | DockerStack, secret: bytes) -> None:
        """In the shared home and in Slurm's own folders and logs; the pilots' configuration is the one exception."""
        assert containing(b"This pilot counted", cluster.folder), "no output of the pilots was looked at"
        for path in containing(secret, cluster.folder):
            if path.parent == cluster.private_key.parent:
                continue
            assert path.name in ("picasconfig.py", f"picasconfig.{sys.implementation.cache_tag}.pyc")
            assert path.stat().st_mode & 0o777 == 0o600, f"others can read {path}"


def containing(needle: bytes, folder: Path) -> list[Path]:
    """The files below a folder that hold these bytes."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and "picas-venv" not in path.parts:
            try:
                if needle in path.read_bytes():
                    found.append(path)
            except FileNotFoundError:
                continue
    return found
