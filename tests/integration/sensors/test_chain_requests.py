"""What a wait for a chain asks the database, whatever the number of its stages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from airflow_provider_picas.couchdb import new_tokens
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.sensors.tokens import PicasTokenStateSensor
from airflow_provider_picas.tokens import chain, groups
from airflow_provider_picas.tokens.chain import Chain
from airflow_provider_picas.tokens.documents import new_token
from stack import native
from stack.pool import Pool
from tests.conftest import set_connection
from tests.integration.faults import Proxy
from tests.integration.lives import write
from tests.integration.tasks import context


@pytest.fixture
def proxy(pool: Pool, picas_default: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """What the requests of the wait go through; those of the tests do not."""
    with Proxy(pool.url) as started:
        connection = {**native.picas_connection(pool), "host": started.url, "port": None}
        set_connection(monkeypatch, "counted", connection)
        yield started


def poked(proxy: Proxy, stages: int) -> list[int]:
    """The number of requests of the first poke, of the next one, and of one that finds the chain finished."""
    hook = PicasHook()
    batch = f"b{stages}"
    write(hook, [new_token({"input": 1}, batch=batch, push="p", ordinal=0, key="0")])
    names = [f"s{n}" for n in range(stages)]
    grouped = {name: {"of": of, "at_least": 1} for of, name in zip(["", *names], names, strict=False)}
    wait = PicasTokenStateSensor(
        task_id="wait", batch=batch, stages=names, groups=grouped, pilots=False, picas_conn_id="counted"
    )
    numbers = []
    for ends in (False, False, True):
        if ends:
            token = hook.get(f"{batch}:0")
            hook.do(hook.pool.put({**token, "lock": 1000, "done": 1001, "exit_code": 0}))
        before = len(proxy.requests)
        assert wait.poke(context()).is_done is ends
        numbers.append(len(proxy.requests) - before)
    return numbers


def test_a_poke_has_as_many_requests_for_twenty_stages_as_for_one(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain, "LOOK_EVERY", 0.0)
    PicasHook().deploy_views()
    few = poked(proxy, 1)
    many = poked(proxy, 20)
    assert few[0] - many[0] in (0, 1), "the design document of stages was written by the first wait"
    assert few[1:] == many[1:]


def test_two_stages_may_have_groups_of_the_same_tokens(picas_default: str) -> None:
    hook = PicasHook()
    hook.deploy_views()
    member = new_token({"input": 1, "group": "g"}, batch="b", push="p", ordinal=0, key="0")
    write(hook, [{**member, "lock": 1000, "done": 1001, "exit_code": 0}])
    hook.do(new_tokens.deploy(hook.pool))
    found: Any = {"s": {"of": ""}, "t": {"of": ""}}
    both = Chain.parse("b", ["s", "t"], groups=found)
    assert both is not None
    hook.do(new_tokens.count_chain(hook.pool, both, look=True))
    assert set(hook.do(hook.pool.fetch([groups.group_id(f"b.{stage}", "g") for stage in "st"]))) == {"b.s:g", "b.t:g"}
