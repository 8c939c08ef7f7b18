"""What happens to pilots when a waiting task ends by hand; the trigger and the sensor run the same operation."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from airflow_provider_picas.couchdb.errors import UnavailableError
from airflow_provider_picas.couchdb.http import Request
from airflow_provider_picas.couchdb.pool import Pool
from airflow_provider_picas.couchdb.settings import Settings
from airflow_provider_picas.slurm.remote import Command, Output, Pause, UnreachableError
from airflow_provider_picas.submissions.on_kill import end_pilots, is_for_pilots, stop_for_good
from airflow_provider_picas.submissions.stop import StopMode, drain_flag
from airflow_provider_picas.submissions.submission import Submission

LOG = logging.getLogger(__name__)
POOL = Pool(Settings("http://h", "d", "me", "secret"))
SUBMISSION = Submission("k.1", "/home/me/k.1", 0, "spider")


@pytest.mark.parametrize("how", [StopMode.CANCEL, StopMode.DRAIN])
def test_no_wait_submits_stopped_pilots_again(how: StopMode) -> None:
    step = next(stop_for_good(POOL, "b", SUBMISSION, how, LOG))
    assert isinstance(step, Request)
    assert (step.method, step.path) == ("PUT", POOL.document_path(drain_flag("k.1")))


def test_pilots_are_cancelled_even_if_the_database_is_unavailable() -> None:
    operation = stop_for_good(POOL, "b", SUBMISSION, StopMode.CANCEL, LOG)
    next(operation)
    step = operation.throw(UnavailableError("away"))
    assert isinstance(step, Command)
    assert "scancel" in step.text


def test_credentials_are_removed_once_the_cluster_is_reachable_again() -> None:
    operation: Any = end_pilots(POOL, "b", SUBMISSION, StopMode.LEAVE, LOG, wait=10.0)
    assert isinstance(next(operation), Command)
    assert isinstance(operation.throw(UnreachableError("away")), Pause)
    assert isinstance(operation.send(Output(0)), Command)
    with pytest.raises(StopIteration):
        operation.send(Output(0))


@pytest.mark.parametrize(("state", "stops"), [("failed", True), ("success", False), (None, False)])
def test_only_a_failed_task_stops_its_pilots(state: str | None, stops: bool) -> None:
    assert is_for_pilots(state, SUBMISSION, StopMode.CANCEL, LOG) is stops
