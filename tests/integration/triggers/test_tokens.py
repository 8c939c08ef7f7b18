"""The trigger and the sensor that wait for tokens, against a real pool: how each wait ends, and the contents of its event."""

from __future__ import annotations

import asyncio
import threading
import time
import types
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, NoReturn

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException, TaskDeferred

from airflow_provider_picas.couchdb.errors import CouchDBError
from airflow_provider_picas.hooks import slurm
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.sensors.tokens import PicasTokenStateSensor
from airflow_provider_picas.slurm import logs
from airflow_provider_picas.slurm.jobs import Job, SlurmStatus
from airflow_provider_picas.submissions import report
from airflow_provider_picas.submissions import wait as decisions
from airflow_provider_picas.submissions.watch import PilotStatus
from airflow_provider_picas.tokens import documents, waiting
from airflow_provider_picas.tokens.counts import Counts
from airflow_provider_picas.triggers import cluster as clusters
from airflow_provider_picas.triggers import feed, subscriptions
from airflow_provider_picas.triggers import tokens as triggers
from airflow_provider_picas.triggers.tokens import PicasTokenStateTrigger
from stack import native, processes
from stack.cluster import Cluster
from stack.couchdb import CouchDBAdmin
from stack.pool import Pool
from tests.conftest import set_connection

BATCH = "a"
PILOTS = {
    "submission": "s-1", "folder": "/nowhere", "submitted": "2026-01-01T00:00:00+00:00", "job_ids": ["1"], "ssh_conn_id": "away",
}  # fmt: skip


@pytest.fixture(autouse=True)
def settle_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "SETTLE_SECONDS", 1.0)


@pytest.fixture
def hook(picas_default: str) -> PicasHook:
    """A pool with a batch of four tokens."""
    hook = PicasHook(picas_default)
    hook.deploy_views()
    hook.push(documents.new_token({"input": n}, batch=BATCH, push=BATCH, ordinal=n) for n in range(4))
    return hook


def finish(hook: PicasHook, number: int, exit_code: int = 0) -> None:
    """Finish so many tokens, as a pilot does."""
    now = int(time.time())
    some = list(hook.tokens("todo", BATCH))[:number]
    done = [{**token, "lock": now, "done": now, "exit_code": exit_code} for token in some]
    hook.do(hook.pool.write([documents.encode(token) for token in done]))


def trigger(**options: Any) -> PicasTokenStateTrigger:
    """A trigger that waits for the batch, 30 seconds at most, made anew from what is stored of it."""
    fields = {"picas_conn_id": "picas_default", "database": None, "batch": BATCH, "expected": 4, "max_errors": 0}
    made = PicasTokenStateTrigger(**{**fields, "deadline": time.time() + 30, **options})
    path, stored = made.serialize()
    assert path.endswith(".PicasTokenStateTrigger")
    return PicasTokenStateTrigger(**stored)


def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cluster of ``PILOTS`` does not answer."""
    set_connection(monkeypatch, "away", {"conn_type": "ssh", "host": "127.0.0.1", "port": 1, "login": "me"})
    monkeypatch.setattr(slurm, "CONNECT_TRIES", 1)


SEEN: list[Counts] = []
"""The counts that the last trigger has read."""


def until_seen(**counts: int) -> None:
    """Wait until the trigger has read these counts."""
    processes.wait_for(lambda: SEEN and SEEN[-1] == Counts(**counts), what=f"The sight of {counts}", seconds=60)


def event(made: PicasTokenStateTrigger, meanwhile: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """The trigger's one event; ``meanwhile`` is done once it has read counts, or cannot."""
    SEEN.clear()
    inform = made._note_update

    def note(item: subscriptions.CountsUpdate) -> None:
        inform(item)
        if item.counts is not None:
            SEEN.append(item.counts)

    made._note_update = note  # type: ignore[method-assign]

    async def run() -> dict[str, Any]:
        events: list[Any] = []

        async def read() -> None:
            async for item in made.run():
                events.append(item.payload)

        reading = asyncio.create_task(read())
        with suppress(TimeoutError):  # there may be none to read
            async with asyncio.timeout(5):
                while not SEEN and not reading.done():
                    await asyncio.sleep(0.02)
        await asyncio.to_thread(meanwhile)
        async with asyncio.timeout(90):
            await reading
        assert len(events) == 1
        assert feed.open_feeds() == 0
        found: dict[str, Any] = events[0]
        return found

    return asyncio.run(run())


