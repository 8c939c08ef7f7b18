"""Tokens that the PiCaS client resets or claims while our pilots hold them: our fields in them never show anything untrue."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_picas import cli
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.lifecycle.transitions import for_display
from airflow_provider_picas.operators.tokens import PicasCollectTokensOperator, PicasResetTokensOperator
from airflow_provider_picas.slurm.credentials import picasconfig
from airflow_provider_picas.submissions import watch
from airflow_provider_picas.tokens.states import State, state_of
from stack import install, paths
from tests.conftest import set_connection
from tests.integration import pilots
from tests.integration.pilots import COUNT, GATE, PASSWORD, Pool, Submission, put_lease, until
from tests.integration.scenarios.test_picas_client import EXAMPLES
from tests.integration.tasks import context

pool, submission = pilots.pool, pilots.submission

TOKEN = "b:0000"
FAIL = "echo oops >&2; sleep 0.2; exit 3"
ATTEMPT = 'echo "$PICAS_ATTEMPT" > output.json'

# A pilot's first step, as the client's own iterators take it, with time between the look at the view and the lock.
CLAIM = """
import sys, time
from pathlib import Path
import picasconfig as c
from picas.clients import CouchDB
from picas.documents import Task
client = CouchDB(url=c.PICAS_HOST_URL, db=c.PICAS_DATABASE, username=c.PICAS_USERNAME, password=c.PICAS_PASSWORD)
(row,) = client.view("todo").rows
Path("viewed").touch()
while len(sys.argv) > 1 and not Path(sys.argv[1]).exists():
    time.sleep(0.05)
task = client.save(Task(client.get(row.id)).lock())
"""
FINISH = (
    CLAIM.replace('"todo"', '"locked"').replace(".lock())", ".done())") + 'task["exit_code"] = 0; client.save(task)'
)

Client = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def client(pool: Pool, tmp_path: Path) -> Client:
    """Starts one of the client's examples, or other code (``-c``), in the folder ``client``, and waits for its end if told to."""
    install.install(["picas"])
    folder = tmp_path / "client"
    shutil.copytree(EXAMPLES, folder)
    (folder / "picasconfig.py").write_bytes(picasconfig(pool.server.url, pool.name, pool.member, PASSWORD))

    def start(*arguments: str, wait: bool = True) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [paths.PICAS_VENV / "bin" / "python", *arguments], cwd=folder, stdin=subprocess.DEVNULL
        )
        assert not wait or process.wait(60) == 0
        return process

    return start


