"""Runs the submit operator in a process of its own, which dies by SIGKILL at a step.

``python one_submission.py <step> <run> [<seconds>]``: the operator's arguments come as JSON on standard input. The process
kills itself before the n-th step on the cluster, or so many seconds after its begin, and at the latest when it was carried out;
with ``-1`` it lives, and prints the output.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from typing import Any

from airflow_provider_picas.hooks.slurm import SlurmHook
from airflow_provider_picas.operators.pilots import PicasSubmitPilotsOperator
from tests.integration.tasks import context


def main() -> None:
    """Run it."""
    last, run_id = int(sys.argv[1]), sys.argv[2]
    seconds = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
    steps = 0
    perform = SlurmHook.perform

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def mortal(hook: SlurmHook, step: Any) -> Any:
        nonlocal steps
        if steps != last:
            steps += 1
            return perform(hook, step)
        if seconds:
            threading.Timer(seconds, die).start()
            perform(hook, step)
        return die()

    SlurmHook.perform = mortal  # type: ignore[method-assign]
    operator = PicasSubmitPilotsOperator(task_id="pilots", **json.load(sys.stdin))
    output = operator.execute(context("pilots", run_id=run_id))
    print(json.dumps({"steps": steps, "output": output}))


main()
