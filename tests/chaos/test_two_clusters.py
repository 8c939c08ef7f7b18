"""One pool that pilots on two real clusters drain: one of them is lost with all that runs there, and no token is."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred

from airflow_provider_picas.hooks import slurm
from airflow_provider_picas.hooks.slurm import SlurmHook
from airflow_provider_picas.operators.pilots import PicasSubmitPilotsOperator
from airflow_provider_picas.operators.tokens import PicasPushTokensOperator
from airflow_provider_picas.sensors.tokens import PicasTokenStateSensor
from airflow_provider_picas.tokens.states import State, state_of
from airflow_provider_picas.triggers.tokens import PicasTokenStateTrigger
from stack import native, processes
from stack.cluster import Cluster
from stack.cluster.slurm import NAME
from stack.pool import Pool
from tests.chaos.run import first_event, tell
from tests.conftest import set_connection
from tests.integration.tasks import context

TOKENS = 60
PATIENCE = 300.0


@pytest.fixture
def other(run_folder: Path) -> Iterator[Cluster]:
    """A second cluster, with a controller, an accounting, a key, a node and a name of its own."""
    site = Cluster(run_folder / "other", cpus=20, settings={"ClusterName": "other", "MessageTimeout": "3"})
    site.nodes = ["other1"]
    with site:
        yield site


def lose(site: Cluster) -> None:
    """The power of a whole site fails."""
    with ThreadPoolExecutor(4) as threads:  # at once, as far as this is possible
        parts = [threads.submit(site.kill_node, node) for node in site.nodes]
        parts += [threads.submit(site.stop_sshd, login) for login in range(len(site.logins))]
        parts.append(threads.submit(site.kill_controller))
    for part in parts:
        part.result()


class Drain:
    """A batch, pilots for it on both clusters, and one wait for all of them."""

    def __init__(self, pool: Pool, log: Path) -> None:
        self._pool, self._log = pool, log
        push = PicasPushTokensOperator(task_id="push", inputs=list(range(TOKENS)))
        self.batch = push.execute(context("push", run_id=pool.database))
        self.pilots = [self._submit(conn_id) for conn_id in ("spider", "other")]

    def _submit(self, conn_id: str) -> dict[str, Any]:
        note = f'"$PICAS_TOKEN_ID" "$SLURM_CLUSTER_NAME" >> {self._log}'
        operator = PicasSubmitPilotsOperator(
            task_id=conn_id, command=f"echo begin {note}; sleep 1; echo end {note}", batch=self.batch, ssh_conn_id=conn_id,
            pilots=2, pilot={"lease": 6, "max_claim": 1},
        )  # fmt: skip
        output: Any = operator.execute(context(conn_id, run_id=self._pool.database))
        return dict(output)

    def wait(self) -> dict[str, Any]:
        """Wait as a triggerer and a worker do."""
        sensor = PicasTokenStateSensor(
            task_id="wait", batch=self.batch, pilots=self.pilots, deferrable=True, timeout=PATIENCE, pilots_interval=2.0
        )
        ran = context("wait")
        with pytest.raises(TaskDeferred) as deferred:
            sensor.execute(ran)
        _, fields = deferred.value.trigger.serialize()
        event = asyncio.run(first_event(PicasTokenStateTrigger(**json.loads(json.dumps(fields)))))
        return sensor.execute_complete(ran, event, **deferred.value.kwargs or {})

    def lines(self, what: str) -> Counter[tuple[str, str]]:
        """How often each token has begun, or ended, on each cluster."""
        text = self._log.read_text() if self._log.exists() else ""
        words = (line.split() for line in text.splitlines())
        return Counter((word[1], word[2]) for word in words if word[0] == what)

    def running(self, site: str) -> set[str]:
        """The tokens that run on a cluster, or were lost with it."""
        begun, ended = self.lines("begin"), self.lines("end")
        return {token for token, where in begun if where == site and not ended[token, where]}

    def done(self, site: str) -> set[str]:
        """The tokens whose commands have ended on a cluster."""
        return {token for token, where in self.lines("end") if where == site}


def test_a_cluster_is_lost_in_the_middle(
    cluster: Cluster, other: Cluster, pool: Pool, picas_default: str, spider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tokens come back when the leases have expired, the other cluster's pilots run them, and the wait ends."""
    monkeypatch.setattr(slurm, "CONNECT_TRIES", 1)
    set_connection(monkeypatch, "other", native.ssh_connection(other))
    drain = Drain(pool, cluster.home / f"runs-{pool.database}")
    try:
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(drain.wait)
            processes.wait_for(
                lambda: len(drain.done(NAME)) > 3 and len(drain.done("other")) > 3 and drain.running("other"),
                what="Tokens that both clusters have run", seconds=PATIENCE,
            )  # fmt: skip
            lose(other)
            lost = drain.running("other")
            assert waiting.result(PATIENCE)["done"] == TOKENS
        tokens = pool.tokens()
        assert Counter(map(state_of, tokens)) == {State.DONE: TOKENS}
        attempts = {token["_id"]: token.get("attempts", []) for token in tokens}
        reasons = {name: [attempt["reason"] for attempt in made] for name, made in attempts.items() if made}
        tell(
            f"two clusters: {len(drain.done('other'))} tokens were run on the lost one, {len(reasons)} came back by lease"
        )
        assert reasons
        assert set(reasons) >= lost - drain.done("other")
        assert all(len(made) == 1 and "did not renew its lease" in made[0] for made in reasons.values()), reasons
        begun = Counter(token for token, _ in drain.lines("begin").elements())
        assert {name for name, times in begun.items() if times > 1} <= set(reasons)
        assert max(begun.values()) <= 2
    finally:
        with SlurmHook("spider") as hook:
            hook.run("scancel --me")
