"""Revisions of a token that are in conflict, as the nodes of a cluster leave them, and writes that too few nodes store.

One server makes both: revisions are written with ``new_edits=false``, as replication does, and a proxy turns 201 into 202.
"""

from __future__ import annotations

import base64
import contextlib
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_picas.lifecycle.transitions import Change, Token
from airflow_provider_picas.pilot.claims import Claims
from airflow_provider_picas.pilot.conflicts import Conflicts
from airflow_provider_picas.pilot.errors import Unreachable
from airflow_provider_picas.pilot.outbox import Outbox
from airflow_provider_picas.pilot.reaper import Reaper
from airflow_provider_picas.pilot.session import Session
from airflow_provider_picas.tokens.states import State, state_of
from tests.integration.pilots import COUNT, GATE, Pool, Proxy, Submission, put_lease, session_of_a_pilot, until

A_CLAIM, B_CLAIM = {"claim": "aaaaaaaaaaaaaaaa-1000", "lock": 1000}, {"claim": "bbbbbbbbbbbbbbbb-1001", "lock": 1001}
RESULT = {"done": 1010, "exit_code": 0, "output": "of A", "seconds": 1.5}
BACK: dict[str, Any] = {"lock": 0, "done": 0}


def branch(pool: Pool, token: str, *steps: tuple[str, dict[str, Any]]) -> None:
    """Let further revisions follow the first one of a token, each with a digest and the fields that are set (None: removed).

    The last ones of two calls are in conflict.
    """
    doc = pool.request("GET", f"{token}?rev={first_revision(pool, token)}")[1]
    path = [doc.pop("_rev").partition("-")[2]]
    for digest, fields in steps:
        doc = {name: value for name, value in {**doc, **fields}.items() if value is not None}
        path.insert(0, digest * 32)
        new = {**doc, "_rev": f"{len(path)}-{path[0]}", "_revisions": {"start": len(path), "ids": path}}
        status, answer = pool.request("POST", "_bulk_docs", {"docs": [new], "new_edits": False})
        assert (status, [row for row in answer if "error" in row]) == (201, [])


def first_revision(pool: Pool, token: str) -> str:
    revisions = pool.request("GET", f"{token}?revs=true")[1]["_revisions"]
    return f"1-{revisions['ids'][-1]}"


def shown(pool: Pool, token: str) -> tuple[dict[str, Any], list[str]]:
    """The token, and its revisions in conflict."""
    doc = pool.request("GET", f"{token}?conflicts=true")[1]
    return doc, doc.pop("_conflicts", [])


def claims_in_a_cluster(session: Session) -> Claims:
    return Claims(session, True, Conflicts(session))


def too_few(*what: bytes) -> Any:
    """The fault for writes with one of these words: too few nodes store them."""
    return lambda request: "202" if any(word in request for word in what) else ""


# --- claims ------------------------------------------------------------------------------------------------------------


def test_a_result_that_lost_is_adopted_and_its_token_not_run_again(pool: Pool) -> None:
    pool.push([{}, {}])
    log = {"attempt-1.out": {"content_type": "text/plain", "data": base64.b64encode(b"log of A").decode()}}
    claimed = {**A_CLAIM, "pilot": "a"}
    branch(pool, "b:0000", ("1", claimed), ("2", {**RESULT, "pilot": None, "_attachments": log}))
    attempt = {"reason": "reaped: pilot a did not renew its lease for 5 s", "claim": A_CLAIM["claim"]}
    branch(
        pool,
        "b:0000",
        ("3", claimed),
        ("4", {**BACK, "claim": None, "pilot": None, "attempts": [attempt]}),
        ("5", {"x": 1}),
    )
    doc, conflicts = shown(pool, "b:0000")
    assert (state_of(doc), len(conflicts)) == (State.TODO, 1)
    with session_of_a_pilot(pool, pool.server.url) as session:
        claims = claims_in_a_cluster(session)
        tokens = [token.id for _ in range(2) for token in claims.take(2, lambda doc: True, 9)]
        assert tokens == ["b:0001"]
    doc, conflicts = shown(pool, "b:0000")
    assert (state_of(doc), doc["output"], doc["claim"], conflicts) == (State.DONE, "of A", A_CLAIM["claim"], [])
    assert "pilot" not in doc
    assert pool.attachment("b:0000", "attempt-1.out") == b"log of A"


def test_a_pilot_waits_for_one_that_may_run_the_token_under_another_revision(pool: Pool) -> None:
    pool.push([{}])
    put_lease(pool, "a")
    branch(pool, "b:0000", ("1", {**A_CLAIM, "pilot": "a"}))
    branch(pool, "b:0000", ("2", B_CLAIM), ("3", {**BACK, "claim": None}))
    with session_of_a_pilot(pool, pool.server.url) as session:
        claims = claims_in_a_cluster(session)
        assert claims.take(1, lambda doc: True, 0) == []
        assert claims.unsettled()
        before = shown(pool, "b:0000")
        assert claims.take(1, lambda doc: True, 0) == claims.settle() == []
        assert shown(pool, "b:0000") == before
        put_lease(pool, "a", ended=True)
        tokens: list[Token] = []
        until(lambda: tokens.extend(claims.settle()) or tokens)
    doc, conflicts = shown(pool, "b:0000")
    assert conflicts == []
    assert tokens[0].is_claimed_in(doc)
    assert doc["_rev"] == tokens[0].doc["_rev"]


