"""Waits for the same pilots resubmit them once in each round, even if a worker dies."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.hooks.pilots import PilotsHook, credential_files
from airflow_provider_picas.hooks.slurm import SlurmHook
from airflow_provider_picas.operators.pilots import PicasSubmitPilotsOperator
from airflow_provider_picas.slurm.remote import Output, Step
from airflow_provider_picas.slurm.submission_folder import CREDENTIALS
from airflow_provider_picas.submissions.end import remove_credentials
from airflow_provider_picas.submissions.resubmit import resubmit
from airflow_provider_picas.submissions.submission import Submission
from stack import processes
from stack.pool import Pool
from tests.integration.tasks import context

pytestmark = pytest.mark.usefixtures("picas_default", "spider")


class KilledError(BaseException):
    """The worker is gone: nothing in it goes on."""


class Pilots:
    """A submission of one pilot, which ends at once unless it is told to run."""

    def __init__(self, remote: SlurmHook, pool: Pool, folder: Path) -> None:
        self.remote = remote
        self.flag = f"run-{pool.database}"
        script = folder / "pilot.sh"
        script.write_text(f"#!/bin/bash\nif [ -e ~/{self.flag} ]; then sleep 600; fi\n")
        operator = PicasSubmitPilotsOperator(task_id="pilots", script=str(script), ssh_conn_id="spider")
        output = operator.execute(context("pilots", run_id=pool.database))
        watched = Submission.parse(output)
        assert watched is not None
        self.watched = watched
        self.key, self.folder = watched.key, watched.folder

    def resubmit(self, most: int, finished: int, before: Callable[[Step], None] = lambda step: None) -> str | None:
        """Resubmit in a wait of its own, which calls ``before`` before each step on the cluster."""
        hook = PicasHook("picas_default")
        credentials = partial(credential_files, self.folder, hook.settings)
        again = resubmit(hook.pool, "batch", self.watched, most=most, finished=finished, credentials=credentials)
        with PilotsHook(hook, self.watched.ssh_conn_id) as wait:
            perform = wait._slurm.perform

            def watched(step: Step) -> Output:
                before(step)
                return perform(step)

            wait._slurm.perform = watched  # type: ignore[method-assign]
            return wait.do(again)

    def names(self, states: str = "all") -> list[str]:
        """The names of the jobs, one for each."""
        listed = f"squeue --noheader --all --states={states} --format=%j | grep '^{self.key}' | sort"
        return self.remote.run(listed).stdout.split()

    def wait_for_end(self) -> None:
        processes.wait_for(lambda: not self.names("pending,running,completing"), what="The pilots' end", seconds=60)


@pytest.fixture
def pilots(pool: Pool, tmp_path: Path) -> Iterator[Pilots]:
    with SlurmHook("spider") as remote:
        made = Pilots(remote, pool, tmp_path)
        made.wait_for_end()
        yield made
        remote.run(
            f"rm -f ~/{made.flag}; squeue --noheader --name={','.join(made.names())} --format=%F | xargs -r scancel"
        )


def test_waits_that_find_no_pilot_at_the_same_time_submit_one_round(pilots: Pilots) -> None:
    """They take each step at the same time. One that comes later finds that pilots run, and goes on."""
    pilots.remote.run(f"touch ~/{pilots.flag}")
    barrier = threading.Barrier(3)

    def wait_for_others(step: Step) -> None:
        try:
            barrier.wait(30)
        except threading.BrokenBarrierError:
            return  # one has done it all, and the others need no steps of their own any more

    def resubmit() -> str | None:
        try:
            return pilots.resubmit(1, 0, wait_for_others)
        finally:
            barrier.abort()

    with ThreadPoolExecutor(3) as threads:
        answers = [answer.result() for answer in [threads.submit(resubmit) for _ in range(3)]]
    assert pilots.names() == [pilots.key, f"{pilots.key}-1"]
    assert answers == [None] * 3
    assert pilots.resubmit(1, 0) is None
    assert pilots.names() == [pilots.key, f"{pilots.key}-1"]
    credentials = pilots.remote.run(f"ls {pilots.folder}/{CREDENTIALS}").stdout.split()
    assert credentials == ["picasconfig.py"]


def test_a_round_whose_worker_is_killed_is_submitted_by_the_next_one(pilots: Pilots) -> None:
    """It is killed before each of its steps; each round is killed one step later."""
    for last in range(20):
        steps = 0

        def die(step: Step, last: int = last) -> None:
            nonlocal steps
            if steps == last:
                raise KilledError
            steps += 1

        killed: list[Any] = []
        try:
            assert pilots.resubmit(20, last, die) is None
        except KilledError:
            killed.append(last)
            assert pilots.resubmit(20, last) is None
        pilots.wait_for_end()
        assert sorted(pilots.names()) == sorted([pilots.key, *(f"{pilots.key}-{n}" for n in range(1, last + 2))])
        if not killed:
            break
    assert last >= 6
    assert pilots.resubmit(last + 1, 100) == f"They were submitted again {last + 1} times, the limit set by `resubmit`."
    assert "have not finished any token" in str(pilots.resubmit(20, last))


def test_credentials_stay_while_a_round_is_about_to_be_submitted(pilots: Pilots) -> None:
    """Another wait ends between the round's preparation and its job."""

    def end_of_another(step: Step) -> None:
        if "submit.sh" in str(step):
            with PilotsHook(PicasHook("picas_default"), "spider") as other:
                other.do(remove_credentials(pilots.watched))

    pilots.remote.run(f"touch ~/{pilots.flag}")
    assert pilots.resubmit(1, 0, end_of_another) is None
    assert pilots.remote.run(f"ls {pilots.folder}/{CREDENTIALS}").stdout.split() == ["picasconfig.py"]
