"""What commands leave running ends with them, and nothing else does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from airflow_provider_picas.pilot import archive
from airflow_provider_picas.tokens.states import State
from tests.integration.pilots import GATE, Pool, Submission, alive, pids_in, until

HIDE = (  # in a session of its own, without a variable, a file or a parent that shows where it comes from
    f'{sys.executable} -c \'import subprocess as s; print(s.Popen(["sleep", "1000"], env={{}}, cwd="/", '
    "start_new_session=True, stdin=s.DEVNULL, stdout=s.DEVNULL, stderr=s.DEVNULL).pid)' >> $RUNS.hidden"
)
"""A command that leaves a process running."""


@pytest.mark.parametrize("leaves", [HIDE, "setsid env -i sh -c 'echo $$ >> '\"$RUNS.hidden\"'; exec sleep 1000' &"])
def test_what_hides_from_the_pilot_ends_with_its_token(pool: Pool, submission: Submission, leaves: str) -> None:
    pool.push([{"input": leaves}, {"input": GATE, "priority": -1}])
    process = submission.start('eval "$PICAS_INPUT"; until [ -e "$RUNS.hidden" ]; do sleep 0.05; done', max_claim=1)
    until(lambda: pool.states()[State.DONE] == 1)
    (hidden,) = pids_in(submission.folder / "runs.hidden")
    assert not alive(hidden)
    submission.open_gate()
    assert process.wait(30) == 0


def test_what_hides_beside_another_command_spares_that_and_ends_with_it(pool: Pool, submission: Submission) -> None:
    """Of two commands either may have left it: the other's own processes, in sessions of their own, are not touched."""
    beside = f"setsid sh -c 'echo $$ > '\"$RUNS.beside\"'; exec sleep 1000' & {GATE}; kill -0 $(cat $RUNS.beside)"
    pool.push([{"input": beside, "priority": 1}, {"input": HIDE}, {"input": HIDE}, {"input": "true", "priority": -1}])
    config = {"slots": 2, "max_claim": 1}
    process = submission.start('test "$PICAS_INPUT" || exit; eval "$PICAS_INPUT"', **config)
    until(lambda: pool.states()[State.DONE] == 3)
    (other,) = pids_in(submission.folder / "runs.beside")
    assert alive(other)
    submission.open_gate()
    assert process.wait(30) == 0
    assert pool.states() == {State.DONE: 4}, "a process of the other command was killed"
    assert not any(alive(pid) for pid in [other, *pids_in(submission.folder / "runs.hidden")])


def test_what_the_setup_left_running_stays(pool: Pool, submission: Submission) -> None:
    """The pilot takes the place of the job's shell, and its children."""
    pool.push([{"input": HIDE}, {"input": "true"}])
    config = submission.write_config("pilot-0", 'eval "$PICAS_INPUT"; kill -0 $(cat "$RUNS.setup")')
    arguments = f"{sys.executable} -I {submission.folder / archive.FILE} {config}"
    setup = f'sleep 1000 & echo $! > "$RUNS.setup"; exec {arguments}'
    process = subprocess.Popen(
        ["/bin/sh", "-c", setup], env=submission.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    submission.pilots.append(process)
    assert process.wait(60) == 0
    (of_setup,) = pids_in(submission.folder / "runs.setup")
    try:
        assert alive(of_setup)
        assert pool.states() == {State.DONE: 2}
        assert not any(alive(pid) for pid in pids_in(submission.folder / "runs.hidden"))
    finally:
        os.kill(of_setup, signal.SIGKILL)
