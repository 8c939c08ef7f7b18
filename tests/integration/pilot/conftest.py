"""The database of the pilot's tests, which all of them share, and what each test gets of it."""

from __future__ import annotations

import pytest

from tests.integration import pilots

server = pytest.fixture(scope="session")(pilots.serve)
member = pytest.fixture(scope="session")(pilots.make_member)
pool, submission = pilots.pool, pilots.submission
proxy, behind_proxy = pilots.proxy, pilots.behind_proxy
