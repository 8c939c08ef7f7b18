"""Requests to a database over a bad connection, and documents that not every Python can read."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_picas.tokens.states import State, state_of
from tests.integration import faults
from tests.integration.pilots import COUNT, PASSWORD, Pool, Proxy, Submission, held, put_lease, session_of_a_pilot


@pytest.fixture
def deep_json() -> Iterator[None]:
    """Let this process, unlike pilots, read and write JSON that is nested deeply."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10_000)
    yield
    sys.setrecursionlimit(limit)


@pytest.mark.parametrize("views_of", ["provider", "picas"])
@pytest.mark.usefixtures("deep_json")
def test_a_token_nested_too_deeply_stops_no_pilot(pool: Pool, submission: Submission, views_of: str) -> None:
    """Neither one that Python's JSON cannot read, nor one that it could not write; and those behind them are found."""
    if views_of == "picas":
        design = pool.request("GET", "_design/airflow-picas-1")[1]
        assert pool.request("DELETE", f"_design/airflow-picas-1?rev={design['_rev']}")[0] == 200
    deep: list[Any] = []
    for _ in range(960):
        deep = [deep]
    deeper = deep
    for _ in range(1000):
        deeper = [deeper]
    put_lease(pool, "dead", ended=True)
    pool.push([{"input": deep, "priority": 5}, {"input": deeper, "priority": 5}, {"input": deeper}, {}, {}, {}])
    pool.push(
        [{**token, "batch": "b", "input": deeper if token["claim"] == "0-1000" else 1} for token in held("dead", 3)],
        "b:locked",
    )
    assert submission.run(COUNT) == 0, submission.log()
    assert submission.runs() == dict.fromkeys(["b:0003", "b:0004", "b:0005", "b:locked:0001", "b:locked:0002"], 1)
    for bad in ("b:0000", "b:0001", "b:0002", "b:locked:0000"):
        assert submission.log().count(f"{bad} is nested more than 500 deep. It is skipped.") == 1
    states = {name: state_of(doc) for name, doc in pool.docs().items()}
    assert {name for name, state in states.items() if state is State.TODO} == {"b:0000", "b:0001", "b:0002"}
    assert {name for name, state in states.items() if state is State.LOCKED} == {"b:locked:0000"}


@pytest.mark.usefixtures("deep_json")
def test_a_token_that_is_mended_can_be_read_again(pool: Pool) -> None:
    """A result that waits for it can be written then."""
    deep: list[Any] = []
    for _ in range(960):
        deep = [deep]
    pool.push([{"input": deep}, {}])
    with session_of_a_pilot(pool, pool.server.url) as session:
        ids, database = ["b:0000", "b:0001"], session.database
        assert [name for name, doc in database.read(ids).items() if doc] == ["b:0001"]
        pool.put({**pool.get("b:0000"), "input": 1})
        assert all(database.read(ids).values())


@pytest.mark.parametrize("fault", ["drop answer", "cut answer", "refuse", "503", "202"])
def test_a_bad_connection_loses_nothing_and_runs_nothing_twice(
    pool: Pool, proxy: Proxy, behind_proxy: Submission, fault: str
) -> None:
    pool.push([{"input": place} for place in range(60)])
    dice, claims = random.Random(fault), list[bytes]()

    def throw(request: bytes) -> str:
        if not claims and b"_bulk_docs" in request:  # the first is hurt in any case
            claims.append(request)
            return fault
        return fault if dice.random() < 0.3 else ""

    proxy.fault = throw
    command = COUNT + '; echo "$PICAS_INPUT" > output.json; sleep 0.05; test $((PICAS_INPUT % 10)) != 3'
    pilots = [behind_proxy.start(command, max_retries=1, lease=20) for _ in range(3)]
    assert [process.wait(120) for process in pilots] == [0] * 3, behind_proxy.log()
    print(proxy.faults)
    assert proxy.faults[fault] > 5
    assert behind_proxy.runs() == {f"b:{place:04d}": 2 if place % 10 == 3 else 1 for place in range(60)}
    assert pool.states() == {State.DONE: 54, State.ERROR: 6}
    assert all(doc["output"] == doc["input"] for doc in pool.docs().values())
    logs = "".join(behind_proxy.log(place) for place in range(3))
    assert ("answers 202 to a claim" in logs) == (fault == "202")  # which is none, then
    assert behind_proxy.files("unsent") == behind_proxy.files("refused") == []


def test_the_certificate_of_the_database_is_verified(pool: Pool, submission: Submission, tmp_path: Path) -> None:
    pool.push([{}])
    context, ca_file = faults.self_signed(tmp_path)
    with faults.Proxy(pool.server.url, context) as proxy:
        submission.write_credentials(proxy.url)
        assert submission.run(COUNT) == os.EX_NOPERM
        assert "certificate" in submission.log()
        assert PASSWORD not in submission.log()
        assert proxy.requests == []
        assert submission.run(COUNT, ca_file=str(ca_file)) == 0
        pool.push([{}], "c")
        assert submission.run(COUNT, tls_verify=False, batch="c") == 0
    assert submission.runs() == {"b:0000": 1, "c:0000": 1}
