"""A pilot that is stopped, or that cannot run at all."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_picas.lifecycle.exit_codes import EX_TEMPFAIL
from airflow_provider_picas.lifecycle.pilot_config import Config
from airflow_provider_picas.lifecycle.transitions import Change
from airflow_provider_picas.pilot.claims import Claims
from airflow_provider_picas.pilot.conflicts import Conflicts
from airflow_provider_picas.pilot.main import Pilot
from airflow_provider_picas.pilot.reaper import Reaper
from airflow_provider_picas.pilot.work import DRAIN
from airflow_provider_picas.tokens.states import State, state_of
from stack import processes
from tests.integration.pilots import COUNT, Pool, Proxy, Submission, left_behind, session_of_a_pilot, until


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ("./missing.sh --x", 127, "does not exist"),
        (["./plain.txt"], 126, "not executable"),
        ("no-such-program-here", 127, "Command no-such-program-here not found"),
    ],
)
def test_a_command_that_cannot_be_run_is_said_once(
    pool: Pool, submission: Submission, command: Any, code: int, says: str
) -> None:
    (submission.folder / "plain.txt").write_text("x")
    pool.push([{"input": ""}] * 3)
    assert submission.run(command, files=["plain.txt"]) == code
    assert says in submission.log()
    assert pool.states() == {State.TODO: 3}


@pytest.mark.parametrize("what", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_gives_tokens_back_within_ten_seconds(
    pool: Pool, submission: Submission, what: signal.Signals
) -> None:
    pool.push([{"input": "trap '' TERM; sleep 60"}] * 2 + [{"input": "sleep 60"}] * 2)
    process = submission.start(COUNT + '; eval "$PICAS_INPUT"', slots=3)
    until(lambda: submission.runs().total() == 3)
    started = time.monotonic()
    process.send_signal(what)
    assert process.wait(20) == 0
    assert time.monotonic() - started < 10
    assert pool.states() == {State.TODO: 4}
    for token, doc in pool.docs().items():
        assert doc["scrub_count"] == submission.runs()[token]
        assert "pilot" not in doc
        assert "slurm_job_id" not in doc
    assert not left_behind(submission)
    assert pool.leases()[0]["ended"] is True


def test_a_command_that_gets_the_pilots_signal_too_has_not_failed(pool: Pool, submission: Submission) -> None:
    """Slurm signals every process of a job: the command dies a moment before the pilot hears of it."""
    pool.push([{}])
    process = submission.start(COUNT + "; exec sleep 60")
    until(lambda: submission.runs().total() == 1)
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split() or [""]
    children = [
        int(pid)
        for task in Path(f"/proc/{process.pid}/task").iterdir()
        for pid in (task / "children").read_text().split()
    ]
    process.send_signal(signal.SIGSTOP)
    for pid in children:
        os.kill(pid, signal.SIGTERM)
    process.terminate()
    process.send_signal(signal.SIGCONT)
    assert process.wait(20) == 0
    assert state_of(pool.get("b:0000")) is State.TODO
    assert pool.get("b:0000")["attempts"][0]["reason"].startswith("given back")
    assert child is not None


def test_a_result_that_cannot_be_kept_loses_no_other(pool: Pool, submission: Submission) -> None:
    config = Config(command="true", submission="s", batch="b", outage=0)
    made = Pilot(str(submission.folder), config)
    made.work.stop(DRAIN, "the test ends it")
    made.wall_clock.queried.set()
    with session_of_a_pilot(pool, pool.server.url) as session:
        conflicts = Conflicts(session)
        claims = Claims(session, False, conflicts)
        reaper = Reaper(session, conflicts)
        claimer = made._claimer(claims, reaper)
        for thread in (made.lease, claimer):
            thread.start()
        deep: list[Any] = []
        for _ in range(100_000):
            deep = [deep]
        for place, output in enumerate([1, deep, 3]):
            change = Change("done", f"b:000{place}", f"{place}-1000", 1000, {"done": 1, "output": output})
            made.reporter.put(change)
        assert made._finish(claimer) == EX_TEMPFAIL
    kept = [json.loads(file.read_text())["change"]["token"] for file in submission.files("unsent")]
    assert kept == ["b:0000", "b:0002"]


def test_a_wrong_password_or_configuration_ends_the_pilot(pool: Pool, submission: Submission) -> None:
    submission.write_credentials(pool.server.url, password="wrong-one")
    assert submission.run("true") == 77
    assert "wrong-one" not in submission.log()
    assert submission.run("true", credentials="nowhere") == 78
    assert submission.run("true", slots=0) == 78
    assert "'slots' must be a whole number, at least 1" in submission.log()


def test_a_database_that_never_answers_ends_the_pilot(pool: Pool, submission: Submission) -> None:
    submission.write_credentials(f"http://127.0.0.1:{processes.free_port()}")
    assert submission.run("true", outage=1) == 69


def test_a_database_that_takes_no_writes_ends_the_pilot(pool: Pool, proxy: Proxy, behind_proxy: Submission) -> None:
    """That it answers reads is no reason to wait for ever."""
    proxy.fault = lambda request: "503" if request.startswith(b"PUT") else ""
    assert behind_proxy.run("true", outage=2) == 69