def test_a_claim_that_lost_is_deleted_and_nothing_else(pool: Pool, proxy: Proxy) -> None:
    pool.push([{}])
    with session_of_a_pilot(pool, proxy.url) as session:
        claims = claims_in_a_cluster(session)
        proxy.fault = too_few(b"_bulk_docs")
        with pytest.raises(Unreachable):
            claims.take(1, lambda doc: True, 0)
        proxy.fault = lambda request: ""
        branch(pool, "b:0000", ("f", {**B_CLAIM, "pilot": "b"}))
        assert len(shown(pool, "b:0000")[1]) == 1
        assert claims.settle() == [], "writes do not reach most nodes yet"
        assert len(shown(pool, "b:0000")[1]) == 1
        session.database.put_local("_local/x", {})
        assert claims.settle() == []
        assert not claims.unsettled()
    doc, conflicts = shown(pool, "b:0000")
    assert (doc["pilot"], conflicts) == ("b", [])


def test_a_claim_that_too_few_nodes_store_is_left_alone_and_kept_if_it_wins(pool: Pool, proxy: Proxy) -> None:
    pool.push([{}])
    with session_of_a_pilot(pool, proxy.url) as session:
        claims = claims_in_a_cluster(session)
        proxy.fault = too_few(b"_bulk_docs")
        with pytest.raises(Unreachable, match="202"):
            claims.take(1, lambda doc: True, 0)
        claimed = pool.get("b:0000")
        assert (state_of(claimed), claims.in_flight) == (State.LOCKED, [])
        assert claims.settle() == []
        assert pool.get("b:0000") == claimed
        proxy.fault = lambda request: ""
        session.database.put_local("_local/x", {})
        (token,) = claims.settle()
        assert token.is_claimed_in(pool.get("b:0000"))
        assert token.claim == claimed["claim"]


def test_a_claim_refused_as_a_conflict_that_wins_is_known(pool: Pool, proxy: Proxy) -> None:
    """One node may have stored it, and the others may not."""
    pool.push([{}])
    with session_of_a_pilot(pool, proxy.url) as session:
        database = session.database
        claims = claims_in_a_cluster(session)
        bulk = database.bulk

        def conflict(docs: Any) -> Any:
            bulk(docs)
            return 201, {doc["_id"]: {"id": doc["_id"], "error": "conflict"} for doc in docs}

        database.bulk = conflict  # type: ignore[method-assign]
        assert claims.take(1, lambda doc: True, 0) == []
        database.bulk = bulk  # type: ignore[method-assign]
        assert not claims.unsettled(), "nobody waits for it"
        tokens: list[Token] = []
        until(lambda: tokens.extend(claims.settle()) or tokens)
        assert tokens[0].is_claimed_in(pool.get("b:0000"))


@pytest.mark.parametrize("answer", ["kept", "lost"])
def test_claims_in_a_cluster_that_cannot_be_read_are_looked_at_again(pool: Pool, proxy: Proxy, answer: str) -> None:
    pool.push([{}] * 3)
    reads = []

    def fault(request: bytes) -> str:
        line = request.split(b"\r\n", 1)[0].decode()
        if line.startswith("POST ") and "_all_docs" in line:
            reads.append(line)
            return "503" if len(reads) == (1 if answer == "kept" else 2) else ""
        return "drop answer" if "_bulk_docs" in line and answer == "lost" and not reads else ""

    proxy.fault = fault
    with session_of_a_pilot(pool, proxy.url) as session:
        claims = claims_in_a_cluster(session)
        tokens: list[Token] = []
        for work in (lambda: claims.take(3, lambda doc: True, 0), *[claims.settle] * 2):
            with contextlib.suppress(Unreachable):
                tokens += work()
    assert {token.id for token in tokens} == {"b:0000", "b:0001", "b:0002"}
    assert claims.in_flight == []
    assert pool.states() == {State.LOCKED: 3}


# --- results and reaping -----------------------------------------------------------------------------------------------


def test_a_result_that_too_few_nodes_store_has_not_landed(pool: Pool, proxy: Proxy, behind_proxy: Submission) -> None:
    pool.push([{}])
    process = behind_proxy.start(f"{COUNT}; {GATE}; echo 5 > output.json", lease=6)
    until(lambda: behind_proxy.runs().total() == 1)
    writes = []

    def fault(request: bytes) -> str:
        if b"_bulk_docs" in request:
            writes.append(request)
        return "202" if b"_bulk_docs" in request or b"PUT " in request else ""

    proxy.fault = fault
    behind_proxy.open_gate()
    until(lambda: "was stored by too few" in behind_proxy.log())
    written = pool.get("b:0000")["_rev"]
    proxy.faults.clear()
    until(lambda: proxy.faults["202"], 60)  # a renewal of the lease
    assert (process.poll(), len(writes), pool.get("b:0000")["_rev"]) == (None, 1, written)
    put_lease(pool, "b")
    steps = [("1", {"x": 1}), ("2", {"x": 2}), ("3", {**B_CLAIM, "pilot": "b"})]
    branch(pool, "b:0000", *steps)  # another node has gone on without it
    assert state_of(pool.get("b:0000")) is State.LOCKED
    proxy.fault = lambda request: ""
    assert process.wait(60) == 0, behind_proxy.log()
    doc, conflicts = shown(pool, "b:0000")
    assert (state_of(doc), doc["output"], conflicts) == (State.DONE, 5, [])
    assert behind_proxy.runs() == {"b:0000": 1}
    assert behind_proxy.files("unsent") == behind_proxy.files("refused") == []


