"""Resetting tokens on a real pool: the right tokens, with their history, and never against a pilot."""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_picas.couchdb import edits, errors
from airflow_provider_picas.couchdb.pool import PAGE
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.operators.tokens import PicasPushTokensOperator, PicasResetTokensOperator
from airflow_provider_picas.tokens import attachments
from airflow_provider_picas.tokens.counts import Counts
from airflow_provider_picas.tokens.selection import Selection
from airflow_provider_picas.tokens.states import State, state_of
from stack.couchdb import CouchDBAdmin
from stack.pool import Pool
from tests.integration import lives
from tests.integration.faults import Fault, Proxy
from tests.integration.tasks import context

MIXED = {State.TODO: 3, State.LOCKED: 2, State.DONE: 4, State.ERROR: 5}


def reset(**arguments: Any) -> dict[str, Any]:
    return PicasResetTokensOperator(task_id="reset", **{"batch": "b", **arguments}).execute(context("reset"))


def nothing_left(tokens: Sequence[dict[str, Any]]) -> list[str | None]:
    return [None] * len(tokens)


def test_tokens_in_error_are_released_with_what_they_were(hook: PicasHook) -> None:
    ids = lives.fill(hook, MIXED)
    failed = ids[-5:]
    lives.attach(hook, failed[0], result=b"kept")
    before = {token["_id"]: token for token in hook.batch_documents("b")}
    output = reset()
    assert (output["batch"], output["reset"]) == ("b", 5)
    assert {reason: left["tokens"] for reason, left in output["left"].items()} == {
        "is todo": 3,
        "is locked": 2,
        "is done": 4,
    }
    assert hook.count("b") == Counts(todo=8, locked=2, done=4)
    for token_id in failed:
        token = hook.get(token_id)
        attempt = {**lives.LIVES[State.ERROR], "reason": "reset", "error": token["attempts"][0]["error"]}
        assert token["attempts"] == [attempt]
        assert "no such file" in attempt["error"]
        assert (token["scrub_count"], token["error"], token["exit_code"]) == (1, [], "")
        assert "slurm_job_id" not in token
    assert lives.attached(hook, failed[0]) == {"result": b"kept"}
    others = [token_id for token_id in ids if token_id not in failed]
    assert {token_id: hook.get(token_id) for token_id in others} == {token_id: before[token_id] for token_id in others}


def test_clearing_the_push_of_a_run_with_five_failed_tokens_runs_five(hook: PicasHook) -> None:
    push = PicasPushTokensOperator(task_id="push", inputs=list(range(20)))
    batch = push.execute(context())
    for place, token_id in enumerate(hook.token_ids("todo", batch["batch"])):
        lives.change(hook, token_id, **lives.LIVES[State.ERROR if place % 4 == 0 else State.DONE])
    assert push.execute(context()) == batch
    assert hook.count(batch["batch"]) == Counts(todo=5, done=15)
    assert {token["ordinal"] for token in hook.tokens("todo", batch["batch"])} == {0, 4, 8, 12, 16}


def test_many_pages_are_reset_among_many_others(hook: PicasHook) -> None:
    lives.fill(hook, {State.DONE: 20})
    for page in range(3):
        tokens = {State.ERROR: PAGE} if page else {State.ERROR: 10}
        lives.fill(hook, tokens, batch=f"c{page}")
    assert reset(batch=None, whole_pool=True)["reset"] == 2 * PAGE + 10
    assert hook.count() == Counts(todo=2 * PAGE + 10, done=20)
    assert hook.count("c1") == Counts(todo=PAGE)


