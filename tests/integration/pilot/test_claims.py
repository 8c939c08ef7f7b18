"""Pilots find the right tokens, and each is run once."""

from __future__ import annotations

import os
import time
from collections import Counter
from contextlib import ExitStack

from airflow_provider_picas.pilot.claims import Claims
from airflow_provider_picas.pilot.conflicts import Conflicts
from airflow_provider_picas.tokens.states import State
from stack import couchdb
from tests.integration import faults
from tests.integration.pilots import COUNT, Pool, Submission, plant_fault, session_of_a_pilot, until


def test_many_pilots_run_each_token_once(pool: Pool, submission: Submission) -> None:
    pool.push([{"input": place} for place in range(400)])
    pilots = [submission.start(COUNT, lease=20) for _ in range(8)]
    assert [process.wait(120) for process in pilots] == [0] * 8, submission.log()
    assert Counter(submission.runs().values()) == {1: 400}
    assert pool.states() == {State.DONE: 400}
    assert [lease["ended"] for lease in pool.leases()] == [True] * 8, [submission.log(place) for place in range(8)]


def test_a_pilot_of_an_array_begins_with_its_share(pool: Pool, submission: Submission) -> None:
    """So those of an array do not meet; then it goes on with what is left to others."""
    pool.push([{"input": place} for place in range(100)])
    rows = pool.request("GET", "_design/airflow-picas-1/_view/todo?reduce=false&startkey=%5B%22b%22%5D")[1]["rows"]
    third_of_four = {row["id"] for row in rows if row["key"][0] == "b" and 2**30 <= row["key"][3] < 1.5 * 2**30}
    assert len(third_of_four) > 5
    array = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_COUNT": "4"}
    assert submission.run(COUNT, env=array, max_claim=5) == 0
    assert set(list(submission.runs())[: len(third_of_four)]) == third_of_four
    assert Counter(submission.runs().values()) == {1: 100}


def test_the_last_tokens_are_shared_out(pool: Pool, server: couchdb.CouchDBAdmin) -> None:
    """A pilot leaves the tokens in the shares of the others to them, even if it could claim more."""
    pool.push([{"input": place} for place in range(40)])
    taken = []
    with ExitStack() as stack:
        for place in range(4):
            session = stack.enter_context(session_of_a_pilot(pool, server.url, (place, 4)))
            taken.append(len(Claims(session, False, Conflicts(session)).take(100, lambda doc: True, 0)))
    assert sum(taken) == 40, taken
    assert min(taken) >= 4, taken


def test_a_row_of_the_view_is_no_proof(pool: Pool, submission: Submission) -> None:
    """Between the view and the fetch of its documents others claim: this view shows their tokens for ever."""
    design = pool.request("GET", "_design/airflow-picas-1")[1]
    map_all = "function (doc) { if (doc.type == 'token') { emit([doc.batch, '//', 0, doc.ordinal], null); } }"
    pool.put({**design, "views": {**design["views"], "todo": {"map": map_all, "reduce": "_count"}}})
    pool.push([{"lock": 1000, "hostname": "x"}, {}, {"lock": 1000, "done": 1001, "exit_code": 0}])
    submission.start(COUNT, wait_for_work=20)
    until(lambda: pool.states()[State.DONE] == 2)
    time.sleep(1)
    assert submission.runs() == {"b:0001": 1}


def test_tokens_of_other_batches_and_classes_are_not_run(pool: Pool, submission: Submission) -> None:
    pool.push([{"cores": 4}, {"cores": 4, "priority": 2}, {}, {"priority": 1}, {"priority": 5}])
    pool.push([{}], batch="other")
    assert submission.run(COUNT, classes=["4//"], max_claim=1) == 0
    assert list(submission.runs()) == ["b:0001", "b:0000"]
    assert submission.run(COUNT, max_claim=1) == 0
    assert list(submission.runs())[2:] == ["b:0004", "b:0003", "b:0002"]
    assert submission.run(COUNT, batch=None) == 0
    assert list(submission.runs())[5:] == ["other:0000"]


def test_the_best_priority_of_all_classes_goes_first(pool: Pool, submission: Submission) -> None:
    pool.push([{"priority": 1}, {"cores": 1, "priority": 3}, {"cores": 2}, {"gpu": "a100", "priority": 2}])
    assert submission.run(COUNT, max_claim=1) == 0
    assert list(submission.runs()) == ["b:0001", "b:0003", "b:0000", "b:0002"]


def test_a_pool_with_picas_own_views_is_enough(pool: Pool, submission: Submission) -> None:
    design = pool.request("GET", "_design/airflow-picas-1")[1]
    assert pool.request("DELETE", f"_design/airflow-picas-1?rev={design['_rev']}")[0] == 200
    pool.push([{"priority": place, "cores": place % 2} for place in range(6)])
    pool.push([{}], batch="other")
    assert submission.run(COUNT, classes=["1//"]) == 0, submission.log()
    assert sorted(submission.runs()) == ["b:0001", "b:0003", "b:0005"]
    assert submission.run(COUNT) == 0
    assert sorted(submission.runs()) == [f"b:000{place}" for place in range(6)]


def test_a_claimer_that_fails_amid_a_claim_leaves_no_token_locked(
    pool: Pool, behind_proxy: Submission, server: couchdb.CouchDBAdmin
) -> None:
    pool.push([{}] * 3)
    with faults.Proxy(server.url) as hurting:
        behind_proxy.write_credentials(hurting.url)
        hurting.hurt(faults.Fault.LOSE, on="_bulk_docs")
        plant_fault(behind_proxy, "def _landed(self, tokens: List[Token]) -> List[Token]:")
        assert behind_proxy.run(COUNT, slots=3) == os.EX_SOFTWARE
    assert "The claimer failed" in behind_proxy.log()
    assert pool.states() == {State.TODO: 3}
    assert not any(doc["scrub_count"] or "attempts" in doc or "pilot" in doc for doc in pool.docs().values())
    assert pool.leases()[0]["ended"] is True


def test_a_token_that_a_client_took_while_the_answer_to_a_claim_was_lost_is_the_clients(
    pool: Pool, behind_proxy: Submission, server: couchdb.CouchDBAdmin
) -> None:
    pool.push([{}])

    def lock_as_the_client() -> None:
        doc = pool.get("b:0000")
        taken = {**doc, "lock": doc["lock"] + 1, "hostname": "elsewhere"}
        assert pool.request("PUT", "b:0000", taken)[0] == 201

    with faults.Proxy(server.url) as hurting:
        behind_proxy.write_credentials(hurting.url)
        hurting.meanwhile = lock_as_the_client
        hurting.hurt(faults.Fault.LOSE, on="_bulk_docs")
        assert behind_proxy.run(COUNT) == 0
    assert behind_proxy.runs() == {}
    assert (pool.get("b:0000")["hostname"], pool.states()) == ("elsewhere", {State.LOCKED: 1})
