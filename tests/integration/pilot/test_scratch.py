"""The scratch folder cannot be used."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from airflow_provider_picas.pilot.scratch import remove_stale_scratch
from airflow_provider_picas.tokens.states import State, state_of
from tests.integration.pilots import COUNT, GATE, RUNNING, Pool, Submission, guard_of, pids_in, until


def test_scratch_that_cannot_be_written_costs_no_token(pool: Pool, submission: Submission) -> None:
    pool.push([{}] * 3)
    assert submission.run("true", env={"TMPDIR": "/proc"}) == 74
    assert pool.states() == {State.TODO: 3}


def test_a_full_disk_stops_the_pilot(pool: Pool, submission: Submission, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this account may not mount a small file system")
    try:
        pool.push([{"input": "cat /dev/zero > fill"}, {"input": ":"}, {"input": "x" * 500_000}])
        command = COUNT + '; test -z "$PICAS_INPUT" || eval "$PICAS_INPUT"'
        assert submission.run(command, env={"TMPDIR": str(small)}) == 74, submission.log()
        docs = pool.docs()
        assert state_of(docs["b:0002"]) is State.TODO, "the token's folder did not fit: the node's fault"
        assert docs["b:0002"]["scrub_count"] == 0
        assert state_of(docs["b:0000"]) in (State.ERROR, State.TODO)
        assert "No space left" in submission.log()
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_scratch_folders_of_killed_pilots_are_removed_by_the_next_one(pool: Pool, submission: Submission) -> None:
    """But not those of living pilots, nor while a command runs there, nor what no pilot has made."""
    pool.push([{"input": "wait"}, {"input": "go"}])
    command = 'test "$PICAS_INPUT" = wait || exit 0; ' + RUNNING
    living = submission.start(f"{COUNT}; {GATE}", batch="c", wait_for_work=600)
    until(lambda: len(list(submission.scratch.glob("picas-*/guard.py"))) == 1)
    (of_living,) = submission.scratch.iterdir()
    victim = submission.start(command, lease=600, max_claim=1)
    until(lambda: len(pids_in(submission.folder / "runs.pids")) == 3)
    (of_victim,) = set(submission.scratch.iterdir()) - {of_living}
    os.kill(guard_of(victim), signal.SIGKILL)
    victim.kill()
    victim.wait()
    others = [submission.scratch / "picas-of-somebody", submission.scratch / "other", submission.scratch / "picas-link"]
    for folder in others[:2]:
        folder.mkdir()
    others[2].symlink_to(others[1])

    remove_stale_scratch(str(submission.scratch))
    assert set(submission.scratch.iterdir()) == {of_living, of_victim, *others}
    for pid in pids_in(submission.folder / "runs.pids"):
        os.kill(pid, signal.SIGKILL)
    submission.start("true", batch="c", wait_for_work=600)
    until(lambda: "Removed 1 scratch folders" in submission.log())
    assert not of_victim.exists()
    assert {of_living, *others} <= set(submission.scratch.iterdir())
    assert living.poll() is None
