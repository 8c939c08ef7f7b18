"""The pilot before a server, or a proxy, that answers with too much, too slowly, or with JSON of another shape."""

from __future__ import annotations

import os
import random
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_picas.lifecycle.exit_codes import EXIT_BAD_OUTPUT, Failed
from airflow_provider_picas.lifecycle.transitions import release
from airflow_provider_picas.pilot.claims import Claims
from airflow_provider_picas.pilot.conflicts import Conflicts
from airflow_provider_picas.pilot.database import Database
from airflow_provider_picas.pilot.errors import Unreachable
from airflow_provider_picas.pilot.lease import Lease
from airflow_provider_picas.pilot.outbox import Outbox
from airflow_provider_picas.pilot.reaper import Reaper
from airflow_provider_picas.pilot.session import Session
from airflow_provider_picas.pilot.work import Work
from airflow_provider_picas.tokens.states import State
from stack import couchdb
from tests.integration.couchdb.test_pool_odd_answers import Mutation
from tests.integration.faults import Fault, Proxy
from tests.integration.pilots import COUNT, Pool, Submission, held, put_lease, session_of_a_pilot

TRIES = 3


@pytest.fixture
def proxy(server: couchdb.CouchDBAdmin) -> Iterator[Proxy]:
    with Proxy(server.url) as proxy:
        yield proxy


@pytest.fixture
def behind(tmp_path: Path, pool: Pool, proxy: Proxy) -> Iterator[Submission]:
    """A submission whose pilots reach the database through the proxy."""
    made = Submission(tmp_path / "behind", pool, proxy.url)
    yield made
    made.close()


# --- too much, too slowly ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [Fault.BOMB, Fault.ENDLESS])
def test_an_answer_that_is_too_large_is_not_read_to_its_end(pool: Pool, proxy: Proxy, fault: Fault) -> None:
    proxy.hurt(*[fault] * 3, on="/x")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with session_of_a_pilot(pool, proxy.url) as session:
        database = session.database
        expected = "encoded as gzip, which was not requested" if fault is Fault.BOMB else "more than 64,000,000 bytes"
        with pytest.raises(Unreachable, match=expected):
            database.get("x")
        assert database.get("y") is None, "the connection is usable"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


