"""Who a pilot is, in a job and in a job array."""

from __future__ import annotations

import pytest

from airflow_provider_picas.pilot.identity import Identity


def test_an_array_task_is_named_as_by_the_picas_client(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    assert Identity.here().job is None
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert Identity.here().job == "17"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "15")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    first, second = Identity.here(), Identity.here()
    assert first.job == "15_2"
    assert first.pilot.startswith("15_2-")
    assert first.pilot != second.pilot, "a requeued job must be another pilot"


@pytest.mark.parametrize(
    ("task", "least", "count", "share"),
    [
        ("2", "0", "8", (2, 8)),
        ("9", "5", "8", (4, 8)),
        ("40", "0", "3", (1, 3)),
        ("", "", "", (0, 1)),
        ("x", "y", "0", (0, 1)),
    ],
)
def test_each_array_task_has_a_share(
    monkeypatch: pytest.MonkeyPatch, task: str, least: str, count: str, share: tuple[int, int]
) -> None:
    for name, value in (("ID", task), ("MIN", least), ("COUNT", count)):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    assert Identity.here().share == share
