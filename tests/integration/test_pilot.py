"""The pilot on a real database: what it does to tokens, and what must hold when something fails.

The database is the one that PICAS_TEST_COUCHDB_URL names, or the embedded server. The proxy between pilot and database only
passes bytes on, or fails to.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_picas.lifecycle.exit_codes import EX_TEMPFAIL
from airflow_provider_picas.lifecycle.pilot_config import Config
from airflow_provider_picas.lifecycle.transitions import Change
from airflow_provider_picas.pilot import archive
from airflow_provider_picas.pilot.access import Access
from airflow_provider_picas.pilot.claims import Claims
from airflow_provider_picas.pilot.clock import Clock
from airflow_provider_picas.pilot.conflicts import Conflicts
from airflow_provider_picas.pilot.database import Database
from airflow_provider_picas.pilot.errors import Unreachable
from airflow_provider_picas.pilot.identity import Identity
from airflow_provider_picas.pilot.main import Pilot
from airflow_provider_picas.pilot.outbox import Outbox
from airflow_provider_picas.pilot.reaper import Reaper
from airflow_provider_picas.pilot.session import Session
from airflow_provider_picas.pilot.work import DRAIN
from airflow_provider_picas.tokens import views
from airflow_provider_picas.tokens.states import State, state_of
from stack import couchdb, processes
from tests.integration import faults

USER, PASSWORD = "pilot-user", "s3cret-of-the-pool"
NEWEST_FIRST = [f"python3.{minor}" for minor in range(20, 5, -1)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[couchdb.CouchDBAdmin]:
    """A CouchDB: the named one, or the embedded one."""
    url = os.environ.get("PICAS_TEST_COUCHDB_URL")
    if url:
        yield couchdb.CouchDBAdmin.from_url(url)
    else:
        with couchdb.CouchDB(tmp_path_factory.mktemp("couchdb")) as embedded:
            yield embedded


@pytest.fixture(scope="module")
def member(server: couchdb.CouchDBAdmin) -> Iterator[str]:
    """A user with no rights but those of a member."""
    name = f"{USER}-{os.getpid()}"
    server.create_user(name, PASSWORD)
    yield name
    server.delete_user(name)


class Pool:
    """A database with tokens, read and written behind the pilots' backs."""

    def __init__(self, server: couchdb.CouchDBAdmin, name: str, member: str) -> None:
        self.server, self.name, self.member = server, name, member

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        return self.server.request(method, f"/{self.name}/{path}", body)

    def push(self, tokens: list[dict[str, Any]], batch: str = "b") -> None:
        docs = []
        for place, fields in enumerate(tokens):
            new = {"type": "token", "lock": 0, "done": 0, "hostname": "", "scrub_count": 0, "exit_code": ""}
            docs.append({"_id": f"{batch}:{place:04d}", **new, "batch": batch, "ordinal": place, "push": "p", **fields})
        status, rows = self.request("POST", "_bulk_docs", {"docs": docs})
        assert status == 201
        assert all("rev" in row for row in rows), rows

    def docs(self) -> dict[str, dict[str, Any]]:
        """All tokens by id."""
        rows = self.request("GET", "_all_docs?include_docs=true")[1]["rows"]
        return {row["id"]: row["doc"] for row in rows if row["doc"].get("type") == "token"}

    def get(self, token: str) -> dict[str, Any]:
        status, doc = self.request("GET", urllib.parse.quote(token, safe=""))
        assert status == 200, doc
        return dict(doc)

    def put(self, doc: dict[str, Any]) -> None:
        status, answer = self.request("PUT", urllib.parse.quote(doc["_id"], safe="/"), doc)
        assert status == 201, answer

    def states(self) -> Counter[State | None]:
        return Counter(state_of(doc) for doc in self.docs().values())

    def attachment(self, token: str, name: str) -> bytes:
        headers = {"Authorization": "Basic " + base64.b64encode(f"{self.member}:{PASSWORD}".encode()).decode()}
        import urllib.request

        url = f"{self.server.url}/{self.name}/{urllib.parse.quote(token, safe='')}/{name}"
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return bytes(answer.read())

    def leases(self) -> list[dict[str, Any]]:
        rows = self.request("GET", "_local_docs?include_docs=true")[1]["rows"]
        return [row["doc"] for row in rows if row["id"].startswith("_local/picas-pilot-")]


@pytest.fixture
def pool(server: couchdb.CouchDBAdmin, member: str) -> Iterator[Pool]:
    """An empty pool with the design documents, of which the pilots' user is a member."""
    name = f"pilot-{os.getpid()}-{random.randrange(10**9)}"
    server.create_database(name, members=[member])
    pool = Pool(server, name, member)
    for design, doc in views.design_documents().items():
        assert pool.request("PUT", f"_design/{design}", doc)[0] == 201
    yield pool
    server.delete_database(name)


class Submission:
    """A submission's folder, and the pilots that were started in it."""

    def __init__(self, folder: Path, pool: Pool, url: str | None = None) -> None:
        self.folder, self.pool, self.pilots = folder, pool, list[subprocess.Popen[bytes]]()
        self.scratch = Path(tempfile.mkdtemp(prefix="picas-test-"))
        (folder / "credentials").mkdir(parents=True, mode=0o700)
        self.write_credentials(url or pool.server.url)
        (folder / archive.FILE).write_bytes(archive.build())

    def write_credentials(self, url: str, password: str = PASSWORD) -> None:
        names = {"HOST_URL": url, "DATABASE": self.pool.name, "USERNAME": self.pool.member, "PASSWORD": password}
        path = self.folder / "credentials" / "picasconfig.py"
        path.write_text("".join(f"PICAS_{name} = {value!r}\n" for name, value in names.items()))
        path.chmod(0o600)

    def start(
        self, command: str | list[str], *, python: str = sys.executable, env: dict[str, str] | None = None, **keys: Any
    ) -> subprocess.Popen[bytes]:
        """Start a pilot. Its log is ``pilot-<n>.log`` in the folder."""
        name = f"pilot-{len(self.pilots)}"
        config = self.write_config(name, command, **keys)
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [python, str(self.folder / archive.FILE), str(config)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**self.environment(), **(env or {})},
            )
        self.pilots.append(process)
        return process

    def write_config(self, name: str, command: str | list[str], **keys: Any) -> Path:
        config = self.folder / f"{name}.json"
        config.write_text(json.dumps({"command": command, "submission": "sub-1", "batch": "b", "lease": 30, **keys}))
        return config

    def environment(self) -> dict[str, str]:
        """What pilots are started with."""
        return {**os.environ, "TMPDIR": str(self.scratch), "RUNS": str(self.folder / "runs")}

    def run(self, command: str | list[str], *, seconds: float = 60, **keys: Any) -> int:
        """Run one pilot to its end; returns its exit code."""
        return self.start(command, **keys).wait(seconds)

    def log(self, number: int = -1) -> str:
        return (self.folder / f"pilot-{range(len(self.pilots))[number]}.log").read_text()

    def runs(self) -> Counter[str]:
        """How often each token was run, for commands that append its id to ``$RUNS``."""
        path = self.folder / "runs"
        return Counter(path.read_text().split("\n")[:-1]) if path.exists() else Counter()

    def open_gate(self) -> None:
        """Let commands go on that wait at ``GATE``."""
        (self.folder / "runs.go").touch()

    def files(self, kind: str) -> list[Path]:
        return sorted((self.folder / kind).glob("*.json"))

    def close(self) -> None:
        self.open_gate()
        for process in self.pilots:
            if process.poll() is None:
                process.kill()
            process.wait()
        subprocess.run(["chmod", "-R", "u+rwx", str(self.scratch)], check=False)
        subprocess.run(["rm", "-rf", str(self.scratch)], check=True)  # the guard of a pilot may be at it, too


@pytest.fixture
def submission(tmp_path: Path, pool: Pool) -> Iterator[Submission]:
    """The folder of a submission whose pilots reach the database directly."""
    made = Submission(tmp_path / "submission", pool)
    yield made
    made.close()


