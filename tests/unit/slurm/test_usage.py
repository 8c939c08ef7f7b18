"""What pilots cost."""

from __future__ import annotations

import pytest

from airflow_provider_picas.slurm.jobs import Job
from airflow_provider_picas.slurm.usage import figures


def job(identifier: str, state: str = "COMPLETED", **fields: object) -> Job:
    return Job(identifier, state, **fields)  # type: ignore[arg-type]


def test_usage_is_summed_up() -> None:
    jobs = [
        job("1_0", elapsed=3600, cpus=2, cpu_seconds=3600),
        job("1_1", "FAILED", exit_code="0:9", elapsed=1800, cpus=2, cpu_seconds=1800),
        job("1_2", "RUNNING", elapsed=600, cpus=1),
        job("1_3", "PENDING"),
    ]
    found = figures(jobs, tokens=120, seconds=1800)
    assert found.jobs == {"COMPLETED": 1, "FAILED, signal 9": 1, "RUNNING": 1, "PENDING": 1}
    assert round(found.core_hours, 3) == 3.167
    assert found.cpu_efficiency == 0.5, "of those that Slurm has accounted for"
    assert found.tokens_per_hour == 240
    assert found.as_dict() == {
        "jobs": found.jobs, "core_hours": 3.1667, "cpu_efficiency": 0.5, "tokens": 120, "tokens_per_hour": 240.0,
    }  # fmt: skip
    assert "     1  FAILED, signal 9\n" in found.table()
    assert found.table().endswith("3.17 core-hours, of which 50% were used; 240 tokens an hour")


def test_usage_of_no_jobs_is_zero() -> None:
    found = figures([], 0, 0)
    assert (found.core_hours, found.cpu_efficiency, found.tokens_per_hour) == (0, None, 0)


@pytest.mark.parametrize(("seconds", "shown"), [(2, False), (35, False), (36, True)])
def test_the_log_has_no_core_hours_of_a_short_run(seconds: int, shown: bool) -> None:
    table = figures([job("1", elapsed=seconds, cpus=1)], tokens=3, seconds=seconds).table()
    assert "     1  COMPLETED" in table
    assert ("core-hours" in table, "tokens an hour" in table) == (shown, shown)