def test_a_second_result_is_kept_as_an_attempt(pool: Pool) -> None:
    pool.push([{}])
    first, second = {**RESULT, "output": "first"}, {**RESULT, "output": "second", "done": 1020}
    branch(pool, "b:0000", ("1", A_CLAIM), ("2", first))
    branch(pool, "b:0000", ("3", B_CLAIM), ("4", {**BACK, "claim": None}), ("5", B_CLAIM), ("6", second))
    with session_of_a_pilot(pool, pool.server.url) as session:
        database = session.database
        doc = Conflicts(session).settle(database.branches(["b:0000"])["b:0000"])
    stored, conflicts = shown(pool, "b:0000")
    assert (stored, conflicts) == (doc, [])
    assert stored["output"] == "second", "it won, and everybody has seen it"
    assert [(attempt["claim"], attempt["done"]) for attempt in stored["attempts"]] == [(A_CLAIM["claim"], 1010)]


@pytest.mark.parametrize("other", ["finished", "running", "claimed by a dead one"])
def test_a_dead_pilots_token_is_not_reaped_over_another_revision(pool: Pool, other: str) -> None:
    pool.push([{}])
    put_lease(pool, "dead", ended=True)
    put_lease(pool, "a", ended=other == "claimed by a dead one")
    steps = [("1", {**A_CLAIM, "pilot": "a"}), ("2", {**RESULT, "pilot": None})]
    branch(pool, "b:0000", *steps[: 2 if other == "finished" else 1])
    branch(pool, "b:0000", ("3", B_CLAIM), ("4", {"x": 1}), ("5", {**B_CLAIM, "pilot": "dead"}))
    with session_of_a_pilot(pool, pool.server.url) as session:
        reaper = Reaper(session)
        reaped = [reaper.reap()[0] for _ in range(2)]
    doc, conflicts = shown(pool, "b:0000")
    wanted = {
        "finished": (State.DONE, 0, [0, 0]),
        "running": (State.LOCKED, 1, [0, 0]),
        "claimed by a dead one": (State.TODO, 0, [0, 1]),
    }
    assert (state_of(doc), len(conflicts), reaped) == wanted[other]


def test_a_result_is_written_to_the_revision_of_its_claim(pool: Pool, submission: Submission) -> None:
    """Another one shows, which a node has given out that did not see the claim: whoever has that waits."""
    pool.push([{}])
    process = submission.start(f"{COUNT}; {GATE}; echo 5 > output.json", lease=6)
    until(lambda: submission.runs().total() == 1)
    put_lease(pool, "b")
    branch(pool, "b:0000", ("1", B_CLAIM), ("2", {**BACK, "claim": None}), ("3", {**B_CLAIM, "pilot": "b"}))
    renewed = pool.leases()
    until(lambda: [one["renewed"] for one in pool.leases()] != [one["renewed"] for one in renewed], 60)
    submission.open_gate()
    put_lease(pool, "b", ended=True)
    assert process.wait(90) == 0, submission.log()
    assert "Stopping it" not in submission.log()
    until(lambda: not shown(pool, "b:0000")[1])
    doc, _ = shown(pool, "b:0000")
    assert (state_of(doc), doc["output"]) == (State.DONE, 5)


def test_what_could_not_be_sent_finds_its_revision(pool: Pool, tmp_path: Path) -> None:
    pool.push([{}])
    branch(pool, "b:0000", ("1", {**A_CLAIM, "pilot": "a"}))
    branch(pool, "b:0000", ("2", B_CLAIM), ("3", {**BACK, "claim": None}))
    outbox = Outbox(str(tmp_path), pool.name)
    parts = {"set": RESULT, "unset": ["pilot"]}
    outbox.keep(Change("done", "b:0000", A_CLAIM["claim"], A_CLAIM["lock"], **parts))  # type: ignore[arg-type]
    with session_of_a_pilot(pool, pool.server.url) as session:
        database = session.database
        database.quorum.note(False)
        assert (outbox.send(database), outbox.remaining) == (0, ["b:0000"])
        database.quorum.note(True)
        assert outbox.send(database) == 1
        assert Conflicts(session).without(["b:0000"]) == set()
    doc, conflicts = shown(pool, "b:0000")
    assert (state_of(doc), doc["output"], conflicts) == (State.DONE, "of A", [])
