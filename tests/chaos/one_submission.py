"""Runs the submit operator in a process of its own, which dies by SIGKILL at a step: ``python one_submission.py <step> <task>``.

The operator's arguments come as JSON on standard input. Before the n-th step on the cluster the process kills itself, or
(``after``) once the step was carried out; with ``-1`` it lives, and prints the output.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from airflow_provider_picas.hooks.slurm import SlurmHook
from airflow_provider_picas.operators.pilots import PicasSubmitPilotsOperator
from tests.integration.tasks import context


def main() -> None:
    """Run it."""
    last, run_id = int(sys.argv[1]), sys.argv[2]
    steps = 0
    perform = SlurmHook.perform

    def mortal(hook: SlurmHook, step: Any) -> Any:
        nonlocal steps
        if steps == last:
            os.kill(os.getpid(), signal.SIGKILL)
        steps += 1
        return perform(hook, step)

    SlurmHook.perform = mortal  # type: ignore[method-assign]
    operator = PicasSubmitPilotsOperator(task_id="pilots", **json.load(sys.stdin))
    output = operator.execute(context("pilots", run_id=run_id))
    print(json.dumps({"steps": steps, "output": output}))


main()
