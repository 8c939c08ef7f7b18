"""Connections that tests of the operators on tokens share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.tokens.states import State
from stack import native
from stack.couchdb import CouchDBAdmin
from stack.pool import Pool
from tests.conftest import set_connection
from tests.integration import lives
from tests.integration.faults import Proxy


@pytest.fixture
def proxy(pool: Pool, couchdb: CouchDBAdmin, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy before the database, which the connection ``through_proxy`` uses."""
    with Proxy(couchdb.url) as between:
        set_connection(monkeypatch, "through_proxy", {**native.picas_connection(pool), "host": between.url})
        yield between


@pytest.fixture
def multi_core(hook: PicasHook, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> Callable[[State], str]:
    """Fills batch ``b`` with three tokens in a state. The connection ``multi_core`` has only one of them, whose id it returns."""

    def fill(state: State) -> str:
        ids = lives.fill(hook, {state: 3}, cores=1)
        hook.deploy_views({"SingleCore": "doc.cores == 1", "MultiCore": "doc.cores == 4"})
        lives.change(hook, ids[2], cores=4)
        own = {"design_document": "MultiCore"}
        set_connection(monkeypatch, "multi_core", {**native.picas_connection(pool), "extra": own})
        return ids[2]

    return fill
