"""The sensor on a real pool, in the modes poke and reschedule, and deferred."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from airflow.exceptions import AirflowRescheduleException
from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    TaskDeferred,
)

from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.sensors.tokens import PicasTokenStateSensor
from airflow_provider_picas.tokens import waiting
from airflow_provider_picas.tokens.documents import new_token
from stack import native
from stack.couchdb import CouchDB, CouchDBAdmin
from stack.pool import Pool
from tests.conftest import set_connection
from tests.integration.faults import Proxy
from tests.integration.tasks import context

LIMIT = 30.0  # seconds that any wait may take
DONE, ERROR, LOCKED, STATELESS = (5, 6, 0), (5, 6, 7), (5, 0, ""), (0, 6, 0)


@pytest.fixture(autouse=True)
def settle_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "SETTLE_SECONDS", 0.2)


@pytest.fixture
def batch(picas_default: str) -> dict[str, Any]:
    """Ten tokens, as the push operator hands them on."""
    hook = PicasHook()
    hook.deploy_views()
    hook.push(new_token({"input": n}, batch="b", push="p", ordinal=n) for n in range(10))
    return {"database": hook.settings.database, "batch": "b", "tokens": 10}


def put(ordinals: range | list[int], state: tuple[Any, Any, Any], hook: PicasHook | None = None) -> None:
    """Bring tokens into a state, as pilots would."""
    hook = hook or PicasHook()
    for ordinal in ordinals:
        token = hook.get(f"b:{ordinal:08d}")
        token.update(lock=state[0], done=state[1], exit_code=state[2])
        hook.do(hook.pool.put(token))


def remove(ordinals: list[int]) -> None:
    hook = PicasHook()
    for ordinal in ordinals:
        hook.do(hook.pool.put({**hook.get(f"b:{ordinal:08d}"), "_deleted": True}))


def sensor(batch: Any, **arguments: Any) -> PicasTokenStateSensor:
    return PicasTokenStateSensor(task_id="wait", batch=batch, **{"poke_interval": 0.05, "timeout": LIMIT, **arguments})


async def first_event(trigger: Any) -> dict[str, Any]:
    """Run a trigger as the triggerer does: made anew from what was stored of it."""
    path, arguments = trigger.serialize()
    module, _, name = path.rpartition(".")
    made = getattr(import_module(module), name)(**json.loads(json.dumps(arguments)))
    async for event in made.run():
        payload: dict[str, Any] = json.loads(json.dumps(event.payload))
        return payload
    raise AssertionError("The trigger ended without an event.")


def deferred(waits: PicasTokenStateSensor) -> TaskDeferred:
    with pytest.raises(TaskDeferred) as caught:
        waits.execute(context("wait"))
    return caught.value


def run_deferred(
    waits: PicasTokenStateSensor,
    meanwhile: Callable[[], None] = lambda: None,
) -> Any:
    """Defer, do something while the trigger waits, and go on with its event."""
    put_off = deferred(waits)

    async def whole() -> dict[str, Any]:
        event = asyncio.create_task(first_event(put_off.trigger))
        await asyncio.to_thread(meanwhile)
        return await asyncio.wait_for(event, LIMIT)

    event = asyncio.run(whole())
    return getattr(waits, put_off.method_name)(context("wait"), event, **(put_off.kwargs or {}))


def run_poked(waits: PicasTokenStateSensor, meanwhile: Callable[[], None] = lambda: None) -> Any:
    thread = threading.Thread(target=meanwhile)
    thread.start()
    try:
        return waits.execute(context("wait"))
    finally:
        thread.join()


MODES = pytest.mark.parametrize(
    ("run", "deferrable"), [(run_poked, False), (run_deferred, True)], ids=["poke", "deferrable"]
)
pytestmark = pytest.mark.usefixtures("picas_default")


@MODES
class TestOutcome:
    def test_a_complete_batch_succeeds(self, batch: dict[str, Any], run: Callable[..., Any], deferrable: bool) -> None:
        put(range(4), LOCKED)
        counts = run(sensor(batch, deferrable=deferrable), lambda: put(range(10), DONE))
        assert counts == {"todo": 0, "locked": 0, "done": 10, "error": 0}

    @pytest.mark.parametrize("max_errors", [2, 0.2, "2", "0.25"])
    def test_errors_within_the_budget_succeed(
        self, batch: dict[str, Any], run: Callable[..., Any], deferrable: bool, max_errors: Any
    ) -> None:
        put([0, 1], ERROR)
        counts = run(sensor(batch, deferrable=deferrable, max_errors=max_errors), lambda: put(range(2, 10), DONE))
        assert counts == {"todo": 0, "locked": 0, "done": 8, "error": 2}

    @pytest.mark.parametrize("max_errors", [0, 1, 0.1, "1"])
    def test_too_many_errors_are_named(
        self,
        batch: dict[str, Any],
        run: Callable[..., Any],
        deferrable: bool,
        max_errors: Any,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        put([3, 7], ERROR)
        with pytest.raises(AirflowFailException, match=r"^2 of 10 tokens failed \([01] allowed\) in batch b\.$"):
            run(
                sensor(batch, deferrable=deferrable, max_errors=max_errors),
                lambda: put([0, 1, 2, 4, 5, 6, 8, 9], DONE),
            )
        log = capsys.readouterr().out
        assert "Clear the push task" in log
        assert re.search(r"2  exit code \d+.*\(b:00000003, b:00000007\)", log), log

    def test_an_error_that_is_scrubbed_a_moment_later_is_none(
        self, batch: dict[str, Any], run: Callable[..., Any], deferrable: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As the PiCaS client's RunActor does with max_scrub."""
        monkeypatch.setattr(waiting, "SETTLE_SECONDS", 8.0)
        put(range(9), DONE)

        def fail_and_run_again() -> None:
            put([9], ERROR)
            time.sleep(0.5)  # long enough to be seen, too short to count
            put([9], (0, 0, ""))
            time.sleep(1.5)
            put([9], DONE)

        assert run(sensor(batch, deferrable=deferrable), fail_and_run_again)["done"] == 10

    def test_tokens_that_are_gone_are_named(
        self, batch: dict[str, Any], run: Callable[..., Any], deferrable: bool
    ) -> None:
        remove([2, 5])
        waits = sensor(batch, deferrable=deferrable)
        with pytest.raises(AirflowFailException, match=r"2 pushed tokens are missing \(b:00000002, b:00000005\)"):
            run(waits, lambda: put([0, 1, 3, 4, 6, 7, 8, 9], DONE))

    def test_tokens_in_no_state_are_named(
        self, batch: dict[str, Any], run: Callable[..., Any], deferrable: bool
    ) -> None:
        put([4], STATELESS)
        waits = sensor(batch, deferrable=deferrable)
        with pytest.raises(AirflowFailException, match=r"1 tokens are in no state \(b:00000004\)"):
            run(waits, lambda: put([0, 1, 2, 3, 5, 6, 7, 8, 9], DONE))

    def test_a_soft_fail_skips(self, batch: dict[str, Any], run: Callable[..., Any], deferrable: bool) -> None:
        put([3], ERROR)
        waits = sensor(batch, deferrable=deferrable, soft_fail=True)
        with pytest.raises(AirflowSkipException, match="1 of 10 tokens failed"):
            run(waits, lambda: put([0, 1, 2, 4, 5, 6, 7, 8, 9], DONE))

    def test_the_time_out_ends_the_wait(self, batch: dict[str, Any], run: Callable[..., Any], deferrable: bool) -> None:
        put(range(4), DONE)
        begin = time.monotonic()
        with pytest.raises(AirflowSensorTimeout):
            run(sensor(batch, deferrable=deferrable, timeout=0.6))
        assert time.monotonic() - begin < 10

    def test_the_whole_pool_can_be_waited_for(
        self, batch: dict[str, Any], run: Callable[..., Any], deferrable: bool
    ) -> None:
        PicasHook().push([new_token({}, batch="other", push="q", ordinal=0)])

        def finish() -> None:
            put(range(10), DONE)
            hook = PicasHook()
            hook.do(hook.pool.put({**hook.get("other:00000000"), "lock": 5, "done": 6, "exit_code": 0}))

        assert run(sensor(None, deferrable=deferrable), finish)["done"] == 11


