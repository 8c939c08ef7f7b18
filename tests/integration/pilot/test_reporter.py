"""Results of one pilot for the same token."""

from __future__ import annotations

from pathlib import Path

from airflow_provider_picas.lifecycle.transitions import Change
from airflow_provider_picas.pilot.conflicts import Conflicts
from airflow_provider_picas.pilot.outbox import Outbox
from airflow_provider_picas.pilot.reporter import Reporter
from airflow_provider_picas.tokens.states import State
from stack import couchdb
from tests.integration.pilots import Pool, held, session_of_a_pilot, until


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
