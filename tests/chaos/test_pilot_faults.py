"""A pilot, its node or its job dies: each token is done once, no result is lost, and the next claim comes soon.

Slurm's time-outs are those of ``stack.cluster``: with a MessageTimeout of 3 s it notices a dead node after about 11 s.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from airflow.providers.common.compat.sdk import AirflowException

from airflow_provider_picas.operators.pilots import PicasSubmitPilotsOperator
from airflow_provider_picas.tokens.states import State
from stack.cluster import Cluster
from tests.chaos.run import INTERVAL, LEASE, Run, tell
from tests.integration.tasks import context

SOON = 15.0  # seconds, for what Slurm tells at once
BUSY = 5.0  # seconds on top of a lease


@dataclass(frozen=True)
class Fault:
    """What befell the pilot that held the long token. ``at``: seconds since 1970."""

    token: str
    job: str
    at: float


def push(run: Run) -> None:
    """One long token, which is claimed first, and some short ones."""
    run.push([{"input": 8, "priority": 1}, *[{"input": 1}] * 5])


def hurt(run: Run, fault: Callable[[str], object]) -> Fault:
    """Let a fault befall the job of the pilot that runs the long token."""
    long, job = run.long_token()
    time.sleep(1)
    at = time.time()
    fault(job)
    return Fault(long, job, at)


def attempts(run: Run, token: str) -> list[dict[str, str]]:
    """The earlier attempts of a token."""
    found: list[dict[str, str]] = next(doc for doc in run.pool.tokens() if doc["_id"] == token).get("attempts", [])
    return found


def reason(run: Run, fault: Fault) -> str:
    """Why the token's first attempt ended."""
    return attempts(run, fault.token)[0]["reason"]


def claimed_again(run: Run, fault: Fault, what: str) -> float:
    """Seconds from the fault to the next claim of the token, which are printed; and until it was given back, and why."""
    run.until(lambda: attempts(run, fault.token), "The return of the token")
    back = time.time() - fault.at
    seconds = run.next_claim([fault.token], fault.at)
    tell(
        f"{what}: the token was claimed again after {seconds:.1f} s, given back after {back:.1f} s"
        f" (interval {INTERVAL:g} s, lease {LEASE} s; {reason(run, fault)})"
    )
    return seconds


def test_sigkill_of_a_pilot(run: Run) -> None:
    push(run)
    run.submit("sleep $PICAS_INPUT")
    run.wait()
    fault = hurt(run, run.kill_pilot)
    seconds = claimed_again(run, fault, "SIGKILL of a pilot")
    assert run.result()["done"] == 6
    run.check_done_once([fault.token])
    assert seconds < LEASE + BUSY
    assert reason(run, fault).startswith("reaped: ")


def test_scancel(run: Run, cluster: Cluster) -> None:
    push(run)
    run.submit("sleep $PICAS_INPUT")
    run.wait()
    fault = hurt(run, lambda job: cluster.run("scancel", job))
    seconds = claimed_again(run, fault, "scancel")
    assert run.result()["done"] == 6
    run.check_done_once([fault.token])
    assert seconds < SOON
    assert reason(run, fault) == "given back: received SIGTERM"


@contextmanager
def mended(cluster: Cluster, node: str) -> Iterator[None]:
    """Bring a node back in the end."""
    try:
        yield
    finally:
        cluster.start_node(node)


