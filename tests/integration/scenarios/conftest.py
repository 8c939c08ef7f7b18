"""The session's database, for scenarios in which pilots run as processes."""

from __future__ import annotations

import pytest

from stack.couchdb import CouchDBAdmin
from tests.integration import pilots


@pytest.fixture(scope="session")
def server(couchdb: CouchDBAdmin) -> CouchDBAdmin:
    """The server that all tests share."""
    return couchdb


member = pytest.fixture(scope="session")(pilots.make_member)
