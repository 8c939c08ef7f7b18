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
    pilots = [submission.start(COUNT + "; sleep 0.1", lease=20) for _ in range(3)]
    logs = [submission.folder / f"pilot-{number}.log" for number in range(3)]
    for done in (10, 50):
        until(lambda done=done: submission.runs().total() > done)  # type: ignore[misc]
        said = [path.read_text().count("does not answer") for path in logs]
        server.kill()
        until(lambda said=said: all(map(int.__lt__, said, (p.read_text().count("does not answer") for p in logs))))  # type: ignore[misc]
        server.start()
    assert [process.wait(120) for process in pilots] == [0] * 3, submission.log()
    assert pool.states() == {State.DONE: 120}
    assert Counter(submission.runs().values()) == {1: 120}
