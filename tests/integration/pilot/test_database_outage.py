"""The database is killed while pilots work. These tests have a server of their own."""

from __future__ import annotations

from collections import Counter

import pytest

from airflow_provider_picas.tokens.states import State
from stack import couchdb
from tests.integration import pilots
from tests.integration.pilots import COUNT, Pool, Submission, until

server, member = pilots.server, pilots.member


def test_the_database_is_killed_and_comes_back(
    pool: Pool, server: couchdb.CouchDBAdmin, submission: Submission
) -> None:
    if not isinstance(server, couchdb.CouchDB):
        pytest.skip("the database that PICAS_TEST_COUCHDB_URL names is not ours to kill")
    pool.push([{"input": place} for place in range(120)])
    pilots = [submission.start(COUNT + "; sleep 0.1", lease=20, max_claim=2) for _ in range(3)]

    def said() -> int:
        return sum(submission.log(number).count("does not answer") for number in range(3))

    for done in (10, 50):
        until(lambda done=done: pool.states()[State.DONE] > done)  # type: ignore[misc]
        before = said()
        server.kill()
        # A pilot that pauses until its next try has not noticed yet that the database was back in between.
        until(lambda before=before: said() > before)  # type: ignore[misc]
        server.start()
    assert [process.wait(120) for process in pilots] == [0] * 3, submission.log()
    assert pool.states() == {State.DONE: 120}
    assert Counter(submission.runs().values()) == {1: 120}
