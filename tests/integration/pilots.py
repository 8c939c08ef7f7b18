"""A pool, and pilots on it as processes: for the tests of the pilot, and for others that need one.

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
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_picas.lifecycle.pilot_config import Config
from airflow_provider_picas.lifecycle.transitions import Change
from airflow_provider_picas.pilot import archive
from airflow_provider_picas.pilot.access import Access
from airflow_provider_picas.pilot.clock import Clock
from airflow_provider_picas.pilot.database import Database
from airflow_provider_picas.pilot.identity import Identity
from airflow_provider_picas.pilot.outbox import Outbox
from airflow_provider_picas.pilot.session import Session
from airflow_provider_picas.tokens import views
from airflow_provider_picas.tokens.states import State, state_of
from stack import couchdb
from tests.integration import faults

USER, PASSWORD = "pilot-user", "s3cret-of-the-pool"


def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[couchdb.CouchDBAdmin]:
    """A CouchDB: the named one, or the embedded one."""
    url = os.environ.get("PICAS_TEST_COUCHDB_URL")
    if url:
        yield couchdb.CouchDBAdmin.from_url(url)
    else:
        with couchdb.CouchDB(tmp_path_factory.mktemp("couchdb")) as embedded:
            yield embedded


def make_member(server: couchdb.CouchDBAdmin) -> Iterator[str]:
    """A user with no rights but those of a member."""
    name = f"{USER}-{os.getpid()}-{random.randrange(10**9)}"
    server.create_user(name, PASSWORD)
    yield name
    server.delete_user(name)


# For modules outside of ``pilot``, whose tests share one server in a session.
server = pytest.fixture(scope="module")(serve)
member = pytest.fixture(scope="module")(make_member)


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


@contextlib.contextmanager
def new_pool(server: couchdb.CouchDBAdmin, member: str | None = None) -> Iterator[Pool]:
    """An empty pool with the design documents, and a member: this user, or one of its own."""
    with contextlib.ExitStack() as users:
        user = member or users.enter_context(contextlib.contextmanager(make_member)(server))
        name = f"pilot-{os.getpid()}-{random.randrange(10**9)}"
        server.create_database(name, members=[user])
        made = Pool(server, name, user)
        for design, doc in views.design_documents().items():
            assert made.request("PUT", f"_design/{design}", doc)[0] == 201
        yield made
        server.delete_database(name)


@pytest.fixture
def pool(server: couchdb.CouchDBAdmin, member: str) -> Iterator[Pool]:
    """An empty pool with the design documents, of which the pilots' user is a member."""
    with new_pool(server, member) as made:
        yield made


class Submission:
    """A submission's folder, and the pilots that were started in it."""

    def __init__(self, folder: Path, pool: Pool, url: str | None = None, password: str = PASSWORD) -> None:
        self.folder, self.pool, self.pilots = folder, pool, list[subprocess.Popen[bytes]]()
        self.scratch = Path(tempfile.mkdtemp(prefix="picas-test-"))
        (folder / "credentials").mkdir(parents=True, mode=0o700)
        self.write_credentials(url or pool.server.url, password)
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
        """End all that a test that fails would leave running: commands write their pids into files."""
        for name in ("hidden", "beside", "pids"):
            for pid in pids_in(self.folder / f"runs.{name}"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
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
def session_of_a_pilot(pool: Pool, url: str, share: tuple[int, int] = (0, 1), **keys: Any) -> Iterator[Session]:
    """What the claims and the reaper of a pilot work with. ``share``: its index in its job array, and the array's size."""
    config = Config(command="true", submission="s", **{"batch": "b", "lease": 4, **keys})
    clock = Clock(config.lease / 2)
    access = Access(url, pool.name, pool.member, PASSWORD, "")
    database = Database(access, config, clock)
    yield Session(database, config, Identity("me", "here", None, share), clock, clock.contact)
    database._connection.close()


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


COUNT = 'echo "$PICAS_TOKEN_ID" >> "$RUNS"'
GATE = 'until [ -e "$RUNS.go" ]; do sleep 0.05; done'


def held(pilot_id: str, count: int) -> list[dict[str, Any]]:
    """The fields of tokens that a pilot has claimed."""
    return [{"lock": 1000, "hostname": "x", "pilot": pilot_id, "claim": f"{place}-1000"} for place in range(count)]


def put_lease(pool: Pool, pilot_id: str, *, age: float = 0, ended: bool = False) -> None:
    """The lease of 4 s of a pilot that was heard ``age`` seconds ago."""
    lease = {"pilot": pilot_id, "renewed": int(time.time() - age), "lease": 4, "ended": ended}
    assert pool.request("PUT", f"_local/picas-pilot-{pilot_id}", lease)[0] == 201


class Proxy(faults.Relay):
    """Passes a connection on to the database, or fails to, as ``fault`` says for each request.

    "": pass on. "refuse": close at once. "drop answer": pass the request on, close instead of answering. "hold answer": answer a
    second later. "503": answer so. "202": tell that what was written is not safe yet, as a cluster does when nodes are away.
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
        if fault == "hold answer":
            time.sleep(1)
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


def keep_unsent(folder: Path, pool: Pool, token: dict[str, Any], output: Any) -> None:
    """The file of a result that a pilot could not send."""
    parts = {"set": {"done": 1010, "exit_code": 0, "output": output}, "unset": ["pilot"]}
    change = Change("done", token["_id"], token["claim"], token["lock"], **parts)
    Outbox(str(folder), pool.name).keep(change)


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


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def pids_in(path: Path) -> list[int]:
    """The pids that commands have written into a file, one a line."""
    return [int(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def guard_of(process: subprocess.Popen[bytes]) -> int:
    """The pid of the process that ends a pilot's commands when that was killed."""
    for folder in Path(f"/proc/{process.pid}/task").iterdir():
        for pid in (folder / "children").read_text().split():
            if b"guard.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return int(pid)
    raise AssertionError("there is no guard")


RUNNING = f"{COUNT}; echo $$ >> $RUNS.pids; sleep 1000 & echo $! >> $RUNS.pids; setsid sleep 1000 & echo $! >> $RUNS.pids; wait"