def test_sigkill_of_slurmd(run: Run, cluster: Cluster) -> None:
    """The pilot runs on, and Slurm has given it up: it must not go on to take tokens which the wait takes away again."""
    run.push([{"input": 40, "priority": 1}, *[{"input": 1}] * 45])
    run.submit("sleep $(($PICAS_ATTEMPT == 1 ? $PICAS_INPUT : 2))", sbatch={"exclusive": True})
    run.wait()
    nodes: list[str] = []

    def kill_slurmd(job: str) -> None:
        nodes.append(run.node_of(job))
        cluster.kill_slurmd(nodes[0])

    fault = hurt(run, kill_slurmd)
    with mended(cluster, nodes[0]):
        seconds = claimed_again(run, fault, "SIGKILL of slurmd")
        run.until(lambda: not run.pids(fault.job), "The end of the pilot that Slurm has given up", 40)
        assert run.result()["done"] == 46
    run.check_done_once([fault.token])
    assert seconds < LEASE + 2 * BUSY, "Slurm alone takes 11 s"
    assert reason(run, fault).endswith("NODE_FAIL"), "it renewed its lease all the time"


def test_a_node_unplugged(run: Run, cluster: Cluster) -> None:
    push(run)
    run.submit("sleep $PICAS_INPUT", sbatch={"exclusive": True})
    run.wait()
    nodes: list[str] = []

    def unplug(job: str) -> None:
        nodes.append(run.node_of(job))
        cluster.kill_node(nodes[0])

    fault = hurt(run, unplug)
    with mended(cluster, nodes[0]):
        seconds = claimed_again(run, fault, "A node unplugged")
        assert run.result()["done"] == 6
    run.check_done_once([fault.token])
    assert seconds < LEASE + BUSY
    # Slurm and the lease's end tell it at about the same time.
    assert "NODE_FAIL" in reason(run, fault) or "did not renew its lease" in reason(run, fault)


def test_a_node_set_down(run: Run, cluster: Cluster) -> None:
    push(run)
    run.submit("sleep $PICAS_INPUT", sbatch={"exclusive": True})
    run.wait()
    nodes: list[str] = []

    def set_down(job: str) -> None:
        nodes.append(run.node_of(job))
        cluster.run("scontrol", "update", f"nodename={nodes[0]}", "state=down", "reason=test")

    fault = hurt(run, set_down)
    try:
        seconds = claimed_again(run, fault, "scontrol update state=down")
        assert run.result()["done"] == 6
    finally:
        cluster.run("scontrol", "update", f"nodename={nodes[0]}", "state=resume")
    run.check_done_once([fault.token])
    assert seconds < SOON


def test_the_wall_clock_ends(run: Run) -> None:
    """Nobody of the job is left then: the wait submits more pilots."""
    run.push([{"input": 100}, {"input": 100}, {"input": 1, "priority": 1}])
    run.submit("sleep $(($PICAS_ATTEMPT == 1 ? $PICAS_INPUT : 2))", sbatch={"time": 1})
    run.wait(resubmit=1)
    run.until(lambda: run.ended().total() == 1 and run.begun().total() == 3, "The start of all tokens")
    held = [token for token, times in run.begun().items() if times > run.ended()[token]]
    begun = next(line.at for line in run.lines())
    seconds = run.next_claim(held, max(line.at for line in run.lines()))
    tell(f"wall-clock end: both tokens were claimed again {seconds:.1f} s after they had been begun; the limit is 60 s")
    assert run.result()["done"] == 3
    run.check_done_once(held)
    reasons = {token["attempts"][0]["reason"] for token in run.pool.tokens() if token.get("attempts")}
    assert reasons <= {"given back: the job is about to reach its wall-clock limit", "given back: received SIGTERM"}, (
        reasons
    )
    assert begun


HOLD = """#!/bin/bash
source ~/picas-venv/bin/activate
exec python3 - <<'PYTHON'
import os
import time

import picasconfig
from picas.clients import CouchDB
from picas.iterators import TaskViewIterator

client = CouchDB(
    url=picasconfig.PICAS_HOST_URL,
    db=picasconfig.PICAS_DATABASE,
    username=picasconfig.PICAS_USERNAME,
    password=picasconfig.PICAS_PASSWORD,
)
while len(client.view("locked").rows) < int(os.environ["SLURM_ARRAY_TASK_ID"]):
    time.sleep(0.2)  # one after the other: two clients may lock the same token
next(TaskViewIterator(client, "todo", design_doc="Monitor"))
time.sleep(600)
PYTHON
"""


