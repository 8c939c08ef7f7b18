"""Tokens of dead pilots are released, those of others are not."""

from __future__ import annotations

import re
import time
from collections import Counter
from datetime import datetime
from types import SimpleNamespace

import pytest

from airflow_provider_picas.pilot.errors import Unreachable
from airflow_provider_picas.pilot.reaper import Reaper
from airflow_provider_picas.tokens.states import State, state_of
from tests.integration.pilots import COUNT, Pool, Proxy, Submission, held, put_lease, session_of_a_pilot, until


def test_another_pilot_takes_the_tokens_of_a_killed_one(pool: Pool, submission: Submission) -> None:
    """The other one had found nothing to do before: it lingers for a lease."""
    pool.push([{}] * 3)
    command = COUNT + '; test "$(wc -l < "$RUNS")" -gt 3 || sleep 60'
    victim = submission.start(command, slots=3, lease=4)
    until(lambda: submission.runs().total() == 3)
    other = submission.start(command, lease=4)
    until(lambda: "Pilot " in submission.log())
    time.sleep(1)
    killed = time.monotonic()
    victim.kill()
    until(lambda: submission.runs().total() > 3)
    print(f"claimed again {time.monotonic() - killed:.1f} s after the kill, with a lease of 4 s")
    assert time.monotonic() - killed < 4 + 5
    assert other.wait(30) == 0
    assert pool.states() == {State.DONE: 3}
    assert set(submission.runs().values()) == {2}
    doc = pool.get("b:0000")
    assert doc["scrub_count"] == 1
    assert re.match(r"reaped: pilot \S+ \(job None on .*\) did not renew its lease for", doc["attempts"][0]["reason"])


def run_with_a_deadly_token(pool: Pool, submission: Submission, tokens: int, *, max_scrubs: int) -> None:
    """Push tokens of which the sixth kills its pilot, and run one pilot after the other until all have finished."""
    pool.push([{"input": place} for place in range(tokens)])
    command = COUNT + '; test "$PICAS_INPUT" != 5 || kill -9 $PPID'
    for _ in range(8):
        if pool.states()[State.TODO] + pool.states()[State.LOCKED] == 0:
            break
        submission.run(command, lease=2, max_scrubs=max_scrubs, wait_for_work=5)


def test_a_token_that_kills_its_pilots_ends_in_error_and_spares_the_others(pool: Pool, submission: Submission) -> None:
    run_with_a_deadly_token(pool, submission, 12, max_scrubs=2)
    docs = pool.docs()
    assert state_of(docs["b:0005"]) is State.ERROR
    assert submission.runs()["b:0005"] == 3
    assert "3 pilots died" in docs["b:0005"]["error"][-1]["message"]
    assert pool.states() == {State.DONE: 11, State.ERROR: 1}
    assert max(doc["scrub_count"] for name, doc in docs.items() if name != "b:0005") <= 1


def test_tokens_that_a_dead_pilot_had_claimed_are_claimed_together(
    pool: Pool, behind_proxy: Submission, proxy: Proxy
) -> None:
    """It had started one of them. The database must not pay for a claim of each, when many pilots have died."""
    pool.push([{"attempts": [{"reason": "reaped: x"}], "scrub_count": 1} for _ in range(100)])
    writes = list[bytes]()
    proxy.fault = lambda request: (
        writes.append(request) or "" if b"POST" in request[:4] and b"/_bulk_docs" in request else ""
    )
    assert behind_proxy.run(COUNT) == 0, behind_proxy.log()
    assert Counter(behind_proxy.runs().values()) == {1: 100}
    assert len(writes) < 60, "each token was claimed on its own"


def test_a_token_that_kills_its_pilots_is_found_among_those_that_they_had_claimed(
    pool: Pool, submission: Submission
) -> None:
    run_with_a_deadly_token(pool, submission, 40, max_scrubs=3)
    assert submission.runs()["b:0005"] == 4
    assert pool.states() == {State.DONE: 39, State.ERROR: 1}
    assert max(doc["scrub_count"] for name, doc in pool.docs().items() if name != "b:0005") <= 2


