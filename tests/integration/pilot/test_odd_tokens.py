"""Pilots on pools that hold an odd token beside good ones: it may fail alone, and the good ones are done all the same."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_picas.pilot.conflicts import Conflicts
from airflow_provider_picas.tokens import views
from airflow_provider_picas.tokens.states import State
from stack import couchdb
from tests.integration.faults import Proxy
from tests.integration.pilots import (
    COUNT,
    Pool,
    Submission,
    held,
    keep_unsent,
    put_lease,
    session_of_a_pilot,
    until,
)

LARGE, HUGE = "integer of 401 digits", "integer of 4301 digits"  # what the fixture big_integers replaces
LIMIT = 20_000  # bytes
GOOD = [f"b:{place:04d}" for place in range(1, 6)]


def rewrite(_request: str, status: int, content: bytes) -> tuple[int, bytes]:
    """An answer with integers in place of LARGE and HUGE."""
    for text, digits in ((LARGE, 400), (HUGE, 4300)):
        content = content.replace(b'"%s"' % text.encode(), b"1" + b"0" * digits)
    return status, content


@contextmanager
def behind_a_proxy(server: couchdb.CouchDBAdmin, folder: Path, pool: Pool) -> Iterator[tuple[Submission, Proxy]]:
    """A submission whose pilots reach the pool through a proxy."""
    with Proxy(server.url) as proxy:
        made = Submission(folder, pool, proxy.url)
        yield made, proxy
        made.close()


@pytest.fixture
def big_integers(server: couchdb.CouchDBAdmin, tmp_path: Path, pool: Pool) -> Iterator[Submission]:
    """A submission whose pilots read integers where the pool has LARGE and HUGE: the embedded server does not keep such."""
    with behind_a_proxy(server, tmp_path / "big", pool) as (made, proxy):
        proxy.rewrite = rewrite
        yield made


@pytest.fixture
def small_requests(server: couchdb.CouchDBAdmin, tmp_path: Path, pool: Pool) -> Iterator[Submission]:
    """A submission whose pilots' requests are refused (413) when they have more than LIMIT bytes."""
    with behind_a_proxy(server, tmp_path / "small", pool) as (made, proxy):
        proxy.largest = LIMIT
        yield made


def pilots_url(submission: Submission) -> str:
    """Where the pilots of a submission find their database."""
    credentials: dict[str, str] = {}
    exec((submission.folder / "credentials" / "picasconfig.py").read_text(), credentials)
    return credentials["PICAS_HOST_URL"]


def push(pool: Pool, odd: dict[str, Any]) -> None:
    """One odd token, b:0000, before five good ones."""
    pool.push([{"priority": 1, **odd}, {}, {}, {}, {}, {}])


def good_ones_are_done(pool: Pool) -> bool:
    docs = pool.docs()
    return all(docs[name]["exit_code"] == 0 and docs[name]["done"] for name in GOOD)


def with_view(pool: Pool, name: str, old: str, new: str) -> None:
    """Deploy one of the provider's views with a change."""
    document = pool.request("GET", f"_design/{views.PROVIDER}")[1]
    source = document["views"][name]["map"]
    assert old in source
    document["views"][name]["map"] = source.replace(old, new)
    pool.put(document)


@pytest.mark.parametrize("lock", ["0.0", "0x0", [], [[]], " \n", "-0", [0], False])
def test_what_the_view_shows_as_todo_is_todo(pool: Pool, submission: Submission, lock: Any) -> None:
    push(pool, {"lock": lock})
    assert submission.run(COUNT) == 0
    assert submission.runs() == dict.fromkeys(["b:0000", *GOOD], 1)
    assert pool.states() == {State.DONE: 6}


def test_what_a_view_shows_and_cannot_be_taken_is_stepped_over(pool: Pool, submission: Submission) -> None:
    """The views of a pool may be others than ours. More of such tokens than the pilot reads at once, before the good ones."""
    with_view(pool, "todo", "if (doc.lock == 0", "if (doc.input == 'odd' || doc.lock == 0")
    pool.push([{"priority": 1, "input": "odd", "lock": -1}] * 12 + [{}] * 5)
    assert submission.run(COUNT) == 0, submission.log()
    assert pool.states() == {None: 12, State.DONE: 5}
    assert submission.log().count("lists b:0000 as todo, but it is in another state") == 1