def test_a_few_are_found_among_many(hook: PicasHook) -> None:
    lives.fill(hook, {State.DONE: 2 * PAGE, State.ERROR: 3})
    output = reset()
    assert (output["reset"], output["left"]) == (3, {"is done": {"tokens": 2 * PAGE, "ids": []}})
    assert hook.count("b") == Counts(todo=3, done=2 * PAGE)


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        ({"states": ["locked"]}, {3, 4}),
        ({"states": "locked,done"}, {3, 4, 5, 6, 7, 8}),
        ({"keys": ["00000009", "b:00000010", "00000003"]}, {9, 10}),
        ({"error_pattern": "^exit code 3$"}, {9, 10, 11, 12, 13}),
        ({"error_pattern": r"no such (file|dir)\b"}, {9, 10, 11, 12, 13}),
        ({"error_pattern": "out of memory"}, {12}),
        ({"max_scrubs": 2}, {9, 10, 11, 12}),
        ({"min_scrubs": 1}, {11, 13}),
        ({"min_scrubs": "1", "max_scrubs": "2"}, {11}),
        ({"older_than": 3_600}, {9, 11, 12, 13}),
        ({"states": "locked", "older_than": 3_600}, {3, 4}),
        ({"states": "error", "keys": ["00000012", "00000013"], "error_pattern": "memory"}, {12}),
    ],
)
def test_conditions_select_tokens(hook: PicasHook, asked: dict[str, Any], chosen: set[int]) -> None:
    ids = lives.fill(hook, MIXED)
    lives.change(hook, ids[10], lock=hook.now() - 60)
    lives.change(hook, ids[11], scrub_count=1)
    lives.change(hook, ids[12], error=[{"message": "no such file"}, {"exception": "MemoryError: out of memory"}])
    lives.change(hook, ids[13], scrub_count=2)
    was_todo = set(hook.token_ids("todo", "b"))
    assert reset(**asked)["reset"] == len(chosen)
    assert set(hook.token_ids("todo", "b")) - was_todo == {ids[place] for place in chosen}


@pytest.mark.parametrize("states", ["error", "done,error", None])
def test_another_design_document_keeps_to_its_tokens(
    hook: PicasHook, multi_core: Callable[[State], str], states: str | None
) -> None:
    token_id = multi_core(State.ERROR)
    output = reset(picas_conn_id="multi_core", states=states)
    assert (output["reset"], output["ids"], output["left"]) == (1, [token_id], {})
    assert hook.count("b") == Counts(todo=1, error=2)


def test_the_report_says_why_tokens_were_left(hook: PicasHook) -> None:
    ids = lives.fill(hook, {State.ERROR: 4, State.DONE: 1})
    lives.change(hook, ids[0], scrub_count=3)
    lives.change(hook, ids[1], error=[{"message": "other"}])
    keys = [*ids, "b:nothing", "missing"]
    assert reset(keys=keys, max_scrubs=3, error_pattern="no such file")["left"] == {
        "was released 3 times or more": {"tokens": 1, "ids": [ids[0]]},
        "has a different error": {"tokens": 1, "ids": [ids[1]]},
        "is done": {"tokens": 1, "ids": [ids[4]]},
        "is not in the pool": {"tokens": 2, "ids": ["b:nothing", "b:missing"]},
    }


def test_a_dry_run_changes_nothing(hook: PicasHook) -> None:
    lives.fill(hook, MIXED)
    before = list(hook.batch_documents("b"))
    assert reset(dry_run="True")["reset"] == 5
    assert list(hook.batch_documents("b")) == before


def test_attempts_are_kept_up_to_a_cap(hook: PicasHook) -> None:
    (token_id,) = lives.fill(hook, {State.ERROR: 1})
    for attempt in range(12):
        lives.change(hook, token_id, **{**lives.LIVES[State.ERROR], "lock": lives.NOW + attempt})
        assert reset()["reset"] == 1
    token = hook.get(token_id)
    assert token["scrub_count"] == 12
    assert [attempt["lock"] - lives.NOW for attempt in token["attempts"]] == list(range(2, 12))


def test_logs_of_foreign_pilots_are_copied_once_for_each_attempt(hook: PicasHook) -> None:
    first, second = lives.fill(hook, {State.ERROR: 2})
    logs = {f"logs_{first}.out": b"out 1", f"logs_{first}.err": b"err 1"}
    lives.attach(hook, first, **logs, result=b"r")
    lives.attach(hook, second, **{"attempt-1.err": b"own"})
    assert reset(keep_logs=True)["reset"] == 2
    copies = {"attempt-1.out": b"out 1", "attempt-1.err": b"err 1"}
    assert lives.attached(hook, first) == {**logs, **copies, "result": b"r"}
    assert lives.attached(hook, second) == {"attempt-1.err": b"own"}

    lives.change(hook, first, **lives.LIVES[State.ERROR])  # an attempt that attached nothing
    assert reset(keep_logs=True)["reset"] == 1
    assert lives.attached(hook, first) == {**logs, **copies, "result": b"r"}

    lives.change(hook, first, **lives.LIVES[State.ERROR])
    lives.attach(hook, first, **{f"logs_{first}.out": b"out 3"})
    assert reset(keep_logs=True)["reset"] == 1
    assert lives.attached(hook, first) == {
        **logs, **copies, "result": b"r", f"logs_{first}.out": b"out 3", "attempt-3.out": b"out 3",
    }  # fmt: skip
    assert len(hook.get(first)["attempts"]) == 3