def test_a_token_locked_by_a_picas_client_is_left_alone(pool: Pool, submission: Submission) -> None:
    """Also when it still carries the fields of a pilot that had it before somebody reset it by hand."""
    pool.push([{"lock": 1000, "hostname": "x"}, {"lock": 2000, "pilot": "long-gone", "claim": "abc-1000"}])
    assert submission.run(COUNT, lease=2) == 0
    assert pool.states() == {State.LOCKED: 2}


@pytest.mark.parametrize("batch", ["b", None])
def test_tokens_of_the_dead_are_found_behind_many_of_the_living(pool: Pool, batch: str | None) -> None:
    put_lease(pool, "living", age=-3600)
    put_lease(pool, "dead", ended=True)
    scripts = [{"lock": 1000, "hostname": "a PiCaS client's"}] * 600
    pool.push(scripts + held("living", 600) + held("dead", 3))
    with session_of_a_pilot(pool, pool.server.url, batch=batch) as session:
        reaper = Reaper(session)
        assert reaper.reap() == (3, True)
        assert reaper.reap() == (0, True)
        put_lease(pool, "living", ended=True)
        reaper = Reaper(session)
        assert reaper.reap() == (600, False)
    assert pool.states() == {State.LOCKED: 600, State.TODO: 603}


def test_a_round_is_bounded_and_the_next_one_goes_on(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reaper, "PAGE", 2)
    monkeypatch.setattr(Reaper, "PAGES", 3)
    put_lease(pool, "living", age=-3600)
    put_lease(pool, "dead", ended=True)
    scripts = [{"lock": 1000, "hostname": "a PiCaS client's"}] * 12
    pool.push(held("dead", 2) + held("living", 1) + scripts + held("dead", 1))
    with session_of_a_pilot(pool, pool.server.url) as session:
        reaper = Reaper(session)
        assert [reaper.reap() for _ in range(8)] == [(2, True), (0, True), (1, True)] + [(0, True)] * 5
        put_lease(pool, "living", ended=True)
        reaper = Reaper(session)
        assert [reaper.reap() for _ in range(4)] == [(1, True), (0, True), (0, False), (0, False)]
    assert pool.states() == {State.LOCKED: 12, State.TODO: 4}


def test_who_comes_back_first_after_an_outage_takes_nobody_for_silent(
    pool: Pool, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that it cannot hear could not reach the database either."""
    now = 0.0
    stopped = SimpleNamespace(**{**vars(time), "monotonic": lambda: now})
    for module in ("access", "clock", "database", "observer", "reaper"):
        monkeypatch.setattr(f"airflow_provider_picas.pilot.{module}.time", stopped)
    read_date = "airflow_provider_picas.lifecycle.dates.parsedate_to_datetime"
    monkeypatch.setattr(read_date, lambda date: datetime.fromtimestamp(start + now))
    start = time.time()
    put_lease(pool, "silent", age=1)
    put_lease(pool, "gone", age=1)
    pool.push(held("silent", 2) + held("gone", 1))
    with session_of_a_pilot(pool, proxy.url) as session:
        reaper = Reaper(session)
        assert reaper.reap() == (0, True)
        proxy.fault = lambda request: "refuse"
        now = 5
        with pytest.raises(Unreachable):
            reaper.reap()
        proxy.fault = lambda request: ""
        put_lease(pool, "gone", ended=True)
        assert reaper.reap() == (1, True), "only that of the one that said that it had ended"
        now = 6.9
        assert reaper.reap() == (0, True)
        now = 7.1
        assert reaper.reap() == (2, False)


def test_who_starts_takes_nobody_for_silent_at_once(pool: Pool) -> None:
    """The database may have been away until then."""
    put_lease(pool, "silent", age=60)
    put_lease(pool, "gone", ended=True)
    pool.push(held("silent", 2) + held("gone", 1))
    with session_of_a_pilot(pool, pool.server.url) as session:
        reaper = Reaper(session)
        assert reaper.reap() == (1, True)
        until(lambda: reaper.reap() == (2, False), 10)