@contextlib.contextmanager
def session_of_a_pilot(pool: Pool, url: str, **keys: Any) -> Iterator[Session]:
    """What the claims and the reaper of a pilot work with."""
    config = Config(command="true", submission="s", **{"batch": "b", "lease": 4, **keys})
    clock = Clock(config.lease / 2)
    access = Access(url, pool.name, pool.member, PASSWORD, "")
    database = Database(access, config, clock)
    yield Session(database, config, Identity("me", "here", None, (0, 1)), clock, clock.contact)
    database._connection.close()


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


COUNT = 'echo "$PICAS_TOKEN_ID" >> "$RUNS"'
GATE = 'until [ -e "$RUNS.go" ]; do sleep 0.05; done'


# --- what the command sees, and what the token gets --------------------------------------------------------------------


def test_a_token_is_run_and_its_result_written(pool: Pool, submission: Submission) -> None:
    (submission.folder / "process.sh").write_text(
        "#!/bin/sh\n"
        'echo "input is $PICAS_INPUT"; echo oops >&2; pwd > "$RUNS"\n'
        'test -f token.json && test "$(cat side.txt)" = beside || exit 9\n'
        'echo "{\\"answer\\": \\"$PICAS_FIELD_COLOUR\\", \\"file\\": \\"$PICAS_TOKEN_FILE\\"}" > "$PICAS_OUTPUT_FILE"\n'
    )
    (submission.folder / "process.sh").chmod(0o755)
    (submission.folder / "side.txt").write_text("beside")
    pool.push([{"input": "seven", "colour": "blue", "note": {"kept": [1, 2.5, None]}}])
    before = time.time()
    env = {"SLURM_JOB_ID": "17", "SLURM_ARRAY_JOB_ID": "15", "SLURM_ARRAY_TASK_ID": "2"}
    assert submission.run("./process.sh", files=["process.sh", "side.txt"], env=env) == 0, submission.log()

    doc = pool.get("b:0000")
    assert state_of(doc) is State.DONE
    assert (doc["exit_code"], doc["hostname"], doc["slurm_job_id"]) == (0, socket.gethostname(), "15_2")
    assert doc["output"] == {"answer": "blue", "file": doc["output"]["file"]}
    assert doc["note"] == {"kept": [1, 2.5, None]}
    assert before - 5 < doc["lock"] <= doc["done"] < before + 60
    assert doc["seconds"] > 0
    assert "pilot" not in doc
    assert doc["scrub_count"] == 0
    assert not doc.get("attempts")
    assert pool.attachment("b:0000", "attempt-1.out") == b"input is seven\n"
    assert pool.attachment("b:0000", "attempt-1.err") == b"oops\n"
    assert not Path((submission.folder / "runs").read_text().strip()).exists(), "the scratch folder stayed"
    assert list(submission.scratch.iterdir()) == []
    (lease,) = pool.leases()
    assert lease["ended"] is True
    assert (lease["job"], lease["submission"], lease["counts"]) == ("15_2", "sub-1", {"done": 1})


def test_input_reaches_the_command_as_data(pool: Pool, submission: Submission) -> None:
    nasty = "'quotes\" $(touch /nowhere/x) `id`\nnewline; é\\ \u2028"
    pool.push(
        [
            {"input": nasty, "LD_PRELOAD": "/nowhere/evil.so", "PATH": "/nowhere", "number": 1.5, "yes": True},
            {"input": {"nested": [1]}, "with\0": "x", "zero": "a\0b"},
            {"input": "x" * 1_000_000},
            {"input": "a\0b"},
        ]
    )
    show = (
        "import json, os; env = {k: v for k, v in os.environ.items() if k.startswith(('PICAS', 'LD_'))};"
        "json.dump(dict(env, size=len(json.load(open('token.json'))['input'])), open(os.environ['PICAS_OUTPUT_FILE'], 'w'))"
    )
    assert submission.run([sys.executable, "-c", show]) == 0, submission.log()
    docs = pool.docs()
    assert {state_of(doc) for doc in docs.values()} == {State.DONE}, docs
    first, second, third, fourth = (docs[f"b:000{place}"]["output"] for place in range(4))
    assert first["PICAS_INPUT"] == nasty
    assert first["PICAS_FIELD_PATH"] == "/nowhere"
    assert "LD_PRELOAD" not in first
    assert (first["PICAS_FIELD_NUMBER"], first["PICAS_FIELD_YES"]) == ("1.5", "true")
    assert json.loads(second["PICAS_INPUT"]) == {"nested": [1]}
    assert second["PICAS_OMITTED"] == "PICAS_FIELD_ZERO"
    assert "PICAS_INPUT" not in third
    assert third["PICAS_OMITTED"] == "PICAS_INPUT"
    assert third["size"] == 1_000_000
    assert "PICAS_INPUT" not in fourth, "no variable can hold a NUL: the token's file has it"
    assert (fourth["PICAS_OMITTED"], fourth["size"]) == ("PICAS_INPUT", 3)


def test_credentials_stay_with_the_pilot(pool: Pool, submission: Submission) -> None:
    pool.push([{"input": ""}])
    folder = submission.folder / "credentials"
    env = {"PYTHONPATH": f"{folder}{os.pathsep}/kept", "PICAS_PASSWORD": PASSWORD}
    command = 'env; echo "path=$PYTHONPATH"; tr "\\0" " " < /proc/$PPID/cmdline; tr "\\0" "\\n" < /proc/$$/environ'
    assert submission.run(command, env=env, credentials="existing") == 0, submission.log()
    out = pool.attachment("b:0000", "attempt-1.out").decode()
    assert "path=/kept\n" in out
    assert PASSWORD not in out
    assert PASSWORD not in submission.log()
    assert str(folder) not in out


def test_output_of_any_kind(pool: Pool, submission: Submission) -> None:
    """Bytes that are no UTF-8, more than is kept, a folder that is gone or read-only, children that stay."""
    commands = [
        "printf '\\377\\376\\000x'; printf '\\200' >&2",
        "head -c 50000000 /dev/zero | tr '\\0' a; echo the end",
        'rm -rf "$PWD"; echo gone',
        "mkdir -p a/b; touch a/b/c; chmod 000 a/b a .",
        "echo $$ > /dev/null; sleep 300 & setsid sh -c 'exec > /dev/null 2>&1; sleep 301 & sleep 302' & sleep 0.3; echo left",
        "mkfifo output.json; rm -f output.json; mkfifo output.json",
        "echo nonsense > output.json",
        "echo '{\"x\": NaN}' > output.json",
        "head -c 2000000 /dev/zero | tr '\\0' 1 > output.json",
    ]
    pool.push([{"input": command} for command in commands])
    started = time.monotonic()
    assert submission.run('eval "$PICAS_INPUT"', log_bytes=100_000) == 0, submission.log()
    assert time.monotonic() - started < 45
    docs = [pool.docs()[f"b:{place:04d}"] for place in range(len(commands))]
    assert [doc["exit_code"] for doc in docs] == [0, 0, 0, 0, 0, 65, 65, 65, 65], docs
    assert pool.attachment("b:0000", "attempt-1.out") == b"\xff\xfe\x00x"
    assert pool.attachment("b:0000", "attempt-1.err") == b"\x80"
    big = pool.attachment("b:0001", "attempt-1.out")
    assert big.startswith(b"[49,900,008 bytes omitted]\n")
    assert big.endswith(b"aaathe end\n")
    assert len(big) < 100_100
    assert pool.attachment("b:0002", "attempt-1.out") == b"gone\n"
    assert "output.json is not valid JSON" in docs[6]["error"][-1]["message"]
    assert "2,000,000" not in docs[8]["error"][-1]["message"]
    assert list(submission.scratch.iterdir()) == []
    assert not left_behind(submission), "children of a command are still there"


def test_a_gigabyte_of_output_takes_neither_memory_nor_disk(pool: Pool, submission: Submission) -> None:
    command = (
        "head -c 1000000000 /dev/zero | tr '\\0' a; echo the end;"
        ' echo [$(grep VmHWM /proc/$PPID/status | tr -dc 0-9), $(du -sk "$TMPDIR" | cut -f1)] > output.json'
    )
    pool.push([{}])
    assert submission.run(command, log_bytes=2_000_000) == 0, submission.log()
    out = pool.attachment("b:0000", "attempt-1.out")
    assert out.startswith(b"[998,000,008 bytes omitted]\naaa")
    assert out.endswith(b"aaathe end\n")
    assert len(out) < 2_000_100
    memory, disk = pool.get("b:0000")["output"]
    assert memory < 100_000, "KiB that the pilot had at most"
    assert disk < 100, "KiB in its scratch folder"