def test_an_answer_that_trickles_is_given_up(pool: Pool, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy.hurt(Fault.TRICKLE, on="/x")
    with session_of_a_pilot(pool, proxy.url) as session:
        database = session.database
        monkeypatch.setattr(database, "_longest", 2.0)
        with pytest.raises(Unreachable, match="not complete after 2 s"):
            database.get("x")
        assert len(proxy.requests) == 1, "it is not asked for again at once"
        assert database.get("y") is None


def test_large_tokens_are_read_and_written_in_portions(
    pool: Pool, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens of dead pilots that are too large together for one answer and one request."""
    for module in ("database", "portions", "reaper", "reporter"):
        monkeypatch.setattr(f"airflow_provider_picas.pilot.{module}.BULK_BYTES", 100_000)
    monkeypatch.setattr(Database.request, "__defaults__", (None, None, 400_000))
    put_lease(pool, "dead", ended=True)
    pool.push([{**token, "batch": "b", "input": "x" * 40_000} for token in held("dead", 20)])
    sizes: list[int] = []

    def measured(request: str, status: int, content: bytes) -> tuple[int, bytes]:
        if request.startswith("GET"):
            sizes.append(len(content))
        return status, content

    proxy.rewrite = measured
    proxy.largest = 130_000
    with session_of_a_pilot(pool, proxy.url) as session:
        reaper = Reaper(session)
        while sum(pool.states()[state] for state in (State.LOCKED,)):
            reaper.reap()
        claims = Claims(session, False, Conflicts(session))
        taken: list[str] = []
        while tokens := claims.take(20, lambda doc: True, 9):
            taken += [token.id for token in tokens]
    assert sorted(taken) == sorted(pool.docs())
    assert sorted(sizes)[-3] < 400_000, sorted(sizes)[-5:]  # but for those from which it learned how large they are


def test_a_claim_of_large_tokens_takes_what_fits(pool: Pool, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("database", "portions", "reaper", "reporter"):
        monkeypatch.setattr(f"airflow_provider_picas.pilot.{module}.BULK_BYTES", 100_000)
    pool.push([{"input": "x" * 40_000}] * 6)
    proxy.largest = 130_000
    with session_of_a_pilot(pool, proxy.url) as session:
        claims = Claims(session, False, Conflicts(session))
        assert len(claims.take(6, lambda doc: True, 0)) == 2


# --- another shape -------------------------------------------------------------------------------------------------------


def work(session: Session) -> None:
    """Each kind of request that a pilot makes."""
    database, config, me, clock = session.database, session.config, session.me, session.clock
    conflicts = Conflicts(session)
    claims = Claims(session, True, conflicts)
    database.info()
    database.put_local("_local/picas-pilot-x", {"pilot": "x"})
    tokens = claims.take(2, lambda doc: True, 0)
    claims.settle()
    claims.total()
    docs = [*database.read(["b:0000", "b:0001"]).values()]
    database.branches(["b:0000", "nobody"])
    database.revisions(["b:0000"])
    database.leases(["dead", "x"])
    for doc in docs:
        if doc:
            database.with_attachments(doc)
    Reaper(session).reap()
    list(claims._find_in_monitor(1))
    database.get("_local/none")
    work = Work(config)
    work.add(tokens)
    lease = Lease(database, config, me, clock, work)
    lease.renew()
    lease._write_tokens_again()
    lease.check_tokens()
    for token in tokens:
        Outbox._send_one(database, release(token))


def test_answers_of_another_shape_are_typed_errors(pool: Pool, proxy: Proxy) -> None:
    dice = random.Random(1)
    put_lease(pool, "dead", ended=True)
    pool.push([{}] * 4)
    pool.push([{**token, "batch": "b"} for token in held("dead", 2)], "b:locked")
    attached = {"a.txt": {"content_type": "text/plain", "data": "eA=="}}
    pool.put({**pool.get("b:0000"), "_attachments": attached, "priority": 1})
    with session_of_a_pilot(pool, proxy.url) as session:
        work(session)
        requests = len(proxy.requests)
        errors = longest = 0
        for place in range(requests):
            for _ in range(TRIES):
                mutation = proxy.rewrite = Mutation(dice, place)
                try:
                    work(session)
                except (Unreachable, Failed) as error:
                    errors += 1
                    longest = max(longest, len(str(error)))
                except Exception as error:
                    pytest.fail(f"{error!r} when {mutation.done}")
    assert errors > requests / 2, "about every second change is noticed, or the changes do not reach the pilot"
    assert longest < 5000


@pytest.mark.parametrize("answer", [b"[]", b'{"couchdb":"Welcome"}', b"1", b'"x"', b"null", b"NaN"])
def test_a_server_that_is_not_a_couchdb_ends_the_pilot(behind: Submission, proxy: Proxy, answer: bytes) -> None:
    proxy.rewrite = lambda request, status, content: (status, answer)
    code = behind.run(COUNT, outage=1)
    assert code == os.EX_CONFIG, behind.log()
    assert "Traceback" not in behind.log()


@pytest.mark.parametrize("date", ["+9999999999999999", "Sat, 28 Nov 2026 20:00:00 +9999999999999999", "\u00b2"])
def test_an_invalid_date_does_not_matter(pool: Pool, behind: Submission, proxy: Proxy, date: str) -> None:
    pool.push([{}] * 2)
    proxy.date = date
    assert behind.run(COUNT) == 0, behind.log()
    assert pool.states() == {State.DONE: 2}


@pytest.mark.parametrize(
    "url",
    [
        "http://user:pa:s3cret@host:port/", "http://user:pa/s3cret@host:1/", "http://host:99999", "http://[::1", "http://", "x",
        "ftp://host:21", "http://host:\u00b2", "http://ho st:1", "http://host:-1", "//host:1",
    ],
)  # fmt: skip
def test_an_invalid_url_ends_the_pilot(submission: Submission, url: str) -> None:
    submission.write_credentials(url)
    assert submission.run(COUNT) == os.EX_CONFIG, submission.log()
    assert "PICAS_HOST_URL must be http(s)://host:port" in submission.log()
    assert "s3cret" not in submission.log()
    assert "Traceback" not in submission.log()


def test_an_invalid_ca_file_ends_the_pilot(submission: Submission, tmp_path: Path) -> None:
    submission.write_credentials("https://127.0.0.1:1")
    (tmp_path / "ca.pem").write_text("no certificate")
    for name in ("ca.pem", "missing.pem"):
        assert submission.run(COUNT, ca_file=str(tmp_path / name)) == os.EX_CONFIG, submission.log()
        assert f"{name} is not a file of certificates" in submission.log()


# --- numbers that CouchDB does not store ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ["1" + "0" * 400, "-1" + "0" * 309, "1e400"])
def test_a_result_with_a_number_that_couchdb_does_not_store(pool: Pool, submission: Submission, number: str) -> None:
    pool.push([{"input": number}, {"input": "5"}])
    assert submission.run('echo "{\\"x\\": [$PICAS_INPUT]}" > output.json') == 0, submission.log()
    assert pool.states() == {State.ERROR: 1, State.DONE: 1}
    bad, good = pool.get("b:0000"), pool.get("b:0001")
    assert (bad["exit_code"], good["output"]) == (EXIT_BAD_OUTPUT, {"x": [5]})
    assert "output.json" in bad["error"][-1]["message"]
    assert not list(submission.folder.glob("unsent/*"))


def test_numbers_that_couchdb_stores_are_results(pool: Pool, submission: Submission) -> None:
    """The largest integer below 1.8e308 has 309 digits, too. Digits in text are no number."""
    largest = int(sys.float_info.max)
    pool.push([{"input": f'[{largest}, {-largest}, "{"9" * 400}"]'}])
    assert submission.run('echo "$PICAS_INPUT" > output.json') == 0, submission.log()
    assert pool.states() == {State.DONE: 1}


# --- classes on a pool with PiCaS's own views ----------------------------------------------------------------------------


def test_tokens_of_a_class_are_found_behind_many_others(pool: Pool, submission: Submission) -> None:
    design = pool.request("GET", "_design/airflow-picas-1")[1]
    assert pool.request("DELETE", f"_design/airflow-picas-1?rev={design['_rev']}")[0] == 200
    pool.push([{"cores": 1}] * 450 + [{"cores": 2}] * 3 + [{"cores": 1}] * 150)
    assert submission.run(COUNT, classes=["2//"]) == 0, submission.log()
    assert pool.states() == {State.DONE: 3, State.TODO: 600}
    assert sorted(submission.runs()) == ["b:0450", "b:0451", "b:0452"]


# --- the log -------------------------------------------------------------------------------------------------------------


def test_foreign_text_in_the_log_is_escaped_and_cut(pool: Pool, submission: Submission) -> None:
    odd = "b:\x1b[31m::group::x\n2026-01-01T00:00:00+0000 forged\u202e::endgroup::" + "y" * 5000
    token = {"type": "token", "lock": 0, "done": 0, "hostname": "", "scrub_count": 0, "exit_code": "", "batch": "b"}
    assert pool.request("POST", "_bulk_docs", {"docs": [{"_id": odd, **token}]})[0] == 201
    command = "printf '\\033[2J::endgroup::\\r\\n::group::z' >&2; exit 3"
    assert submission.run(command) == 0, submission.log()
    log = submission.log()
    assert "\\x1b[31m: :group::x\\n2026" in log
    assert ": :group::z" in log
    for bad in ("\x1b", "::group::", "::endgroup::", "\r", "\u202e", "\n2026-01-01"):
        assert bad not in log, repr(bad)
    assert max(map(len, log.splitlines())) < 2500
