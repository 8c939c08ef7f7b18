"""The memory of a push, which must not grow with the number of tokens. Also a program: ``python -m benchmarks.memory
NUMBER``."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from statistics import median

from airflow_provider_picas.operators.tokens import PicasPushTokensOperator
from benchmarks.measure import Goal, Result, in_pairs, medians
from benchmarks.push import inputs
from benchmarks.server import CONN_ID, Server, context
from stack import processes

FEW, MANY = 1_000, 1_000_000


def run(server: Server, pairs: int) -> Iterator[Result]:
    """The peak memory of a process that pushes few tokens, and of one that pushes many, with given keys."""
    found = in_pairs(lambda: _peaks(server, MANY)[0], lambda: _peaks(server, FEW)[0], pairs)
    yield _result(f"peak memory of a push, {MANY:,} tokens more than {FEW:,}", found)
    found = [(_peaks(server, MANY, 2)[1], _peaks(server, FEW, 2)[1])]
    yield _result("the same, pushed again: all keys are looked through for a duplicate (measured once)", found)


def _result(name: str, found: list[tuple[float, float]]) -> Result:
    many, few = medians(found)
    figures = {f"{FEW:,}": f"{few:.0f} MB", f"{MANY:,}": f"{many:.0f} MB"}
    return Result(name, figures, median(one - other for one, other in found), Goal(50), unit="MB", pairs=found)


def _peaks(server: Server, number: int, times: int = 1) -> list[float]:
    """The peak memory of processes that push the same tokens one after another, in MB."""
    with server.pool():
        program = [sys.executable, "-m", "benchmarks.memory", str(number)]
        answers = [subprocess.run(program, capture_output=True, text=True, check=True) for _ in range(times)]
    return [float(answer.stdout.split()[-1]) for answer in answers]


def push(number: int) -> float:
    """Push ``number`` tokens. Returns the peak memory of this process in MB."""
    operator = PicasPushTokensOperator(
        task_id="push", inputs=lambda: inputs(number), key="input", picas_conn_id=CONN_ID, deploy_views=False
    )
    if operator.execute(context())["tokens"] != number:
        raise RuntimeError(f"{number} tokens were not pushed.")
    return processes.memory(os.getpid(), "VmHWM") / 1e6


if __name__ == "__main__":
    print(push(int(sys.argv[1])))
