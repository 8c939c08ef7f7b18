"""The credentials of a pilot while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from airflow_provider_picas.tokens.states import State
from stack import couchdb
from tests.integration.pilots import COUNT, GATE, PASSWORD, Pool, Submission, until


@pytest.fixture
def change_password(server: couchdb.CouchDBAdmin, member: str) -> Iterator[Callable[[str], None]]:
    """Gives the pilots' user another password."""

    def change(password: str) -> None:
        server.delete_user(member)
        server.create_user(member, password)

    yield change
    change(PASSWORD)


def test_a_pilot_takes_new_credentials_when_its_own_are_refused(
    pool: Pool, submission: Submission, change_password: Callable[[str], None]
) -> None:
    """All its connections do; but not those of another database, whose password is none of this one's business."""
    pool.push([{}] * 4)
    process = submission.start(f"{COUNT}; {GATE}", slots=2, lease=120, max_claim=1)
    until(lambda: submission.runs().total() == 2)
    change_password("another-password")
    submission.write_credentials("http://127.0.0.1:1", "of-another-database")
    submission.open_gate()
    until(lambda: "are now for another database" in submission.log())
    assert pool.states() == {State.LOCKED: 2, State.TODO: 2}
    config = submission.folder / "credentials" / "picasconfig.py"
    aside = config.with_name("new")
    aside.write_text(
        config.read_text()
        .replace("http://127.0.0.1:1", pool.server.url)
        .replace("of-another-database", "another-password")
    )
    aside.chmod(0o600)
    aside.replace(config)
    assert process.wait(60) == 0, submission.log()
    assert pool.states() == {State.DONE: 4}
    assert set(submission.runs().values()) == {1}
    assert submission.log().count("have changed. The new ones are used from now on") == 1
    assert "another-password" not in submission.log()
    assert pool.leases()[0]["ended"] is True
