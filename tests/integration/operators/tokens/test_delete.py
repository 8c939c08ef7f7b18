"""Deleting tokens of a real pool, the archive that is written first, and restoring them."""

from __future__ import annotations

import gzip
import json
import os
import resource
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException
from airflow.sdk import ObjectStoragePath
from airflow.sdk.io import attach

from airflow_provider_picas.couchdb import errors, indexes
from airflow_provider_picas.couchdb.pool import PAGE
from airflow_provider_picas.hooks import editing
from airflow_provider_picas.hooks.editing import TokenEditor
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.operators.files import FileError, whole_file
from airflow_provider_picas.operators.tokens import PicasDeleteTokensOperator, PicasRestoreTokensOperator
from airflow_provider_picas.tokens import views
from airflow_provider_picas.tokens.counts import Counts
from airflow_provider_picas.tokens.states import State
from stack import native
from stack.couchdb import CouchDBAdmin
from stack.pool import Pool
from tests.conftest import set_connection
from tests.integration import lives
from tests.integration.faults import Fault, Proxy
from tests.integration.tasks import context

MIXED = {State.TODO: 2, State.LOCKED: 2, State.DONE: 3, State.ERROR: 2}


def delete(**arguments: Any) -> dict[str, Any]:
    return PicasDeleteTokensOperator(task_id="delete", **{"batch": "b", **arguments}).execute(context("delete"))


def restore(archive: str, **arguments: Any) -> dict[str, Any]:
    return PicasRestoreTokensOperator(task_id="restore", archive=archive, **arguments).execute(context("restore"))


def whole(hook: PicasHook) -> dict[str, Any]:
    """All tokens of the batch, without revisions, with the contents of their attachments."""
    found = {}
    for token in hook.batch_documents("b"):
        fields = {name: value for name, value in token.items() if name not in ("_rev", "_attachments")}
        found[token["_id"]] = (fields, lives.attached(hook, token["_id"]))
    return found


def test_all_but_locked_tokens_are_deleted(hook: PicasHook) -> None:
    ids = lives.fill(hook, MIXED)
    lives.fill(hook, {State.DONE: 1}, batch="b2")
    output = delete()
    assert (output["deleted"], output["archive"], output["left"]) == (
        7,
        None,
        {"is locked": {"tokens": 2, "ids": ids[2:4]}},
    )
    assert hook.count("b") == Counts(locked=2)
    assert delete(states="locked")["deleted"] == 2
    assert hook.count() == Counts(done=1)


def test_chosen_tokens_are_deleted(hook: PicasHook) -> None:
    ids = lives.fill(hook, MIXED)
    assert delete(states=["done", "error"], keys=["00000004", "00000008", "00000000"])["deleted"] == 2
    output = delete(keys=["00000002", "00000005"])
    assert (output["deleted"], output["left"]) == (1, {"is locked": {"tokens": 1, "ids": [ids[2]]}})
    assert sorted(token["_id"] for token in hook.batch_documents("b")) == [
        i for i in ids if i not in (ids[4], ids[5], ids[8])
    ]