def test_a_token_whose_log_is_too_large_to_keep_is_left(hook: PicasHook) -> None:
    first, second = lives.fill(hook, {State.ERROR: 2})
    log = {f"logs_{first}.out": b"x" * (attachments.MAX_LOG_BYTES + 1)}
    lives.attach(hook, first, **log)
    left = {"has a log above 1 MB, too large to keep": {"tokens": 1, "ids": [first]}}
    for dry_run in (True, False):
        output = reset(keep_logs=True, dry_run=dry_run)
        assert (output["ids"], output["left"]) == ([second], left)
    assert (hook.get(first)["scrub_count"], lives.attached(hook, first)) == (0, log)
    assert reset()["ids"] == [first]


def test_few_logs_are_in_memory_while_they_are_copied(hook: PicasHook, proxy: Proxy) -> None:
    ids = lives.fill(hook, {State.ERROR: 12})
    for token_id in ids:
        lives.attach(hook, token_id, **{f"logs_{token_id}.out": b"x" * 900_000})
    assert reset(picas_conn_id="through_proxy", keep_logs=True)["reset"] == 12
    done = "".join("c" if "logs_" in request else "w" if "_bulk_docs" in request else "" for request in proxy.requests)
    assert done == "cccw" * 4  # four megabytes at a time
    assert all("attempt-1.out" in hook.get(token_id)["_attachments"] for token_id in ids)


def test_logs_stay_as_they_are_unless_copies_are_asked_for(hook: PicasHook) -> None:
    (token_id,) = lives.fill(hook, {State.ERROR: 1})
    lives.attach(hook, token_id, **{f"logs_{token_id}.out": b"out 1"})
    reset()
    assert lives.attached(hook, token_id) == {f"logs_{token_id}.out": b"out 1"}


def test_a_token_that_a_pilot_has_taken_meanwhile_is_left_to_it(hook: PicasHook) -> None:
    ids = lives.fill(hook, {State.ERROR: 5})
    stale = list(hook.batch_documents("b"))
    locked = lives.change(hook, ids[0], **{**lives.LIVES[State.LOCKED], "done": 0, "exit_code": ""})
    done = lives.change(hook, ids[1], exit_code=0)
    lives.change(hook, ids[2], output="written later")
    hook.editor.delete([(ids[3], hook.get(ids[3])["_rev"])])

    def judge(tokens: Sequence[dict[str, Any]]) -> list[str | None]:
        return [Selection("b", frozenset({State.ERROR})).objection(token, lives.NOW) for token in tokens]

    report = hook.do(edits.reset(hook.pool, stale, judge))
    assert sorted(report.changed_ids) == [ids[2], ids[4]]
    assert {reason: left.ids for reason, left in report.skipped.items()} == {
        "meanwhile it is locked": [ids[0]],
        "meanwhile it is done": [ids[1]],
        edits.GONE: [ids[3]],
    }
    assert hook.get(ids[0]) == locked
    assert hook.get(ids[1]) == done
    assert hook.get(ids[2])["output"] == "written later"


def test_resets_beside_pilots_lose_no_attempt(hook: PicasHook) -> None:
    """Two tasks reset while two pilots claim and fail: every attempt is counted once, and the fence holds."""
    ids = lives.fill(hook, {State.ERROR: 20})
    stop = threading.Event()
    runs = dict.fromkeys(ids, 1)
    counted = threading.Lock()

    def pilot(seed: int) -> None:
        chance, mine = random.Random(seed), PicasHook()
        while not stop.is_set():
            token = mine.get(chance.choice(ids))
            if state_of(token) is not State.TODO:
                continue
            try:
                rev = mine.do(mine.pool.put({**token, **lives.LIVES[State.LOCKED]}))
                mine.do(mine.pool.put({**token, **lives.LIVES[State.ERROR], "_rev": rev}))
            except errors.ConflictError:
                continue
            with counted:
                runs[token["_id"]] += 1

    with ThreadPoolExecutor(2) as pilots:
        working = [pilots.submit(pilot, seed) for seed in (1, 2)]
        with ThreadPoolExecutor(2) as resets:
            outputs = [resets.submit(reset) for _ in range(12)]
        stop.set()
        for pilot_run in working:
            pilot_run.result()
    assert sum(output.result()["reset"] for output in outputs) == sum(hook.get(i)["scrub_count"] for i in ids)
    for token_id in ids:
        token = hook.get(token_id)
        ended = token["scrub_count"] + (state_of(token) is State.ERROR)
        assert ended == runs[token_id]
        assert len(token["attempts"]) == min(10, token["scrub_count"])


