"""The scratch folder cannot be used."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from airflow_provider_picas.tokens.states import State, state_of
from tests.integration.pilots import COUNT, Pool, Submission


def test_scratch_that_cannot_be_written_costs_no_token(pool: Pool, submission: Submission) -> None:
    pool.push([{}] * 3)
    assert submission.run("true", env={"TMPDIR": "/proc"}) == 74
    assert pool.states() == {State.TODO: 3}


def test_a_full_disk(pool: Pool, submission: Submission, tmp_path: Path) -> None:
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