def left_behind(submission: Submission) -> list[str]:
    """Command lines of processes that a pilot of this submission started and that still run."""
    mark = f"RUNS={submission.folder / 'runs'}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def test_a_failed_token_is_retried_and_its_attempts_kept(pool: Pool, submission: Submission) -> None:
    pool.push([{"input": 1}, {"input": 1, "max_retries": 0}, {"input": 7}, {"input": 0}])
    command = COUNT + '; echo "try $PICAS_ATTEMPT"; echo because >&2; exit "$PICAS_INPUT"'
    assert submission.run(command, max_retries=2, no_retry_exit_codes=[7]) == 0, submission.log()
    assert submission.runs() == {"b:0000": 3, "b:0001": 1, "b:0002": 1, "b:0003": 1}
    doc = pool.get("b:0000")
    assert state_of(doc) is State.ERROR
    assert (doc["exit_code"], doc["scrub_count"], len(doc["attempts"])) == (1, 2, 2)
    assert doc["attempts"][0]["reason"] == "failed: exit code 1: because"
    assert doc["attempts"][0]["exit_code"] == 1
    assert doc["error"][-1]["message"] == "exit code 1: because"
    assert [pool.attachment("b:0000", f"attempt-{n}.out") for n in (1, 2, 3)] == [b"try 1\n", b"try 2\n", b"try 3\n"]
    assert state_of(pool.get("b:0003")) is State.DONE


def test_retries_keep_ten_logs_at_most(pool: Pool, submission: Submission) -> None:
    old = [{"reason": "pushed again", "lock": 1} for _ in range(10)]
    stubs = {f"attempt-{n}.out": {"content_type": "text/plain", "data": "eA=="} for n in range(1, 16)}
    stubs["input.dat"] = {"content_type": "text/plain", "data": "eA=="}
    pool.push([{"input": "", "attempts": old, "_attachments": stubs}])
    assert submission.run("echo $PICAS_ATTEMPT; false", max_retries=1) == 0
    doc = pool.get("b:0000")
    assert len(doc["attempts"]) == 10
    assert sorted(doc["_attachments"]) == sorted(["input.dat", *(f"attempt-{n}.out" for n in range(7, 18))])
    assert pool.attachment("b:0000", "attempt-17.out") == b"17\n"


def test_limits_hold_for_attempts_that_are_not_kept_any_more(pool: Pool, submission: Submission) -> None:
    failed, died = {"reason": "failed: x"}, {"reason": "reaped: x"}
    many = [{**died, "earlier": {"reaped": 5}}, *[died] * 9]
    pool.push([{"input": 1, "attempts": [failed] * 8 + [died] * 2}, {"input": 0, "attempts": many}])
    assert submission.run(COUNT + '; exit "$PICAS_INPUT"', max_retries=9) == 0, submission.log()
    assert submission.runs() == {"b:0000": 2, "b:0001": 1}
    assert pool.states() == {State.ERROR: 1, State.DONE: 1}


def test_time_limit(pool: Pool, submission: Submission) -> None:
    pool.push([{"input": "sleep 60"}, {"input": "trap '' TERM; sleep 60", "time_limit": 1}])
    started = time.monotonic()
    assert submission.run('eval "$PICAS_INPUT"', time_limit=0.7, kill_after=1, slots=2) == 0
    assert time.monotonic() - started < 15
    for doc in pool.docs().values():
        assert state_of(doc) is State.ERROR
        assert doc["exit_code"] == 124
        assert "time limit" in doc["error"][-1]["message"]


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ("./missing.sh --x", 127, "does not exist"),
        (["./plain.txt"], 126, "not executable"),
        ("no-such-program-here", 127, "Command no-such-program-here not found"),
    ],
)
def test_a_command_that_cannot_be_run_is_said_once(
    pool: Pool, submission: Submission, command: Any, code: int, says: str
) -> None:
    (submission.folder / "plain.txt").write_text("x")
    pool.push([{"input": ""}] * 3)
    assert submission.run(command, files=["plain.txt"]) == code
    assert says in submission.log()
    assert pool.states() == {State.TODO: 3}


def test_a_command_that_goes_missing_later_is_the_tokens_fault(pool: Pool, submission: Submission) -> None:
    pool.push([{"input": ""}])
    assert submission.run("cd . && ./missing.sh") == 0
    doc = pool.get("b:0000")
    assert doc["exit_code"] == 127
    assert "missing.sh" in doc["error"][-1]["message"]


def test_an_exit_code_stops_the_pilot(pool: Pool, submission: Submission) -> None:
    pool.push([{"input": ""}] * 3)
    assert submission.run(COUNT + "; exit 42", stop_exit_codes=[42]) == 42
    assert pool.states() == {State.TODO: 3}
    assert sum(submission.runs().values()) == 1
    ((token, _),) = submission.runs().items()
    assert "exit code 42" in pool.get(token)["attempts"][0]["reason"]


def test_progress_is_in_the_lease(pool: Pool, submission: Submission) -> None:
    pool.push([{"input": ""}])
    submission.start("echo '{\"step\": 3}' > $PICAS_PROGRESS_FILE; sleep 30", lease=3)
    until(
        lambda: [lease.get("running", {}).get("b:0000", {}).get("progress") for lease in pool.leases()] == [{"step": 3}]
    )


# --- claiming --------------------------------------------------------------------------------------------------------


def test_many_pilots_run_each_token_once(pool: Pool, submission: Submission) -> None:
    pool.push([{"input": place} for place in range(400)])
    pilots = [submission.start(COUNT, lease=20) for _ in range(8)]
    assert [process.wait(120) for process in pilots] == [0] * 8, submission.log()
    assert Counter(submission.runs().values()) == {1: 400}
    assert pool.states() == {State.DONE: 400}
    assert [lease["ended"] for lease in pool.leases()] == [True] * 8, [submission.log(place) for place in range(8)]


def test_a_pilot_of_an_array_begins_with_its_share(pool: Pool, submission: Submission) -> None:
    """So those of an array do not meet; then it goes on with what is left to others."""
    pool.push([{"input": place} for place in range(100)])
    rows = pool.request("GET", "_design/airflow-picas-1/_view/todo?reduce=false&startkey=%5B%22b%22%5D")[1]["rows"]
    third_of_four = {row["id"] for row in rows if row["key"][0] == "b" and 2**30 <= row["key"][3] < 1.5 * 2**30}
    assert len(third_of_four) > 5
    array = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_COUNT": "4"}
    assert submission.run(COUNT, env=array, max_claim=5) == 0
    assert set(list(submission.runs())[: len(third_of_four)]) == third_of_four
    assert Counter(submission.runs().values()) == {1: 100}


def test_a_row_of_the_view_is_no_proof(pool: Pool, submission: Submission) -> None:
    """Between the view and the fetch of its documents others claim: this view shows their tokens for ever."""
    design = pool.request("GET", "_design/airflow-picas-1")[1]
    map_all = "function (doc) { if (doc.type == 'token') { emit([doc.batch, '//', 0, doc.ordinal], null); } }"
    pool.put({**design, "views": {**design["views"], "todo": {"map": map_all, "reduce": "_count"}}})
    pool.push([{"lock": 1000, "hostname": "x"}, {}, {"lock": 1000, "done": 1001, "exit_code": 0}])
    submission.start(COUNT, wait_for_work=20)
    until(lambda: pool.states()[State.DONE] == 2)
    time.sleep(1)
    assert submission.runs() == {"b:0001": 1}


def test_beside_other_batches_and_classes(pool: Pool, submission: Submission) -> None:
    pool.push([{"cores": 4}, {"cores": 4, "priority": 2}, {}, {"priority": 1}, {"priority": 5}])
    pool.push([{}], batch="other")
    assert submission.run(COUNT, classes=["4//"], max_claim=1) == 0
    assert list(submission.runs()) == ["b:0001", "b:0000"]
    assert submission.run(COUNT, max_claim=1) == 0
    assert list(submission.runs())[2:] == ["b:0004", "b:0003", "b:0002"]
    assert submission.run(COUNT, batch=None) == 0
    assert list(submission.runs())[5:] == ["other:0000"]


