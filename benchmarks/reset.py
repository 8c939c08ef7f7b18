"""A reset of failed tokens, compared with a push of the same number, and in a pool with many others."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from typing import Any

from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.operators.tokens import PicasPushTokensOperator
from airflow_provider_picas.tokens import documents
from airflow_provider_picas.tokens.selection import Selection
from airflow_provider_picas.tokens.states import State
from benchmarks import bare
from benchmarks.measure import Goal, Result, clock, in_pairs, medians, ratio
from benchmarks.push import inputs
from benchmarks.server import CONN_ID, Server, context
from stack.pool import Pool

TOKENS = 10_000
FEW, OTHERS = 1_000, 100_000


def run(server: Server, pairs: int) -> Iterator[Result]:
    """In each pair tokens are pushed, fail as those of a pilot do, are counted as a wait counts them, and are reset."""
    found = [_pair(server) for _ in range(pairs)]
    reset, push = medians(found)
    yield Result(
        f"reset of {TOKENS:,} tokens in error against their push, by time",
        {"reset": f"{reset:.2f} s", "push": f"{push:.2f} s"},
        ratio(found),
        Goal(2.5),
        pairs=found,
    )
    with server.pool(views=True) as small:
        alone = PicasHook(CONN_ID)
        alone.test_connection()  # from now on it knows its pool
        with server.pool(views=True) as large:
            beside = PicasHook(CONN_ID)
            beside.push(_tokens("others", OTHERS), numbered=True)
            found = in_pairs(lambda: _reset(large, beside), lambda: _reset(small, alone), pairs)
    many, none = medians(found)
    yield Result(
        f"reset of {FEW:,} tokens beside {OTHERS:,} others against none, by time",
        {f"beside {OTHERS:,}": f"{many:.2f} s", "beside none": f"{none:.2f} s"},
        ratio(found),
        pairs=found,
    )


def _tokens(batch: str, number: int) -> Iterator[dict[str, Any]]:
    return (documents.new_token({"input": n}, batch=batch, push=batch, ordinal=n) for n in range(number))


def _reset(pool: Pool, hook: PicasHook) -> float:
    """Seconds for a batch that has failed."""
    batch = f"b{secrets.token_hex(4)}"
    hook.push(_tokens(batch, FEW), numbered=True)
    _fail(pool, hook, batch)
    hook.count(batch)
    with clock() as resetting:
        hook.editor.reset(Selection.parse(batch, states=[State.ERROR]))
    if hook.count(batch).todo != FEW:
        raise RuntimeError("The tokens were not reset.")
    return resetting.seconds


def _pair(server: Server) -> tuple[float, float]:
    with server.pool(views=True) as pool:
        hook = PicasHook(CONN_ID)
        with clock() as pushing:
            push = PicasPushTokensOperator(task_id="push", inputs=lambda: inputs(TOKENS), picas_conn_id=CONN_ID)
            batch = push.execute(context())["batch"]
        _fail(pool, hook, batch)
        if hook.count(batch).error != TOKENS:
            raise RuntimeError("The tokens are not in error.")
        with clock() as resetting:
            report = hook.editor.reset(Selection.parse(batch, states=[State.ERROR]))
        if hook.count(batch).todo != TOKENS:
            raise RuntimeError(f"The tokens were not reset: {report}")
        return resetting.seconds, pushing.seconds


def _fail(pool: Pool, hook: PicasHook, batch: str) -> None:
    """Bring all tokens of a batch into state error, as a pilot leaves them."""
    ended = {
        "lock": 1_700_000_000,
        "done": 1_700_000_100,
        "exit_code": 1,
        "hostname": "wn-001",
        "slurm_job_id": "4711_1",
    }
    failed = [json.dumps({**token, **ended}).encode() for token in hook.batch_documents(batch)]
    bare.post(pool, bare.bodies(failed))
