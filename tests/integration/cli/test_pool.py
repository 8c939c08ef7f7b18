"""``airflow-picas status``, ``errors`` and ``logs`` on a pool, as printed in a terminal."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest

from airflow_provider_picas import cli
from airflow_provider_picas.couchdb.http import Request
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.lifecycle import ids
from airflow_provider_picas.tokens import documents
from stack.pool import Pool

pytestmark = pytest.mark.usefixtures("picas_default")

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def say(pool: Pool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Say:
    """Runs a command; its exit code, output and errors, which never hold the password or a control character."""
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "server")  # as commands set it for themselves; it goes again

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(arguments)
        said = capsys.readouterr()
        assert pool.password not in said.out + said.err
        assert all(char.isprintable() or char == "\n" for char in said.out + said.err), said
        return code, said.out, said.err

    return run


def put(*wanted: dict[str, Any]) -> None:
    """Write documents as somebody else does."""
    hook = PicasHook()
    for document in wanted:
        hook.do(hook.pool.put(document))


def token(batch: str, ordinal: int, **fields: Any) -> dict[str, Any]:
    return {**documents.new_token({"input": 1}, batch=batch, push="p#1", ordinal=ordinal), **fields}


def attachment(text: bytes) -> dict[str, str]:
    return {"content_type": "text/plain", "data": base64.b64encode(text).decode()}


def test_status_counts_batches_and_pilots(pool: Pool, say: Say) -> None:
    assert "creates the views with" in say("status")[2]
    PicasHook().deploy_views()
    code, out, _ = say("status")
    assert (code, out) == (0, f"{pool.database} on {pool.url}: 0 todo, 0 locked, 0 done, 0 error\n")
    put(
        *(token("old", number, lock=5, done=9, exit_code=1) for number in range(2)),
        token("new", 0),
        token("third", 0),
    )
    put({**PicasHook().get("old:00000000"), "lock": 5, "done": 9, "exit_code": 0})  # so it has changed last
    now = PicasHook().now()
    lease = {"submission": "picas-pilots-1.1", "lease": 120, "ended": False, "job": "1_0", "hostname": "n1"}
    put({**lease, "_id": "_local/picas-pilot-a", "pilot": "a", "renewed": now})
    put({**lease, "_id": "_local/picas-pilot-b", "pilot": "b", "renewed": now - 7200})
    put({**lease, "_id": "_local/picas-pilot-c", "pilot": "c", "renewed": now, "ended": True})
    put(
        {
            **lease,
            "_id": "_local/picas-pilot-d",
            "pilot": "d",
            "renewed": now - 200_000,
            "submission": "picas-\x1b[31mold",
        }
    )
    put({"_id": "_local/picas-submission-x", "drain": True})
    code, out, _ = say("status", "--limit", "2")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert lines[0][-8:] == ["2", "todo,", "0", "locked,", "1", "done,", "1", "error"]
    assert lines[2][:5] == ["todo", "locked", "done", "error", "batch,"]
    assert lines[3:5] == [["0", "0", "1", "1", "old"], ["1", "0", "0", "0", "third"]]
    assert lines[5] == ["and", "1", "more", "batches", "(--limit)"]
    assert lines[8][:3] == ["1", "1", "1"]
    assert lines[8][-1] == "picas-pilots-1.1"
    assert lines[9] == ["0", "1", "0", "2", "d", "ago", "picas-\\x1b[31mold"]
    assert say("status", "--batch", "new")[1].startswith(f"new in {pool.database} on {pool.url}: 1 todo, 0 locked")
    code, _, err = say("status", "--batch", "none")
    assert code == 1
    assert "Batch 'none' has no tokens" in err


def test_status_without_our_views_and_with_slurm(pool: Pool, spider: str, say: Say) -> None:
    hook = PicasHook()
    hook.deploy_views()
    design = hook.do(hook.pool.get("_design/airflow-picas-1"))
    hook.do(_delete(hook, design))
    code, out, _ = say("status", "--ssh-conn-id", spider)
    assert code == 0
    assert "Batches cannot be listed: the views of airflow-picas-1 are missing" in out
    assert "0 pilots running, 0 pending." in out


def _delete(hook: PicasHook, document: dict[str, Any]) -> Any:
    yield Request("DELETE", hook.pool.document_path(document["_id"]), {"rev": document["_rev"]})


def test_errors_are_grouped_by_cause(pool: Pool, say: Say) -> None:
    PicasHook().deploy_views()
    assert say("errors")[1].startswith("No tokens failed (0 todo")
    failed = {"lock": 5, "done": 9, "exit_code": 3}
    logs = {"attempt-1.err": attachment(b"one\n\x1b[31mred\x1b[0m\x07 \xe2\x80\xae::group::x\r\nlast")}
    put(*(token("b", number, **failed, error=[{"message": f"exit code 3: no file {number}"}]) for number in range(7)))
    put(token("b", 7, lock=5, done=9, exit_code=1, error=[{"message": "\x1b[2Jother"}], _attachments=logs))
    code, out, _ = say("errors", "--batch", "b")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "8 tokens failed. The causes:"
    ids = ", ".join(f"b:{number:08d}" for number in range(5))
    assert lines[1] == f"{7:8}  exit code 3: no file <n> ({ids} and 2 more)"
    assert "\\x1b[<n>Jother (exit code 1) (b:00000007)" in lines[2]
    assert lines[3] == "The end of attempt-1.err of b:00000007:"
    assert lines[4:] == ["one", "\\x1b[31mred\\x1b[0m\\x07 \\u202e: :group::x", "last"]


def test_logs_show_the_attempts_of_a_token(pool: Pool, say: Say) -> None:
    logs = {
        "attempt-1.out": attachment(b"first\n"),
        "attempt-1.err": attachment(b"x" * 5_000_000 + b"\n\tthe end\x1b]0;title\x07\n"),
        "result\x1b.csv": attachment(b"1"),
    }
    attempts = [
        {"reason": "failed: \x1b[1mexit code 3", "hostname": "n1", "slurm_job_id": "7_1", "exit_code": 3},
        "odd",
    ]
    put(token("b", 0, lock=5, done=9, exit_code=1, hostname="n2", _attachments=logs, attempts=attempts))
    code, out, _ = say("logs", "b:00000000")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "b:00000000 is in state error: exit code 1 (on n2)"
    assert lines[1] == "  before: failed: \\x1b[1mexit code 3 (exit code 3, on n1, job 7_1)"
    assert lines[3:5] == ["attempt-1.out (6 bytes):", "first"]
    assert lines[6] == "attempt-1.err (5,000,020 bytes; the last 20,000 are shown):"
    assert len(lines[7]) == 2_000
    assert lines[8] == "        the end\\x1b]0;title\\x07"
    assert lines[-1] == "Other attachments: result\\x1b.csv (1 bytes)"
    assert len(say("logs", "b:00000000", "--bytes", "12")[1]) < 1_000


@pytest.mark.parametrize("name", ["b:1", "_design/Monitor", "..", "", "\x1b[31m", "plain"])
def test_logs_of_a_missing_token_are_an_error(pool: Pool, say: Say, name: str) -> None:
    PicasHook().deploy_views()
    put({"_id": "plain", "type": "other"})
    code, out, err = say("logs", name)
    assert (code, out) == (1, "")
    assert "There is no token" in err


def test_a_token_without_logs_is_reported(pool: Pool, say: Say) -> None:
    put(token("b", 0))
    assert say("logs", "b:00000000") == (0, "b:00000000 is in state todo\nThe token has no logs.\n", "")


def test_faults_are_reported_in_one_line(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    for command in (["status"], ["errors"], ["logs", "x"]):
        code, out, err = say(*command, "--picas-conn-id", "nope")
        assert (code, out) == (1, "")
        assert err.startswith("airflow-picas: Connection 'nope' does not exist.")
        assert "or set `--picas-conn-id` to another one." in err
        assert "There is no database nowhere" in say(*command, "--database", "nowhere")[2]


def test_the_view_of_stages_is_written_once(pool: Pool, say: Say) -> None:
    PicasHook().deploy_views()
    assert say("deploy-views", "--stages")[1].startswith(f"Wrote the design documents {ids.STAGES} to ")
    code, out, _ = say("deploy-views", "--stages")
    assert code == 0
    assert "Wrote" not in out
    assert ids.STAGES in out
