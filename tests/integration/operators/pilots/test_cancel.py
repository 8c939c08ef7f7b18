"""Cancelling and draining pilots on a real Slurm: tokens are released and credentials removed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSensorTimeout, AirflowSkipException

from airflow_provider_picas.couchdb.errors import CouchDBError
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.hooks.slurm import SlurmHook
from airflow_provider_picas.operators.pilots import PicasCancelPilotsOperator, PicasSubmitPilotsOperator
from airflow_provider_picas.operators.tokens import PicasPushTokensOperator
from airflow_provider_picas.sensors.tokens import PicasTokenStateSensor
from airflow_provider_picas.tokens.states import State, state_of
from stack import native, processes
from stack.pool import Pool
from tests.conftest import set_connection
from tests.integration.tasks import context

pytestmark = pytest.mark.usefixtures("picas_default", "spider")

STARTED = 'echo >> ~/"$STARTED"'


class Run:
    """A batch, and pilots for it."""

    def __init__(self, pool: Pool, tokens: int, command: str, **arguments: Any) -> None:
        self.pool = pool
        push = PicasPushTokensOperator(task_id="push", inputs=list(range(tokens)))
        self.batch: Any = push.execute(context(run_id=pool.database))
        submit = PicasSubmitPilotsOperator(
            task_id="pilots",
            command=command,
            batch=self.batch,
            ssh_conn_id="spider",
            env={"STARTED": f"started-{pool.database}"},
            **arguments,
        )
        self.pilots: Any = submit.execute(context("pilots", run_id=pool.database))

    def stop(self, **arguments: Any) -> int:
        cancel = PicasCancelPilotsOperator(task_id="cancel", pilots=self.pilots, batch=self.batch, **arguments)
        return cancel.execute(context("cancel", run_id=self.pool.database))

    def states(self) -> Counter[State | None]:
        return Counter(state_of(token) for token in self.pool.tokens())

    def started(self) -> int:
        """How many commands have come to ``STARTED``: a token is locked before its command starts."""
        with SlurmHook("spider") as slurm:
            return len(slurm.run(f"cat ~/started-{self.pool.database}").stdout)

    def until(self, condition: Callable[[], object], what: str) -> None:
        processes.wait_for(condition, what=what, seconds=60)


def left(run: Run) -> list[str]:
    """Pilots that wait or run."""
    with SlurmHook("spider") as slurm:
        return slurm.run(f"squeue --noheader --array --name={run.pilots['submission']} --format=%i").stdout.split()


def credentials(run: Run) -> list[str]:
    with SlurmHook("spider") as slurm:
        return slurm.run(f"ls -A {run.pilots['folder']}/credentials").stdout.split()


def test_cancelling_releases_tokens_and_removes_credentials(pool: Pool) -> None:
    run = Run(pool, 4, f"trap '' TERM; {STARTED}; sleep 300", pilots=3, pilot={"slots": 1})
    run.until(lambda: run.started() == 3, "The start of three commands")
    assert credentials(run) == ["picasconfig.py"]
    begin = time.monotonic()
    run.stop()
    print(f"\ncancelled after {time.monotonic() - begin:.1f} s")
    assert run.states() == {State.TODO: 4}
    assert left(run) == []
    assert credentials(run) == []
    tokens = {token["_id"]: token for token in pool.tokens()}
    assert sorted(token["scrub_count"] for token in tokens.values()) == [0, 1, 1, 1]
    assert run.stop() == 0, "none is left"


def test_all_arrays_are_cancelled(pool: Pool) -> None:
    """To scancel a list of names is one name; each array of a submission has a name of its own."""
    tokens = [{"input": "x", "cores": cores} for cores in (1, 2)]
    PicasPushTokensOperator(task_id="push", tokens=tokens).execute(context(run_id=pool.database))
    submit = PicasSubmitPilotsOperator(
        task_id="pilots", command="sleep 300", ssh_conn_id="spider", pilots=1, resource_classes=True
    )
    pilots: Any = submit.execute(context("pilots", run_id=pool.database))
    assert len(pilots["job_ids"]) == 2
    processes.wait_for(
        lambda: all(state_of(token) is State.LOCKED for token in pool.tokens()), what="The claims", seconds=60
    )
    PicasCancelPilotsOperator(task_id="cancel", pilots=pilots).execute(context("cancel"))
    assert all(state_of(token) is State.TODO for token in pool.tokens())
    with SlurmHook("spider") as slurm:
        assert not slurm.run(f"squeue --noheader --jobs={','.join(pilots['job_ids'])}").stdout


def test_where_none_is_left_the_credentials_go(pool: Pool) -> None:
    run = Run(pool, 1, "true", pilots=1, setup="exit 3")
    run.until(lambda: not left(run), "The pilots' end")
    assert credentials(run) == ["picasconfig.py"]
    assert run.stop() == 0
    assert credentials(run) == []
    assert run.states() == {State.TODO: 1}


def test_cancel_of_pilots_that_have_not_begun(pool: Pool) -> None:
    run = Run(pool, 2, "true", pilots=2, sbatch={"hold": True})
    run.stop()
    assert left(run) == []
    assert run.states() == {State.TODO: 2}


def test_draining_pilots_finish_their_tokens(pool: Pool) -> None:
    run = Run(pool, 6, f"{STARTED}; sleep 6", pilots=2, pilot={"lease": 12})
    run.until(lambda: run.started() >= 2, "The start of two commands")
    assert run.stop(how="drain") == 0
    run.until(lambda: not left(run), "The pilots' end")
    states = run.states()
    assert states[State.DONE] >= 2
    assert states[State.TODO] >= 2
    assert states[State.LOCKED] == states[State.ERROR] == 0
    assert not any(token["scrub_count"] for token in pool.tokens())
    assert credentials(run) == []
    run.stop()
    assert run.states() == states


@pytest.mark.parametrize("how", ["drain", "cancel"])
def test_what_was_stopped_is_not_submitted_again(pool: Pool, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(pool, 2, "true", pilots=1, pilot={"lease": 6}, setup="sleep 2; exit 3")
    run.stop(how=how)
    run.until(lambda: not left(run), "The pilots' end")
    wait = PicasTokenStateSensor(task_id="wait", batch=run.batch, pilots=run.pilots, resubmit=1, deferrable=False)
    with pytest.raises(AirflowFailException, match="no pilots remain"):
        wait.execute(context("wait", run_id=pool.database))
    assert "Not submitting more pilots. They were drained or cancelled." in capsys.readouterr().out
    with SlurmHook("spider") as slurm:
        assert slurm.run(f"cd {run.pilots['folder']} && ls command.*").stdout.split() == ["command.0"]


def wait_for(run: Run, **arguments: Any) -> PicasTokenStateSensor:
    """A wait that soon gives up."""
    return PicasTokenStateSensor(
        task_id="wait", batch=run.batch, pilots=run.pilots, timeout=0, poke_interval=0, deferrable=False, **arguments
    )


@pytest.mark.parametrize("arguments", [{}, {"mode": "reschedule"}, {"soft_fail": True}])
def test_a_wait_that_times_out_leaves_no_credentials(pool: Pool, arguments: dict[str, Any]) -> None:
    """Its pilots have ended, while somebody else holds the last token."""
    run = Run(pool, 1, "true", pilots=1, setup="exit 3")
    run.until(lambda: not left(run), "The pilots' end")
    (token,) = pool.tokens()
    hook = PicasHook()
    hook.do(hook.pool.put({**token, "lock": int(time.time())}))
    wait, of_task = wait_for(run, **arguments), context("wait", run_id=pool.database)
    with pytest.raises(AirflowSkipException if arguments.get("soft_fail") else AirflowSensorTimeout, match="timed out"):
        wait.execute(of_task)
    assert credentials(run) == []
    assert sum(of_task["ti"].xcoms["figures"]["jobs"].values()) == 1


def test_a_pool_that_stays_away_keeps_no_credentials(pool: Pool) -> None:
    run = Run(pool, 1, "true", pilots=1, setup="exit 3")
    run.until(lambda: not left(run), "The pilots' end")
    assert credentials(run) == ["picasconfig.py"]
    away = {
        "outcome": "away",
        "counts": {"todo": 0, "locked": 0, "done": 0, "error": 0},
        "expected": 1,
        "reason": "It is gone.",
    }
    with pytest.raises(CouchDBError, match="It is gone"):
        wait_for(run).execute_complete(context("wait"), away, deadline=time.time())
    assert credentials(run) == []


def test_a_pool_that_is_gone_when_it_is_asked_keeps_no_credentials(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(pool, 1, "true", pilots=1, setup="exit 3")
    run.until(lambda: not left(run), "The pilots' end")
    set_connection(monkeypatch, "gone", {**native.picas_connection(pool), "schema": "no-such-pool"})
    run.batch = {**run.batch, "database": None}
    with pytest.raises(CouchDBError, match="There is no database"):
        wait_for(run, picas_conn_id="gone").execute(context("wait"))
    assert credentials(run) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"how": "kill"}, "'kill' is not a way to stop pilots"),
        ({"pilots": {"x": 1}}, "`pilots` must be the output of the operator"),
    ],
)
def test_invalid_arguments_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(AirflowFailException, match=words):
        PicasCancelPilotsOperator(task_id="t", **{"pilots": None, **arguments}).execute(context("t"))


def test_where_nothing_was_submitted_nothing_is_stopped() -> None:
    nothing = {"ssh_conn_id": "spider", "submission": None, "folder": None, "job_ids": [], "submitted": None}
    assert PicasCancelPilotsOperator(task_id="t", pilots=nothing).execute(context("t")) == 0


def test_a_batch_of_the_picas_client_is_released_by_its_jobs(pool: Pool, tmp_path: Path) -> None:
    """Pilots of a script have no leases: what they hold is told by the ids of their jobs."""
    script = tmp_path / "pilot.sh"
    script.write_text("#!/bin/bash\n#SBATCH --time=5\nexec sleep 300\n")
    push = PicasPushTokensOperator(task_id="push", inputs=["a", "b"])
    batch: Any = push.execute(context(run_id=pool.database))
    submit = PicasSubmitPilotsOperator(task_id="pilots", script=str(script), ssh_conn_id="spider", pilots=1)
    pilots: Any = submit.execute(context("pilots", run_id=pool.database))
    job = f"{pilots['job_ids'][0]}_0"
    with SlurmHook("spider") as slurm:
        running = f"squeue --noheader --array --jobs={pilots['job_ids'][0]} --states=RUNNING --format=%i"
        processes.wait_for(lambda: slurm.run(running).stdout.strip() == job, what="The job", seconds=60)
    hook = PicasHook()
    token = pool.tokens()[0]
    claimed = {**token, "lock": int(time.time()), "hostname": "n1", "slurm_job_id": job}
    hook.do(hook.pool.put(claimed))
    cancel = PicasCancelPilotsOperator(task_id="cancel", pilots=pilots, batch=batch)
    assert cancel.execute(context("cancel", run_id=pool.database)) == 1
    (given_back,) = [document for document in pool.tokens() if document["_id"] == token["_id"]]
    assert state_of(given_back) is State.TODO
    assert given_back["scrub_count"] == 1
    assert given_back["attempts"][0]["reason"].startswith(f"reaped: job {job} on ")
