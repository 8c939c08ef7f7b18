"""Sites that wrap sbatch in a script: its own output is not taken for the job id."""

from __future__ import annotations

import secrets

import pytest

from airflow_provider_picas.hooks.slurm import SlurmHook
from airflow_provider_picas.sansio import drive
from airflow_provider_picas.slurm import sbatch_calls, sbatch_record, submission_folder
from airflow_provider_picas.slurm.remote import Operation, Output, Pause, RemoteFile, Step


def submit(remote: SlurmHook, wrapper: str) -> submission_folder.SubmitResult:
    """Submit one job that is held, by a script in place of sbatch; pauses take no time."""

    def perform(step: Step) -> Output:
        return Output(0) if isinstance(step, Pause) else remote.perform(step)

    plan = submission_folder.Plan(
        base_key=submission_folder.base_key("wrapped", secrets.token_hex(8)),
        files=lambda folder, key: [RemoteFile(f"{folder}/pilot.sh", b"#!/bin/sh\nsleep 600\n", 0o700)],
        commands=lambda folder, key: [
            ["sh", "-c", wrapper, "sh", "sbatch", "--parsable", "--hold", f"--job-name={key}", f"{folder}/pilot.sh"]
        ],
    )
    return drive(submission_folder.submit(plan), perform)


@pytest.mark.parametrize(
    "wrapper", ['"$@" && echo 12', 'echo 9999999 && "$@"', 'echo "Budget:" && "$@" && echo 12 && echo h']
)
def test_numbers_beside_the_answer_of_sbatch_are_not_jobs(remote: SlurmHook, wrapper: str) -> None:
    made = submit(remote, wrapper)
    try:
        listed = remote.run(f"squeue --noheader --name={made.key} --format=%F").stdout.split()
        assert list(made.job_ids) == listed
        assert len(listed) == 1
        again = drive(sbatch_record.read(made.folder), remote.perform)
        assert again.job_ids == made.job_ids, "the id was not written down"
    finally:
        remote.do(_cancelled(made))


def _cancelled(made: submission_folder.SubmitResult) -> Operation[Output]:
    return (yield sbatch_calls.cancel(made.key, 1))


def test_a_job_that_slurm_has_forgotten_is_not_submitted_again(remote: SlurmHook) -> None:
    """There was one: sbatch had ended with 0."""
    made = submit(remote, "echo 456; echo 12; echo x >> ran")
    assert made.job_ids == ("456",)
    assert remote.run(f"cat {made.folder}/ran").stdout == "x\n"