def test_the_cause_is_what_slurm_reports(run: Run, tmp_path: Path) -> None:
    """Scripts that lock a token by the PiCaS client and know nothing of signals: one is cancelled, one runs out of time."""
    script = tmp_path / "hold.sh"
    script.write_text(HOLD)
    run.push(2)
    operator = PicasSubmitPilotsOperator(
        task_id="pilots", script=str(script), batch=run.pushed, ssh_conn_id="spider", pilots=2, sbatch={"time": 1}
    )
    run.submitted = operator.execute(context("pilots", run_id=run.pool.database))
    run.wait()
    run.until(lambda: run.states()[State.LOCKED] == 2, "The lock of both tokens")
    run.cluster.run("scancel", run.job())
    with pytest.raises(AirflowException, match="no pilots remain"):
        run.result(200)
    reasons = {attempt["reason"] for token in run.pool.tokens() for attempt in token["attempts"]}
    tell(f"tokens without a lease were given back: {reasons}")
    assert {job: cause for job in (run.job(0), run.job(1)) for cause in ("CANCELLED", "TIMEOUT")
            if any(f"job {job} " in reason and cause in reason for reason in reasons)} == {
        run.job(0): "CANCELLED", run.job(1): "TIMEOUT",
    }  # fmt: skip


def test_a_requeued_copy_on_another_node(run: Run, cluster: Cluster) -> None:
    """Slurm loses sight of a node, and starts the job elsewhere; the first copy hangs a while and then reports its result."""
    run.push([{"input": 6}, {"input": 1}])
    work = 'sleep $PICAS_INPUT; echo "\\"$SLURMD_NODENAME\\"" > output.json'
    run.submit(work, 1, pilot={"lease": 240}, sbatch={"requeue": True})
    run.wait()
    nodes: list[str] = []
    first: list[int] = []

    def lose_sight(job: str) -> None:
        nodes.append(run.node_of(job))
        first.extend(run.pids(job))
        os.kill(first[0], signal.SIGSTOP)
        cluster.kill_slurmd(nodes[0])

    run.until(lambda: run.begun().total() > run.ended().total(), "A token at work")
    token = run.lines()[-1].token
    at = time.time()
    lose_sight(run.job())
    with mended(cluster, nodes[0]):
        try:
            run.until(lambda: len(run.pids(run.job())) == 2, "The start of the second copy")
            started = time.time() - at
            seconds = run.next_claim([token], at)
            tell(
                f"requeue: the token was claimed again after {seconds:.1f} s; Slurm began the copy after {started:.1f} s"
            )
            run.until(lambda: run.states()[State.DONE] == 2, "The second copy's result")
        finally:
            os.kill(first[0], signal.SIGCONT)
        run.until(lambda: run.files("refused"), "The record of the first copy's result")
        assert run.result()["done"] == 2
    run.check_done_once([token])
    document = next(document for document in run.pool.tokens() if document["_id"] == token)
    assert document["output"] != nodes[0]
    (refused,) = run.files("refused")
    assert json.loads(refused.read_text())["change"]["token"] == token


def test_the_last_pilot_dies_after_all_others_have_left(run: Run) -> None:
    run.push([{"input": 25, "priority": 1}, {"input": 1}])
    run.submit("sleep $(($PICAS_ATTEMPT == 1 ? $PICAS_INPUT : 1))", 2, pilot={"lease": 4})
    run.wait(resubmit=1)
    long, job = run.long_token()
    other = run.job(1 if job.endswith("_0") else 0)
    run.until(lambda: not run.pids(other), "The end of the other pilot")
    at = time.time()
    run.kill_pilot(job)
    seconds = run.next_claim([long], at)
    tell(f"the last pilot killed: the token was claimed by a new one after {seconds:.1f} s")
    assert run.result()["done"] == 2
    run.check_done_once([long])