def test_the_best_priority_of_all_classes_goes_first(pool: Pool, submission: Submission) -> None:
    pool.push([{"priority": 1}, {"cores": 1, "priority": 3}, {"cores": 2}, {"gpu": "a100", "priority": 2}])
    assert submission.run(COUNT, max_claim=1) == 0
    assert list(submission.runs()) == ["b:0001", "b:0003", "b:0000", "b:0002"]


@pytest.fixture
def deep_json() -> Iterator[None]:
    """Let this process, unlike pilots, read and write JSON that is nested deeply."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10_000)
    yield
    sys.setrecursionlimit(limit)


@pytest.mark.parametrize("views_of", ["provider", "picas"])
@pytest.mark.usefixtures("deep_json")
def test_a_token_nested_too_deeply_stops_no_pilot(pool: Pool, submission: Submission, views_of: str) -> None:
    """Neither one that Python's JSON cannot read, nor one that it could not write; and those behind them are found."""
    if views_of == "picas":
        design = pool.request("GET", "_design/airflow-picas-1")[1]
        assert pool.request("DELETE", f"_design/airflow-picas-1?rev={design['_rev']}")[0] == 200
    deep: list[Any] = []
    for _ in range(960):
        deep = [deep]
    deeper = deep
    for _ in range(1000):
        deeper = [deeper]
    put_lease(pool, "dead", ended=True)
    pool.push([{"input": deep, "priority": 5}, {"input": deeper, "priority": 5}, {"input": deeper}, {}, {}, {}])
    pool.push(
        [{**token, "batch": "b", "input": deeper if token["claim"] == "0-1000" else 1} for token in held("dead", 3)],
        "b:locked",
    )
    assert submission.run(COUNT) == 0, submission.log()
    assert submission.runs() == dict.fromkeys(["b:0003", "b:0004", "b:0005", "b:locked:0001", "b:locked:0002"], 1)
    for bad in ("b:0000", "b:0001", "b:0002", "b:locked:0000"):
        assert submission.log().count(f"{bad} is nested more than 500 deep. It is skipped.") == 1
    states = {name: state_of(doc) for name, doc in pool.docs().items()}
    assert {name for name, state in states.items() if state is State.TODO} == {"b:0000", "b:0001", "b:0002"}
    assert {name for name, state in states.items() if state is State.LOCKED} == {"b:locked:0000"}


@pytest.mark.usefixtures("deep_json")
def test_a_token_that_is_mended_can_be_read_again(pool: Pool) -> None:
    """A result that waits for it can be written then."""
    deep: list[Any] = []
    for _ in range(960):
        deep = [deep]
    pool.push([{"input": deep}, {}])
    with session_of_a_pilot(pool, pool.server.url) as session:
        ids, database = ["b:0000", "b:0001"], session.database
        assert [name for name, doc in database.read(ids).items() if doc] == ["b:0001"]
        pool.put({**pool.get("b:0000"), "input": 1})
        assert all(database.read(ids).values())


def test_a_pool_with_picas_own_views(pool: Pool, submission: Submission) -> None:
    design = pool.request("GET", "_design/airflow-picas-1")[1]
    assert pool.request("DELETE", f"_design/airflow-picas-1?rev={design['_rev']}")[0] == 200
    pool.push([{"priority": place, "cores": place % 2} for place in range(6)])
    pool.push([{}], batch="other")
    assert submission.run(COUNT, classes=["1//"]) == 0, submission.log()
    assert sorted(submission.runs()) == ["b:0001", "b:0003", "b:0005"]
    assert submission.run(COUNT) == 0
    assert sorted(submission.runs()) == [f"b:000{place}" for place in range(6)]


def test_slots_run_at_the_same_time(pool: Pool, submission: Submission) -> None:
    pool.push([{}] * 8)
    command = 'echo + >> "$RUNS"; sleep 1; echo - >> "$RUNS"'
    assert submission.run(command, slots=4) == 0
    marks = (submission.folder / "runs").read_text().split()
    running = [marks[: place + 1].count("+") - marks[: place + 1].count("-") for place in range(len(marks))]
    assert max(running) == 4
    assert len(marks) == 16


def test_a_free_slot_asks_seldom_while_others_work(
    pool: Pool, behind_proxy: Submission, server: couchdb.CouchDBAdmin
) -> None:
    """Each question is a request, and a token may run for hours."""
    pool.push([{"input": seconds} for seconds in (5, *[0.05] * 20)])
    with faults.Proxy(server.url) as counting:
        behind_proxy.write_credentials(counting.url)
        assert behind_proxy.run('sleep "$PICAS_INPUT"', slots=2) == 0
        asked = [request for request in counting.requests if "/todo?" in request]
    assert pool.states() == {State.DONE: 21}
    assert len(asked) < 30, asked


def test_unstarted_tokens_do_not_wait_behind_a_long_one(pool: Pool, submission: Submission) -> None:
    pool.push([{"input": ":", "priority": 1}] * 30 + [{"input": GATE}] + [{"input": ":", "priority": -1}] * 30)
    long = "b:0030"
    submission.start(COUNT + '; eval "$PICAS_INPUT"', lease=6)

    def ran_for() -> int:
        """Seconds, as the pilot writes them into its lease."""
        running = [lease["running"] for lease in pool.leases()]
        return int(running[0][long]["seconds"]) if running and long in running[0] else 0

    def given_back() -> list[dict[str, Any]]:
        """Tokens that were claimed (second revision) and released (third)."""
        todo = [doc for doc in pool.docs().values() if state_of(doc) is State.TODO]
        return [doc for doc in todo if int(doc["_rev"].partition("-")[0]) >= 3]

    # A pilot claims ahead until a token has run twice as long as the mean, and not at all when that is above 2 s.
    until(lambda: ran_for() >= 5 and given_back() and pool.states()[State.LOCKED] == 1, 120)
    for _ in range(10):
        assert pool.states()[State.LOCKED] == 1, "more are claimed although none can be started"
        time.sleep(0.1)
    assert submission.runs()[long] == 1
    assert {(doc["scrub_count"], "attempts" in doc, "pilot" in doc) for doc in given_back()} == {(0, False, False)}


def test_waits_for_work(pool: Pool, submission: Submission) -> None:
    process = submission.start(COUNT, wait_for_work=20)
    time.sleep(2)
    pool.push([{}] * 2)
    until(lambda: submission.runs().total() == 2)
    assert process.poll() is None


def test_nothing_is_claimed_that_would_not_fit(pool: Pool, submission: Submission) -> None:
    pool.push([{"time": 10}, {"time": 1}, {}])
    env = {"SLURM_JOB_END_TIME": str(int(time.time()) + 120)}
    assert submission.run(COUNT, env=env) == 0
    assert sorted(submission.runs()) == ["b:0001", "b:0002"]
    assert "no token fits" in submission.log()


def test_the_end_of_the_job_gives_tokens_back(pool: Pool, submission: Submission) -> None:
    pool.push([{}])
    env = {"SLURM_JOB_END_TIME": str(int(time.time()) + 13)}
    assert submission.run("sleep 60", env=env, margin=0, seconds=30) == 0
    doc = pool.get("b:0000")
    assert state_of(doc) is State.TODO
    assert doc["attempts"][0]["reason"] == "given back: the job is about to reach its wall-clock limit"


# --- stopping --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_gives_tokens_back_within_ten_seconds(
    pool: Pool, submission: Submission, what: signal.Signals
) -> None:
    pool.push([{"input": "trap '' TERM; sleep 60"}] * 2 + [{"input": "sleep 60"}] * 2)
    process = submission.start(COUNT + '; eval "$PICAS_INPUT"', slots=3)
    until(lambda: submission.runs().total() == 3)
    started = time.monotonic()
    process.send_signal(what)
    assert process.wait(20) == 0
    assert time.monotonic() - started < 10
    assert pool.states() == {State.TODO: 4}
    for token, doc in pool.docs().items():
        assert doc["scrub_count"] == submission.runs()[token]
        assert "pilot" not in doc
        assert "slurm_job_id" not in doc
    assert not left_behind(submission)
    assert pool.leases()[0]["ended"] is True


