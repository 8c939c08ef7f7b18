"""Commands make tokens: each exists once, if and only if the accepted attempt of its parent named it."""

from __future__ import annotations

import itertools
import json
import signal
import time
import urllib.parse
from collections import Counter
from typing import Any

import pytest

from airflow_provider_picas.couchdb import new_tokens as operations
from airflow_provider_picas.couchdb.errors import CouchDBError
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.sensors.tokens import PicasTokenStateSensor
from airflow_provider_picas.tokens import stage_views
from airflow_provider_picas.tokens.states import State, state_of
from tests.conftest import set_connection
from tests.integration.pilots import COUNT, GATE, PASSWORD, Pool, Proxy, Submission, held, put_lease, until
from tests.integration.tasks import context

# Two tokens whose keys differ in each attempt.
MAKE = f"""{COUNT}
for part in a b; do
  echo '{{"stage": "s", "key": "'$PICAS_INPUT-$part-$$'", "input": "'$part'"}}' >> $PICAS_TOKENS_FILE
done"""


def children(pool: Pool) -> dict[str, dict[str, Any]]:
    return {name: doc for name, doc in pool.docs().items() if doc.get("stage")}


def named(pool: Pool) -> Counter[str]:
    """The tokens in the lists of accepted results, computed from the attachments."""
    found = Counter[str]()
    for name, doc in pool.docs().items():
        if state_of(doc) is State.DONE and "new_tokens" in doc:
            lines = pool.attachment(name, "tokens.jsonl").splitlines()
            wanted = {"pending": False, "tokens": len(lines), "claim": doc["claim"], "batch": "b"}
            assert doc["new_tokens"] == wanted
            found.update(json.loads(line)["_id"] for line in lines)
    return found


def conflicting(pool: Pool) -> list[str]:
    rows = pool.request("GET", "_all_docs?include_docs=true&conflicts=true")[1]["rows"]
    return [row["id"] for row in rows if row["doc"].get("_conflicts")]


def check(pool: Pool, parents: int) -> None:
    """Each named token exists, once, and no others do."""
    wanted = named(pool)
    assert wanted == Counter(children(pool).keys())
    assert len(wanted) == 2 * parents
    assert conflicting(pool) == []


def test_the_tokens_that_commands_name_are_made(pool: Pool, submission: Submission) -> None:
    pool.push([{"input": f"{place}"} for place in range(7)])
    assert submission.run(MAKE) == 0, submission.log()
    check(pool, 7)
    child = next(doc for name, doc in children(pool).items() if name.startswith("b.s:3-a-"))
    assert (child["batch"], child["parent"], child["input"]) == ("b.s", "b:0003", "a")
    assert child["parent_claim"] == pool.get("b:0003")["claim"]
    again = Submission(submission.folder.parent / "again", pool)
    try:
        assert again.run(COUNT, batch="b.s") == 0, again.log()
    finally:
        again.close()
    assert Counter(state_of(doc) for doc in children(pool).values()) == {State.DONE: 14}


def test_an_invalid_line_fails_the_attempt_with_its_number(pool: Pool, submission: Submission) -> None:
    pool.push([{"input": "x"}])
    bad = """echo '{"stage": "s", "key": 1}' > $PICAS_TOKENS_FILE; echo '{"stage": "other", "key": 1}' >> $PICAS_TOKENS_FILE"""
    assert submission.run(bad, stages={"s": "b.s"}) == 0
    (parent,) = pool.docs().values()
    assert state_of(parent) is State.ERROR
    assert "line 2 of tokens.jsonl has the unknown stage 'other'" in parent["error"][-1]["message"]


def test_a_result_that_is_refused_makes_no_tokens(pool: Pool, submission: Submission) -> None:
    pool.push([{"input": "x"}])
    submission.start(f"{MAKE}; {GATE}")
    until(lambda: submission.runs().total() == 1)
    doc = pool.get("b:0000")
    pool.put(dict(doc, lock=0, done=0, hostname="", claim="", type="waits"))  # taken away, and not claimed again
    submission.open_gate()
    assert submission.pilots[0].wait(60) == 0
    until(lambda: submission.files("refused"))
    assert children(pool) == {}


def test_a_result_that_was_sent_later_makes_its_tokens(pool: Pool, proxy: Proxy, behind_proxy: Submission) -> None:
    pool.push([{"input": "x"}])
    process = behind_proxy.start(f"{MAKE}; {GATE}")
    until(lambda: behind_proxy.runs().total() == 1)
    proxy.fault = lambda request: "refuse"
    behind_proxy.open_gate()
    until(lambda: "1 results are waiting" in behind_proxy.log())
    process.terminate()
    assert process.wait(30) == 75
    assert children(pool) == {}
    proxy.fault = lambda request: ""
    assert behind_proxy.run(MAKE) == 0, behind_proxy.log()
    assert behind_proxy.runs() == {"b:0000": 1}
    check(pool, 1)


def test_a_token_that_exists_is_not_made_again(pool: Pool, submission: Submission) -> None:
    pool.push([{"input": "x"}, {"input": "y"}])
    pool.push([{"_id": "b.s:same"}], batch="b.s")
    line = """echo '{"stage": "s", "key": "same"}' > $PICAS_TOKENS_FILE"""
    assert submission.run(line) == 0, submission.log()
    assert "b.s:same, which b:0000 names, cannot be made: it exists already, from a push." in submission.log()
    assert pool.get("b:0000")["new_tokens"]["not_made"] == 1
    assert "parent" not in pool.get("b.s:same")
    assert conflicting(pool) == []


# -- pilots that die, and others that carry on -------------------------------------------------------------------------

CLAIM, RESULT, NEW_TOKENS, CARRIED_OUT = range(4)  # the writes of a pilot that runs one token


