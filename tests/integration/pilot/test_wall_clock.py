"""The end of the job."""

from __future__ import annotations

import time

from airflow_provider_picas.tokens.states import State, state_of
from tests.integration.pilots import Pool, Submission


def test_the_end_of_the_job_gives_tokens_back(pool: Pool, submission: Submission) -> None:
    pool.push([{}])
    env = {"SLURM_JOB_END_TIME": str(int(time.time()) + 13)}
    assert submission.run("sleep 60", env=env, margin=0, seconds=30) == 0
    doc = pool.get("b:0000")
    assert state_of(doc) is State.TODO
    assert doc["attempts"][0]["reason"] == "given back: the job is about to reach its wall-clock limit"