@pytest.mark.parametrize("fault", [Fault.LOSE, Fault.DROP, Fault.CUT, 500, 503])
def test_every_token_is_reset_once_when_an_answer_is_lost(
    hook: PicasHook, fault: Fault | int, no_pauses: None, proxy: Proxy
) -> None:
    ids = lives.fill(hook, {State.ERROR: 30, State.DONE: 1})
    proxy.hurt(fault, on="_bulk_docs")
    assert reset(picas_conn_id="through_proxy")["reset"] == 30
    assert {hook.get(token_id)["scrub_count"] for token_id in ids[:30]} == {1}
    assert hook.count("b") == Counts(todo=30, done=1)


@pytest.mark.parametrize("state", [State.DONE, State.ERROR])
def test_a_token_that_has_run_again_before_the_answer_was_missed_is_not_reset_twice(
    hook: PicasHook, state: State, proxy: Proxy
) -> None:
    ids = lives.fill(hook, {state: 3})
    lives.change(hook, ids[2], attempts=[{"lock": 1, "reason": "failed: x"}], scrub_count=1)

    def pilots() -> None:
        for token_id in ids[1:]:
            assert state_of(hook.get(token_id)) is State.TODO
            lives.change(hook, token_id, **lives.LIVES[state])

    proxy.hurt(Fault.LOSE, on="_bulk_docs")
    proxy.meanwhile = pilots
    output = reset(picas_conn_id="through_proxy", states=state)
    assert (output["reset"], output["left"]) == (3, {})
    assert [hook.get(token_id)["scrub_count"] for token_id in ids] == [1, 1, 2]
    assert hook.count("b") == Counts(**{"todo": 1, state: 2})


def test_a_reset_that_was_not_written_is_not_taken_for_an_earlier_one(
    hook: PicasHook, no_pauses: None, proxy: Proxy
) -> None:
    (token_id,) = lives.fill(hook, {State.ERROR: 1})
    reset()
    lives.change(hook, token_id, **lives.LIVES[State.ERROR])  # the same once more: an equal attempt
    proxy.hurt(Fault.DROP, on="_bulk_docs")
    assert reset(picas_conn_id="through_proxy")["reset"] == 1
    assert hook.count("b") == Counts(todo=1)
    assert hook.get(token_id)["scrub_count"] == 2


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"error_pattern": "("}, "not a valid Python regular expression"),
        ({"states": "failed"}, "`states` is 'failed'"),
        ({"batch": ""}, "`batch` is empty"),
        ({"batch": None}, "`batch` is empty"),
        ({"batch": "nothing"}, "Batch 'nothing' has no tokens"),
        ({"batch": {"no": "batch"}}, "A batch is the output of the push operator"),
        ({"older_than": "long"}, "`older_than`"),
        ({"picas_conn_id": "picas_default", "database": "No-Database"}, "not a valid CouchDB database name"),
    ],
)
def test_what_makes_no_sense_fails_at_once(hook: PicasHook, asked: dict[str, Any], message: str) -> None:
    lives.fill(hook, {State.ERROR: 1})
    with pytest.raises(AirflowFailException, match=re.escape(message)):
        reset(**asked)
    assert hook.count("b") == Counts(error=1)


def test_a_pattern_that_takes_for_ever_resets_nothing(hook: PicasHook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_provider_picas.hooks.regex.SECONDS", 0.5)
    monkeypatch.setattr("airflow_provider_picas.hooks.regex.search.__defaults__", (0.5,))
    lives.fill(hook, {State.ERROR: 2}, error=[{"message": "a" * 64 + "b"}])
    with pytest.raises(AirflowFailException, match=r"took more than 0\.5 s"):
        reset(error_pattern="(a+)+$")
    assert hook.count("b") == Counts(error=2)


def test_a_pool_that_is_deleted_meanwhile_is_named(hook: PicasHook, couchdb: CouchDBAdmin, pool: Pool) -> None:
    lives.fill(hook, {State.ERROR: 2})
    stale = list(hook.batch_documents("b"))
    couchdb.delete_database(pool.database)
    try:
        with pytest.raises(errors.NotFoundError, match=f"There is no database {pool.database}"):
            reset()
        with pytest.raises(errors.NotFoundError, match=f"There is no database {pool.database}"):
            hook.do(edits.reset(hook.pool, stale, nothing_left))
    finally:
        couchdb.create_database(pool.database)