@pytest.mark.parametrize("key", ["null", "'high'", "[1]", "{}", "1e308"])
def test_a_priority_without_a_finite_value_goes_last(pool: Pool, submission: Submission, key: str) -> None:
    """CouchDB has null there for 10 to the power of 400."""
    with_view(pool, "todo", "-priority", f"(doc.input == 'odd' ? {key} : -priority)")
    pool.push([{"input": "odd"}, {}, {}, {}, {"cores": 2}, {"cores": 2, "input": "odd"}])
    assert submission.run(COUNT) == 0, submission.log()
    assert submission.runs() == dict.fromkeys(["b:0000", *GOOD], 1)
    assert submission.log().count("a priority that is not a finite number") == 2


def test_leases_are_read_beside_one_that_python_cannot_read(pool: Pool, big_integers: Submission) -> None:
    assert pool.request("PUT", "_local/picas-pilot-odd", {"lease": HUGE})[0] == 201
    for name in "abc":
        put_lease(pool, name)
    with session_of_a_pilot(pool, pilots_url(big_integers)) as session:
        assert list(session.database.leases(["a", "odd", "b", "c"])) == ["a", "b", "c"]


@pytest.mark.parametrize("field", ["lease", "renewals", "renewed"])
def test_numbers_of_a_lease_that_overflow_count_for_nothing(pool: Pool, big_integers: Submission, field: str) -> None:
    """The reaping of others goes on. Its own pilot counts as one that nobody has heard for a whole lease."""
    put_lease(pool, "odd", age=1000)
    name = "_local/picas-pilot-odd"
    pool.put({**pool.request("GET", name)[1], field: LARGE})
    put_lease(pool, "dead", ended=True)
    push(pool, {})
    pool.push([{**token, "batch": "b"} for token in [*held("odd", 1), *held("dead", 1)]], "b:locked")
    pilot = big_integers.start(COUNT, lease=4)
    until(lambda: pool.get("b:locked:0001")["done"], 60)
    pilot.terminate()
    assert pilot.wait(30) == 0, big_integers.log()
    assert "failed" not in big_integers.log()
    assert good_ones_are_done(pool)


@pytest.mark.parametrize("views_of", ["provider", "picas"])
def test_an_integer_that_python_does_not_read_stops_no_pilot(
    pool: Pool, big_integers: Submission, views_of: str
) -> None:
    if views_of == "picas":
        design = pool.request("GET", f"_design/{views.PROVIDER}")[1]
        assert pool.request("DELETE", f"_design/{views.PROVIDER}?rev={design['_rev']}")[0] == 200
    put_lease(pool, "dead", ended=True)
    push(pool, {"input": {"a": [1, HUGE]}})
    pool.push([{**token, "batch": "b"} for token in held("dead", 3)], "b:locked")
    pool.put({**pool.get("b:locked:0001"), "input": HUGE})
    assert big_integers.run(COUNT) == 0, big_integers.log()
    assert big_integers.runs() == dict.fromkeys([*GOOD, "b:locked:0000", "b:locked:0002"], 1)
    for bad in ("b:0000", "b:locked:0001"):
        assert big_integers.log().count(f"{bad} has an integer of more than 4300 digits. It is skipped.") == 1


def test_tokens_that_are_too_large_to_be_written_are_left_alone(pool: Pool, small_requests: Submission) -> None:
    """One that waits, and one that a dead pilot has locked. Those claimed and reaped in one request with them are not."""
    put_lease(pool, "dead", ended=True)
    push(pool, {"input": "x" * LIMIT})
    pool.push([{**token, "batch": "b"} for token in held("dead", 4)], "b:locked")
    pool.put({**pool.get("b:locked:0001"), "input": "x" * LIMIT})
    assert small_requests.run(COUNT, lease=4) == 0, small_requests.log()
    done = [*GOOD, "b:locked:0000", "b:locked:0002", "b:locked:0003"]
    assert small_requests.runs() == dict.fromkeys(done, 1)
    log = small_requests.log()
    assert log.count("b:0000 is too large to be claimed. It is skipped.") == 1
    assert log.count("b:locked:0001 is too large to be released. It is skipped.") == 1
    assert "no tokens remain, except 2 that were skipped" in log


