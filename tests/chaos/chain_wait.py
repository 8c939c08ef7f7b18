"""A wait for a chain of stages in a process of its own, for tests that kill it."""

from __future__ import annotations

import sys

from airflow_provider_picas.sensors.tokens import PicasTokenStateSensor
from airflow_provider_picas.tokens import chain
from tests.integration.tasks import context

GROUPS = {"t": {"of": "s", "at_least": 0.9}}

if __name__ == "__main__":
    chain.LOOK_EVERY = chain.LOOK_AGAIN = 0.5
    wait = PicasTokenStateSensor(
        task_id="wait",
        picas_conn_id="picas_default",
        batch={"batch": "b", "database": None, "tokens": int(sys.argv[1])},
        stages=["s", "t"],
        groups=GROUPS,
        pilots=False,
        poke_interval=0.3,
        timeout=3600,
        deferrable=False,
    )
    print("counts:", wait.execute(context("wait")), flush=True)
