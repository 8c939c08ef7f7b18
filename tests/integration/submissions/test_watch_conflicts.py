"""What a wait, and the hook, do with tokens of which the nodes of a cluster have left revisions in conflict.

Revisions in conflict are written with ``new_edits=false``, as replication does; a proxy turns 201 into 202.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from airflow_provider_picas.couchdb import errors
from airflow_provider_picas.couchdb.http import Request, json_body
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.submissions.deaths import ObservedLeases
from airflow_provider_picas.submissions.watch import PilotStatus, check_pilots
from airflow_provider_picas.tokens.selection import Selection
from airflow_provider_picas.tokens.states import State, state_of
from stack import native
from stack.pool import Pool
from tests.conftest import set_connection
from tests.integration import lives
from tests.integration.faults import Proxy

CLAIM = {"lock": lives.NOW, "hostname": "n1", "pilot": "dead", "claim": f"00112233445566aa-{lives.NOW}"}
OTHER = {"lock": lives.NOW, "hostname": "n2", "pilot": "other", "claim": f"aa66554433221100-{lives.NOW}"}
RESULT = {"done": lives.NOW + 9, "exit_code": 0, "output": "accepted"}


@pytest.fixture
def hook(picas_default: str) -> PicasHook:
    """The pool, where a pilot said that it had ended."""
    hook = PicasHook(picas_default)
    put_lease(hook, "dead", ended=True)
    return hook


def put_lease(hook: PicasHook, pilot: str, *, ended: bool) -> None:
    lease = {
        "pilot": pilot,
        "submission": "s",
        "job": None,
        "hostname": "n1",
        "renewed": hook.now(),
        "lease": 60,
        "ended": ended,
    }
    name = f"_local/picas-pilot-{pilot}"
    try:
        revision = {"_rev": hook.get(name)["_rev"]}
    except errors.NotFoundError:
        revision = {}
    hook.do(hook.pool.put({"_id": name, **revision, **lease}))


def replicate(hook: PicasHook, token: dict[str, Any], generation: int, **fields: Any) -> None:
    """Write a revision as another node would that did not see the others."""
    digests = [f"{place:x}" * 32 for place in range(generation, 0, -1)]
    revisions = {"_rev": f"{generation}-{digests[0]}", "_revisions": {"start": generation, "ids": digests}}
    body = json_body({"docs": [{**token, **fields, **revisions}], "new_edits": False})
    hook.do(_post(hook, body))


def _post(hook: PicasHook, body: bytes) -> Any:
    yield Request("POST", hook.pool.path("_bulk_docs"), body=body)


def look(hook: PicasHook, observer: ObservedLeases | None = None) -> PilotStatus:
    operation = check_pilots(hook.pool, "b", None, max_scrubs=3, max_lock_age=None, observer=observer)
    return hook.do(operation)  # type: ignore[arg-type]


def shown(hook: PicasHook, token: str) -> tuple[dict[str, Any], list[str]]:
    """The token, and its revisions in conflict."""

    def read() -> Any:
        answer = yield Request("GET", hook.pool.document_path(token), {"conflicts": "true"})
        return answer.json()

    document = hook.do(read())
    return document, document.pop("_conflicts", [])


def test_a_wait_adopts_a_result_that_lost_instead_of_reaping(hook: PicasHook) -> None:
    (token,) = lives.fill(hook, {State.TODO: 1})
    document = hook.get(token)
    lives.change(hook, token, **OTHER)
    lives.change(hook, token, **RESULT)
    replicate(hook, document, 9, **CLAIM)
    assert state_of(hook.get(token)) is State.LOCKED
    assert look(hook).reaped == []
    document, conflicts = shown(hook, token)
    assert (state_of(document), document["output"], conflicts) == (State.DONE, "accepted", [])


def test_a_wait_reaps_no_token_that_a_pilot_runs_under_another_revision(hook: PicasHook) -> None:
    (token,) = lives.fill(hook, {State.TODO: 1})
    document = hook.get(token)
    put_lease(hook, "other", ended=False)
    lives.change(hook, token, **OTHER)
    replicate(hook, document, 9, **CLAIM)
    before = shown(hook, token)
    assert len(before[1]) == 1
    assert [look(hook).reaped for _ in range(2)] == [[], []]
    assert shown(hook, token) == before
    put_lease(hook, "other", ended=True)
    assert look(hook).reaped == []
    assert [name for name, _ in look(hook).reaped] == [token]
    document, conflicts = shown(hook, token)
    assert (state_of(document), conflicts) == (State.TODO, [])


@pytest.fixture
def too_few(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> Iterator[PicasHook]:
    """A hook to a node that stores writes of tokens alone."""
    with Proxy(pool.url) as proxy:
        proxy.rewrite = lambda request, status, content: (202 if "_bulk_docs" in request else status, content)
        yield PicasHook(
            set_connection(monkeypatch, "behind_proxy", {**native.picas_connection(pool), "host": proxy.url})
        )


def test_a_reset_that_too_few_nodes_store_is_read_again(hook: PicasHook, too_few: PicasHook) -> None:
    (token,) = lives.fill(hook, {State.ERROR: 1})
    report = too_few.editor.reset(Selection.parse("b", states=["error"]))
    assert report.changed == 1
    assert hook.get(token)["scrub_count"] == 1, "it was written once"


def test_a_write_that_too_few_nodes_store_says_so(hook: PicasHook, too_few: PicasHook) -> None:
    (token,) = lives.fill(hook, {State.TODO: 1})
    with pytest.raises(errors.UnavailableError, match="too few nodes"):
        too_few.do(too_few.pool.write([json_body({**hook.get(token), "x": 1})]))