def test_a_pilot_ends_when_every_token_is_too_large(pool: Pool, small_requests: Submission) -> None:
    pool.push([{"input": "x" * LIMIT}] * 3)
    assert small_requests.run(COUNT) == 0, small_requests.log()
    assert "no tokens remain, except 3 that were skipped" in small_requests.log()


DOTS = [".", "..", ".hidden", "..x", "..."]


def test_results_of_tokens_whose_ids_begin_with_a_dot_are_sent(pool: Pool, submission: Submission) -> None:
    """Those that older pilots kept in hidden files, too."""
    put_lease(pool, "dead", ended=True)
    pool.push([{**token, "_id": name} for token, name in zip(held("dead", 5), DOTS, strict=True)])
    for name in DOTS:
        keep_unsent(submission.folder, pool, pool.docs()[name], name)
    assert len(submission.files("unsent")) == 5
    old = submission.folder / "unsent" / ".hidden-2-1000.json"
    (submission.folder / "unsent" / "%2Ehidden-2-1000.json").rename(old)
    assert submission.run(COUNT, batch=None) == 0, submission.log()
    assert {name: doc["output"] for name, doc in pool.docs().items()} == {name: name for name in DOTS}
    assert not list((submission.folder / "unsent").iterdir())


def test_tokens_whose_ids_begin_with_a_dot_are_run(pool: Pool, submission: Submission) -> None:
    pool.push([{"_id": name} for name in DOTS])
    assert submission.run("echo out; " + COUNT, batch=None) == 0, submission.log()
    assert submission.runs() == dict.fromkeys(DOTS, 1)


@pytest.mark.parametrize("name", [".", "..", "plain"])
def test_revisions_in_conflict_of_an_id_without_a_path_are_merged(pool: Pool, name: str) -> None:
    """The result that lost is adopted, with its log."""
    base = {"_id": name, "type": "token", "lock": 5, "done": 0, "exit_code": "", "scrub_count": 0}
    log = {"attempt-1.out": {"content_type": "text/plain", "data": "b3V0"}}
    lost = {**base, "_rev": "2-a", "done": 6, "exit_code": 0, "_attachments": log}
    revisions = [{**base, "_rev": "2-f"}, lost]
    assert pool.request("POST", "_bulk_docs", {"docs": revisions, "new_edits": False})[0] == 201
    with session_of_a_pilot(pool, pool.server.url) as session:
        database = session.database
        branches = database.branches([name])[name]
        assert [doc["_rev"] for doc in branches] == ["2-f", "2-a"]
        merged = Conflicts(session).settle(branches)
        assert merged is not None
        (doc,) = database.branches([name])[name]
        assert (doc["done"], doc["_rev"]) == (6, merged["_rev"])
        whole = database.with_attachments(doc)
    assert whole["_attachments"]["attempt-1.out"]["data"] == "b3V0"


def test_a_resource_class_with_a_name_too_long_for_a_request_is_left_alone(pool: Pool, submission: Submission) -> None:
    push(pool, {"gpu": "a" * 12_000})
    another = {name: value for name, value in pool.get("b:0000").items() if name != "_rev"}
    pool.put({**another, "_id": "b:0009", "priority": 2})  # a second row of this class in the view
    assert submission.run(COUNT) == 0, submission.log()
    assert submission.runs() == dict.fromkeys(GOOD, 1)
    assert submission.log().count("the class name is too long for a request") == 1


def test_a_class_behind_many_that_do_not_fit_is_found(pool: Pool, submission: Submission) -> None:
    pool.push([{"cores": f"a{place}", "time": 1000} for place in range(120)] + [{"cores": "b"}] * 5)
    assert submission.run(COUNT, env={"SLURM_JOB_END_TIME": str(int(time.time()) + 600)}) == 0, submission.log()
    assert pool.states() == {State.TODO: 120, State.DONE: 5}
    assert "no token fits into the remaining wall-clock time" in submission.log()