def test_a_command_that_gets_the_pilots_signal_too_has_not_failed(pool: Pool, submission: Submission) -> None:
    """Slurm signals every process of a job: the command dies a moment before the pilot hears of it."""
    pool.push([{}])
    process = submission.start(COUNT + "; exec sleep 60")
    until(lambda: submission.runs().total() == 1)
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split() or [""]
    children = [
        int(pid)
        for task in Path(f"/proc/{process.pid}/task").iterdir()
        for pid in (task / "children").read_text().split()
    ]
    process.send_signal(signal.SIGSTOP)
    for pid in children:
        os.kill(pid, signal.SIGTERM)
    process.terminate()
    process.send_signal(signal.SIGCONT)
    assert process.wait(20) == 0
    assert state_of(pool.get("b:0000")) is State.TODO
    assert pool.get("b:0000")["attempts"][0]["reason"].startswith("given back")
    assert child is not None


def test_drain(pool: Pool, submission: Submission) -> None:
    pool.push([{}] * 4)
    process = submission.start(f"{COUNT}; {GATE}", lease=12)
    until(lambda: submission.runs().total() == 1)
    assert pool.request("PUT", "_local/picas-submission-sub-1", {"drain": True})[0] == 201
    until(lambda: "drained" in submission.log())
    submission.open_gate()
    assert process.wait(30) == 0
    assert pool.states() == {State.DONE: 1, State.TODO: 3}


# --- pilots that die -------------------------------------------------------------------------------------------------


def test_another_pilot_takes_the_tokens_of_a_killed_one(pool: Pool, submission: Submission) -> None:
    """The other one had found nothing to do before: it lingers for a lease."""
    pool.push([{}] * 3)
    command = COUNT + '; test "$(wc -l < "$RUNS")" -gt 3 || sleep 60'
    victim = submission.start(command, slots=3, lease=4)
    until(lambda: submission.runs().total() == 3)
    other = submission.start(command, lease=4)
    until(lambda: "Pilot " in submission.log())
    time.sleep(1)
    killed = time.monotonic()
    victim.kill()
    until(lambda: submission.runs().total() > 3)
    print(f"claimed again {time.monotonic() - killed:.1f} s after the kill, with a lease of 4 s")
    assert time.monotonic() - killed < 4 + 5
    assert other.wait(30) == 0
    assert pool.states() == {State.DONE: 3}
    assert set(submission.runs().values()) == {2}
    doc = pool.get("b:0000")
    assert doc["scrub_count"] == 1
    assert re.match(r"reaped: pilot \S+ \(job None on .*\) was not heard for", doc["attempts"][0]["reason"])


def test_a_token_that_kills_its_pilots_ends_in_error_and_spares_the_others(pool: Pool, submission: Submission) -> None:
    pool.push([{"input": place} for place in range(12)])
    command = COUNT + '; test "$PICAS_INPUT" != 5 || kill -9 $PPID'
    for _ in range(8):
        if pool.states()[State.TODO] + pool.states()[State.LOCKED] == 0:
            break
        submission.run(command, lease=2, max_scrubs=2, wait_for_work=5)
    docs = pool.docs()
    assert state_of(docs["b:0005"]) is State.ERROR
    assert submission.runs()["b:0005"] == 3
    assert "3 pilots died" in docs["b:0005"]["error"][-1]["message"]
    assert pool.states() == {State.DONE: 11, State.ERROR: 1}
    assert max(doc["scrub_count"] for name, doc in docs.items() if name != "b:0005") <= 1


def test_a_token_locked_by_a_picas_client_is_left_alone(pool: Pool, submission: Submission) -> None:
    """Also when it still carries the fields of a pilot that had it before somebody reset it by hand."""
    pool.push([{"lock": 1000, "hostname": "x"}, {"lock": 2000, "pilot": "long-gone", "claim": "abc-1000"}])
    assert submission.run(COUNT, lease=2) == 0
    assert pool.states() == {State.LOCKED: 2}


def held(pilot_id: str, count: int) -> list[dict[str, Any]]:
    """The fields of tokens that a pilot has claimed."""
    return [{"lock": 1000, "hostname": "x", "pilot": pilot_id, "claim": f"{place}-1000"} for place in range(count)]


def put_lease(pool: Pool, pilot_id: str, *, age: float = 0, ended: bool = False) -> None:
    """The lease of 4 s of a pilot that was heard ``age`` seconds ago."""
    lease = {"pilot": pilot_id, "renewed": int(time.time() - age), "lease": 4, "ended": ended}
    assert pool.request("PUT", f"_local/picas-pilot-{pilot_id}", lease)[0] == 201


@pytest.mark.parametrize("batch", ["b", None])
def test_tokens_of_the_dead_are_found_behind_many_of_the_living(pool: Pool, batch: str | None) -> None:
    put_lease(pool, "living", age=-3600)
    put_lease(pool, "dead", ended=True)
    scripts = [{"lock": 1000, "hostname": "a PiCaS client's"}] * 600
    pool.push(scripts + held("living", 600) + held("dead", 3))
    with session_of_a_pilot(pool, pool.server.url, batch=batch) as session:
        reaper = Reaper(session)
        assert reaper.reap() == (3, True)
        assert reaper.reap() == (0, True)
        put_lease(pool, "living", ended=True)
        reaper = Reaper(session)
        assert reaper.reap() == (600, False)
    assert pool.states() == {State.LOCKED: 600, State.TODO: 603}


def test_a_round_is_bounded_and_the_next_one_goes_on(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reaper, "PAGE", 2)
    monkeypatch.setattr(Reaper, "PAGES", 3)
    put_lease(pool, "living", age=-3600)
    put_lease(pool, "dead", ended=True)
    scripts = [{"lock": 1000, "hostname": "a PiCaS client's"}] * 12
    pool.push(held("dead", 2) + held("living", 1) + scripts + held("dead", 1))
    with session_of_a_pilot(pool, pool.server.url) as session:
        reaper = Reaper(session)
        assert [reaper.reap() for _ in range(8)] == [(2, True), (0, True), (1, True)] + [(0, True)] * 5
        put_lease(pool, "living", ended=True)
        reaper = Reaper(session)
        assert [reaper.reap() for _ in range(4)] == [(1, True), (0, True), (0, False), (0, False)]
    assert pool.states() == {State.LOCKED: 12, State.TODO: 4}


def test_a_pilot_whose_token_was_taken_stops_work_on_it(pool: Pool, submission: Submission) -> None:
    pool.push([{}])
    process = submission.start(COUNT + "; sleep 60", lease=3)
    until(lambda: submission.runs().total() == 1)
    doc = pool.get("b:0000")
    pool.put({**doc, "claim": "other-1", "pilot": "other", "lock": doc["lock"] + 1})
    until(lambda: "was taken by another pilot" in submission.log())
    until(lambda: not [line for line in left_behind(submission) if "sleep" in line])
    assert pool.get("b:0000")["claim"] == "other-1"
    process.terminate()
    assert process.wait(20) == 0
    assert pool.get("b:0000")["claim"] == "other-1"


def test_a_late_result_is_refused_and_recorded(pool: Pool, submission: Submission) -> None:
    pool.push([{}])
    process = submission.start(f"{COUNT}; echo '\"late\"' > output.json; {GATE}", lease=240)
    until(lambda: submission.runs().total() == 1)
    doc = pool.get("b:0000")
    taken = {**doc, "claim": "other-1", "pilot": "other", "lock": doc["lock"] + 1, "hostname": "elsewhere"}
    pool.put(taken)
    submission.open_gate()
    until(lambda: "is refused" in submission.log() and submission.files("refused"))
    assert {**pool.get("b:0000"), "_rev": ""} == {**taken, "_rev": ""}
    (record,) = submission.files("refused")
    assert json.loads(record.read_text())["change"]["set"]["output"] == "late"
    process.terminate()
    process.wait(20)


def test_a_token_that_is_edited_while_it_runs_keeps_both(pool: Pool, submission: Submission) -> None:
    pool.push([{}, {}])
    process = submission.start(f"{COUNT}; {GATE}; echo 7 > output.json", slots=2, lease=240)
    until(lambda: submission.runs().total() == 2)
    pool.put({**pool.get("b:0000"), "comment": "by hand"})
    gone = pool.get("b:0001")
    assert pool.request("DELETE", f"b:0001?rev={gone['_rev']}")[0] == 200
    submission.open_gate()
    assert process.wait(30) == 0
    doc = pool.get("b:0000")
    assert state_of(doc) is State.DONE
    assert (doc["comment"], doc["output"]) == ("by hand", 7)
    assert list(pool.docs()) == ["b:0000"]
    assert len(submission.files("refused")) == 1


