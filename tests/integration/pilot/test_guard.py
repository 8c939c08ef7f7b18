"""What the guard does when its pilot is killed."""

from __future__ import annotations

import os
import signal

from airflow_provider_picas.tokens.states import State
from tests.integration.pilots import RUNNING, Pool, Submission, alive, guard_of, pids_in, until


def test_a_pilot_that_is_killed_alone_leaves_no_command_and_no_folder(pool: Pool, submission: Submission) -> None:
    """Its lease lasts long yet: whoever takes its token later is alone with it."""
    pool.push([{}, {}])
    victim = submission.start(RUNNING, lease=600, slots=2)
    until(lambda: len(pids_in(submission.folder / "runs.pids")) == 6)
    victim.kill()
    until(lambda: not any(alive(pid) for pid in pids_in(submission.folder / "runs.pids")))
    until(lambda: not list(submission.scratch.iterdir()))


def test_a_signal_to_all_of_a_job_does_not_end_the_guard(pool: Pool, submission: Submission) -> None:
    pool.push([{}])
    process = submission.start(f"trap '' TERM; {RUNNING}", lease=600)
    until(lambda: len(pids_in(submission.folder / "runs.pids")) == 3)
    guard = guard_of(process)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):
        os.kill(guard, number)
    process.terminate()
    until(lambda: "Stopping" in submission.log())
    assert alive(guard)
    assert process.wait(30) == 0
    assert not alive(guard)
    assert pool.states() == {State.TODO: 1}