@MODES
class TestShapesOfPools:
    def test_a_pool_with_monitor_only_can_be_waited_for(
        self, batch: dict[str, Any], run: Callable[..., Any], deferrable: bool, couchdb: CouchDBAdmin
    ) -> None:
        design = f"/{batch['database']}/_design/airflow-picas-1"
        _, present = couchdb.request("GET", design)
        assert couchdb.request("DELETE", f"{design}?rev={present['_rev']}")[0] == 200
        counts = run(sensor(batch, deferrable=deferrable), lambda: put(range(10), DONE))
        assert counts == {"todo": 0, "locked": 0, "done": 10, "error": 0}

    def test_another_design_document_can_be_waited_for(
        self,
        batch: dict[str, Any],
        run: Callable[..., Any],
        deferrable: bool,
        pool: Pool,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Only the tokens in its views are waited for."""
        PicasHook().deploy_views({"Late": "doc.input >= 6"})
        late = {**native.picas_connection(pool), "extra": {"design_document": "Late"}}
        waits = sensor(
            {**batch, "tokens": 4}, deferrable=deferrable, picas_conn_id=set_connection(monkeypatch, "late", late)
        )
        put([6, 7], DONE)
        assert run(waits, lambda: put([8, 9], DONE)) == {"todo": 0, "locked": 0, "done": 4, "error": 0}

    def test_a_login_that_may_only_read_can_wait(
        self,
        batch: dict[str, Any],
        run: Callable[..., Any],
        deferrable: bool,
        pool: Pool,
        couchdb: CouchDBAdmin,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """It waits, and where it would have to write to know more, it says so and goes on."""
        forbid = "function (doc, old, user) { if (user.roles.indexOf('_admin') < 0) throw({forbidden: 'read only'}); }"
        design = {"_id": "_design/readonly", "validate_doc_update": forbid}
        assert couchdb.request("PUT", f"/{pool.database}/_design/readonly", design)[0] == 201
        writes = {**native.picas_connection(pool), "login": couchdb.admin, "password": couchdb.password}
        writer = PicasHook(set_connection(monkeypatch, "writer", writes))
        put([0], DONE, writer)
        waits = sensor(batch, deferrable=deferrable, no_progress=60)
        assert run(waits, lambda: put(range(1, 10), DONE, writer))["done"] == 10
        put([0], (0, 0, ""), writer)
        again = sensor(batch, mode="reschedule", no_progress=60)
        with pytest.raises(AirflowRescheduleException):
            again.execute(context("wait"))


class TestPoke:
    def test_a_batch_is_given_by_its_name_too(self, batch: dict[str, Any]) -> None:
        put(range(10), DONE)
        assert sensor("b").execute(context("wait"))["done"] == 10

    @pytest.mark.parametrize("deferrable", [False, True])
    @pytest.mark.parametrize("mode", ["poke", "reschedule"])
    def test_a_name_that_no_batch_has_is_reported(self, batch: dict[str, Any], deferrable: bool, mode: str) -> None:
        words = rf"There are no tokens in batch typo in .*{batch['database']}.* Check the batch name"
        with pytest.raises(AirflowFailException, match=words):
            sensor("typo", deferrable=deferrable, mode=mode, success_threshold=0.5).execute(context("wait"))

    def test_a_batch_and_a_pool_without_tokens_are_complete(self) -> None:
        PicasHook().deploy_views()
        assert sensor({"batch": "b", "tokens": 0}).execute(context("wait"))["done"] == 0
        assert sensor(None).execute(context("wait"))["done"] == 0

    def test_the_log_shows_the_counts_as_they_change(
        self, batch: dict[str, Any], capsys: pytest.CaptureFixture[str]
    ) -> None:
        waits = sensor(batch)
        for _ in range(3):
            assert not waits.poke(context("wait"))
        put([0], LOCKED)
        assert not waits.poke(context("wait"))
        said = capsys.readouterr().out
        assert said.count("0 of 10 done, 10 to do") == 1
        assert said.count("First token running: 0 of 10 done, 1 running, 9 to do") == 1

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"batch": 5}, "A batch is the output of the push operator"),
            ({"max_errors": -1}, "max_errors must be a number"),
            ({"max_errors": "many"}, "many"),
            ({"max_errors": 1.5}, "above 1 it must be a whole number"),
        ],
    )
    def test_invalid_arguments_are_refused(self, batch: dict[str, Any], arguments: dict[str, Any], words: str) -> None:
        with pytest.raises(AirflowFailException, match=words):
            sensor(**{"batch": batch, **arguments}).execute(context("wait"))

    def test_a_complete_batch_is_not_deferred(self, batch: dict[str, Any]) -> None:
        put(range(10), DONE)
        assert sensor(batch, deferrable=True).execute(context("wait"))["done"] == 10


class TestReschedule:
    def test_a_wait_is_rescheduled_until_all_are_done(self, batch: dict[str, Any]) -> None:
        for _ in range(2):
            with pytest.raises(AirflowRescheduleException) as caught:
                sensor(batch, mode="reschedule", poke_interval=45).execute(context("wait"))
            left = caught.value.reschedule_date - datetime.now(UTC)
            assert timedelta(seconds=40) < left <= timedelta(seconds=45)
        put(range(10), DONE)
        assert sensor(batch, mode="reschedule").execute(context("wait"))["done"] == 10

    def test_the_time_is_counted_from_the_first_check(self, batch: dict[str, Any]) -> None:
        hour_ago = datetime.now(UTC) - timedelta(hours=1)
        with pytest.raises(AirflowSensorTimeout):
            sensor(batch, mode="reschedule", timeout=60).execute(context("wait", first_reschedule=hour_ago))


class TestTrigger:
    def test_the_trigger_is_stored_without_the_password(self, batch: dict[str, Any], pool: Pool) -> None:
        put_off = deferred(sensor(batch, deferrable=True, max_errors=0.2))
        path, arguments = put_off.trigger.serialize()
        assert path == "airflow_provider_picas.triggers.tokens.PicasTokenStateTrigger"
        assert (arguments["batch"], arguments["expected"], arguments["max_errors"]) == ("b", 10, 0.2)
        assert pool.password not in json.dumps(arguments)
        assert put_off.timeout is not None
        assert put_off.timeout > timedelta(seconds=LIMIT)  # the trigger keeps the time itself

    def test_it_reports_what_it_last_saw_when_the_time_is_up(self, batch: dict[str, Any]) -> None:
        put([0, 1, 2], DONE)
        waits = sensor(batch, deferrable=True, timeout=8)  # the feed has to look once
        with pytest.raises(
            AirflowSensorTimeout, match=r"did not finish in time: 7 todo, 0 locked, 3 done, 0 error of 10"
        ):
            run_deferred(waits)

    def test_it_does_not_ask_while_nothing_happens(
        self, batch: dict[str, Any], pool: Pool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Proxy(pool.url) as proxy:
            connection = {**native.picas_connection(pool), "host": proxy.url}
            monkeypatch.setenv("AIRFLOW_CONN_PICAS_DEFAULT", json.dumps(connection))
            put_off = deferred(sensor(batch, deferrable=True, timeout=3))
            proxy.requests.clear()
            assert asyncio.run(first_event(put_off.trigger))["outcome"] == "timed_out"
        assert len(proxy.requests) < 12, proxy.requests

    def test_two_waits_share_one_feed(self, batch: dict[str, Any]) -> None:
        PicasHook().push([new_token({}, batch="c", push="q", ordinal=0)])
        first, second = deferred(sensor(batch, deferrable=True)), deferred(sensor("c", deferrable=True))

        async def both() -> list[dict[str, Any]]:
            waits = [asyncio.create_task(first_event(put_off.trigger)) for put_off in (first, second)]
            await asyncio.to_thread(put, range(10), DONE)
            done = await asyncio.wait_for(waits[0], LIMIT)
            assert not waits[1].done()
            hook = PicasHook()
            token = await asyncio.to_thread(hook.get, "c:00000000")
            await asyncio.to_thread(hook.do, hook.pool.put({**token, "lock": 5, "done": 6, "exit_code": 0}))
            return [done, await asyncio.wait_for(waits[1], LIMIT)]

        assert [event["counts"]["done"] for event in asyncio.run(both())] == [10, 1]


def test_a_database_that_is_killed_and_started_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a server of this test's own: kill -9, and back with its data a while later."""
    with CouchDB(tmp_path / "couchdb") as server:
        server.create_user("me", "s3cret")
        server.create_database("pool", members=["me"], admins=["me"])
        fields = {"conn_type": "picas", "host": server.url, "schema": "pool", "login": "me", "password": "s3cret"}
        monkeypatch.setenv("AIRFLOW_CONN_PICAS_DEFAULT", json.dumps(fields))
        hook = PicasHook()
        hook.deploy_views()
        hook.push(new_token({}, batch="b", push="p", ordinal=n) for n in range(10))
        with Proxy(server.url) as proxy:
            monkeypatch.setenv("AIRFLOW_CONN_PICAS_DEFAULT", json.dumps({**fields, "host": proxy.url}))
            waits = sensor({"database": "pool", "batch": "b", "tokens": 10}, deferrable=True)

            def restart() -> None:
                while not any("_changes" in request and "longpoll" in request for request in proxy.requests):
                    time.sleep(0.02)
                put(range(5), DONE, hook)
                server.kill()
                asked = len(proxy.requests)
                while len(proxy.requests) == asked:  # the trigger has noticed
                    time.sleep(0.02)
                server.start()
                put(range(5, 10), DONE, hook)

            assert run_deferred(waits, restart)["done"] == 10


@pytest.mark.parametrize(("errors", "link"), [(0, False), (1, True)])
def test_a_wait_leads_to_the_rerun_of_what_failed(batch: dict[str, Any], errors: int, link: bool) -> None:
    put(range(10 - errors), DONE)
    put(range(10 - errors, 10), ERROR)
    of_task = context("wait")
    sensor(batch, max_errors=1).execute(of_task)
    assert ("picas_rerun_url" in of_task["ti"].xcoms) == link
    assert of_task["ti"].xcoms["picas_page"] == {
        "picas_conn_id": "picas_default",
        "database": batch["database"],
        "batch": "b",
        "role": "wait",
        "max_errors": 1,
        "expected": 10,
    }