# --- a database that fails -------------------------------------------------------------------------------------------


class Proxy(faults.Relay):
    """Passes a connection on to the database, or fails to, as ``fault`` says for each request.

    "": pass on. "refuse": close at once. "drop answer": pass the request on, close instead of answering. "503": answer so.
    "202": tell that what was written is not safe yet, as a cluster does when nodes are away.
    """

    def __init__(self, server: couchdb.CouchDBAdmin) -> None:
        parts = urllib.parse.urlsplit(server.url)
        self.fault: Callable[[bytes], str] = lambda request: ""
        self.faults = Counter[str]()
        super().__init__((parts.hostname or "", parts.port or 80))
        self.url = f"http://127.0.0.1:{self.port}"

    def serve(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(ValueError):
            while (request := self._message(client)) and self._pass_on(request, client, server):
                pass

    def _pass_on(self, request: bytes, client: socket.socket, upstream: socket.socket) -> bool:
        fault = self.fault(request)
        self.faults[fault] += 1
        if fault == "refuse":
            return False
        if fault == "503":
            body = b'{"error":"service_unavailable","reason":"by the test"}'
            client.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            return True
        upstream.sendall(request)
        answer = self._message(upstream)
        if fault == "drop answer":
            return False
        if fault == "cut answer":
            client.sendall(answer[: len(answer) // 2])
            return False
        client.sendall(answer.replace(b" 201 Created", b" 202 Accepted", 1) if fault == "202" else answer)
        return True

    @staticmethod
    def _message(source: socket.socket) -> bytes:
        """One HTTP message, whole; empty at the end of the connection."""
        data = b""
        while b"\r\n\r\n" not in data:
            part = source.recv(65536)
            if not part:
                return b""
            data += part
        head = data[: data.index(b"\r\n\r\n")].lower()
        size = len(head) + 4
        if length := re.search(rb"\r\ncontent-length: *(\d+)", head):
            while len(data) < size + int(length.group(1)):
                data += source.recv(65536)
        elif b"chunked" in head:
            while not data.endswith(b"\r\n0\r\n\r\n") and not data.endswith(b"\n0\r\n\r\n"):
                data += source.recv(65536)
        return data


@pytest.fixture
def proxy(server: couchdb.CouchDBAdmin) -> Iterator[Proxy]:
    """A proxy before the database."""
    made = Proxy(server)
    yield made
    made.close()


@pytest.fixture
def behind_proxy(tmp_path: Path, pool: Pool, proxy: Proxy) -> Iterator[Submission]:
    """The folder of a submission whose pilots reach the database through the proxy."""
    made = Submission(tmp_path / "behind-proxy", pool, proxy.url)
    yield made
    made.close()


@pytest.mark.parametrize("fault", ["drop answer", "cut answer", "refuse", "503", "202"])
def test_a_bad_connection_loses_nothing_and_runs_nothing_twice(
    pool: Pool, proxy: Proxy, behind_proxy: Submission, fault: str
) -> None:
    pool.push([{"input": place} for place in range(60)])
    dice, claims = random.Random(fault), list[bytes]()

    def throw(request: bytes) -> str:
        if not claims and b"_bulk_docs" in request:  # the first is hurt in any case
            claims.append(request)
            return fault
        return fault if dice.random() < 0.3 else ""

    proxy.fault = throw
    command = COUNT + '; echo "$PICAS_INPUT" > output.json; sleep 0.05; test $((PICAS_INPUT % 10)) != 3'
    pilots = [behind_proxy.start(command, max_retries=1, lease=20) for _ in range(3)]
    assert [process.wait(120) for process in pilots] == [0] * 3, behind_proxy.log()
    print(proxy.faults)
    assert proxy.faults[fault] > 5
    assert behind_proxy.runs() == {f"b:{place:04d}": 2 if place % 10 == 3 else 1 for place in range(60)}
    assert pool.states() == {State.DONE: 54, State.ERROR: 6}
    assert all(doc["output"] == doc["input"] for doc in pool.docs().values())
    logs = "".join(behind_proxy.log(place) for place in range(3))
    assert ("answers 202 to a claim" in logs) == (fault == "202")  # which is none, then
    assert behind_proxy.files("unsent") == behind_proxy.files("refused") == []


def unpack(submission: Submission) -> Path:
    """Unpack the pilot of a submission, which runs as well from a folder; the folder of its modules."""
    program = submission.folder / archive.FILE
    with zipfile.ZipFile(program) as packed:
        program.unlink()
        packed.extractall(program)
    return program / "airflow_provider_picas" / "pilot"


def plant_fault(submission: Submission, method: str) -> None:
    """Let a method of a submission's pilots fail the first time that it is called."""
    (file,) = [file for file in unpack(submission).glob("*.py") if method in file.read_text()]
    source = file.read_text()
    assert method in source
    lines = ('if not hasattr(self, "planted"):', "    self.planted = True", '    raise TypeError("planted")')
    file.write_text(source.replace(method, "\n        ".join((method, *lines))))


def test_a_claimer_that_fails_amid_a_claim_leaves_no_token_locked(
    pool: Pool, behind_proxy: Submission, server: couchdb.CouchDBAdmin
) -> None:
    pool.push([{}] * 3)
    with faults.Proxy(server.url) as hurting:
        behind_proxy.write_credentials(hurting.url)
        hurting.hurt(faults.Fault.LOSE, on="_bulk_docs")
        plant_fault(behind_proxy, "def _landed(self, tokens: List[Token]) -> List[Token]:")
        assert behind_proxy.run(COUNT, slots=3) == os.EX_SOFTWARE
    assert "The claimer failed" in behind_proxy.log()
    assert pool.states() == {State.TODO: 3}
    assert not any(doc["scrub_count"] or "attempts" in doc or "pilot" in doc for doc in pool.docs().values())
    assert pool.leases()[0]["ended"] is True


def test_a_token_that_a_client_took_while_the_answer_to_a_claim_was_lost_is_the_clients(
    pool: Pool, behind_proxy: Submission, server: couchdb.CouchDBAdmin
) -> None:
    pool.push([{}])

    def lock_as_the_client() -> None:
        doc = pool.get("b:0000")
        taken = {**doc, "lock": doc["lock"] + 1, "hostname": "elsewhere"}
        assert pool.request("PUT", "b:0000", taken)[0] == 201

    with faults.Proxy(server.url) as hurting:
        behind_proxy.write_credentials(hurting.url)
        hurting.meanwhile = lock_as_the_client
        hurting.hurt(faults.Fault.LOSE, on="_bulk_docs")
        assert behind_proxy.run(COUNT) == 0
    assert behind_proxy.runs() == {}
    assert (pool.get("b:0000")["hostname"], pool.states()) == ("elsewhere", {State.LOCKED: 1})


def test_tls(pool: Pool, submission: Submission, tmp_path: Path) -> None:
    pool.push([{}])
    context, ca_file = faults.self_signed(tmp_path)
    with faults.Proxy(pool.server.url, context) as proxy:
        submission.write_credentials(proxy.url)
        assert submission.run(COUNT) == os.EX_NOPERM
        assert "certificate" in submission.log()
        assert PASSWORD not in submission.log()
        assert proxy.requests == []
        assert submission.run(COUNT, ca_file=str(ca_file)) == 0
        pool.push([{}], "c")
        assert submission.run(COUNT, tls_verify=False, batch="c") == 0
    assert submission.runs() == {"b:0000": 1, "c:0000": 1}


def test_the_database_is_killed_and_comes_back(
    pool: Pool, server: couchdb.CouchDBAdmin, submission: Submission
) -> None:
    if not isinstance(server, couchdb.CouchDB):
        pytest.skip("the database that PICAS_TEST_COUCHDB_URL names is not ours to kill")
    pool.push([{"input": place} for place in range(120)])
    pilots = [submission.start(COUNT + "; sleep 0.1", lease=20) for _ in range(3)]
    logs = [submission.folder / f"pilot-{number}.log" for number in range(3)]
    for done in (10, 50):
        until(lambda done=done: submission.runs().total() > done)  # type: ignore[misc]
        said = [path.read_text().count("does not answer") for path in logs]
        server.kill()
        until(lambda said=said: all(map(int.__lt__, said, (p.read_text().count("does not answer") for p in logs))))  # type: ignore[misc]
        server.start()
    assert [process.wait(120) for process in pilots] == [0] * 3, submission.log()
    assert pool.states() == {State.DONE: 120}
    assert Counter(submission.runs().values()) == {1: 120}


def test_a_lost_lease_stops_the_work(
    pool: Pool, proxy: Proxy, behind_proxy: Submission, submission: Submission
) -> None:
    pool.push([{}])
    write = 'date +%s.%N >> "$RUNS.times"'
    cut_off = behind_proxy.start(f'{COUNT}; until [ -e "$RUNS.go" ]; do {write}; sleep 0.05; done', lease=4)
    until(lambda: behind_proxy.runs().total() == 1)
    proxy.fault = lambda request: "refuse"
    (lease,) = pool.leases()  # it lasts longer for others: a lease this short has no room for a slow machine
    assert pool.request("PUT", lease["_id"], {**lease, "renewed": lease["renewed"] + 4})[0] == 201
    other = submission.start(f"{write}; sleep 0.5; echo 2 > output.json", lease=4, wait_for_work=20)
    until(lambda: "has expired. Stopping b:0000" in behind_proxy.log())
    until(lambda: state_of(pool.get("b:0000")) is State.DONE)
    first, second = ((made.folder / "runs.times").read_text().split() for made in (behind_proxy, submission))
    assert float(first[-1]) < float(second[0]), "the other pilot ran the token while the first one still did"
    proxy.fault = lambda request: ""
    until(lambda: "is refused" in behind_proxy.log())
    assert pool.get("b:0000")["output"] == 2
    for process in (cut_off, other):
        process.terminate()
        assert process.wait(20) == 0


def test_who_comes_back_first_after_an_outage_takes_nobody_for_silent(
    pool: Pool, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that it cannot hear could not reach the database either."""
    now = 0.0
    stopped = SimpleNamespace(**{**vars(time), "monotonic": lambda: now})
    for module in ("access", "clock", "database", "observer", "reaper"):
        monkeypatch.setattr(f"airflow_provider_picas.pilot.{module}.time", stopped)
    read_date = "airflow_provider_picas.lifecycle.dates.parsedate_to_datetime"
    monkeypatch.setattr(read_date, lambda date: datetime.fromtimestamp(start + now))
    start = time.time()
    put_lease(pool, "silent", age=1)
    put_lease(pool, "gone", age=1)
    pool.push(held("silent", 2) + held("gone", 1))
    with session_of_a_pilot(pool, proxy.url) as session:
        reaper = Reaper(session)
        assert reaper.reap() == (0, True)
        proxy.fault = lambda request: "refuse"
        now = 5
        with pytest.raises(Unreachable):
            reaper.reap()
        proxy.fault = lambda request: ""
        put_lease(pool, "gone", ended=True)
        assert reaper.reap() == (1, True), "only that of the one that said that it had ended"
        now = 6.9
        assert reaper.reap() == (0, True)
        now = 7.1
        assert reaper.reap() == (2, False)


def test_who_starts_takes_nobody_for_silent_at_once(pool: Pool) -> None:
    """The database may have been away until then."""
    put_lease(pool, "silent", age=60)
    put_lease(pool, "gone", ended=True)
    pool.push(held("silent", 2) + held("gone", 1))
    with session_of_a_pilot(pool, pool.server.url) as session:
        reaper = Reaper(session)
        assert reaper.reap() == (1, True)
        until(lambda: reaper.reap() == (2, False), 10)


def test_what_cannot_be_sent_is_kept_and_sent_by_a_later_pilot(
    pool: Pool, proxy: Proxy, behind_proxy: Submission
) -> None:
    pool.push([{}, {}])
    process = behind_proxy.start(f"{COUNT}; echo 5 > output.json; echo log; {GATE}")
    until(lambda: behind_proxy.runs().total() == 1)
    proxy.fault = lambda request: "refuse"
    behind_proxy.open_gate()
    until(lambda: "1 results are waiting" in behind_proxy.log())
    process.terminate()
    started = time.monotonic()
    assert process.wait(20) == 75
    assert time.monotonic() - started < 10
    (kept,) = behind_proxy.files("unsent")
    assert kept.stat().st_mode & 0o077 == 0
    ((first, _),) = behind_proxy.runs().items()
    assert state_of(pool.get(first)) is State.LOCKED
    proxy.fault = lambda request: ""
    assert behind_proxy.run(COUNT) == 0, behind_proxy.log()
    assert pool.states() == {State.DONE: 2}
    assert pool.get(first)["output"] == 5
    assert pool.attachment(first, "attempt-1.out") == b"log\n"
    assert set(behind_proxy.runs().values()) == {1}
    assert behind_proxy.files("unsent") == []


def test_a_pilot_sends_what_another_could_not_before_it_reaps(
    pool: Pool, proxy: Proxy, behind_proxy: Submission, server: couchdb.CouchDBAdmin
) -> None:
    direct = behind_proxy.folder / "direct"
    shutil.copytree(behind_proxy.folder / "credentials", direct)
    config = direct / "picasconfig.py"
    config.write_text(config.read_text().replace(proxy.url, server.url))
    pool.push([{}])
    victim = behind_proxy.start(f"{COUNT}; echo 5 > output.json; {GATE}", lease=20)
    until(lambda: behind_proxy.runs().total() == 1)
    other = behind_proxy.start(COUNT, lease=20, credentials="direct")
    until(lambda: "Pilot " in behind_proxy.log())
    proxy.fault = lambda request: "refuse"
    behind_proxy.open_gate()
    until(lambda: "1 results are waiting" in behind_proxy.log(0))
    victim.terminate()
    assert victim.wait(20) == 75
    assert other.wait(40) == 0
    assert state_of(pool.get("b:0000")) is State.DONE
    assert pool.get("b:0000")["output"] == 5
    assert behind_proxy.runs() == {"b:0000": 1}


def keep_unsent(folder: Path, pool: Pool, token: dict[str, Any], output: Any) -> None:
    """The file of a result that a pilot could not send."""
    parts = {"set": {"done": 1010, "exit_code": 0, "output": output}, "unset": ["pilot"]}
    change = Change("done", token["_id"], token["claim"], token["lock"], **parts)
    Outbox(str(folder), pool.name).keep(change)


def test_a_result_that_the_database_never_takes_blocks_no_pilot(
    pool: Pool, proxy: Proxy, behind_proxy: Submission
) -> None:
    """Nor is its token run again, while the result is there."""
    put_lease(pool, "dead", ended=True)
    pool.push([*held("dead", 3), {}])
    for place, output in enumerate(["never", "sent"]):
        keep_unsent(behind_proxy.folder, pool, pool.get(f"b:000{place}"), output)
    proxy.fault = lambda request: "503" if b'"never"' in request else ""
    assert behind_proxy.run(COUNT) == 0, behind_proxy.log()
    assert behind_proxy.runs() == {"b:0002": 1, "b:0003": 1}
    assert state_of(pool.get("b:0000")) is State.LOCKED
    assert pool.get("b:0001")["output"] == "sent"
    assert len(behind_proxy.files("unsent")) == 1
    assert behind_proxy.log().count("will be sent later: ") == 1
    proxy.fault = lambda request: ""
    assert behind_proxy.run(COUNT) == 0
    assert pool.get("b:0000")["output"] == "never"


def test_files_that_hold_no_result_stay_and_end_no_pilot(pool: Pool, submission: Submission) -> None:
    pool.push([{}])
    (submission.folder / "unsent").mkdir()
    deep = "[" * 100_000 + "]" * 100_000
    contents = ["[]", "no JSON", '{"change": []}', '{"change": {"token": "b:0000"}}', f'{{"change": {deep}}}']
    for place, content in enumerate(contents):
        (submission.folder / "unsent" / f"{place}.json").write_text(content)
    assert submission.run(COUNT, wait_for_work=2) == 0, submission.log()
    assert pool.states() == {State.DONE: 1}
    assert len(submission.files("unsent")) == submission.log().count("does not contain a result") == len(contents)


def test_results_of_an_earlier_submission_of_the_task_are_sent(tmp_path: Path, pool: Pool) -> None:
    put_lease(pool, "dead", ended=True)
    pool.push(held("dead", 3))
    for place, name in enumerate(["picas-x.1", "picas-y.1", "picas-x.1.bak"]):
        keep_unsent(tmp_path / name, pool, pool.get(f"b:000{place}"), name)
    later = Submission(tmp_path / "picas-x.2", pool)
    try:
        assert later.run(COUNT) == 0, later.log()
    finally:
        later.close()
    assert pool.get("b:0000")["output"] == "picas-x.1"
    assert later.runs() == {"b:0001": 1, "b:0002": 1}
    assert not list((tmp_path / "picas-x.1" / "unsent").iterdir())


def test_a_reporter_that_fails_tries_again(pool: Pool, behind_proxy: Submission, server: couchdb.CouchDBAdmin) -> None:
    pool.push([{}])
    plant_fault(behind_proxy, "def _read_again(self, changes: List[Change]) -> List[Tuple[Change, str]]:")
    with faults.Proxy(server.url) as hurting:
        behind_proxy.write_credentials(hurting.url)
        process = behind_proxy.start(f"{COUNT}; {GATE}; echo 5 > output.json", lease=240)
        until(lambda: behind_proxy.runs().total() == 1)
        hurting.hurt(faults.Fault.LOSE, on="_bulk_docs")
        behind_proxy.open_gate()
        assert process.wait(60) == 0, behind_proxy.log()
    assert "The reporter failed" in behind_proxy.log()
    assert pool.get("b:0000")["output"] == 5


def test_a_result_that_the_database_does_not_take_holds_up_no_other(
    pool: Pool, proxy: Proxy, behind_proxy: Submission
) -> None:
    pool.push([{"input": "x", "priority": 1}, {"input": "y"}, {"input": "z"}])
    proxy.fault = lambda request: "503" if b'"output":"x"' in request else ""
    process = behind_proxy.start('echo "\\"$PICAS_INPUT\\"" > output.json')
    until(lambda: pool.states()[State.DONE] == 2)
    assert state_of(pool.get("b:0000")) is State.LOCKED
    proxy.fault = lambda request: ""
    assert process.wait(60) == 0
    assert {doc["output"] for doc in pool.docs().values()} == {"x", "y", "z"}


def test_a_result_that_cannot_be_kept_loses_no_other(pool: Pool, submission: Submission) -> None:
    config = Config(command="true", submission="s", batch="b", outage=0)
    made = Pilot(str(submission.folder), config)
    made.work.stop(DRAIN, "the test ends it")
    made.wall_clock.queried.set()
    with session_of_a_pilot(pool, pool.server.url) as session:
        conflicts = Conflicts(session)
        claims = Claims(session, False, conflicts)
        reaper = Reaper(session, conflicts)
        claimer = made._claimer(claims, reaper)
        for thread in (made.lease, claimer):
            thread.start()
        deep: list[Any] = []
        for _ in range(100_000):
            deep = [deep]
        for place, output in enumerate([1, deep, 3]):
            change = Change("done", f"b:000{place}", f"{place}-1000", 1000, {"done": 1, "output": output})
            made.reporter.put(change)
        assert made._finish(claimer) == EX_TEMPFAIL
    kept = [json.loads(file.read_text())["change"]["token"] for file in submission.files("unsent")]
    assert kept == ["b:0000", "b:0002"]


def test_a_document_that_the_database_refuses_is_shortened(pool: Pool, proxy: Proxy, behind_proxy: Submission) -> None:
    pool.push([{"input": place} for place in range(3)])

    def too_large(request: bytes) -> str:
        return "413" if b"_bulk_docs" in request and len(request) > 30_000 else ""

    passed = Proxy._pass_on

    def pass_on(self: Proxy, request: bytes, client: socket.socket, upstream: socket.socket) -> bool:
        if self.fault(request) == "413":
            client.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 9\r\n\r\ntoo large")
            return True
        return passed(self, request, client, upstream)

    proxy.fault = too_large
    proxy._pass_on = pass_on.__get__(proxy)  # type: ignore[method-assign]
    command = 'test "$PICAS_INPUT" != 1 || head -c 100000 /dev/urandom; echo 1 > output.json'
    assert behind_proxy.run(command) == 0, behind_proxy.log()
    assert pool.states() == {State.DONE: 3}
    assert "_attachments" not in pool.get("b:0001") or not pool.get("b:0001")["_attachments"]


# --- bad surroundings ------------------------------------------------------------------------------------------------


def test_wrong_password_and_missing_database(pool: Pool, submission: Submission) -> None:
    submission.write_credentials(pool.server.url, password="wrong-one")
    assert submission.run("true") == 77
    assert "wrong-one" not in submission.log()
    assert submission.run("true", credentials="nowhere") == 78
    assert submission.run("true", slots=0) == 78
    assert "'slots' must be a whole number, at least 1" in submission.log()


def test_a_database_that_never_answers(pool: Pool, submission: Submission) -> None:
    submission.write_credentials(f"http://127.0.0.1:{processes.free_port()}")
    assert submission.run("true", outage=1) == 69


def test_a_database_that_takes_no_writes(pool: Pool, proxy: Proxy, behind_proxy: Submission) -> None:
    """That it answers reads is no reason to wait for ever."""
    proxy.fault = lambda request: "503" if request.startswith(b"PUT") else ""
    assert behind_proxy.run("true", outage=2) == 69


def test_scratch_that_cannot_be_written_costs_no_token(pool: Pool, submission: Submission) -> None:
    pool.push([{}] * 3)
    assert submission.run("true", env={"TMPDIR": "/proc"}) == 74
    assert pool.states() == {State.TODO: 3}


def test_a_full_disk(pool: Pool, submission: Submission, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this account may not mount a small file system")
    try:
        pool.push([{"input": "cat /dev/zero > fill"}, {"input": ":"}, {"input": "x" * 500_000}])
        command = COUNT + '; test -z "$PICAS_INPUT" || eval "$PICAS_INPUT"'
        assert submission.run(command, env={"TMPDIR": str(small)}) == 74, submission.log()
        docs = pool.docs()
        assert state_of(docs["b:0002"]) is State.TODO, "the token's folder did not fit: the node's fault"
        assert docs["b:0002"]["scrub_count"] == 0
        assert state_of(docs["b:0000"]) in (State.ERROR, State.TODO)
        assert "No space left" in submission.log()
    finally:
        subprocess.run(["umount", str(small)], check=True)


# --- interpreters ----------------------------------------------------------------------------------------------------


def interpreters() -> list[tuple[tuple[int, int], str]]:
    """Python 3.6 and newer on the PATH and, if there is one, in pyenv's folder: version and program, oldest first."""
    programs = [found for name in NEWEST_FIRST if (found := shutil.which(name))]
    root = os.environ.get("PYENV_ROOT")
    programs += [str(path) for path in Path(root).glob("versions/3.*/bin/python3")] if root else []
    found = {}
    for program in programs:
        answer = subprocess.run(
            [program, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True
        )
        if answer.returncode == 0:
            major, minor = map(int, answer.stdout.split())
            if (major, minor) >= (3, 6):
                found[major, minor] = program
    return sorted(found.items())


def test_oldest_and_newest_interpreter(pool: Pool, submission: Submission) -> None:
    found = interpreters()
    chosen = [found[0], found[-1]]
    for version, program in chosen:
        print(f"the pilot runs on Python {version[0]}.{version[1]}: {program}")
    for batch in "bc":
        pool.push([{"input": place} for place in range(20)], batch)
    command = COUNT + '; echo out; echo "$PICAS_INPUT" > output.json; sleep 0.1; test $((PICAS_INPUT % 10)) != 3'
    pilots = [
        submission.start(command, python=program, batch=batch, slots=2, max_retries=1)
        for batch, (_, program) in zip("bc", chosen, strict=True)
    ]
    assert [process.wait(60) for process in pilots] == [0, 0], submission.log(0) + submission.log(1)
    assert pool.states() == {State.DONE: 36, State.ERROR: 4}
    assert all("Tokens: 18 done, 2 failed" in submission.log(place) for place in (0, 1))
