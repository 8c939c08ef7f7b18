"""The time that is left of a job."""

from __future__ import annotations

import pytest

from airflow_provider_picas.pilot.clock import Clock
from airflow_provider_picas.pilot.processes import Processes
from airflow_provider_picas.pilot.wall_clock import WallClock, parse_time_left


def test_the_time_left_is_read_from_slurms_output() -> None:
    shown = "   RunTime=00:01:05 TimeLimit=1-02:00:00 TimeMin=N/A\n   StartTime=2026-01-01T00:00:00 EndTime=2026-01-02T02:00:00\n"
    assert parse_time_left(shown) == 26 * 3600 - 65
    assert parse_time_left("TimeLeft=4:59\n") == 299
    assert parse_time_left("RunTime=00:02:00 TimeLimit=00:01:00") == -60
    unlimited = "RunTime=00:01:05 TimeLimit=UNLIMITED"
    for nothing in (
        unlimited,
        "TimeLeft=INVALID",
        "TimeLeft=NOT_SET",
        "",
        "slurm_load_jobs error: Invalid job id specified",
    ):
        assert parse_time_left(nothing) is None


def test_slurms_input_variables_do_not_reach_the_question_for_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SQUEUE_PARTITION", "SQUEUE_STATES", "SCONTROL_ALL", "SLURM_CLUSTERS", "SLURM_CONF", "SLURM_JOB_ID"):
        monkeypatch.setenv(name, "1")
    clock = WallClock(Clock(), Processes())
    asked = clock._environment()
    assert {name for name in asked if name.startswith("S") and "_" in name} >= {"SLURM_CLUSTERS", "SLURM_CONF"}
    assert not {"SQUEUE_PARTITION", "SQUEUE_STATES", "SCONTROL_ALL", "SLURM_JOB_ID"} & set(asked)
