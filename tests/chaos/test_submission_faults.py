"""A submission happens once: workers killed at each step, a controller that hangs or is restarted while sbatch runs."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException

from airflow_provider_picas.tokens.states import State
from stack import paths
from stack.cluster import Cluster, pids
from tests.chaos.run import LEASE, Run, tell
from tests.integration.tasks import context


def arguments(run: Run, **more: Any) -> dict[str, Any]:
    """Arguments of the operator, as JSON holds them."""
    return {
        "command": run.command("sleep 0.2"), "batch": run.pushed, "ssh_conn_id": "spider", "pilots": 2, "pilot": {"lease": LEASE},
        **more,
    }  # fmt: skip


def worker(run: Run, last: int, seconds: float = 0, **more: Any) -> dict[str, Any] | None:
    """A worker that dies before the ``last`` step, or so many seconds into it: None. One that does not get so far reports its
    steps and its output."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.chaos.one_submission", str(last), run.pool.database, str(seconds)],
        input=json.dumps(arguments(run, **more)), capture_output=True, text=True, cwd=paths.PROJECT, timeout=600, check=False,
    )  # fmt: skip
    if ended.returncode == -9:
        return None
    assert ended.returncode == 0, ended.stderr
    reported: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return reported


def arrays(run: Run) -> Counter[str]:
    """The job arrays of all submissions of this run, by job name."""
    rows = run.cluster.run("squeue", "--noheader", "--all", "--states=all", "--format=%F %j").stdout.split("\n")
    key = run.submitted["submission"].rpartition(".")[0]
    return Counter(name for _, name in {tuple(row.split()) for row in rows if row} if name.startswith(key))


def submit_among_deaths(run: Run, seconds: float = 0, **more: Any) -> int:
    """Each worker dies one step later than the one before, as Airflow's retries would; how many did until one submitted."""
    died = 0
    while (reported := worker(run, died, seconds, **more)) is None:
        died += 1
        assert died < 30
    run.submitted = reported["output"]
    return died


def check_submitted_once(run: Run, tokens: int) -> None:
    """There is one job array, and its pilots run all tokens."""
    assert run.submitted["submission"].endswith(".1")
    assert arrays(run) == {run.submitted["submission"]: 1}
    run.wait()
    assert run.result()["done"] == tokens
    run.check_done_once()


@pytest.mark.parametrize("kind", ["fixed", "auto"])
def test_a_worker_killed_at_each_step(run: Run, kind: str) -> None:
    """Pilots take the tokens meanwhile."""
    run.push(12)
    more: dict[str, Any] = {"pilots": "auto", "tokens_per_pilot": 6, "max_pilots": 2} if kind == "auto" else {}
    died = submit_among_deaths(run, **more)
    tell(f"{kind}: workers were killed at {died} steps")
    assert died >= 5
    check_submitted_once(run, 12)


@pytest.mark.parametrize("seconds", [0.1, 60])
def test_a_worker_killed_while_a_step_runs_or_after_it(run: Run, seconds: float) -> None:
    """What the step has begun on the cluster goes on there, and the next worker finds it."""
    run.push(4)
    died = submit_among_deaths(run, seconds)
    tell(f"workers were killed {seconds:g} s into {died} steps, or at their ends")
    assert died >= 3
    check_submitted_once(run, 4)


def sbatch_runs(cluster: Cluster) -> bool:
    """Whether a call of sbatch is under way; it waits for the controller then."""
    found = pids.with_environment(SLURM_CONF=cluster._slurm_conf)
    with suppress(OSError):
        return any(Path(f"/proc/{pid}/comm").read_text().strip() == "sbatch" for pid in found)
    return False


def answered(cluster: Cluster) -> set[Path]:
    """The files in which the calls of sbatch that have ended left their codes."""
    return set(cluster.home.glob("picas-pilots/*/started.*/code"))


