"""A wait for a chain of stages in a process of its own, for tests that kill it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from airflow_provider_picas.sensors.tokens import PicasTokenStateSensor
from airflow_provider_picas.tokens import chain
from tests.integration.tasks import context

GROUPS = {"t": {"of": "s", "at_least": 0.9}}


def main(tokens: int) -> None:
    """Wait for batch ``b``, which this number of tokens was pushed to, and its stages."""
    chain.LOOK_EVERY = chain.LOOK_AGAIN = 0.5
    wait = PicasTokenStateSensor(
        task_id="wait",
        picas_conn_id="picas_default",
        batch={"batch": "b", "database": None, "tokens": tokens},
        stages=["s", "t"],
        groups=GROUPS,
        pilots=False,
        poke_interval=0.3,
        timeout=3600,
        deferrable=False,
    )
    print("counts:", wait.execute(context("wait")), flush=True)


def run(connection: str, tokens: int, log: Path) -> None:
    """The same in a process that a fork server made. It writes to ``log``."""
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ["AIRFLOW_CONN_PICAS_DEFAULT"] = connection
    main(tokens)


if __name__ == "__main__":
    main(int(sys.argv[1]))
