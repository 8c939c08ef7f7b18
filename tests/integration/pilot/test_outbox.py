"""Results that could not be sent are kept in files, and sent later."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from airflow_provider_picas.lifecycle.transitions import Change, Token, release
from airflow_provider_picas.pilot.conflicts import Conflicts
from airflow_provider_picas.pilot.outbox import Outbox
from airflow_provider_picas.pilot.reporter import Reporter
from airflow_provider_picas.tokens.states import State, state_of
from stack import couchdb
from tests.integration.pilots import (
    COUNT,
    GATE,
    Pool,
    Proxy,
    Submission,
    held,
    keep_unsent,
    put_lease,
    session_of_a_pilot,
    until,
)


def test_what_cannot_be_sent_is_kept_and_sent_by_a_later_pilot(
    pool: Pool, proxy: Proxy, behind_proxy: Submission
) -> None:
    pool.push([{}, {}])
    process = behind_proxy.start(f"{COUNT}; echo 5 > output.json; echo log; {GATE}")
    until(lambda: behind_proxy.runs().total() == 1)
    proxy.fault = lambda request: "refuse"
    behind_proxy.open_gate()
    until(lambda: "1 results are waiting" in behind_proxy.log())
    process.terminate()
    started = time.monotonic()
    assert process.wait(20) == 75
    assert time.monotonic() - started < 10
    (kept,) = behind_proxy.files("unsent")
    assert kept.stat().st_mode & 0o077 == 0
    ((first, _),) = behind_proxy.runs().items()
    assert state_of(pool.get(first)) is State.LOCKED
    proxy.fault = lambda request: ""
    assert behind_proxy.run(COUNT) == 0, behind_proxy.log()
    assert pool.states() == {State.DONE: 2}
    assert pool.get(first)["output"] == 5
    assert pool.attachment(first, "attempt-1.out") == b"log\n"
    assert set(behind_proxy.runs().values()) == {1}
    assert behind_proxy.files("unsent") == []


def pilot_with_a_result_in_a_file(proxy: Proxy, submission: Submission) -> subprocess.Popen[bytes]:
    """A pilot that tries to send its result, while the database refuses connections."""
    process = submission.start(f"{COUNT}; echo 5 > output.json; {GATE}")
    until(lambda: submission.runs().total() == 1)
    proxy.fault = lambda request: "refuse"
    submission.open_gate()
    until(lambda: len(submission.files("unsent")) == 1)
    return process


def test_a_pilot_that_is_killed_in_an_outage_loses_no_result(
    pool: Pool, proxy: Proxy, behind_proxy: Submission
) -> None:
    """The result that it could not send is in a file by then. The next pilot sends it, and the command runs once."""
    pool.push([{}])
    process = pilot_with_a_result_in_a_file(proxy, behind_proxy)
    process.kill()
    process.wait()
    proxy.fault = lambda request: ""
    assert behind_proxy.run(COUNT, lease=2) == 0, behind_proxy.log()
    assert pool.states() == {State.DONE: 1}
    assert pool.docs().popitem()[1]["output"] == 5
    assert behind_proxy.runs().total() == 1
    assert behind_proxy.files("unsent") == []


def test_a_result_leaves_its_file_when_the_database_has_it(pool: Pool, proxy: Proxy, behind_proxy: Submission) -> None:
    pool.push([{}])
    process = pilot_with_a_result_in_a_file(proxy, behind_proxy)
    proxy.fault = lambda request: ""
    assert process.wait(60) == 0
    assert pool.states() == {State.DONE: 1}
    assert behind_proxy.files("unsent") == behind_proxy.files("refused") == []


def test_a_pilot_sends_what_another_could_not_before_it_reaps(
    pool: Pool, proxy: Proxy, behind_proxy: Submission, server: couchdb.CouchDBAdmin
) -> None:
    direct = behind_proxy.folder / "direct"
    shutil.copytree(behind_proxy.folder / "credentials", direct)
    config = direct / "picasconfig.py"
    config.write_text(config.read_text().replace(proxy.url, server.url))
    pool.push([{}])
    victim = behind_proxy.start(f"{COUNT}; echo 5 > output.json; {GATE}", lease=20)
    until(lambda: behind_proxy.runs().total() == 1)
    other = behind_proxy.start(COUNT, lease=20, credentials="direct")
    until(lambda: "Pilot " in behind_proxy.log())
    proxy.fault = lambda request: "refuse"
    behind_proxy.open_gate()
    until(lambda: "1 results are waiting" in behind_proxy.log(0))
    victim.terminate()
    assert victim.wait(20) == 75
    assert other.wait(40) == 0
    assert state_of(pool.get("b:0000")) is State.DONE
    assert pool.get("b:0000")["output"] == 5
    assert behind_proxy.runs() == {"b:0000": 1}


def test_a_result_that_the_database_never_takes_blocks_no_pilot(
    pool: Pool, proxy: Proxy, behind_proxy: Submission
) -> None:
    """Nor is its token run again, while the result is there."""
    put_lease(pool, "dead", ended=True)
    pool.push([*held("dead", 3), {}])
    for place, output in enumerate(["never", "sent"]):
        keep_unsent(behind_proxy.folder, pool, pool.get(f"b:000{place}"), output)
    proxy.fault = lambda request: "503" if b'"never"' in request else ""
    assert behind_proxy.run(COUNT) == 0, behind_proxy.log()
    assert behind_proxy.runs() == {"b:0002": 1, "b:0003": 1}
    assert state_of(pool.get("b:0000")) is State.LOCKED
    assert pool.get("b:0001")["output"] == "sent"
    assert len(behind_proxy.files("unsent")) == 1
    assert behind_proxy.log().count("will be sent later: ") == 1
    proxy.fault = lambda request: ""
    assert behind_proxy.run(COUNT) == 0
    assert pool.get("b:0000")["output"] == "never"


def test_files_that_hold_no_result_stay_and_end_no_pilot(pool: Pool, submission: Submission) -> None:
    pool.push([{}])
    (submission.folder / "unsent").mkdir()
    deep = "[" * 100_000 + "]" * 100_000
    contents = ["[]", "no JSON", '{"change": []}', '{"change": {"token": "b:0000"}}', f'{{"change": {deep}}}']
    for place, content in enumerate(contents):
        (submission.folder / "unsent" / f"{place}.json").write_text(content)
    assert submission.run(COUNT, wait_for_work=2) == 0, submission.log()
    assert pool.states() == {State.DONE: 1}
    assert len(submission.files("unsent")) == submission.log().count("does not contain a result") == len(contents)


def test_results_of_an_earlier_submission_of_the_task_are_sent(tmp_path: Path, pool: Pool) -> None:
    put_lease(pool, "dead", ended=True)
    pool.push(held("dead", 3))
    for place, name in enumerate(["picas-x.1", "picas-y.1", "picas-x.1.bak"]):
        keep_unsent(tmp_path / name, pool, pool.get(f"b:000{place}"), name)
    later = Submission(tmp_path / "picas-x.2", pool)
    try:
        assert later.run(COUNT) == 0, later.log()
    finally:
        later.close()
    assert pool.get("b:0000")["output"] == "picas-x.1"
    assert later.runs() == {"b:0001": 1, "b:0002": 1}
    assert not list((tmp_path / "picas-x.1" / "unsent").iterdir())


def test_a_token_that_was_never_started_is_no_refused_result(pool: Pool, submission: Submission) -> None:
    """Its pilot could not give it back, and somebody else has it by now."""
    pool.push(held("other", 2))
    outbox = Outbox(str(submission.folder), pool.name)
    for name, done in (("b:0000", None), ("b:0001", 1010)):
        doc = {**pool.get(name), "claim": "earlier-900", "lock": 900}
        token = Token(doc)
        result = Change.of("done", doc, set={"done": done, "exit_code": 0})
        outbox.keep(result if done else release(token))
    assert submission.run("true") == 0, submission.log()
    assert submission.files("unsent") == []
    assert [path.name for path in submission.files("refused")] == ["b%3A0001-earlier-900.json"]


def test_a_folder_that_hangs_holds_up_no_result(
    pool: Pool, server: couchdb.CouchDBAdmin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where refused results are kept, the home, may hang: the results of other tokens are written meanwhile."""
    hangs = threading.Event()
    monkeypatch.setattr(Outbox, "keep", lambda *args: hangs.wait(60))
    pool.push(held("me", 2))
    settled: list[tuple[str, str]] = []
    with session_of_a_pilot(pool, server.url) as session:
        conflicts = Conflicts(session)
        outbox = Outbox(str(tmp_path), pool.name)
        reporter = Reporter(
            session.database, outbox, lambda change, how: settled.append((change.token, how)), conflicts
        )
        reporter.start()
        for name, claim in (("b:0000", "earlier-900"), ("b:0001", None)):
            doc = pool.get(name)
            doc.update({"claim": claim, "lock": 900, "_rev": "1-0"} if claim else {})
            reporter.put(Change.of("done", doc, set={"done": 1010, "exit_code": 0}, unset=("pilot",)))
        until(lambda: len(settled) == 2)
        reporter.close()
        reporter.join(30)
        assert sorted(settled) == [("b:0000", "refused"), ("b:0001", "landed")]
        hangs.set()
        outbox.flush(30)
