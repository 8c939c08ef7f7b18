"""Slots are kept busy, and a pilot ends when there is nothing to do."""

from __future__ import annotations

import itertools
import time
from typing import Any

from airflow_provider_picas.tokens.states import State, state_of
from stack import couchdb
from tests.integration import faults
from tests.integration.pilots import COUNT, GATE, Pool, Proxy, Submission, until


def test_slots_run_at_the_same_time(pool: Pool, submission: Submission) -> None:
    pool.push([{}] * 8)
    command = 'echo + >> "$RUNS"; sleep 1; echo - >> "$RUNS"'
    assert submission.run(command, slots=4) == 0
    marks = (submission.folder / "runs").read_text().split()
    running = [marks[: place + 1].count("+") - marks[: place + 1].count("-") for place in range(len(marks))]
    assert max(running) == 4
    assert len(marks) == 16


def test_a_free_slot_asks_seldom_while_others_work(
    pool: Pool, behind_proxy: Submission, server: couchdb.CouchDBAdmin
) -> None:
    """Each question is a request, and a token may run for hours."""
    pool.push([{"input": seconds} for seconds in (5, *[0.05] * 20)])
    with faults.Proxy(server.url) as counting:
        behind_proxy.write_credentials(counting.url)
        assert behind_proxy.run('sleep "$PICAS_INPUT"', slots=2) == 0
        asked = [request for request in counting.requests if "/todo?" in request]
    assert pool.states() == {State.DONE: 21}
    assert len(asked) < 30, asked


def test_unstarted_tokens_do_not_wait_behind_a_long_one(pool: Pool, submission: Submission) -> None:
    pool.push([{"input": ":", "priority": 1}] * 30 + [{"input": GATE}] + [{"input": ":", "priority": -1}] * 30)
    long = "b:0030"
    submission.start(COUNT + '; eval "$PICAS_INPUT"', lease=6)

    def ran_for() -> int:
        """Seconds, as the pilot writes them into its lease."""
        running = [lease["running"] for lease in pool.leases()]
        return int(running[0][long]["seconds"]) if running and long in running[0] else 0

    def given_back() -> list[dict[str, Any]]:
        """Tokens that were claimed (second revision) and released (third)."""
        todo = [doc for doc in pool.docs().values() if state_of(doc) is State.TODO]
        return [doc for doc in todo if int(doc["_rev"].partition("-")[0]) >= 3]

    # A pilot claims ahead until a token has run twice as long as the mean, and not at all when that is above 2 s.
    until(lambda: ran_for() >= 5 and given_back() and pool.states()[State.LOCKED] == 1, 120)
    for _ in range(10):
        assert pool.states()[State.LOCKED] == 1, "more are claimed although none can be started"
        time.sleep(0.1)
    assert submission.runs()[long] == 1
    assert {(doc["scrub_count"], "attempts" in doc, "pilot" in doc) for doc in given_back()} == {(0, False, False)}


def test_a_pilot_waits_for_work(pool: Pool, submission: Submission) -> None:
    process = submission.start(COUNT, wait_for_work=20)
    time.sleep(2)
    pool.push([{}] * 2)
    until(lambda: submission.runs().total() == 2)
    assert process.poll() is None


def test_nothing_is_claimed_that_would_not_fit(pool: Pool, submission: Submission) -> None:
    pool.push([{"time": 10}, {"time": 1}, {}])
    env = {"SLURM_JOB_END_TIME": str(int(time.time()) + 120)}
    assert submission.run(COUNT, env=env) == 0
    assert sorted(submission.runs()) == ["b:0001", "b:0002"]
    assert "no token fits" in submission.log()


def test_an_idle_pilot_pauses_longer_while_the_database_is_slow(behind_proxy: Submission, proxy: Proxy) -> None:
    """But for a sixth of its lease at most. Each search takes a second here; a pause is 3 s at most where it takes none."""
    searches: dict[str, list[float]] = {"long": [], "short": []}

    def fault(request: bytes) -> str:
        line = request.split(b"\r\n")[0].decode()
        if "/_view/todo" not in line:
            return ""
        searches["long" if "long" in line else "short"].append(time.monotonic())
        return "hold answer"

    def longest_pause(lease: str) -> float:
        return max((after - before - 1 for before, after in itertools.pairwise(searches[lease])), default=0.0)

    proxy.fault = fault
    behind_proxy.start(COUNT, batch="long", lease=60, wait_for_work=3600)
    behind_proxy.start(COUNT, batch="short", lease=6, wait_for_work=3600)
    until(lambda: len(searches["short"]) >= 8, 40)  # without the limit of a second, this takes a minute
    until(lambda: longest_pause("long") > 4, 60)