@pytest.fixture
def staged(pool: Pool) -> Pool:
    """The pool, with the view of pending lists."""
    assert pool.request("PUT", f"_design/{stage_views.STAGES}", stage_views.stages())[0] == 201
    return pool


@pytest.fixture
def hook(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> PicasHook:
    """What a wait has: a hook with the pilots' login."""
    url = urllib.parse.urlsplit(pool.server.url)
    fields = {"conn_type": "picas", "host": f"http://{url.hostname}", "port": url.port, "schema": pool.name}
    login = {"login": pool.member, "password": PASSWORD}
    return PicasHook(set_connection(monkeypatch, "picas_staged", {**fields, **login}))


def kill_at(proxy: Proxy, submission: Submission, write: int, *, stored: bool) -> None:
    """Run a pilot that is killed when it sends this write, which the database stores or does not."""
    writes = itertools.count()

    def fault(request: bytes) -> str:
        if b"/_bulk_docs" not in request.partition(b"\r\n")[0] or next(writes) != write:
            return ""
        submission.pilots[0].kill()
        return "drop answer" if stored else "refuse"

    proxy.fault = fault
    submission.start(MAKE, lease=2, stages={"s": "b.s"})
    assert submission.pilots[0].wait(60) == -signal.SIGKILL
    proxy.fault = lambda request: ""


def carry_out(hook: PicasHook) -> None:
    """What a wait does."""
    until(lambda: hook.do(operations.lists_of(hook.pool, ["b"])).pending == 1)  # in a cluster, views may lag
    until(lambda: hook.do(operations.carry_out(hook.pool, ["b"])) == 1)
    until(lambda: hook.do(operations.lists_of(hook.pool, ["b"])) == operations.Lists())


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("write", [CLAIM, RESULT, NEW_TOKENS, CARRIED_OUT])
def test_another_pilot_carries_on_whatever_the_first_one_was_writing(
    staged: Pool, proxy: Proxy, behind_proxy: Submission, write: int, stored: bool
) -> None:
    staged.push([{"input": "x"}])
    kill_at(proxy, behind_proxy, write, stored=stored)
    assert behind_proxy.run(MAKE, lease=2, stages={"s": "b.s"}) == 0, behind_proxy.log()
    check(staged, 1)
    assert behind_proxy.runs().total() == (2 if write == RESULT and not stored else 1)


@pytest.mark.parametrize(
    ("write", "stored"), [(RESULT, True), (NEW_TOKENS, False), (NEW_TOKENS, True), (CARRIED_OUT, False)]
)
def test_a_wait_carries_on_whatever_the_pilot_was_writing(
    staged: Pool, hook: PicasHook, proxy: Proxy, behind_proxy: Submission, write: int, stored: bool
) -> None:
    staged.push([{"input": "x"}])
    kill_at(proxy, behind_proxy, write, stored=stored)
    carry_out(hook)
    check(staged, 1)


def test_a_token_that_was_deleted_since_is_not_born_again(
    staged: Pool, hook: PicasHook, proxy: Proxy, behind_proxy: Submission
) -> None:
    staged.push([{"input": "x"}])
    kill_at(proxy, behind_proxy, CARRIED_OUT, stored=False)
    gone, stays = sorted(children(staged))
    doc = staged.get(gone)
    staged.put(dict(doc, lock=1, done=2, exit_code=0))
    rev = staged.get(gone)["_rev"]
    assert staged.request("DELETE", f"{urllib.parse.quote(gone, safe='')}?rev={rev}")[0] == 200
    carry_out(hook)
    assert set(children(staged)) == {stays}
    assert conflicting(staged) == []


def test_a_parent_that_runs_again_replaces_its_tokens(pool: Pool, submission: Submission) -> None:
    pool.push([{"input": "x"}])
    line = """echo '{"stage": "s", "key": "k", "input": "'$PICAS_ATTEMPT'"}' > $PICAS_TOKENS_FILE"""
    assert submission.run(line) == 0, submission.log()
    child = pool.get("b.s:k")
    pool.put(dict(child, lock=1, done=2, exit_code=0, output="old"))
    parent = pool.get("b:0000")
    until(lambda: int(time.time()) > parent["lock"])  # claims have whole seconds
    pool.put(dict(parent, lock=0, done=0))
    assert submission.run(line) == 0, submission.log()
    again = pool.get("b.s:k")
    assert (state_of(again), again["input"]) == (State.TODO, "2")
    assert "output" not in again
    assert again["parent_claim"] == pool.get("b:0000")["claim"] != child["parent_claim"]
    assert conflicting(pool) == []


def test_a_wait_that_may_not_make_its_view_says_who_can(pool: Pool, hook: PicasHook) -> None:
    pool.push([{"input": "x", "lock": 1, "done": 2, "exit_code": 0}])
    wait = PicasTokenStateSensor(
        task_id="wait", batch="b", stages=["s"], picas_conn_id=hook.picas_conn_id, pilots=False
    )
    with pytest.raises(CouchDBError, match=r"no view 'lists'.*deploy-views --picas-conn-id picas_staged --stages"):
        wait.execute(context("wait"))


def test_parents_of_a_dead_pilot_run_one_by_one_without_pauses(pool: Pool, submission: Submission) -> None:
    """Each is claimed when the tokens of the one before it are made. Another query of the view would take longer."""
    pool.push([{**fields, "input": f"{place}"} for place, fields in enumerate(held("dead", 20))])
    put_lease(pool, "dead", ended=True)
    began = time.monotonic()
    assert submission.run(MAKE, seconds=120) == 0, submission.log()
    took = time.monotonic() - began
    assert pool.states() == {State.DONE: 20, State.TODO: 40}
    assert took < 30, "2 s for each"
