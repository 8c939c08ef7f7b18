"""Collecting from a real pool: rows, files that appear only when complete, attachments inside their folder, and causes."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet
import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import ObjectStoragePath
from airflow.sdk.io import attach

try:
    from airflow.sdk.serde import deserialize, serialize
except ImportError:  # before Airflow 3.2
    from airflow.serialization.serde import deserialize, serialize

from airflow_provider_picas.couchdb import errors, http
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.operators.files import FileError
from airflow_provider_picas.operators.tokens import PicasCollectTokensOperator
from airflow_provider_picas.tokens.states import State
from tests.integration import lives
from tests.integration.faults import Fault, Proxy
from tests.integration.tasks import context

MIXED = {State.TODO: 1, State.LOCKED: 1, State.DONE: 3, State.ERROR: 2}


@pytest.fixture
def store() -> ObjectStoragePath:
    """A folder in an object store: one in memory, which fsspec brings."""
    attach("memory", fs=fsspec.filesystem("memory"))
    return ObjectStoragePath("memory://bucket/folder")


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Files cannot grow beyond so many bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def collect(**arguments: Any) -> dict[str, Any]:
    operator = PicasCollectTokensOperator(task_id="collect", **{"batch": "b", **arguments})
    return operator.execute(context("collect"))


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("states", ["done", "done,error", None])
def test_another_design_document_keeps_to_its_tokens(
    hook: PicasHook, multi_core: Callable[[State], str], states: str | None
) -> None:
    token_id = multi_core(State.DONE)
    assert [row["id"] for row in collect(picas_conn_id="multi_core", states=states)["rows"]] == [token_id]


def test_rows_go_to_xcom(hook: PicasHook) -> None:
    ids = lives.fill(hook, MIXED)
    output = collect(fields=["output.words", "input"])
    assert output["counts"] == {"todo": 1, "locked": 1, "done": 3, "error": 2}
    assert output["rows"] == [
        {
            "id": token_id,
            "state": "done" if place < 5 else "error",
            "exit_code": 0 if place < 5 else 3,
            "lock": lives.NOW,
            "done": lives.NOW + 60,
            "output.words": 7 if place < 5 else None,
            "input": f"x{place}",
        }
        for place, token_id in enumerate(ids)
        if place > 1
    ]
    assert len(json.dumps(output)) < 48_000


def test_outputs_that_look_like_objects_of_airflow_stay_data(hook: PicasHook) -> None:
    connection = {"__type": "airflow.sdk.definitions.connection.Connection", "__var": {"conn_id": "x", "host": "evil"}}
    outputs = [
        connection,
        {"deep": [connection]},
        {"__classname__": "x"},
        {"__id__": 5},
        {"__version__": 1},
        {"_plain": {"a": 1}},
    ]
    ids = lives.fill(hook, {State.DONE: len(outputs)})
    for token_id, output in zip(ids, outputs, strict=True):
        lives.change(hook, token_id, output=output)
    # As Airflow takes a result to XCom and hands it to the next task.
    rows = deserialize(json.loads(json.dumps(serialize(collect()["rows"]))))
    text = json.dumps(connection, separators=(",", ":"))
    assert [row["output"] for row in rows] == [
        text, {"deep": [text]}, '{"__classname__":"x"}', '{"__id__":5}', '{"__version__":1}', {"_plain": {"a": 1}},
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["r.jsonl", "r.csv", "r.parquet"])
def test_rows_go_to_a_file(hook: PicasHook, tmp_path: Path, name: str) -> None:
    ids = lives.fill(hook, MIXED)
    lives.change(hook, ids[2], output={"words": 8}, input="=1+1")
    path = tmp_path / "new" / name
    output = collect(fields="input,output", path=str(path))
    assert (output["collected"], output["path"]) == (5, str(path))
    assert "rows" not in output
    names = ["id", "state", "exit_code", "lock", "done", "input", "output"]
    if name == "r.jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    elif name == "r.csv":
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert rows[0]["input"] == "'=1+1"
        rows[0]["input"] = "=1+1"
        json_columns = ("exit_code", "lock", "done", "output")
        rows = [
            {k: json.loads(cell or "null") if k in json_columns else cell for k, cell in row.items()} for row in rows
        ]
    else:
        rows = pyarrow.parquet.read_table(path).to_pylist()
        rows = [{**row, "output": json.loads(row["output"]) if row["output"] else None} for row in rows]
    assert [list(row) for row in rows] == [names] * 5
    assert [list(row.values()) for row in rows] == [
        list(row.values()) for row in collect(fields=["input", "output"])["rows"]
    ]
    assert os.listdir(path.parent) == [name]


def test_rows_go_to_an_object_store(hook: PicasHook, store: ObjectStoragePath) -> None:
    lives.fill(hook, MIXED)
    path = store / "r.jsonl"
    assert collect(path=str(path))["collected"] == 5
    assert len(path.read_text().splitlines()) == 5
    assert [file.name for file in store.iterdir()] == ["r.jsonl"]


def test_results_too_large_for_xcom_fail(hook: PicasHook) -> None:
    lives.fill(hook, {State.DONE: 400}, note="x" * 100)
    with pytest.raises(AirflowFailException, match=r"more than 48,000 bytes.*Set `path`"):
        collect(fields=["note"])
    assert len(collect(fields=["note"], max_xcom_bytes="200000")["rows"]) == 400
    assert len(collect(fields=["note"], max_xcom_bytes=2e5)["rows"]) == 400
    for nothing in ("", None):
        with pytest.raises(AirflowFailException, match="more than 48,000 bytes"):
            collect(fields=["note"], max_xcom_bytes=nothing)


@pytest.mark.parametrize("name", ["r.jsonl", "r.csv", "r.parquet"])
def test_a_full_disk_leaves_what_was_there(hook: PicasHook, tmp_path: Path, name: str) -> None:
    lives.fill(hook, {State.DONE: 3_000}, note=None)
    for place, token in enumerate(hook.batch_documents("b")):
        if place % 1000 == 0:
            lives.change(hook, token["_id"], note="".join(map(chr, range(0x4E00, 0x9F00))))
    (tmp_path / name).write_text("from before")
    with full_disk(40_000), pytest.raises(FileError, match="cannot be written") as raised:
        collect(fields=["note"], path=str(tmp_path / name))
    assert str(tmp_path / name) in str(raised.value)
    assert files_below(tmp_path) == {name: b"from before"}


def test_a_path_that_is_not_writable_fails(hook: PicasHook, tmp_path: Path) -> None:
    lives.fill(hook, MIXED)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match=r"file/r\.csv cannot be written \(File exists\)"):
        collect(path=str(tmp_path / "file" / "r.csv"))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(FileError, match=r"folder\.csv cannot be written \(Is a directory\)"):
        collect(path=str(tmp_path / "folder.csv"))
    assert files_below(tmp_path) == {"file": b""}
    with pytest.raises(FileError, match=r"/proc/r\.csv cannot be written"):  # not even by root
        collect(path="/proc/r.csv")


def test_nothing_is_left_under_the_name_when_reading_fails(
    hook: PicasHook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_picas.hooks.regex.search.__defaults__", (0.5,))
    lives.fill(hook, {State.ERROR: 2}, error=[{"message": "a" * 64 + "b"}])
    with pytest.raises(AirflowFailException, match="took more than"):
        collect(path=str(tmp_path / "r.csv"), error_pattern="(a+)+$")
    assert files_below(tmp_path) == {}


def test_parquet_without_pyarrow_says_what_to_install(
    hook: PicasHook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lives.fill(hook, MIXED)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(AirflowFailException, match=re.escape("install 'airflow-provider-picas[parquet]'")):
        collect(path=str(tmp_path / "r.parquet"))
    assert files_below(tmp_path) == {}


NAMES = {
    "../../outside": b"1", "/etc/passwd": b"2", "a/b": b"3", "a\0b": b"4", "..": b"5", "Log": b"6", "log": b"7",
    "plain.txt": b"8",
}  # fmt: skip


def test_attachments_stay_in_their_folder(hook: PicasHook, tmp_path: Path) -> None:
    first, second = lives.fill(hook, {State.DONE: 1, State.ERROR: 1})
    lives.attach(hook, first, **NAMES)
    lives.attach(hook, second, big=b"x" * 5_000, small=b"y")
    output = collect(attachments=str(tmp_path / "in"), max_attachment_bytes="1000")["attachments"]
    found = files_below(tmp_path)
    assert all(name.startswith(("in/00000000/", "in/00000001/")) for name in found)
    assert sorted(found.values()) == sorted([*NAMES.values(), b"y"])
    assert len({name.lower() for name in found}) == len(NAMES) + 1
    assert found["in/00000000/plain.txt"] == b"8"
    assert output == {
        "folder": str(tmp_path / "in"),
        "files": 9,
        "bytes": 9,
        "too_large": {"attachments": 1, "names": [f"{second}/big"]},
    }


def test_attachments_by_name_and_of_foreign_tokens(hook: PicasHook, store: ObjectStoragePath) -> None:
    hook.deploy_views()
    for token_id in ("token_1", "Token_1", "../up"):
        lives.write(hook, [{"_id": token_id, "type": "token", **lives.LIVES[State.DONE]}])
        lives.attach(hook, token_id, **{"a.csv": token_id.encode(), "a.log": b"log"})
    folder = store / "attachments"
    output = collect(batch=None, whole_pool=True, attachments=str(folder), attachment_names="*.csv")
    assert output["attachments"]["files"] == 3
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert sorted(file.read_bytes() for file in files) == sorted([b"token_1", b"Token_1", b"../up"])
    assert (folder / "token_1" / "a.csv").read_bytes() == b"token_1"


def test_attachments_that_are_large_or_compressed_come_whole(hook: PicasHook, tmp_path: Path) -> None:
    (token_id,) = lives.fill(hook, {State.DONE: 1})
    text, noise = b"a line\n" * 300_000, os.urandom(1_000_000)
    contents = {"text": text, "noise": noise, "packed": gzip.compress(text), "empty": b""}
    lives.attach(hook, token_id, **contents)
    assert collect(attachments=str(tmp_path))["attachments"]["files"] == 4
    assert files_below(tmp_path / "00000000") == contents


@pytest.mark.parametrize("fault", [Fault.CUT, Fault.DROP, 503])
def test_an_attachment_that_breaks_off_is_fetched_again(
    hook: PicasHook, fault: Fault | int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, proxy: Proxy
) -> None:
    monkeypatch.setattr(http, "wait_before", lambda attempt, retry_after=None: 0.0)
    (token_id,) = lives.fill(hook, {State.DONE: 1})
    noise = os.urandom(300_000)
    lives.attach(hook, token_id, noise=noise)
    proxy.hurt(fault, on="/noise")
    collect(attachments=str(tmp_path), picas_conn_id="through_proxy")
    assert files_below(tmp_path) == {"00000000/noise": noise}


def test_an_attachment_of_another_size_is_not_taken(hook: PicasHook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "wait_before", lambda attempt, retry_after=None: 0.0)
    (token_id,) = lives.fill(hook, {State.DONE: 1})
    lives.attach(hook, token_id, data=b"12345")
    token = hook.get(token_id)
    token["_attachments"]["data"]["length"] = 6
    with pytest.raises(errors.UnavailableError, match="has 6 bytes, but 5 were received"):
        hook.download(token, "data", io.BytesIO())


def test_a_full_disk_leaves_no_half_attachment(hook: PicasHook, tmp_path: Path) -> None:
    (token_id,) = lives.fill(hook, {State.DONE: 1})
    lives.attach(hook, token_id, big=os.urandom(200_000))
    with full_disk(100_000), pytest.raises(FileError, match=r"00000000/big cannot be written"):
        collect(attachments=str(tmp_path))
    assert files_below(tmp_path) == {}


def test_errors_are_grouped_by_cause_with_the_end_of_a_log(hook: PicasHook, caplog: pytest.LogCaptureFixture) -> None:
    ids = lives.fill(hook, {State.DONE: 1, State.ERROR: 6})
    for place, token_id in enumerate(ids[1:4]):
        lives.change(hook, token_id, error=[{"message": f"no file /data/{place}.fits"}], exit_code=2)
    lives.attach(hook, ids[1], **{"attempt-1.err": b"x" * 9_000 + b"\nthe end", "attempt-1.out": b"out"})
    lives.change(hook, ids[4], error=[], exit_code=137)
    for states in ("done", ["done", "error"]):
        groups = collect(states=states)["errors"]
        assert [(group["cause"], group["tokens"]) for group in groups] == [
            ("no file <path> (exit code 2)", 3),
            ("exit code 3: no such file", 2),
            ("exit code 137", 1),
        ]
        assert groups[0]["ids"] == ids[1:4]
        assert groups[0]["log"]["id"] == ids[1]
        assert groups[0]["log"]["name"] == "attempt-1.err"
        assert groups[0]["log"]["tail"].endswith("xxx\nthe end")
        assert len(groups[0]["log"]["tail"]) == 1_000
        assert groups[2]["log"] is None


@pytest.mark.parametrize(
    ("states", "asked", "message"),
    [
        ({State.DONE: 2, State.ERROR: 1}, {"max_errors": 0}, r"1 of 3 tokens failed \(0 allowed\) in batch b\."),
        ({State.DONE: 2, State.TODO: 1}, {"max_errors": 0}, "Not all tokens in"),
        ({State.DONE: 2}, {"max_errors": "0", "batch": {"batch": "b", "tokens": 3}}, "will never be complete"),
    ],
)
def test_too_many_errors_fail_after_collecting(
    hook: PicasHook, states: dict[State, int], asked: dict[str, Any], message: str, tmp_path: Path
) -> None:
    lives.fill(hook, states)
    operator = PicasCollectTokensOperator(task_id="c", **{"batch": "b", "path": str(tmp_path / "r.csv"), **asked})
    task = context("c")
    with pytest.raises(AirflowFailException, match=message):
        operator.execute(task)
    assert task["ti"].xcoms["return_value"]["collected"] == sum(states.values()) - states.get(State.TODO, 0)
    assert (tmp_path / "r.csv").exists()


def test_errors_within_the_budget_do_not_fail_it(hook: PicasHook) -> None:
    lives.fill(hook, {State.DONE: 2, State.ERROR: 1})
    assert collect(max_errors="1")["collected"] == 3


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"batch": "nothing"}, "Batch 'nothing' has no tokens"),
        ({"batch": None}, "`batch` is empty"),
        ({"fields": ["state"]}, "`fields` names 'state'"),
        ({"path": "results.xls"}, "The format of 'results.xls'"),
        ({"path": "results", "file_format": "xls"}, "`file_format` is 'xls'"),
        ({"max_errors": "some"}, "max_errors"),
        ({"max_xcom_bytes": "1 MB"}, "`max_xcom_bytes` is '1 MB'; it takes a whole number"),
        ({"attachments": "in", "max_attachment_bytes": -1}, "`max_attachment_bytes` is -1; it takes a whole number"),
        ({"max_attachment_bytes": "nan"}, "`max_attachment_bytes` is 'nan'"),
    ],
)
def test_what_makes_no_sense_fails_at_once(hook: PicasHook, asked: dict[str, Any], message: str) -> None:
    lives.fill(hook, {State.DONE: 1})
    with pytest.raises(AirflowFailException, match=message):
        collect(**asked)


def test_the_log_says_what_was_collected(hook: PicasHook, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = lives.fill(hook, MIXED)
    lives.attach(hook, ids[2], log=b"12345")
    output = collect(attachments=str(tmp_path / "files"), path=str(tmp_path / "r.csv"))
    size = (tmp_path / "r.csv").stat().st_size
    said = capsys.readouterr().out
    assert f"Batch b: 5 results ({size} bytes) written to {output['path']}: 3 done, 2 in error." in said
    assert f"1 attachments (5 bytes) written to {output['attachments']['folder']}." in said
    collect(attachments=str(tmp_path / "none"), attachment_names="*.png")
    said = capsys.readouterr().out
    assert re.search(r"Batch b: 5 results \([0-9]+ bytes\) pushed to XCom: 3 done, 2 in error\.", said)
    assert f"No attachments were written to {tmp_path}/none: the tokens have none that match *.png." in said
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "arguments", [{"path": "{top}/results/r.jsonl"}, {"attachments": "{top}/files"}, {"path": "{top}/r.csv"}]
)
def test_no_folder_is_made_at_the_top_of_the_file_system(hook: PicasHook, arguments: dict[str, str]) -> None:
    """A volume that is not mounted: the results would go to the disk of whichever worker runs the task."""
    (token_id,) = lives.fill(hook, {State.DONE: 1})
    lives.attach(hook, token_id, log=b"12345")
    top = Path(f"/picas-test-{os.getpid()}")
    with pytest.raises(FileError, match=f"{top} does not exist on this machine"):
        collect(**{name: value.format(top=top) for name, value in arguments.items()})
    assert not top.exists()