@pytest.fixture(autouse=True)
def hook(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> PicasHook:
    host, _, port = pool.server.url.rpartition(":")
    login = {"schema": pool.name, "login": pool.member, "password": PASSWORD}
    set_connection(monkeypatch, "picas_default", {"conn_type": "picas", "host": host, "port": int(port), **login})
    return PicasHook()


def collected(**arguments: Any) -> dict[str, Any]:
    """The only row of a collect task."""
    collect = PicasCollectTokensOperator(
        task_id="collect", fields=["claim", "seconds", "error", "slurm_job_id"], whole_pool=True, **arguments
    )
    (row,) = collect.execute(context("collect"))["rows"]
    return dict(row)


def fail_and_reset(pool: Pool, submission: Submission, client: Client) -> dict[str, Any]:
    """A token that our pilot put in error and that the client's example reset; it is returned as it was in error."""
    pool.push([{"input": 0}])
    assert submission.run(FAIL, env={"SLURM_JOB_ID": "77"}) == 0
    failed = pool.get(TOKEN)
    assert state_of(failed) is State.ERROR
    client("resetTokens.py", "Monitor/error", "0")
    assert state_of(pool.get(TOKEN)) is State.TODO
    return failed


def test_a_token_that_waits_again_shows_nothing_of_the_attempt_before(
    pool: Pool,
    submission: Submission,
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    failed = fail_and_reset(pool, submission, client)
    assert pool.get(TOKEN)["claim"] == failed["claim"], "the client leaves it"
    row = collected(states="todo")
    left = {name: row[name] for name in ("claim", "seconds", "error", "slurm_job_id")}
    assert left == {"claim": None, "seconds": None, "error": None, "slurm_job_id": None}
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "server")  # which the command sets for itself
    capsys.readouterr()
    assert cli.main(["logs", TOKEN]) == 0
    assert capsys.readouterr().out == f"{TOKEN} is in state todo\nThe token has no logs.\n"


def test_our_pilot_keeps_the_attempt_before_and_begins_anew(pool: Pool, submission: Submission, client: Client) -> None:
    failed = fail_and_reset(pool, submission, client)
    process = submission.start(f"{COUNT}; {ATTEMPT}; {GATE}")
    until(lambda: submission.runs().total() == 1)
    running = pool.get(TOKEN)
    assert {"seconds", "slurm_job_id"}.isdisjoint(running)
    submission.open_gate()
    assert process.wait(60) == 0
    done = pool.get(TOKEN)
    assert (state_of(done), done["output"], done["error"], done["scrub_count"]) == (State.DONE, 2, [], 1)
    assert done["claim"] == running["claim"] != failed["claim"]
    (attempt,) = done["attempts"]
    assert "oops" in attempt.pop("error")
    assert attempt == {
        **{name: failed[name] for name in ("lock", "claim", "seconds", "slurm_job_id")},
        "reason": "reset: not by this package",
    }


def test_attempts_are_counted_anew_after_the_clients_reset(pool: Pool, submission: Submission, client: Client) -> None:
    pool.push([{"max_retries": 1}])
    assert submission.run(FAIL) == 0
    client("resetTokens.py", "Monitor/error", "0")
    assert submission.run(FAIL) == 0
    kinds = [attempt["reason"].partition(":")[0] for attempt in pool.get(TOKEN)["attempts"]]
    assert kinds == ["failed", "reset", "failed"]


def test_a_fields_of_others_called_seconds_or_claim_stay(pool: Pool, submission: Submission) -> None:
    pool.push([{"seconds": 7, "error": ["mine"]}, {"claim": "insurance", "error": ["mine"]}])
    process = submission.start(f"{COUNT}; {GATE}", slots=2)
    until(lambda: submission.runs().total() == 2)
    assert [(doc.get("seconds"), doc["error"]) for doc in pool.docs().values()] == [(7, ["mine"]), (None, ["mine"])]
    submission.open_gate()
    assert process.wait(60) == 0


def test_a_token_that_the_client_took_over_is_not_taken_for_ours(
    pool: Pool, submission: Submission, client: Client, hook: PicasHook, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was reset while our pilot ran it, so that ``pilot`` and ``claim`` are still in it when the client locks it."""
    pool.push([{"input": 0}])
    process = submission.start(f"{COUNT}; {ATTEMPT}; {GATE}", lease=240)
    until(lambda: submission.runs().total() == 1)
    ours = pool.get(TOKEN)
    until(lambda: time.time() >= ours["lock"] + 1)  # a lock has whole seconds
    client("resetTokens.py", "Monitor/locked", "0")
    client("-c", CLAIM)
    theirs = pool.get(TOKEN)
    assert (theirs["pilot"], theirs["claim"]) == (ours["pilot"], ours["claim"]), "the client leaves them"
    assert theirs["lock"] != ours["lock"]

    submission.open_gate()
    until(lambda: "is refused" in submission.log() and submission.files("refused"))
    process.terminate()  # else it waits for the token that is left
    assert process.wait(20) == 0
    put_lease(pool, ours["pilot"], ended=True)
    news = hook.do(watch.check_pilots(hook.pool, None, None, max_scrubs=3, max_lock_age=None))
    assert (news.reaped, news.given_up, news.holders.foreign) == ([], [], (TOKEN,))
    assert submission.run(COUNT, lease=2) == 0
    assert pool.get(TOKEN) == theirs, "neither the wait nor another pilot gives it back"

    client("-c", FINISH)
    row = collected()
    assert (row["state"], row["claim"], row["seconds"]) == ("done", None, None)
    PicasResetTokensOperator(task_id="reset", states="done", whole_pool=True).execute(context("reset"))
    (attempt,) = pool.get(TOKEN)["attempts"]
    assert {"claim", "pilot", "seconds"}.isdisjoint(attempt)


def test_a_token_that_the_client_locks_although_ours_has_it(
    pool: Pool, submission: Submission, client: Client, tmp_path: Path
) -> None:
    """The client locks what it has fetched without a look at its lock: the double runs that a slow server shows now and then."""
    pool.push([{"input": 0}])
    go = tmp_path / "go"
    late = client("-c", CLAIM, str(go), wait=False)
    until((tmp_path / "client" / "viewed").exists)
    process = submission.start(f"{COUNT}; {ATTEMPT}; {GATE}", lease=240)
    until(lambda: submission.runs().total() == 1)
    ours = pool.get(TOKEN)
    until(lambda: time.time() >= ours["lock"] + 1)
    go.touch()
    assert late.wait(60) == 0
    theirs = pool.get(TOKEN)
    assert state_of(theirs) is State.LOCKED
    assert theirs["lock"] > ours["lock"]
    submission.open_gate()
    until(lambda: "is refused" in submission.log() and submission.files("refused"))
    (record,) = submission.files("refused")
    assert json.loads(record.read_text())["change"]["set"]["output"] == 1
    process.terminate()
    assert process.wait(20) == 0
    client("-c", FINISH)
    assert pool.states() == {State.DONE: 1}
    assert "output" not in for_display(pool.get(TOKEN))