def test_another_design_document_keeps_to_its_tokens(
    hook: PicasHook, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = lives.fill(hook, {State.TODO: 1, State.DONE: 2}, cores=1)
    hook.deploy_views({"SingleCore": "doc.cores == 1", "MultiCore": "doc.cores == 4"})
    now = hook.now()
    lives.change(hook, ids[1], done=now)
    lives.change(hook, ids[2], cores=4)
    own = {"design_document": "MultiCore"}
    set_connection(monkeypatch, "multi_core", {**native.picas_connection(pool), "extra": own})
    assert delete(picas_conn_id="multi_core", finished_for=60)["deleted"] == 1
    assert hook.count("b") == Counts(todo=1, done=1)


def test_what_was_never_locked_is_not_old(hook: PicasHook) -> None:
    ids = lives.fill(hook, {State.TODO: 2, State.DONE: 1, State.ERROR: 1})
    lives.change(hook, ids[3], lock=99, done=99, error=[{"time": hook.now() - 60, "message": "m"}])
    assert delete(older_than=3_600)["deleted"] == 1
    assert hook.count("b") == Counts(todo=2, error=1)


def test_many_pages_are_deleted(hook: PicasHook) -> None:
    lives.fill(hook, {State.DONE: PAGE})
    lives.fill(hook, {State.DONE: PAGE}, batch="c")
    assert delete(batch=None, whole_pool=True, states="done")["deleted"] == 2 * PAGE
    assert hook.count() == Counts()


def test_an_archive_brings_everything_back(hook: PicasHook, tmp_path: Path) -> None:
    ids = lives.fill(hook, MIXED)
    lives.attach(hook, ids[4], log=b"text\n" * 1_000, data=os.urandom(5_000), **{"a/../b": b"odd", "..": b"dots"})
    lives.change(hook, ids[5], attempts=[{"lock": 1, "reason": "reset"}], input="é 漢")
    before = whole(hook)
    output = delete(archive=str(tmp_path), states="todo,locked,done,error")
    assert (output["archived"], output["deleted"]) == (9, 9)
    assert Path(output["archive"].removeprefix("file://")).parent == tmp_path
    assert list(hook.batch_documents("b")) == []
    with gzip.open(output["archive"]) as lines:
        assert sorted(json.loads(line)["_id"] for line in lines) == ids
    assert restore(output["archive"]) == {"database": output["database"], "restored": 9, "left": {}}
    assert whole(hook) == before
    assert hook.count("b") == Counts(todo=2, locked=2, done=3, error=2)
    again = restore(output["archive"])
    assert (again["restored"], again["left"]["is in the pool already"]["tokens"]) == (0, 9)
    assert whole(hook) == before


def test_an_archive_is_never_overwritten(hook: PicasHook, tmp_path: Path) -> None:
    """After a failure half-way, the archive of the first try holds what is nowhere else."""
    archives = set()
    for _ in range(3):
        lives.fill(hook, {State.DONE: 1})
        archives.add(delete(archive=str(tmp_path))["archive"])
    assert len(archives) == 3
    assert {Path(archive).name for archive in archives} == set(os.listdir(tmp_path))


def test_deletes_at_the_same_time_have_an_archive_each(
    hook: PicasHook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lives.fill(hook, {State.DONE: 3})
    both = threading.Barrier(2, timeout=60)

    @contextmanager
    def named_at_once(path: Any) -> Iterator[BinaryIO]:
        both.wait()  # both have a name, and neither file is there
        with whole_file(path) as file:
            yield file

    monkeypatch.setattr("airflow_provider_picas.operators.tokens.delete.whole_file", named_at_once)
    monkeypatch.setattr(PicasHook, "now", lambda self: lives.NOW)
    with ThreadPoolExecutor(2) as tasks:
        outputs = [task.result() for task in [tasks.submit(delete, archive=str(tmp_path)) for _ in range(2)]]
    assert {Path(output["archive"]).name for output in outputs} == set(os.listdir(tmp_path))
    assert len(os.listdir(tmp_path)) == 2
    assert sum(output["deleted"] for output in outputs) == 3


def test_an_archive_can_be_in_an_object_store(hook: PicasHook) -> None:
    fsspec = pytest.importorskip("fsspec")
    attach("memory", fs=fsspec.filesystem("memory"))
    lives.fill(hook, {State.DONE: 2})
    before = whole(hook)
    output = delete(archive="memory://bucket/archives")
    assert output["archive"].startswith("memory://bucket/archives/b-")
    assert len(list(ObjectStoragePath("memory://bucket/archives").iterdir())) == 1
    assert restore(output["archive"])["restored"] == 2
    assert whole(hook) == before


def test_nothing_is_deleted_when_the_archive_cannot_be_written(hook: PicasHook, tmp_path: Path) -> None:
    ids = lives.fill(hook, {State.DONE: 2})
    lives.attach(hook, ids[0], data=os.urandom(200_000))
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot be written"):
        delete(archive=str(tmp_path / "file"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(FileError, match="cannot be written"):
            delete(archive=str(tmp_path / "full"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with pytest.raises(AirflowFailException, match="`archive` is empty"):
        delete(archive="")
    assert hook.count("b") == Counts(done=2)
    assert os.listdir(tmp_path / "full") == []


def test_what_changes_after_it_was_archived_is_not_deleted(
    hook: PicasHook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = lives.fill(hook, {State.ERROR: 3})
    real = TokenEditor.delete

    def after_a_change(self: TokenEditor, tokens: Any) -> Any:
        assert len(os.listdir(tmp_path)) == 1  # the archive is complete before the first delete
        lives.change(hook, ids[1], note="new")
        return real(self, tokens)

    monkeypatch.setattr(TokenEditor, "delete", after_a_change)
    output = delete(archive=str(tmp_path))
    assert (output["archived"], output["deleted"]) == (3, 2)
    assert output["left"] == {"has changed since it was read": {"tokens": 1, "ids": [ids[1]]}}
    assert hook.get(ids[1])["note"] == "new"


@pytest.mark.parametrize("fault", [Fault.LOSE, Fault.DROP, 503])
def test_a_lost_answer_does_not_fail_the_task(
    hook: PicasHook, fault: Fault | int, no_pauses: None, tmp_path: Path, proxy: Proxy
) -> None:
    lives.fill(hook, {State.DONE: 30, State.LOCKED: 1})
    before = whole(hook)
    proxy.hurt(fault, on="_bulk_docs")
    output = delete(archive=str(tmp_path), picas_conn_id="through_proxy")
    assert output["deleted"] == 30
    assert hook.count("b") == Counts(locked=1)
    proxy.hurt(fault, on="_bulk_docs")
    assert restore(output["archive"], picas_conn_id="through_proxy")["restored"] == 30
    assert whole(hook) == before


def test_a_batch_is_left_until_it_has_been_finished_for_long(hook: PicasHook, tmp_path: Path) -> None:
    ids = lives.fill(hook, {State.DONE: 2, State.ERROR: 1})
    now = hook.now()
    lives.change(hook, ids[1], done=now - 3_600)
    for seconds in (7_200, "3700"):
        with pytest.raises(AirflowSkipException, match=f"token {ids[1]} ended"):
            delete(archive=str(tmp_path), finished_for=seconds)
    lives.change(hook, ids[0], done=0, lock=0)
    with pytest.raises(AirflowSkipException, match="it has not finished"):
        delete(archive=str(tmp_path), finished_for=60)
    lives.change(hook, ids[0], done=99, lock=99)
    with pytest.raises(AirflowSkipException, match="has no time at which it ended"):
        delete(archive=str(tmp_path), finished_for=60)
    lives.change(hook, ids[0], error=[{"time": now - 3_600}])
    assert os.listdir(tmp_path) == []
    assert delete(archive=str(tmp_path), finished_for=60)["deleted"] == 3


def test_batches_of_a_pool_are_listed(hook: PicasHook) -> None:
    lives.fill(hook, MIXED)
    lives.fill(hook, {State.DONE: 2}, batch="c")
    ended = {"type": "token", "lock": 1, "done": 1, "exit_code": 0}
    lives.write(hook, [{"_id": "token_0", **ended}, {"_id": "token_1", "batch": "mine", **ended}])
    assert hook.batches() == {"b": Counts(todo=2, locked=2, done=3, error=2), "c": Counts(done=2)}


def test_few_of_large_tokens_are_in_memory_while_they_are_restored(hook: PicasHook) -> None:
    read, most = 0, 0
    restored: list[int] = []

    class Counting(PicasHook):
        def do(self, operation: Any) -> Any:
            result = super().do(operation)
            restored.append(result.changed)
            return result

    def tokens() -> Iterator[dict[str, Any]]:
        nonlocal read, most
        for read in range(1, 61):
            most = max(most, read - sum(restored))
            yield {"_id": f"b:{read}", "type": "token", "lock": 0, "done": 0, "input": "x" * 1_000_000}

    assert Counting().editor.restore(tokens()).changed == 60
    assert most < 40  # three a request, eight requests under way and one to come


def test_a_broken_archive_is_reported(hook: PicasHook, tmp_path: Path) -> None:
    lives.fill(hook, {State.DONE: 50}, note="x" * 1_000)
    archive = Path(delete(archive=str(tmp_path))["archive"])
    content = archive.read_bytes()
    (tmp_path / "cut.jsonl.gz").write_bytes(content[:-20])
    with pytest.raises(
        AirflowFailException, match=r"cut\.jsonl\.gz is not a complete gzip file: it ends after line \d+"
    ):
        restore(str(tmp_path / "cut.jsonl.gz"))
    (tmp_path / "no.gz").write_text('{"_id": "x"}')
    with pytest.raises(AirflowFailException, match=r"no\.gz is not a complete gzip file: it ends after line 0"):
        restore(str(tmp_path / "no.gz"))
    with gzip.open(tmp_path / "bad.jsonl.gz", "wb") as file:
        file.write(b'{"_id": "b:1", "type": "token"}\n{"_id": "b:2"\n')
    with pytest.raises(AirflowFailException, match=r"Line 2 of .*bad\.jsonl\.gz is not JSON"):
        restore(str(tmp_path / "bad.jsonl.gz"))
    with pytest.raises(FileError, match="cannot be read"):
        restore(str(tmp_path / "missing.jsonl.gz"))
    assert restore(str(archive))["restored"] in (50, 49)


def test_a_pool_that_is_deleted_meanwhile_is_named(hook: PicasHook, couchdb: CouchDBAdmin, pool: Pool) -> None:
    lives.fill(hook, {State.DONE: 1})
    rev = hook.get("b:00000000")["_rev"]
    couchdb.delete_database(pool.database)
    try:
        for attempt in (delete, lambda: hook.editor.delete([("b:00000000", rev)])):
            with pytest.raises(errors.NotFoundError, match=f"There is no database {pool.database}"):
                attempt()
    finally:
        couchdb.create_database(pool.database)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"batch": "nothing"}, "Batch 'nothing' has no tokens"),
        ({"batch": ""}, "`batch` is empty"),
        ({"batch": "", "whole_pool": "None"}, "`batch` is empty"),
        ({"batch": "", "whole_pool": "{{ nothing }}"}, "`whole_pool` is '{{ nothing }}'; it takes true or false"),
        ({"batch": None, "whole_pool": True, "finished_for": 5}, "`finished_for` applies to a batch"),
        ({"finished_for": "long"}, "`finished_for` is 'long'; it takes a number of seconds"),
    ],
)
def test_what_makes_no_sense_fails_at_once(hook: PicasHook, asked: dict[str, Any], message: str) -> None:
    lives.fill(hook, {State.DONE: 1})
    with pytest.raises(AirflowFailException, match=message):
        delete(**asked)
    assert hook.count("b") == Counts(done=1)


def test_indexes_follow_a_large_deletion_and_one_that_nobody_has_read_is_not_built(
    hook: PicasHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook.deploy_views()
    lives.fill(hook, {State.DONE: PAGE + 100})
    hook.count("b")
    hook.send(hook.pool.view_request(views.OVERVIEW, views.MONITOR))
    monkeypatch.setattr(editing, "MOST_BEHIND", PAGE)
    delete()
    left = {name: hook.do(indexes.info(hook.pool, name)) for name in (views.MONITOR, views.PROVIDER, views.PAGE)}
    assert left[views.MONITOR]["updates_pending"]["total"] <= 100
    assert left[views.PROVIDER]["updates_pending"]["total"] <= 100
    assert left[views.PAGE]["update_seq"] == 0


def test_a_deletion_goes_on_if_an_index_cannot_be_updated(
    hook: PicasHook, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hook.deploy_views()
    lives.fill(hook, {State.DONE: PAGE + 1})
    hook.count("b")
    monkeypatch.setattr(editing, "MOST_BEHIND", 1)
    proxy.hurt(403, on="limit=0")
    assert delete(picas_conn_id="through_proxy")["deleted"] == PAGE + 1
    assert capsys.readouterr().out.count("The indexes of the views are behind") == 1