@contextmanager
def hanging(cluster: Cluster) -> Iterator[None]:
    """A controller that does not answer."""
    cluster.stop_controller()
    try:
        yield
    finally:
        cluster.continue_controller()


def submission_in_a_thread(run: Run) -> tuple[threading.Thread, list[Any]]:
    """A thread that submits pilots once it is started, and the list that gets the output."""
    outputs: list[Any] = []
    operator = run.submit_operator("sleep 0.2")
    task = context("pilots", run_id=run.pool.database)
    return threading.Thread(target=lambda: outputs.append(operator.execute(task))), outputs


def check_thread_submitted_once(run: Run, thread: threading.Thread, outputs: list[Any]) -> None:
    """The thread ends, there is one job, and it runs each token once."""
    thread.join(120)
    assert not thread.is_alive()
    (run.submitted,) = outputs
    check_submitted_once(run, 4)


def test_the_controller_hangs_while_sbatch_runs(run: Run, cluster: Cluster) -> None:
    """Its client gives up, and the job exists when the controller goes on: it is found by its name."""
    run.push(4)
    thread, outputs = submission_in_a_thread(run)
    before = answered(cluster)
    with hanging(cluster):
        thread.start()
        run.until(lambda: answered(cluster) - before, "The end of sbatch")
        assert thread.is_alive(), "nothing is known while the controller hangs"
    check_thread_submitted_once(run, thread, outputs)


def test_a_worker_killed_while_the_controller_hangs(run: Run, cluster: Cluster) -> None:
    run.push(4)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.one_submission", "-1", run.pool.database],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True, cwd=paths.PROJECT,
    )  # fmt: skip
    assert process.stdin is not None
    with hanging(cluster):
        process.stdin.write(json.dumps(arguments(run)))
        process.stdin.close()
        run.until(lambda: sbatch_runs(cluster), "The start of sbatch")
        process.kill()
        process.wait()
    reported = worker(run, -1)
    assert reported is not None
    run.submitted = reported["output"]
    assert arrays(run) == {run.submitted["submission"]: 1}
    run.wait()
    assert run.result()["done"] == 4


def test_the_controller_is_killed_while_sbatch_runs(run: Run, cluster: Cluster) -> None:
    run.push(4)
    thread, outputs = submission_in_a_thread(run)
    cluster.stop_controller()
    thread.start()
    run.until(lambda: sbatch_runs(cluster), "The start of sbatch")
    cluster.kill_controller()
    cluster.start_controller()
    check_thread_submitted_once(run, thread, outputs)


def test_cleared_after_its_jobs_have_ended_it_submits_again(run: Run) -> None:
    run.push(2)
    run.submit("true")
    first = run.submitted
    run.until(lambda: run.states()[State.DONE] == 2, "The first pilots' work")
    run.until(
        lambda: not run.cluster.run("squeue", "--noheader", f"--name={first['submission']}").stdout, "Their end", 60
    )
    run.submit("true")
    assert run.submitted["submission"] == first["submission"].removesuffix(".1") + ".2"
    assert run.submitted["job_ids"] != first["job_ids"]


def test_a_resubmission_whose_worker_is_killed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed worker has prepared is submitted by the next one, once."""
    from airflow_provider_picas.slurm import submission_folder

    run.push(2)
    run.submit("exit 1", pilot={"lease": LEASE, "stop_exit_codes": [1]})
    folder, key = run.submitted["folder"], run.submitted["submission"]
    run.until(lambda: not run.cluster.run("squeue", "--noheader", f"--name={key}").stdout, "The pilots' end", 60)
    steps = submission_folder.prepare_round(folder, key, 1, 1, 0, run.pushed["batch"])
    run.cluster_command(next(steps).text)  # type: ignore[union-attr]
    run.wait(resubmit=1)
    with pytest.raises(AirflowException):
        run.result()
    assert arrays(run) == {key: 1, f"{key}-1": 1}
