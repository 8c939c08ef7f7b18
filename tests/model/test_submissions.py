"""A submission is made once, whatever happens to its tries, the login node and Slurm's controller."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest

from airflow_provider_picas.slurm import sbatch_calls
from airflow_provider_picas.slurm.sbatch_record import Call
from tests.model.explorer import Result, explore
from tests.model.submissions import Cluster, Sbatch, Submissions, short_times

SCENARIOS = {
    "one try": {"tries": 1, "steps": 5},
    "two tries": {"tries": 2, "kills": 0, "silences": 0, "crashes": 0, "steps": 4},
    "two tries and a crash": {"tries": 2, "kills": 0, "silences": 0, "crashes": 1, "steps": 3},
}


def explored(name: str, *, liveness: bool = True) -> Result:
    with short_times():
        return explore(Submissions(**SCENARIOS[name]), most=150_000, liveness=liveness)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_submission_is_made_once_and_can_be_completed(name: str) -> None:
    result = explored(name)
    print(f"\n{name}: {result}")
    assert not result.violation, result
    assert result.complete, "the scenario shows nothing"


def _find_nothing(key: str, record: Any) -> Iterator[Any]:
    """A controller that does not answer counts as one without jobs."""
    found = yield from REAL_FIND(key, record)
    return found or {}


REAL_FIND = sbatch_calls.find_jobs


def _start_again(cluster: Cluster) -> Cluster:
    """Calls have no lock."""
    return cluster._replace(started=True, age=0, sbatch=(*cluster.sbatch, Sbatch(cluster.given_up)))


PLANTED: dict[str, tuple[Any, str, Any]] = {
    "silence counts as an answer": (sbatch_calls, "find_jobs", _find_nothing),
    "a missing job is not waited for": (sbatch_calls, "MARGIN", -1000.0),
    "a running sbatch is not waited for": (Call, "may_be_running", False),
    "calls without a lock": (Submissions, "_start", staticmethod(_start_again)),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found(name: str) -> None:
    where, attribute, wrong = PLANTED[name]
    with mock.patch.object(where, attribute, wrong):
        results = (explored(scenario, liveness=False) for scenario in SCENARIOS)
        result = next((result for result in results if result.violation), None)
    print(f"\n{result}")
    assert result, "nothing was found"
    assert "made twice" in result.violation