def test_a_complete_batch_ends_the_wait(hook: PicasHook) -> None:
    found = event(trigger(), lambda: finish(hook, 4))
    assert found == {
        "outcome": "complete", "counts": {"todo": 0, "locked": 0, "done": 4, "error": 0}, "expected": 4,
    }  # fmt: skip


def test_the_deadline_is_the_triggers_own(hook: PicasHook) -> None:
    found = event(trigger(deadline=time.time() + 5), lambda: finish(hook, 1))
    assert (found["outcome"], found["counts"]["done"]) == ("timed_out", 1)


def test_a_clock_that_jumps_ends_no_wait(hook: PicasHook, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time

    def jump_and_finish() -> None:
        monkeypatch.setattr(time, "time", lambda: real() + 86_400)
        finish(hook, 2)
        until_seen(todo=2, done=2)
        finish(hook, 2)

    assert event(trigger(), jump_and_finish)["outcome"] == "complete"


@pytest.mark.parametrize(("fail_fast", "outcome"), [(True, "too_many_errors"), (False, "timed_out")])
def test_fail_fast_decides_when_errors_end_the_wait(hook: PicasHook, fail_fast: bool, outcome: str) -> None:
    made = trigger(fail_fast=fail_fast, deadline=time.time() + (30 if fail_fast else 6))
    found = event(made, lambda: finish(hook, 1, exit_code=1))
    assert (found["outcome"], found["counts"]["todo"]) == (outcome, 3)


def test_an_error_that_is_taken_back_at_once_fails_nothing(hook: PicasHook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "SETTLE_SECONDS", 4.0)

    def fail_and_scrub() -> None:
        finish(hook, 1, exit_code=1)
        until_seen(todo=3, error=1)
        (token,) = hook.tokens("error", BATCH)
        hook.do(hook.pool.write([documents.encode({**token, "lock": 0, "done": 0, "exit_code": ""})]))
        time.sleep(4.2)  # the error would count by now
        finish(hook, 4)

    assert event(trigger(fail_fast=True), fail_and_scrub)["outcome"] == "complete"


@pytest.mark.parametrize(
    ("threshold", "outcome"), [(3, "enough"), (0.75, "enough"), (1.0, "timed_out"), (4, "timed_out")]
)
def test_a_success_threshold_decides_when_the_wait_ends(hook: PicasHook, threshold: float, outcome: str) -> None:
    made = trigger(success_threshold=threshold, deadline=time.time() + (30 if outcome == "enough" else 5))
    assert event(made, lambda: finish(hook, 3))["outcome"] == outcome


def test_no_progress_ends_the_wait(hook: PicasHook) -> None:
    finished = 0.0

    def finish_one() -> None:
        nonlocal finished
        time.sleep(2)
        finished = time.monotonic()
        finish(hook, 1)

    found = event(trigger(no_progress=5), finish_one)
    assert (found["outcome"], found["counts"]["done"]) == ("no_progress", 1)
    assert time.monotonic() - finished > 4.9  # the token that has finished began it anew


def test_tokens_added_and_deleted_while_it_waits(hook: PicasHook) -> None:
    def add() -> None:
        hook.push([documents.new_token({"input": 9}, batch=BATCH, push="other", ordinal=9)])
        finish(hook, 4)

    found = event(trigger(deadline=time.time() + 5), add)
    assert (found["outcome"], found["counts"]["todo"]) == ("timed_out", 1)  # as many as were pushed, and one waits

    def delete() -> None:
        (token,) = hook.tokens("todo", BATCH)
        hook.editor.delete([(token["_id"], token["_rev"])])

    found = event(trigger(), delete)
    assert found["outcome"] == "complete"
    found = event(trigger(expected=5))
    assert found["outcome"] == "lost"


def test_a_batch_without_tokens_is_complete_or_lost(hook: PicasHook) -> None:
    assert event(trigger(batch="none", expected=0))["outcome"] == "complete"
    assert event(trigger(batch="none", expected=1))["outcome"] == "lost"


def test_a_batch_that_nobody_pushed_is_unknown(hook: PicasHook) -> None:
    assert event(trigger(batch="typo", expected=None))["outcome"] == "unknown"


def test_a_pool_without_tokens_is_complete(picas_default: str) -> None:
    PicasHook(picas_default).deploy_views()
    assert event(trigger(batch=None, expected=None))["outcome"] == "complete"


def test_a_pool_that_goes_away_is_reported_as_the_reason(
    hook: PicasHook, pool: Pool, couchdb: CouchDBAdmin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "REFUSED_SECONDS", 1.0)
    try:
        found = event(trigger(), lambda: couchdb.delete_database(pool.database))
    finally:
        couchdb.create_database(pool.database)
    assert found["outcome"] == "away"
    sensor = PicasTokenStateSensor(task_id="wait", batch=BATCH, deferrable=True)
    with pytest.raises(CouchDBError, match="There is no database"):
        sensor.execute_complete(CONTEXT, found, deadline=time.time() + 30)


def test_a_watch_that_breaks_off_begins_anew(hook: PicasHook, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = 0

    def break_off(*arguments: Any) -> NoReturn:
        nonlocal broken
        broken += 1
        raise ValueError("no log")

    monkeypatch.setattr(logs, "updates", break_off)
    monkeypatch.setattr(decisions, "LONGEST_INTERVAL", 0.2)
    monkeypatch.setattr(report, "LOGS_INTERVAL", 0.0)  # what was shown before is not shown again
    unreachable(monkeypatch)

    def see_it_and_finish() -> None:
        processes.wait_for(lambda: broken > 1, what="Another look", seconds=20)
        finish(hook, 4)

    assert event(trigger(pilots=PILOTS), see_it_and_finish)["outcome"] == "complete"


def test_pilots_that_come_back_are_not_missed(hook: PicasHook, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when somebody requeues one, before the token that it held is to do again."""
    unreachable(monkeypatch)
    monkeypatch.setattr(decisions, "ENDED_AFTER", 0.0)
    states = iter(["COMPLETED"])
    looks = 0

    async def look(*arguments: Any) -> PilotStatus:
        nonlocal looks
        looks += 1
        return PilotStatus(SlurmStatus({"1": Job("1", next(states, "PENDING"))}, at=0))

    made = trigger(pilots=PILOTS, pilots_interval=0.2)
    monkeypatch.setattr(made, "_check", look)
    finish(hook, 3)
    (token,) = hook.tokens("todo", BATCH)
    hook.do(hook.pool.put({**token, "lock": int(time.time())}))

    def give_back_and_finish() -> None:
        processes.wait_for(lambda: looks > 2, what="The look after the one that saw it", seconds=20)
        token = hook.get(f"{BATCH}:00000003")
        hook.do(hook.pool.put({**token, "lock": 0}))
        before = looks
        processes.wait_for(lambda: looks > before + 1, what="A look that saw it todo", seconds=20)
        finish(hook, 1)

    assert event(made, give_back_and_finish)["outcome"] == "complete"


def test_the_tasks_state_is_queried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = [OSError("no answer"), "success"]

    def state(task_instance: Any) -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    made = trigger(pilots=PILOTS)
    monkeypatch.setattr(triggers, "task_state", state)
    asyncio.run(made.on_kill())
    assert not answers


# -- the sensor --------------------------------------------------------------------------------------------------------

CONTEXT: Any = {
    "ti": types.SimpleNamespace(
        dag_id="d", run_id="r", task_id="wait", map_index=-1, try_number=1, xcom_push=lambda key, value: None
    )
}


def sensor(**options: Any) -> PicasTokenStateSensor:
    """A sensor in a process of its own, as after each reschedule."""
    batch = {"database": None, "batch": BATCH, "tokens": 4}
    return PicasTokenStateSensor(task_id="wait", batch=batch, **options)


@pytest.mark.parametrize("mode", ["poke", "reschedule"])
def test_no_progress_is_noticed_between_pokes(hook: PicasHook, mode: str) -> None:
    one = sensor(mode=mode, no_progress=3)

    def poke() -> bool:
        nonlocal one
        if mode == "reschedule":
            one = sensor(mode=mode, no_progress=3)
        return bool(one.poke(CONTEXT))

    assert not poke()
    time.sleep(3)
    finish(hook, 1)
    assert not poke()
    assert not poke()  # it counts from when the token finished
    time.sleep(3.2)
    with pytest.raises(AirflowFailException, match="No token has finished for"):
        poke()


def test_pilots_are_missed_by_fresh_counts_only(hook: PicasHook, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trigger's counts may be older than its look at the pilots."""
    unreachable(monkeypatch)
    old = {"outcome": "no_pilots", "counts": {"todo": 1, "locked": 0, "done": 3, "error": 0}, "expected": 4}
    finish(hook, 4)
    for options in ({}, {"resubmit": 1}):
        with pytest.raises(TaskDeferred) as deferred:
            sensor(deferrable=True, pilots=PILOTS, **options).execute_complete(CONTEXT, old, time.time() + 30)
        assert event(deferred.value.trigger)["outcome"] == "complete"


def test_pilots_are_missed_by_fresh_counts(hook: PicasHook, monkeypatch: pytest.MonkeyPatch) -> None:
    unreachable(monkeypatch)
    old = {"outcome": "no_pilots", "counts": {"todo": 4, "locked": 0, "done": 0, "error": 0}, "expected": 4}
    finish(hook, 2)
    with pytest.raises(AirflowFailException, match="2 tokens are waiting and no pilots remain to run them, in batch a"):
        sensor(deferrable=True, pilots=PILOTS).execute_complete(CONTEXT, old, time.time() + 30)


def test_an_outage_of_the_cluster_while_pilots_are_submitted_again(
    hook: PicasHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    unreachable(monkeypatch)
    found = {"outcome": "no_pilots", "counts": {"todo": 4, "locked": 0, "done": 0, "error": 0}, "expected": 4}
    with pytest.raises(TaskDeferred):
        sensor(deferrable=True, pilots=PILOTS, resubmit="1").execute_complete(CONTEXT, found, time.time() + 30)
    one = sensor(pilots=PILOTS, resubmit=1)
    monkeypatch.setattr(one, "_check_pilots", lambda hook: setattr(one._wait, "no_pilots", True))
    assert not one.poke(CONTEXT)


def test_slurm_knows_of_no_pilot(hook: PicasHook, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that was just submitted may show later; one that does not for a while never will."""
    set_connection(monkeypatch, "away", native.ssh_connection(cluster))
    one = sensor(pilots=PILOTS)
    assert not one.poke(CONTEXT)
    assert not one.poke(CONTEXT)
    monkeypatch.setattr(decisions, "GONE_AFTER", 0.0)
    with pytest.raises(AirflowFailException, match="no pilots remain"):
        one.poke(CONTEXT)


def test_slurm_knows_of_no_pilot_between_pokes(
    hook: PicasHook, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_connection(monkeypatch, "away", native.ssh_connection(cluster))
    just_now = {**PILOTS, "submitted": datetime.now(UTC).isoformat()}
    assert not sensor(pilots=just_now, mode="reschedule").poke(CONTEXT)
    with pytest.raises(AirflowFailException, match="no pilots remain"):
        sensor(pilots=PILOTS, mode="reschedule").poke(CONTEXT)


def lock(hook: PicasHook, **fields: Any) -> str:
    """Lock a token, as a PiCaS client does; its id."""
    token = next(hook.tokens("todo", BATCH))
    hook.do(hook.pool.put({**token, "lock": int(time.time()), **fields}))
    return str(token["_id"])


@pytest.mark.parametrize("max_lock_age", [None, 1000])
def test_a_client_that_is_gone_does_not_count_as_somebody_who_works(
    hook: PicasHook, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    max_lock_age: float | None,
) -> None:  # fmt: skip
    """Unless its token comes back in time. Nobody is left to take those that wait."""
    monkeypatch.setattr(decisions, "GONE_AFTER", 1.0)
    monkeypatch.setattr(clusters, "LOAD", 0.0)  # no long pause after a slow look
    set_connection(monkeypatch, "away", native.ssh_connection(cluster))
    token = lock(hook, slurm_job_id="4711", hostname="elsewhere")
    options: dict[str, Any] = {"pilots": PILOTS, "max_lock_age": max_lock_age}
    found = event(trigger(**options, pilots_interval=0.5, deadline=time.time() + (8 if max_lock_age else 60)))
    assert found["outcome"] == ("timed_out" if max_lock_age else "no_pilots")
    one = sensor(**options, mode="reschedule")
    if max_lock_age:
        assert not one.poke(CONTEXT)
    else:
        with pytest.raises(
            AirflowFailException, match="3 tokens are waiting and no pilots remain to run them, in batch a"
        ):
            one.poke(CONTEXT)
        assert f"Locked without a lease, and not by a job of this submission: {token}" in capsys.readouterr().out


@pytest.mark.parametrize("heard", [True, False])
def test_a_silent_pilot_has_half_a_lease_to_be_heard_in_a_poke(
    hook: PicasHook, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], heard: bool
) -> None:
    """As after an outage of the database, while which no pilot could renew its lease."""
    set_connection(monkeypatch, "away", native.ssh_connection(cluster))
    now = int(time.time())
    token = lock(hook, lock=now - 100, pilot="p1", claim=f"0123456789abcdef-{now - 100}")
    lease: dict[str, Any] = {
        "_id": "_local/picas-pilot-p1", "pilot": "p1", "submission": "s-2", "job": "5", "hostname": "n1",
        "renewed": now - 100, "lease": 20 if heard else 2, "ended": False,
    }  # fmt: skip
    revision = hook.do(hook.pool.put(lease))
    renewal = {**lease, "_rev": revision, "renewed": now + 5}
    renew = threading.Timer(3, lambda: PicasHook().do(hook.pool.put(renewal)))
    if heard:
        renew.start()
    assert not sensor(pilots=PILOTS).poke(CONTEXT)
    given_back = f"Released: {token} (pilot p1 (job 5 on n1) did not renew its lease for" in capsys.readouterr().out
    assert (hook.get(token)["lock"] == 0, given_back) == (not heard, not heard)


@pytest.mark.parametrize("number", [-1, 10])
def test_max_scrubs_beyond_the_attempts_that_are_kept(hook: PicasHook, number: int) -> None:
    with pytest.raises(AirflowFailException, match=f"`max_scrubs` is {number}; it takes a whole number from 0 to 9"):
        sensor(deferrable=True, max_scrubs=number).execute(CONTEXT)


@pytest.mark.parametrize("name", ["max_scrubs", "max_lock_age", "resubmit"])
def test_invalid_numbers_are_named(hook: PicasHook, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    unreachable(monkeypatch)
    found = {"outcome": "no_pilots", "counts": {"todo": 4, "locked": 0, "done": 0, "error": 0}, "expected": 4}
    one = sensor(deferrable=True, pilots=PILOTS, **{"resubmit": 1, name: "some"})
    with pytest.raises(AirflowFailException, match=f"`{name}` is 'some'; it takes a .*number"):
        one.execute_complete(CONTEXT, found, time.time() + 30)


def test_policies_of_a_sensor_that_pokes(hook: PicasHook, capsys: pytest.CaptureFixture[str]) -> None:
    finish(hook, 1, exit_code=1)
    assert not sensor().poke(CONTEXT)
    with pytest.raises(AirflowFailException, match=rf"1 of 4 tokens failed \(0 allowed\) in batch {BATCH}\."):
        sensor(fail_fast=True).poke(CONTEXT)
    assert f"({BATCH}:00000000)" in capsys.readouterr().out
    with pytest.raises(AirflowSkipException):
        sensor(fail_fast=True, soft_fail=True).poke(CONTEXT)
    finish(hook, 2)
    result = sensor(success_threshold="0.5").poke(CONTEXT)
    assert result.xcom_value == {"todo": 1, "locked": 0, "done": 2, "error": 1}
    with pytest.raises(AirflowFailException, match="success_threshold"):
        sensor(success_threshold="1.5").poke(CONTEXT)


def test_policies_reach_the_trigger(hook: PicasHook) -> None:
    with pytest.raises(TaskDeferred) as deferred:
        sensor(
            deferrable=True, fail_fast=True, success_threshold="3", no_progress=60, poke_interval=1, timeout=100
        ).execute(CONTEXT)
    made = deferred.value.trigger
    assert (made.fail_fast, made.success_threshold, made.no_progress, made.expected) == (True, 3, 60, 4)
    assert made.deadline - time.time() == pytest.approx(100, abs=5)
