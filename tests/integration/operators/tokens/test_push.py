"""The push operator on a real pool: each token once, whatever fails, and invalid input is refused before it does harm."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException

from airflow_provider_picas.couchdb import errors
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.hooks.picas_async import PicasAsyncHook
from airflow_provider_picas.operators.tokens import PicasPushTokensOperator, PicasResetTokensOperator
from airflow_provider_picas.tokens.counts import Counts
from stack import native
from stack.couchdb import CouchDBAdmin
from stack.pool import Pool
from tests.integration.faults import Fault, Proxy
from tests.integration.tasks import context

Connect = Callable[..., None]


@pytest.fixture(autouse=True)
def connect(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> Connect:
    """``picas_default`` is the pool; called, it is changed."""

    def change(**fields: Any) -> None:
        connection = {**native.picas_connection(pool), **fields}
        monkeypatch.setenv("AIRFLOW_CONN_PICAS_DEFAULT", json.dumps(connection))

    change()
    return change


def push(**arguments: Any) -> dict[str, Any]:
    """Run the operator as one task instance, and return its output."""
    operator = PicasPushTokensOperator(task_id="push", **arguments)
    output: dict[str, Any] = operator.execute(context())
    return output


def each_once(pool: Pool, inputs: list[Any]) -> None:
    """The pool holds one token for each input, in the order of their ids, and no more."""
    tokens = sorted(pool.tokens(), key=lambda token: str(token["_id"]))
    assert [token["input"] for token in tokens] == inputs
    assert [token["ordinal"] for token in tokens] == list(range(len(inputs)))


def finish(hook: PicasHook, token_id: str, exit_code: int) -> None:
    """What a pilot leaves."""
    token = {**hook.get(token_id), "lock": 5, "done": 6, "exit_code": exit_code}
    hook.do(hook.pool.put(token))


class TestOutput:
    def test_a_small_mapping_that_says_where_and_how_many(self, pool: Pool) -> None:
        output = push(inputs=[f"x{number}" for number in range(30)])
        assert (output["database"], output["tokens"]) == (pool.database, 30)
        assert output["batch"].startswith("dag.push.run1-")
        assert len(json.dumps(output)) < 500
        assert json.loads(json.dumps(output)) == output

    def test_tokens_have_what_picas_and_the_author_want(self, pool: Pool) -> None:
        batch = push(tokens=[{"input": {"a": [1, None, "é"]}, "priority": 5, "cores": 2}])["batch"]
        (token,) = pool.tokens()
        del token["_rev"]
        push_id, _, execution = token.pop("push").partition("#")
        assert push_id == batch
        assert re.fullmatch("[0-9a-f]{8}", execution)
        assert token == {
            "_id": f"{batch}:00000000", "type": "token", "lock": 0, "done": 0, "hostname": "", "scrub_count": 0, "exit_code": "",
            "batch": batch, "ordinal": 0, "input": {"a": [1, None, "é"]}, "priority": 5, "cores": 2,
        }  # fmt: skip

    def test_runs_and_mapped_tasks_have_batches_of_their_own(self, pool: Pool) -> None:
        operator = PicasPushTokensOperator(task_id="push", inputs=["x"])
        places: list[dict[str, Any]] = [
            {},
            {"run_id": "run2"},
            {"map_index": 0},
            {"map_index": 1},
            {"task_id": "push2"},
            {"dag_id": "dag2"},
        ]
        batches = {operator.execute(context(**place))["batch"] for place in places}
        assert len(batches) == len(pool.tokens()) == 6

    def test_a_batch_with_a_name_of_its_own(self, pool: Pool) -> None:
        assert push(inputs=["x"], batch="genomes 2026")["batch"].startswith("genomes_2026-")
        assert push(inputs=["x"], batch="genomes")["batch"] == "genomes"
        assert len(pool.tokens()) == 2

    def test_views_are_created(self, pool: Pool) -> None:
        push(inputs=["x"])
        assert pool.get("_design/Monitor/_view/todo")["rows"][0]["id"].endswith(":00000000")
        assert PicasHook().count() == Counts(todo=1)

    def test_views_are_left_alone_on_demand(self, pool: Pool) -> None:
        push(inputs=["x"], deploy_views=False)
        assert pool.get("_all_docs")["total_rows"] == 1

    def test_tokens_go_to_another_database(self, pool: Pool, couchdb: CouchDBAdmin) -> None:
        other = f"{pool.database}_other"
        couchdb.create_database(other, members=[pool.user], admins=[pool.user])
        try:
            assert push(inputs=["x"], database=other)["database"] == other
            assert pool.tokens() == []
        finally:
            couchdb.delete_database(other)


class TestTwice:
    def test_pushing_again_writes_nothing(self, pool: Pool) -> None:
        inputs = [f"x{number}" for number in range(2_500)]
        first = push(inputs=inputs)
        before = {token["_id"]: token["_rev"] for token in pool.tokens()}
        again = push(inputs=inputs)
        assert {key: again[key] for key in ("database", "batch", "tokens")} == {
            key: first[key] for key in ("database", "batch", "tokens")
        }
        assert {token["_id"]: token["_rev"] for token in pool.tokens()} == before
        each_once(pool, inputs)

    def test_pushing_again_runs_just_what_failed(self, pool: Pool) -> None:
        hook = PicasHook()
        batch = push(inputs=["a", "b", "c"])["batch"]
        finish(hook, f"{batch}:00000000", 0)
        finish(hook, f"{batch}:00000001", 3)
        assert push(inputs=["a", "b", "c"])["tokens"] == 3
        assert hook.count(batch) == Counts(todo=2, done=1)
        assert hook.get(f"{batch}:00000001")["attempts"][0]["exit_code"] == 3

    @pytest.mark.usefixtures("no_pauses")
    @pytest.mark.parametrize("requests", [0, 1, 4, 6, 8])
    def test_a_push_that_is_cut_off_goes_on_when_it_is_run_again(
        self, pool: Pool, connect: Connect, requests: int
    ) -> None:
        inputs = [f"x{number}" for number in range(5_500)]
        with Proxy(pool.url) as proxy:
            connect(host=proxy.url)
            proxy.break_after(requests)
            with pytest.raises(errors.UnavailableError, match="does not answer"):
                push(inputs=inputs)
            assert len(pool.tokens()) < len(inputs)
            proxy.break_after(None)
            assert push(inputs=inputs)["tokens"] == len(inputs)
        each_once(pool, inputs)

    @pytest.mark.usefixtures("no_pauses")
    @pytest.mark.parametrize("fault", [429, 500, 503, Fault.DROP, Fault.LOSE, Fault.CUT])
    def test_a_fault_on_the_way_is_not_a_fault_of_the_push(
        self, pool: Pool, connect: Connect, fault: Fault | int
    ) -> None:
        inputs = [f"x{number}" for number in range(3_500)]
        with Proxy(pool.url) as proxy:
            connect(host=proxy.url)
            proxy.hurt(fault, fault, on="_bulk_docs")
            assert push(inputs=inputs)["tokens"] == len(inputs)
        each_once(pool, inputs)

    def test_two_tries_at_once_write_each_token_once(self, pool: Pool) -> None:
        from concurrent.futures import ThreadPoolExecutor

        inputs = [f"x{number}" for number in range(3_000)]
        with ThreadPoolExecutor(2) as workers:
            outputs = list(workers.map(lambda _: push(inputs=inputs), range(2)))
        assert [output["tokens"] for output in outputs] == [3_000, 3_000]
        each_once(pool, inputs)


class TestKeys:
    def test_a_field_or_a_function_names_the_tokens(self, pool: Pool) -> None:
        push(tokens=[{"name": "g1"}, {"name": "g/2"}], key="name", batch="b")
        push(inputs=["a", "b"], key=lambda fields: fields["input"].upper(), batch="c")
        names = sorted(token["_id"] for token in pool.tokens())
        assert names[0].startswith("b:g1")
        assert names[1].startswith("b:g_2-")
        assert names[2:] == ["c:A", "c:B"]

    @pytest.mark.parametrize("distance", [1, 700, 2_300])
    def test_the_same_key_twice_is_refused_with_both_places(self, distance: int) -> None:
        inputs = [f"x{number}" for number in range(3_000)]
        inputs[100 + distance] = inputs[100]
        with pytest.raises(AirflowFailException) as caught:
            push(inputs=inputs, key="input")
        assert "have the same token id" in str(caught.value)
        places = f"{100:,} and {100 + distance:,}"
        assert places in str(caught.value)

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"tokens": [{"a": 1}], "key": "b"}, "Token 0 has no field 'b'"),
            ({"tokens": [{"a": 1}, {"a": None}], "key": "a"}, "Token 1: A token key must be"),
            ({"inputs": [""], "key": "input"}, "Token 0: A token key must be"),
        ],
    )
    def test_an_invalid_key_is_refused(self, arguments: dict[str, Any], words: str) -> None:
        with pytest.raises(AirflowFailException, match=words):
            push(**arguments)


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({}, "Give either `inputs` or `tokens`"),
            ({"inputs": ["x"], "tokens": [{}]}, "Give either `inputs` or `tokens`"),
            ({"inputs": ["x"], "on_empty": "shrug"}, "`on_empty` is 'shrug'; it takes one of skip, fail, succeed"),
            ({"inputs": ["x"], "on_existing": "shrug"}, "`on_existing` is 'shrug'; it takes one of keep, reset, replace, fail"),
            ({"inputs": ["x"], "batch": 5}, "`batch` is 5; it takes the name of a batch, a string"),
            ({"inputs": ["x"], "batch": {"batch": "b"}}, "`batch` is {'batch': 'b'}; it takes the name of a batch"),
            ({"tokens": [{"_id": "x"}]}, "Token 0 has the field '_id'"),
            ({"tokens": [{"input": 1}, {"_x": "x"}]}, "Token 1 has the field '_x'"),
            ({"tokens": [{"lock": 5}]}, "Token 0 has the field 'lock', which PiCaS"),
            ({"tokens": [{"batch": "mine"}]}, "Token 0 has the field 'batch'"),
            ({"tokens": ["x"]}, "Token 0 is not a mapping of fields: 'x'. Use `inputs`"),
            ({"inputs": [1, float("nan")]}, "Token 1 is not JSON: input is nan"),
            ({"inputs": [{"a": {1, 2}}]}, r"Token 0 is not JSON: input.a is of type set"),
            ({"inputs": ["x" * 8_000_001]}, r"Token 0 has 8,000,\d+ bytes; CouchDB accepts 8,000,000"),
        ],
    )  # fmt: skip
    def test_invalid_input_is_refused(self, arguments: dict[str, Any], words: str) -> None:
        with pytest.raises(AirflowFailException, match=words):
            push(**arguments)

    def test_a_token_just_below_the_limit_is_taken(self, pool: Pool) -> None:
        push(inputs=["x" * 7_999_000, "y" * 7_999_000, "z"])
        assert Counter(len(token["input"]) for token in pool.tokens()) == {7_999_000: 2, 1: 1}

    def test_what_is_good_before_a_bad_one_stays_and_is_not_written_again(self, pool: Pool) -> None:
        inputs: list[Any] = [f"x{number}" for number in range(2_500)]
        with pytest.raises(AirflowFailException, match="Token 2400"):
            push(inputs=[*inputs[:2_400], float("inf"), *inputs[2_401:]])
        each_once(pool, inputs[:2_400])  # nothing behind it
        assert push(inputs=inputs)["tokens"] == 2_500
        each_once(pool, inputs)

    def test_inputs_may_be_any_iterable(self, pool: Pool) -> None:
        def generate() -> Iterator[int]:
            yield from range(5)

        push(inputs=generate())
        each_once(pool, [0, 1, 2, 3, 4])

    @pytest.mark.parametrize("arguments", [{"inputs": []}, {"tokens": []}, {"inputs": iter(())}])
    def test_on_empty_decides_about_an_empty_push(self, arguments: dict[str, Any]) -> None:
        with pytest.raises(AirflowSkipException, match="nothing to push"):
            push(**arguments)
        with pytest.raises(AirflowFailException, match="nothing to push"):
            push(**arguments, on_empty="fail")
        assert push(**arguments, on_empty="succeed")["tokens"] == 0


class TestConnection:
    def test_a_missing_connection_is_named(self) -> None:
        words = "Connection 'no_such_pool' does not exist. Create one of type PiCaS"
        with pytest.raises(errors.SettingsError, match=words):
            push(inputs=["x"], picas_conn_id="no_such_pool")
        with pytest.raises(AirflowFailException, match=words):
            PicasResetTokensOperator(task_id="reset", batch="b", picas_conn_id="no_such_pool").execute(context("reset"))

    def test_a_missing_connection_is_named_in_a_trigger(self) -> None:
        with pytest.raises(errors.SettingsError, match="Connection 'no_such_pool' does not exist"):
            asyncio.run(PicasAsyncHook("no_such_pool").__aenter__())

    @pytest.mark.parametrize(
        ("fields", "kind", "words"),
        [
            ({"password": "wrong"}, errors.UnauthorizedError, "Check login and password of connection 'picas_default'"),
            ({"schema": "nowhere"}, errors.NotFoundError, "There is no database nowhere on .* Check the database of connection"),
            ({"schema": ""}, errors.SettingsError, "No database is set"),
            ({"host": "http://127.0.0.1:1"}, errors.UnavailableError, "does not answer .*refused.* Check host and port"),
        ],
    )  # fmt: skip
    @pytest.mark.usefixtures("no_pauses")
    def test_an_invalid_field_of_the_connection_is_named(
        self, connect: Connect, fields: dict[str, str], kind: type[Exception], words: str
    ) -> None:
        connect(**fields)
        with pytest.raises(kind, match=words):
            push(inputs=["x"])
