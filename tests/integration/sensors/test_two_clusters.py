"""One pool that pilots of two clusters drain, and one wait for both: a cluster that is lost does not stop the other.

Both connections lead to one Slurm; each knows only its own submission. The one through the relay is cut.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from airflow_provider_picas.hooks import slurm
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.hooks.slurm import SlurmHook
from airflow_provider_picas.operators.pilots import PicasSubmitPilotsOperator
from airflow_provider_picas.operators.tokens import PicasPushTokensOperator
from airflow_provider_picas.sensors.tokens import PicasTokenStateSensor
from airflow_provider_picas.submissions import end
from airflow_provider_picas.tokens.counts import Counts
from airflow_provider_picas.triggers.tokens import PicasTokenStateTrigger
from stack import native, processes
from stack.cluster import Cluster
from stack.pool import Pool
from tests.conftest import set_connection
from tests.integration.faults import Relay
from tests.integration.tasks import context

TOKENS = 4


class TwoClusters:
    """Pilots on both. That of the far one holds a token for ever; the near one's work, and wait for more."""

    def __init__(self, pool: Pool, remote: SlurmHook, relay: Relay, patience: float) -> None:
        self._pool, self._remote, self._relay = pool, remote, relay
        self.hook = PicasHook()
        push = PicasPushTokensOperator(task_id="push", inputs=list(range(TOKENS)))
        self.batch = push.execute(context(run_id=pool.database))
        self._pid = f"pilot-of-{pool.database}"
        self.far = self._submit("far", f"echo $PPID > ~/{self._pid}; sleep 600")
        self._until(lambda counts: counts.locked == 1)
        self.near = self._submit("spider", "true", wait_for_work=patience)

    def _submit(self, conn_id: str, command: str, **pilot: Any) -> dict[str, Any]:
        operator = PicasSubmitPilotsOperator(
            task_id=conn_id,
            command=command,
            batch=self.batch,
            ssh_conn_id=conn_id,
            pilots=1,
            pilot={"lease": 6, **pilot},
        )
        output: Any = operator.execute(context(conn_id, run_id=self._pool.database))
        return dict(output)

    def _until(self, condition: Any) -> None:
        processes.wait_for(lambda: condition(self.hook.count(self.batch["batch"])), what="These counts", seconds=120)

    def lose_the_far_one(self) -> None:
        """When the near one has done what it can: the connection breaks, and the machines are without power."""
        self._until(lambda counts: counts.done == TOKENS - 1)
        self._relay.cut()
        killed = self._remote.run(f"kill -KILL $(cat ~/{self._pid})")
        assert killed.code == 0, killed.stderr

    def end(self) -> None:
        self._remote.run(f"scancel {' '.join(self.far['job_ids'] + self.near['job_ids'])}")


@pytest.fixture
def two(
    pool: Pool,
    picas_default: str,
    remote: SlurmHook,
    site: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Iterator[TwoClusters]:
    monkeypatch.setattr(slurm, "CONNECT_TRIES", 1)
    monkeypatch.setattr(end, "END_WAIT", 1.0)  # the near pilots wait for more
    fields = native.ssh_connection(site, 1)
    with closing(Relay((fields["host"], int(fields["port"])))) as relay:
        set_connection(monkeypatch, "far", {**fields, "host": "127.0.0.1", "port": relay.port})
        made = TwoClusters(pool, remote, relay, getattr(request, "param", 600))
        yield made
        made.end()


def check_tokens(two: TwoClusters) -> None:
    """All are done, and the one that the lost pilot held came back by its lease."""
    assert two.hook.count(two.batch["batch"]) == Counts(done=TOKENS)
    tokens = list(two.hook.batch_documents(two.batch["batch"]))
    reasons = [attempt["reason"] for token in tokens for attempt in token.get("attempts", [])]
    assert len(reasons) == 1
    assert "did not renew its lease" in reasons[0]


def test_a_wait_that_pokes_goes_on_when_one_of_two_clusters_is_lost(two: TwoClusters) -> None:
    sensor = PicasTokenStateSensor(
        task_id="wait", batch=two.batch, pilots=[two.near, two.far], poke_interval=0.5, timeout=180, deferrable=False
    )
    thread = threading.Thread(target=two.lose_the_far_one)
    thread.start()
    ran = context("wait")
    assert sensor.execute(ran)["done"] == TOKENS
    thread.join()
    check_tokens(two)
    assert list(ran["ti"].xcoms["figures"]) == [two.near["submission"]], "of the other one nobody knows"


def test_a_deferred_wait_goes_on_when_one_of_two_clusters_is_lost(two: TwoClusters) -> None:
    trigger = PicasTokenStateTrigger(
        "picas_default", None, two.batch["batch"], TOKENS, 0, time.time() + 180, pilots=[two.near, two.far]
    )
    trigger = PicasTokenStateTrigger(**trigger.serialize()[1])

    async def run() -> Any:
        lost = asyncio.create_task(asyncio.to_thread(two.lose_the_far_one))
        async for event in trigger.run():
            await lost
            return event.payload

    assert asyncio.run(run())["outcome"] == "complete"
    check_tokens(two)


@pytest.mark.parametrize("two", [0], indirect=True, ids=["the near pilots end"])
def test_the_remaining_cluster_gets_pilots_again(two: TwoClusters) -> None:
    """Its pilots have ended when the token of the lost one comes back."""
    sensor = PicasTokenStateSensor(
        task_id="wait",
        batch=two.batch,
        pilots=[two.far, two.near],
        poke_interval=0.5,
        timeout=240,
        resubmit=1,
        deferrable=False,
    )
    thread = threading.Thread(target=two.lose_the_far_one)
    thread.start()
    assert sensor.execute(context("wait"))["done"] == TOKENS
    thread.join()
    check_tokens(two)
