"""Setting fields of tokens in a real pool."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, BaseOperator

from airflow_provider_picas.couchdb import errors
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.operators.tokens import (
    PicasCollectTokensOperator,
    PicasDeleteTokensOperator,
    PicasResetTokensOperator,
    PicasUpdateTokensOperator,
)
from airflow_provider_picas.operators.tokens.selecting import SelectingOperator
from airflow_provider_picas.tokens.counts import Counts
from airflow_provider_picas.tokens.documents import OWNED_FIELDS
from airflow_provider_picas.tokens.states import State
from stack.couchdb import CouchDBAdmin
from stack.pool import Pool
from tests.integration import lives
from tests.integration.faults import Fault, Proxy
from tests.integration.tasks import context

MIXED = {State.TODO: 3, State.LOCKED: 1, State.DONE: 1, State.ERROR: 1}


def update(**arguments: Any) -> dict[str, Any]:
    return PicasUpdateTokensOperator(task_id="update", **{"batch": "b", **arguments}).execute(context("update"))


def test_fields_of_waiting_tokens_are_set(hook: PicasHook) -> None:
    ids = lives.fill(hook, MIXED)
    lives.attach(hook, ids[0], data=b"kept")
    before = {token["_id"]: token for token in hook.batch_documents("b")}
    output = update(fields={"priority": 5, "input": {"a": [1]}})
    assert output["updated"] == 3
    assert {reason: left["tokens"] for reason, left in output["left"].items()} == {
        "is locked": 1,
        "is done": 1,
        "is error": 1,
    }
    for token in hook.batch_documents("b"):
        was = before[token["_id"]]
        wanted = {**was, "priority": 5, "input": {"a": [1]}, "_rev": token["_rev"]} if token["_id"] in ids[:3] else was
        assert token == wanted
    assert lives.attached(hook, ids[0]) == {"data": b"kept"}


def test_what_is_set_already_is_not_written_again(hook: PicasHook) -> None:
    ids = lives.fill(hook, {State.TODO: 2})
    lives.change(hook, ids[0], priority=5)
    revisions = [hook.get(token_id)["_rev"] for token_id in ids]
    assert update(fields={"priority": 5})["left"] == {"already has these values": {"tokens": 1, "ids": [ids[0]]}}
    assert [hook.get(token_id)["_rev"] == rev for token_id, rev in zip(ids, revisions, strict=True)] == [True, False]


def test_true_and_1_are_different_values(hook: PicasHook) -> None:
    (token_id,) = lives.fill(hook, {State.TODO: 1}, gpu=1)
    assert update(fields={"gpu": True})["updated"] == 1
    assert hook.get(token_id)["gpu"] is True
    assert update(fields={"gpu": True})["updated"] == 0


def test_an_update_whose_answer_is_lost_counts_also_what_pilots_have_taken_since(hook: PicasHook, proxy: Proxy) -> None:
    ids = lives.fill(hook, {State.TODO: 3})
    proxy.hurt(Fault.LOSE, on="_bulk_docs")
    proxy.meanwhile = lambda: lives.change(hook, ids[0], **lives.LIVES[State.LOCKED])
    output = update(fields={"priority": 5}, picas_conn_id="through_proxy")
    assert (output["updated"], output["left"]) == (3, {})
    assert hook.count("b") == Counts(todo=2, locked=1)


def test_only_selected_tokens_are_updated(hook: PicasHook) -> None:
    ids = lives.fill(hook, MIXED)
    assert update(fields={"time_limit": 60}, states="error", error_pattern="no such file")["ids"] == [ids[5]]
    assert update(fields={"time_limit": 60}, keys=["00000001"])["ids"] == [ids[1]]
    assert [token["_id"] for token in hook.batch_documents("b") if "time_limit" in token] == [ids[1], ids[5]]


def test_a_dry_run_changes_nothing(hook: PicasHook) -> None:
    lives.fill(hook, MIXED)
    before = list(hook.batch_documents("b"))
    assert update(fields={"priority": 5}, dry_run=True)["updated"] == 3
    assert list(hook.batch_documents("b")) == before


@pytest.mark.parametrize(
    ("operator", "asked", "said", "after"),
    [
        (PicasResetTokensOperator, {}, {"reset": 1}, Counts(todo=4, locked=1, done=1)),
        (PicasResetTokensOperator, {"states": "done,error"}, {"reset": 2}, Counts(todo=5, locked=1)),
        (PicasUpdateTokensOperator, {"fields": {"priority": 5}}, {"updated": 3}, None),
        (PicasCollectTokensOperator, {"states": "todo,error"}, {"collected": 4}, None),
        (PicasDeleteTokensOperator, {}, {"deleted": 5}, Counts(locked=1)),
        (PicasDeleteTokensOperator, {"states": "error"}, {"deleted": 1}, Counts(todo=3, locked=1, done=1)),
    ],
)
def test_a_pool_with_monitor_only_is_updated(
    hook: PicasHook,
    pool: Pool,
    couchdb: CouchDBAdmin,
    operator: type[BaseOperator],
    asked: dict[str, Any],
    said: dict[str, Any],
    after: Counts | None,
) -> None:
    lives.fill(hook, MIXED)
    others = lives.fill(hook, {State.TODO: 1, State.ERROR: 1}, batch="ba")
    revisions = [hook.get(token_id)["_rev"] for token_id in others]
    design = f"/{pool.database}/_design/airflow-picas-1"
    rev = couchdb.request("GET", design)[1]["_rev"]
    assert couchdb.request("DELETE", f"{design}?rev={rev}")[0] == 200
    output = operator(task_id="edit", batch="b", **asked).execute(context("edit"))
    assert said.items() <= output.items()
    assert hook.count("b") == (after or Counts(todo=3, locked=1, done=1, error=1))
    assert [hook.get(token_id)["_rev"] for token_id in others] == revisions


@pytest.mark.parametrize(
    "edit",
    [
        lambda: PicasResetTokensOperator(task_id="reset", batch="b"),
        lambda: PicasUpdateTokensOperator(task_id="update", batch="b", fields={"priority": 5}),
        lambda: PicasDeleteTokensOperator(task_id="delete", batch="b"),
    ],
)
def test_a_login_that_may_only_read_is_refused(
    hook: PicasHook, pool: Pool, couchdb: CouchDBAdmin, edit: Callable[[], SelectingOperator]
) -> None:
    lives.fill(hook, MIXED)
    before = list(hook.batch_documents("b"))
    forbid = "function (doc, old, user) { if (user.roles.indexOf('_admin') < 0) throw({forbidden: 'read only'}); }"
    design = {"_id": "_design/readonly", "validate_doc_update": forbid}
    assert couchdb.request("PUT", f"/{pool.database}/_design/readonly", design)[0] == 201
    with pytest.raises(
        errors.ForbiddenError, match=rf"Login '{pool.user}' is not allowed to write token .*read only.*Ask the"
    ):
        edit().execute(context())
    assert list(hook.batch_documents("b")) == before


@pytest.mark.parametrize(
    ("operator", "asked", "said"),
    [
        (PicasResetTokensOperator, {"states": "todo"}, "changed"),
        (PicasResetTokensOperator, {"states": "todo", "keys": [f"{place:08d}" for place in range(3_000)]}, "changed"),
        (PicasUpdateTokensOperator, {"fields": {"priority": 5}}, "changed"),
        (PicasDeleteTokensOperator, {}, "deleted"),
    ],
)
def test_what_was_done_before_an_error_is_reported(
    hook: PicasHook,
    capsys: pytest.CaptureFixture[str],
    operator: type[SelectingOperator],
    asked: dict[str, Any],
    said: str,
    proxy: Proxy,
) -> None:
    lives.fill(hook, {State.TODO: 3_000})
    before = {token["_id"]: token["_rev"] for token in hook.batch_documents("b")}
    proxy.hurt(400, on="_bulk_docs")
    with pytest.raises(errors.CouchDBError, match="injected"):
        operator(task_id="edit", batch="b", picas_conn_id="through_proxy", **asked).execute(context())
    after = {token["_id"]: token["_rev"] for token in hook.batch_documents("b")}
    changed = len(before.items() - after.items())
    assert changed
    assert f"The operation failed midway. Before that: {changed:,} tokens {said} (b:0" in capsys.readouterr().out


@pytest.mark.parametrize("field", sorted(OWNED_FIELDS | {"_id", "_rev", "_attachments", "_deleted", ""}))
def test_fields_of_picas_and_of_the_provider_are_refused(picas_default: str, field: str) -> None:
    with pytest.raises(AirflowFailException, match="cannot be set"):
        update(fields={"priority": 1, field: 1})


@pytest.mark.parametrize("fields", [{}, None, ["priority"], "priority=5", {"a": float("nan")}, {"a": object()}, {5: 1}])
def test_fields_of_picas_cannot_be_set(picas_default: str, fields: Any) -> None:
    with pytest.raises(AirflowFailException):
        update(fields=fields)
