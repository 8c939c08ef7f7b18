"""Results are written, in spite of what happens to a token or to the database."""

from __future__ import annotations

import json
import socket
from pathlib import Path

from airflow_provider_picas.lifecycle.transitions import Change
from airflow_provider_picas.pilot.conflicts import Conflicts
from airflow_provider_picas.pilot.outbox import Outbox
from airflow_provider_picas.pilot.reporter import Reporter
from airflow_provider_picas.tokens.states import State, state_of
from stack import couchdb
from tests.integration import faults
from tests.integration.pilots import (
    COUNT,
    GATE,
    Pool,
    Proxy,
    Submission,
    held,
    plant_fault,
    session_of_a_pilot,
    until,
)


def test_a_late_result_is_refused_and_recorded(pool: Pool, submission: Submission) -> None:
    pool.push([{}])
    process = submission.start(f"{COUNT}; echo '\"late\"' > output.json; {GATE}", lease=240)
    until(lambda: submission.runs().total() == 1)
    doc = pool.get("b:0000")
    taken = {**doc, "claim": "other-1", "pilot": "other", "lock": doc["lock"] + 1, "hostname": "elsewhere"}
    pool.put(taken)
    submission.open_gate()
    until(lambda: "is refused" in submission.log() and submission.files("refused"))
    assert {**pool.get("b:0000"), "_rev": ""} == {**taken, "_rev": ""}
    (record,) = submission.files("refused")
    assert json.loads(record.read_text())["change"]["set"]["output"] == "late"
    process.terminate()
    process.wait(20)


def test_a_token_that_is_edited_while_it_runs_keeps_both(pool: Pool, submission: Submission) -> None:
    pool.push([{}, {}])
    process = submission.start(f"{COUNT}; {GATE}; echo 7 > output.json", slots=2, lease=240)
    until(lambda: submission.runs().total() == 2)
    pool.put({**pool.get("b:0000"), "comment": "by hand"})
    gone = pool.get("b:0001")
    assert pool.request("DELETE", f"b:0001?rev={gone['_rev']}")[0] == 200
    submission.open_gate()
    assert process.wait(30) == 0
    doc = pool.get("b:0000")
    assert state_of(doc) is State.DONE
    assert (doc["comment"], doc["output"]) == ("by hand", 7)
    assert list(pool.docs()) == ["b:0000"]
    assert len(submission.files("refused")) == 1


def test_a_reporter_that_fails_tries_again(pool: Pool, behind_proxy: Submission, server: couchdb.CouchDBAdmin) -> None:
    pool.push([{}])
    plant_fault(behind_proxy, "def _read_again(self, changes: List[Change]) -> List[Tuple[Change, str]]:")
    with faults.Proxy(server.url) as hurting:
        behind_proxy.write_credentials(hurting.url)
        process = behind_proxy.start(f"{COUNT}; {GATE}; echo 5 > output.json", lease=240)
        until(lambda: behind_proxy.runs().total() == 1)
        hurting.hurt(faults.Fault.LOSE, on="_bulk_docs")
        behind_proxy.open_gate()
        assert process.wait(60) == 0, behind_proxy.log()
    assert "The reporter failed" in behind_proxy.log()
    assert pool.get("b:0000")["output"] == 5


def test_a_result_that_the_database_does_not_take_holds_up_no_other(
    pool: Pool, proxy: Proxy, behind_proxy: Submission
) -> None:
    pool.push([{"input": "x", "priority": 1}, {"input": "y"}, {"input": "z"}])
    proxy.fault = lambda request: "503" if b'"output":"x"' in request else ""
    process = behind_proxy.start('echo "\\"$PICAS_INPUT\\"" > output.json')
    until(lambda: pool.states()[State.DONE] == 2)
    assert state_of(pool.get("b:0000")) is State.LOCKED
    proxy.fault = lambda request: ""
    assert process.wait(60) == 0
    assert {doc["output"] for doc in pool.docs().values()} == {"x", "y", "z"}


def test_a_document_that_the_database_refuses_is_shortened(pool: Pool, proxy: Proxy, behind_proxy: Submission) -> None:
    pool.push([{"input": place} for place in range(3)])

    def too_large(request: bytes) -> str:
        return "413" if b"_bulk_docs" in request and len(request) > 30_000 else ""

    passed = Proxy._pass_on

    def pass_on(self: Proxy, request: bytes, client: socket.socket, upstream: socket.socket) -> bool:
        if self.fault(request) == "413":
            client.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 9\r\n\r\ntoo large")
            return True
        return passed(self, request, client, upstream)

    proxy.fault = too_large
    proxy._pass_on = pass_on.__get__(proxy)  # type: ignore[method-assign]
    command = 'test "$PICAS_INPUT" != 1 || head -c 100000 /dev/urandom; echo 1 > output.json'
    assert behind_proxy.run(command) == 0, behind_proxy.log()
    assert pool.states() == {State.DONE: 3}
    assert "_attachments" not in pool.get("b:0001") or not pool.get("b:0001")["_attachments"]


def test_two_results_of_one_token_are_decided_separately(
    pool: Pool, server: couchdb.CouchDBAdmin, tmp_path: Path
) -> None:
    """The token was reaped while its result was waiting, and the same pilot claimed it again."""
    pool.push(held("me", 1))
    settled: list[tuple[str, str]] = []
    with session_of_a_pilot(pool, server.url) as session:
        outbox = Outbox(str(tmp_path), pool.name)
        reporter = Reporter(
            session.database, outbox, lambda change, how: settled.append((change.claim, how)), Conflicts(session)
        )
        now = pool.get("b:0000")
        earlier = dict(now, claim="00000000000000aa-900", lock=900, _rev="1-0")
        for doc in (earlier, now):
            reporter.put(Change.of("done", doc, set={"done": 1010, "exit_code": 0}, unset=("pilot",)))
        reporter.start()
        until(lambda: len(settled) == 2)
        reporter.close()
        reporter.join(30)
        outbox.flush(30)
    assert dict(settled) == {earlier["claim"]: "refused", now["claim"]: "landed"}
    assert pool.states() == {State.DONE: 1}
    assert [path.name for path in (tmp_path / "refused").iterdir()] == ["b%3A0000-00000000000000aa-900.json"]
