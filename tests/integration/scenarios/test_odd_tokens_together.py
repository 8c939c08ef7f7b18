"""Odd tokens of all kinds among good ones, in any order: the good ones run and are released, reset, collected and deleted."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.operators.tokens import (
    PicasCollectTokensOperator,
    PicasDeleteTokensOperator,
    PicasResetTokensOperator,
)
from airflow_provider_picas.tokens.states import State, state_of
from stack import couchdb
from tests.conftest import set_connection
from tests.integration import lives, pilots
from tests.integration.faults import Proxy
from tests.integration.lives import LIVES
from tests.integration.pilot.test_odd_tokens import HUGE, LARGE, LIMIT, rewrite
from tests.integration.pilots import COUNT, Pool, Submission, held, put_lease
from tests.integration.tasks import context
from tests.odd_tokens import EXIT_CODES, TIMES, token

pool = pilots.pool

GOOD = [f"good:{place}" for place in range(5)]
(LOCKED,) = held("dead", 1)
WHOLE = {"whole_pool": True}


def nested(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    return value


ODD: list[dict[str, Any]] = [
    {"input": HUGE},
    {"input": HUGE, **LOCKED},
    {"output": {"a": [HUGE]}, **LIVES[State.DONE]},
    {"input": HUGE, **LIVES[State.ERROR]},
    {"priority": LARGE, "time": LARGE, "max_retries": LARGE},
    {"scrub_count": LARGE, "attempts": LARGE},
    {"input": "x" * LIMIT},
    {"input": "x" * LIMIT, **LOCKED},
    {"input": "x" * LIMIT, **LIVES[State.ERROR]},
    {"input": nested(600)},
    {"gpu": "a" * 12_000},
    {"lock": -1, "done": -1},
    *({"lock": lock, "done": done} for lock in ("0.0", "0x0", [], None) for done in (0, [], "")),
    *({"_id": name} for name in (".", "..", ".hidden", "we ird:1", "%2e")),
    {"batch": ["odd"], "ordinal": {}, "push": 5},
    {"error": "text", "attempts": ["text", 5, None], "_attachments": {".": {"data": "eA==", "content_type": "a/b"}}},
]  # fmt: skip


def draw(chance: random.Random) -> list[dict[str, Any]]:
    """Good tokens and some odd ones, in any order of ids and priorities."""
    fields = [[LARGE if value == 10**400 else value for value in values] for values in (TIMES, TIMES, EXIT_CODES)]
    times = [token(f"times:{place}", *map(chance.choice, fields)) for place in range(10)]
    odd = [dict({"_id": f"{chance.choice('az')}:{place}"}, **fields) for place, fields in enumerate(ODD)]
    docs = [*chance.sample(odd, 12), *times, *({"_id": name} for name in GOOD)]
    new = {"type": "token", "lock": 0, "done": 0, "hostname": "", "scrub_count": 0, "exit_code": "", "input": 1}
    return [{**new, "priority": chance.choice([-1, 0, 1]), **fields} for fields in docs]


@pytest.fixture
def between(server: couchdb.CouchDBAdmin) -> Iterator[Proxy]:
    with Proxy(server.url) as proxy:
        proxy.largest = LIMIT
        # CouchDB 3.5 refuses an integer that no double can hold, so a pilot cannot write back what it reads.
        proxy.rewrite = lambda *answer: rewrite(answer[0], answer[1], answer[2].replace(LARGE.encode(), b"large"))
        yield proxy


def set_good(pool: Pool, fields: dict[str, Any]) -> None:
    for name in GOOD:
        pool.put({**pool.get(name), **fields})


@pytest.mark.parametrize("seed", range(3))
def test_good_tokens_run_beside_odd_ones(
    pool: Pool, between: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    put_lease(pool, "dead", ended=True)
    docs = draw(random.Random(seed))
    assert pool.request("POST", "_bulk_docs", {"docs": docs})[0] == 201
    submission = Submission(tmp_path / "submission", pool, between.url)
    try:
        submission.start(COUNT, batch=None, lease=4)
        submission.pilots[0].wait(120)
    finally:
        submission.close()
    assert {name: state_of(pool.get(name)) for name in GOOD} == dict.fromkeys(GOOD, State.DONE), submission.log()
    assert submission.pilots[0].returncode == 0, submission.log()

    host, _, port = between.url.rpartition(":")
    login = {"schema": pool.name, "login": pool.member, "password": pilots.PASSWORD}
    set_connection(monkeypatch, "picas_default", {"conn_type": "picas", "host": host, "port": int(port), **login})
    hook = PicasHook()
    set_good(pool, {**LOCKED, "done": 0})
    news = lives.release_old(hook, None)
    assert set(GOOD) <= {token for token, _ in news.reaped}
    set_good(pool, LIVES[State.ERROR])
    PicasResetTokensOperator(task_id="reset", states="error", **WHOLE).execute(context("reset"))
    assert {state_of(pool.get(name)) for name in GOOD} == {State.TODO}
    set_good(pool, LIVES[State.DONE])
    collected = PicasCollectTokensOperator(task_id="collect", path=str(tmp_path / "all.jsonl"), **WHOLE)
    assert collected.execute(context("collect"))["collected"] >= len(GOOD)
    deleted = PicasDeleteTokensOperator(task_id="delete", archive=str(tmp_path), states="done", **WHOLE)
    assert deleted.execute(context("delete"))["deleted"] >= len(GOOD)
    assert not set(GOOD) & pool.docs().keys()
