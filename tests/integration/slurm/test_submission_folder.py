"""Workers that submit the same task at once, or die meanwhile: in any order of their steps, one set of jobs, reported by all."""

from __future__ import annotations

import random
import secrets
from collections.abc import Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import pytest

from airflow_provider_picas.hooks.slurm import SlurmHook
from airflow_provider_picas.slurm import submission_folder
from airflow_provider_picas.slurm.remote import Output, Pause, RemoteFile, Step

AT_ONCE = 4  # orders that are tried at the same time, each with a connection of its own
LAST = 7  # steps after which a submission has been made
SEEDS = range(12)


@pytest.fixture
def remotes(spider: str) -> Iterator[SimpleQueue[SlurmHook]]:
    """Connections to the cluster."""
    free: SimpleQueue[SlurmHook] = SimpleQueue()
    for _ in range(AT_ONCE):
        free.put(SlurmHook(spider))
    yield free
    for _ in range(AT_ONCE):
        free.get().close()


class Try:
    """One worker's try, carried out step by step. It dies when nobody goes on with it."""

    def __init__(self, remote: SlurmHook, base_key: str, calls: int) -> None:
        self.remote = remote
        self.result: submission_folder.SubmitResult | None = None
        self._operation = submission_folder.submit(
            submission_folder.Plan(
                base_key=base_key,
                files=lambda folder, key: [RemoteFile(f"{folder}/pilot.sh", b"#!/bin/sh\nsleep 600\n", 0o700)],
                commands=lambda folder, key: [
                    ["sbatch", "--parsable", "--hold", f"-J{submission_folder.job_name(key, number)}", f"{folder}/pilot.sh"]
                    for number in range(calls)
                ],
            )
        )  # fmt: skip
        self._step: Step | None = next(self._operation)

    def advance(self) -> bool:
        """Carry out one step; false when there is none left."""
        if self._step is None:
            return False
        output = Output(0) if isinstance(self._step, Pause) else self.remote.perform(self._step)
        try:
            self._step = self._operation.send(output)
        except StopIteration as end:
            self._step, self.result = None, end.value
        return True

    def finish(self) -> submission_folder.SubmitResult:
        while self.advance():
            pass
        assert self.result is not None
        return self.result


def check(remote: SlurmHook, base_key: str, reported: Sequence[submission_folder.SubmitResult]) -> None:
    """There is one set of jobs, and each try has reported it."""
    try:
        listed = remote.run(f"squeue --noheader --all --format='%F %j' | grep ' {base_key}[.]' | sort -u").stdout
        there = dict(line.split()[::-1] for line in listed.splitlines())
        assert len(there) == len(listed.splitlines()), f"two jobs of one name: {listed}"
        for done in reported:
            assert done.job_ids, "a success without a job"
            assert there == {
                submission_folder.job_name(done.key, number): job for number, job in enumerate(done.job_ids)
            }
    finally:
        remote.run(f"squeue --noheader --format='%F %j' | grep ' {base_key}[.]' | cut -d' ' -f1 | xargs -r scancel")


def explore(
    remotes: SimpleQueue[SlurmHook], order: Sequence[int], calls: Sequence[int], dies: Container[int] = ()
) -> None:
    """Let tries take their steps in an order; those that do not die then finish, and so does a retry."""
    base_key = f"picas-test-{secrets.token_hex(5)}"
    remote = remotes.get()
    try:
        tries = [Try(remote, base_key, number) for number in calls]
        for one in order:
            tries[one].advance()
        for number, one in enumerate(tries):
            if number not in dies:
                one.finish()
        tries.append(Try(remote, base_key, 1))
        tries[-1].finish()
        check(remote, base_key, [one.result for one in tries if one.result])
    except BaseException as error:
        error.add_note(f"The steps were those of {order}, of tries with {calls} calls; {dies} died.")
        raise
    finally:
        remotes.put(remote)


def explore_all(remotes: SimpleQueue[SlurmHook], cases: Sequence[tuple[Any, ...]]) -> None:
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for done in [threads.submit(explore, remotes, *case) for case in cases]:
            done.result()


def test_a_worker_that_is_interrupted_by_another(remotes: SimpleQueue[SlurmHook]) -> None:
    """After each of its steps, by some steps of another worker, which then goes on, or dies."""
    explore_all(
        remotes,
        [
            ([0] * first + [1] * second, [1 + first % 2, 1], [1] if (first + second) % 2 else [])
            for first in range(1, LAST)
            for second in range(1, LAST)
        ],
    )


def test_three_workers_in_any_order_submit_once(remotes: SimpleQueue[SlurmHook]) -> None:
    """Two of them die, or one, or none."""
    cases = []
    for seed in SEEDS:
        chance = random.Random(seed)
        order = [chance.randrange(3) for _ in range(chance.randrange(3 * LAST))]
        cases.append((order, [chance.randint(1, 2) for _ in range(3)], chance.sample(range(3), chance.randrange(3))))
    explore_all(remotes, cases)
