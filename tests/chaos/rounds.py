"""Runs a planned round on real parts: pilots as processes, a wait as the triggerer has it, each behind a proxy of its own."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow_provider_picas.pilot import archive
from airflow_provider_picas.tokens import views
from airflow_provider_picas.triggers.tokens import PicasTokenStateTrigger
from stack import native, paths
from stack.couchdb import CouchDBAdmin
from stack.pool import Pool
from tests.chaos import history
from tests.chaos.couchdb_nodes import CouchDBNode, CouchDBNodes, until
from tests.chaos.history import History, Hurt, Kept, Overlap, Run
from tests.chaos.plan import Event, Plan
from tests.chaos.recorder import Clock, Recorder

WORK = Path(__file__).with_name("work.sh")
PATIENCE = 300.0  # seconds after the last fault until all must be over
PASSWORD = "s3cret"
EVENTS = ("kills", "freezes", "partitions", "server_faults", "clock_steps")  # figures of faults that are no request's


@dataclass
class Servers:
    """The database: the URLs of its nodes with an admin's login; and the nodes themselves as far as they can be hurt."""

    urls: Sequence[str]
    nodes: Sequence[CouchDBNode] = ()
    cluster: CouchDBNodes | None = None
    what: str = ""

    @property
    def admins(self) -> list[CouchDBAdmin]:
        return [CouchDBAdmin.from_url(url) for url in self.urls]

    def mend(self) -> None:
        """End all faults."""
        if self.cluster:
            self.cluster.mend()
        for node in self.nodes:
            if node.frozen:
                node.thaw()
            node.start()


@dataclass
class Figures:
    """What happened in a round, for a table."""

    seed: int
    seconds: float = 0.0
    tokens: int = 0
    runs: int = 0
    kills: int = 0
    freezes: int = 0
    partitions: int = 0
    server_faults: int = 0
    clock_steps: int = 0
    requests: int = 0
    status: int = 0  #: requests that were answered with an error by the proxy
    drop: int = 0  #: that were not carried out
    lose: int = 0  #: whose answer was lost
    cut: int = 0  #: whose answer broke off
    delay: int = 0  #: that came late, or whose answer did
    silenced: int = 0  #: that arrived while their pilot was cut off from the database
    faults: int = 0  #: all of these together
    overlaps: int = 0  #: all of them were allowed, unless there are violations
    refused: int = 0
    unsent: int = 0
    reaped: int = 0
    conflicts: int = 0
    new_pilots: int = 0  #: in the place of killed ones, or when none was left
    stalled: float = 0.0  #: seconds: the longest pause of this machine that a thread saw
    violations: int = 0


def table(rows: Sequence[Figures]) -> list[str]:
    """The figures of some rounds with their sum, as lines."""
    if not rows:
        return []
    names = list(asdict(rows[0]))
    cells = [
        [f"{value:g}" if isinstance(value, int) else f"{value:.1f}" for value in asdict(row).values()] for row in rows
    ]
    total = [sum(asdict(row)[name] for row in rows) for name in names]
    cells.append(["all", *(f"{value:g}" if isinstance(value, int) else f"{value:.1f}" for value in total[1:])])
    cells[-1][names.index("stalled")] = f"{max(row.stalled for row in rows):.1f}"
    titles = [name.replace("_", " ") for name in names]
    widths = [max(len(row[column]) for row in [titles, *cells]) for column in range(len(names))]
    return ["  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in [titles, *cells]]


@dataclass
class _Pilot:
    """A pilot's process. ``name``: its place, and how many were there before it."""

    name: str
    process: subprocess.Popen[bytes]
    killed: bool = False

    @property
    def lives(self) -> bool:
        return self.process.poll() is None


@dataclass
class _Place:
    """Where one pilot runs after the other."""

    number: int
    recorder: Recorder
    pilots: list[_Pilot] = field(default_factory=list)

    @property
    def pilot(self) -> _Pilot:
        return self.pilots[-1]


class Round:
    """One round in a folder of the submission, which lies in the home on the cluster. Use it as a context manager."""

    def __init__(
        self, plan: Plan, servers: Servers, home: Path, set_connection: Callable[[str, dict[str, Any]], str]
    ) -> None:
        self.plan = plan
        self.servers = servers
        self.key = f"round-{plan.seed}-{secrets.token_hex(3)}.1"
        self.folder = home / "rounds" / self.key
        self.database = f"round_{plan.seed}_{secrets.token_hex(4)}"
        self.figures = Figures(plan.seed, tokens=len(plan.tokens))
        self._set_connection = set_connection
        self._clock = Clock()
        self._faults_end = threading.Event()
        self._hurts: list[Hurt] = []
        self._places: list[_Place] = []
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()
        self._server_work: list[Future[object]] = []
        self._undo: dict[Callable[[], object], None] = {}
        self._stack = ExitStack()

    # -- setting up ---------------------------------------------------------------------------------------------------

    def __enter__(self) -> Round:
        (self.folder / "locks").mkdir(parents=True)
        (self.folder / "scratch").mkdir()
        (self.folder / archive.FILE).write_bytes(archive.build())
        shutil.copy(WORK, self.folder)
        self._make_pool()
        for number, upstream in enumerate(self.plan.upstreams):
            self._places.append(_Place(number, self._recorder(number, upstream)))
            self._write_config(number)
        self._wait = _Wait(self._recorder("wait", 0), self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for place in self._places:
            for one in place.pilots:
                if one.lives:
                    _signal([one.process.pid, *descendants(one.process.pid)], signal.SIGKILL)
                one.process.wait()
        self._wait.stop()
        self._stack.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.servers.mend()
        admin = self.servers.admins[0]
        with suppress(OSError, RuntimeError):
            admin.delete_database(self.database)
            admin.delete_user(self.database)

    def _make_pool(self) -> None:
        admin = self.servers.admins[0]
        admin.create_user(self.database, PASSWORD)
        admin.create_database(self.database, members=[self.database], admins=[self.database])
        docs = [{"_id": f"_design/{name}", **doc} for name, doc in views.design_documents().items()]
        for number, fields in enumerate(self.plan.tokens):
            new = {"type": "token", "lock": 0, "done": 0, "hostname": "", "scrub_count": 0, "exit_code": ""}
            docs.append({"_id": f"b:{number:04d}", **new, "batch": "b", "push": "p", "ordinal": number, **fields})
        status, rows = admin.request("POST", f"/{self.database}/_bulk_docs", {"docs": docs})
        assert status == 201, rows
        assert all("rev" in row for row in rows), rows

    def _recorder(self, place: object, upstream: int | None) -> Recorder:
        urls = [admin.url for admin in self.servers.admins]
        hurt = (
            None if not self.plan.hurt else lambda n: None if self._faults_end.is_set() else self.plan.fault(place, n)
        )
        chosen = urls if upstream is None else [urls[upstream % len(urls)]]
        return self._stack.enter_context(Recorder(chosen, self._clock, hurt))

    def _write_config(self, number: int) -> None:
        url = self._places[number].recorder.url
        names = {"HOST_URL": url, "DATABASE": self.database, "USERNAME": self.database, "PASSWORD": PASSWORD}
        credentials = self.folder / f"credentials-{number}"
        credentials.mkdir(mode=0o700)
        file = credentials / "picasconfig.py"
        file.touch(0o600)
        file.write_text("".join(f"PICAS_{name} = {value!r}\n" for name, value in names.items()))
        config = {
            "command": ["bash", str(self.folder / WORK.name)], "submission": self.key, "batch": "b", "lease": self.plan.lease,
            "slots": self.plan.slots[number], "max_retries": 2, "max_scrubs": 9, "outage": PATIENCE,
            "credentials": credentials.name,
        }  # fmt: skip
        (self.folder / f"pilot-{number}.json").write_text(json.dumps(config))

    def _start_pilot(self, place: _Place) -> None:
        name = f"{place.number}.{len(place.pilots)}"
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("AIRFLOW_CONN_")}
        env = {"TMPDIR": str(self.folder / "scratch"), "ROUND_PILOT": name, "ROUND_FOLDER": str(self.folder)}
        with (self.folder / f"pilot-{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, str(self.folder / archive.FILE), str(self.folder / f"pilot-{place.number}.json")],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env={**inherited, **env}, start_new_session=True,
            )  # fmt: skip
        place.pilots.append(_Pilot(name, process))

    # -- running ------------------------------------------------------------------------------------------------------

    def run(self) -> History:
        """Run the plan to its end; what was recorded."""
        for place in self._places:
            self._start_pilot(place)
        self._wait.start()
        until(lambda: len(read_lines(self.folder / "lines")[0]) >= len(self._places), "The start of the first commands")
        began = time.monotonic()
        for event in self.plan.events:
            self._at(event.at, lambda event=event: self._begin(event))
        limit = self.plan.ends + PATIENCE
        with ThreadPoolExecutor(1) as self._servers_thread, _Stalls() as stalls:
            while (now := time.monotonic() - began) < limit:
                self._do_what_is_due(now)
                if now > self.plan.ends and not self._due and all(work.done() for work in self._server_work):
                    self._faults_end.set()
                if not self._due and self._is_over():
                    break
                time.sleep(0.05)
            self._faults_end.set()
            for undo in list(self._undo):
                undo()
        for work in self._server_work:
            work.result()
        self.servers.mend()
        self.figures.stalled = stalls.longest
        self.figures.seconds = time.monotonic() - began
        return self._history()

    def check(self) -> list[str]:
        """Run the plan to its end. What was not allowed to happen, after the folder of the records; nothing if all was well.

        The history is kept in any case.
        """
        found = self.run()
        kept = paths.RUN / "histories" / self.key  # the folder of this session goes with the next one
        kept.mkdir(parents=True, exist_ok=True)
        found.save(kept / "history.json")
        violations = history.check(found)
        self.figures.violations = len(violations)
        if violations:
            shutil.copytree(
                self.folder,
                kept,
                ignore=shutil.ignore_patterns("scratch", "locks", "credentials-*"),
                dirs_exist_ok=True,
            )
            violations.insert(0, f"seed {self.plan.seed}; history and logs: {kept}")
        return violations

    def _at(self, seconds: float, action: Callable[[], object]) -> None:
        heapq.heappush(self._due, (seconds, next(self._order), action))

    def _do_what_is_due(self, now: float) -> None:
        while self._due and self._due[0][0] <= now:
            heapq.heappop(self._due)[2]()

    def _is_over(self) -> bool:
        """Whether all tokens have finished, all pilots have ended, and the wait is over. Starts a pilot where none is left."""
        if any(place.pilot.lives for place in self._places):
            return False
        if all(history.state(doc) in history.FINISHED for doc in self._documents().values()):
            return not self._wait.runs
        self.figures.new_pilots += 1
        self._start_pilot(self._places[self.figures.new_pilots % len(self._places)])
        return False

    def _documents(self) -> dict[str, dict[str, Any]]:
        for admin in self.servers.admins:
            with suppress(OSError, ValueError):
                status, found = admin.request("GET", f"/{self.database}/_all_docs?include_docs=true")
                if status == 200:
                    return {row["id"]: row["doc"] for row in found["rows"] if not row["id"].startswith("_")}
        return {"": {}}

    # -- faults -------------------------------------------------------------------------------------------------------

    def _begin(self, event: Event) -> None:
        names = {"server freeze": self._hurt_server, "server kill": self._hurt_server, "cut": self._hurt_server}
        names |= {"freeze": self._freeze, "kill": self._kill, "partition": self._partition, "clock": self._step_clock}
        names[event.kind](event)

    def _until(self, event: Event, undo: Callable[[], object]) -> None:
        """Undo a fault when its time is over, or the round ends."""
        self._undo[undo] = None

        def end() -> None:
            if undo in self._undo:
                del self._undo[undo]
                undo()

        self._at(event.at + event.seconds, end)

    def _freeze(self, event: Event) -> None:
        one = self._places[event.target].pilot
        if not one.lives:
            return
        self.figures.freezes += 1
        begun = time.time()
        frozen = [one.process.pid]
        _signal(frozen, signal.SIGSTOP)
        if event.commands:
            commands = descendants(one.process.pid)
            frozen += commands
            _signal(commands, signal.SIGSTOP)

        def thaw() -> None:
            self._hurts.append(Hurt("frozen", one.name, begun, time.time(), event.commands))
            _signal(reversed(frozen), signal.SIGCONT)

        self._until(event, thaw)

    def _kill(self, event: Event) -> None:
        place = self._places[event.target]
        one = place.pilot
        if not one.lives:
            return
        self.figures.kills += 1
        pid = one.process.pid
        _signal([pid], signal.SIGSTOP)  # so that it starts no more commands
        self._hurts.append(Hurt("killed", one.name, time.time(), time.time(), event.commands))
        one.killed = True
        commands = descendants(pid) if event.commands else []
        _signal([*commands, pid], signal.SIGKILL)
        self._at(event.at + event.seconds, lambda: self._start_another(place))

    def _start_another(self, place: _Place) -> None:
        if not place.pilot.lives:
            self.figures.new_pilots += 1
            self._start_pilot(place)

    def _partition(self, event: Event) -> None:
        recorder = self._places[event.target].recorder
        self.figures.partitions += 1
        recorder.partition = "silent" if event.commands else "refuse"
        self._until(event, lambda: setattr(recorder, "partition", None))

    def _step_clock(self, event: Event) -> None:
        self.figures.clock_steps += 1
        self._clock.shift += event.amount

    def _hurt_server(self, event: Event) -> None:
        """In a thread of its own, one fault after the other: a restart takes a while."""
        node = self.servers.nodes[event.target]
        self.figures.server_faults += 1

        def hurt() -> None:
            ends = time.monotonic() + event.seconds
            if event.kind == "server freeze":
                node.freeze()
            elif event.kind == "server kill":
                node.kill()
            elif self.servers.cluster:
                self.servers.cluster.cut(node)
            self._faults_end.wait(max(0.0, ends - time.monotonic()))
            if event.kind == "server freeze":
                node.thaw()
            elif event.kind == "cut" and self.servers.cluster:
                self.servers.cluster.heal()
            elif self.servers.cluster:
                self.servers.cluster.restart(node)
            else:
                node.start()

        self._server_work.append(self._servers_thread.submit(hurt))

    # -- what was recorded --------------------------------------------------------------------------------------------

    def _history(self) -> History:
        documents, leaves = self._final()
        runs, overlaps = read_lines(self.folder / "lines")
        recorders = [*(place.recorder for place in self._places), self._wait.recorder]
        everybody = [one for place in self._places for one in place.pilots]
        kept = [item for kind in ("refused", "unsent") for item in _kept(self.folder, kind)]
        found = History(
            tokens=[f"b:{number:04d}" for number in range(len(self.plan.tokens))],
            documents=documents,
            leaves=leaves,
            runs=runs,
            overlaps=overlaps,
            hurts=self._hurts,
            writes=[write for recorder in recorders for write in recorder.writes],
            claims=[claimed for recorder in recorders for claimed in recorder.claims.values()],
            kept=kept,
            exits={one.name: one.process.poll() for one in everybody if not one.killed},
            waits=[*self._wait.outcomes, *(["nothing: it goes on"] if self._wait.runs else [])],
        )
        counts = Counter(item.kind for item in kept)
        attempts = [attempt for doc in documents.values() for attempt in doc.get("attempts") or []]
        figures = self.figures
        figures.runs, figures.overlaps, figures.conflicts = len(runs), len(overlaps), sum(map(len, leaves.values()))
        figures.refused, figures.unsent = counts["refused"], counts["unsent"]
        figures.reaped = sum(str(attempt.get("reason")).startswith("reaped:") for attempt in attempts)
        figures.requests = sum(recorder.requests for recorder in recorders)
        hurt = sum((recorder.hurt for recorder in recorders), Counter[str]())
        for name in ("status", "drop", "lose", "cut", "delay", "silenced"):
            setattr(figures, name, hurt[name])
        figures.faults = hurt.total() + sum(getattr(figures, name) for name in EVENTS)
        return found

    def _final(self) -> tuple[dict[str, dict[str, Any]], dict[str, list[dict[str, Any]]]]:
        """The tokens as they are, read from all copies, and their conflicting revisions."""
        admin = self.servers.admins[0]
        documents: dict[str, dict[str, Any]] = {}
        leaves: dict[str, list[dict[str, Any]]] = {}
        for number in range(len(self.plan.tokens)):
            token = f"b:{number:04d}"
            path = f"/{self.database}/{urllib.parse.quote(token, safe='')}"
            status, doc = admin.request("GET", f"{path}?conflicts=true&r={len(self.servers.urls)}")
            if status == 200:
                documents[token] = doc
                revisions = doc.pop("_conflicts", [])
                if revisions:
                    leaves[token] = [admin.request("GET", f"{path}?rev={revision}")[1] for revision in revisions]
        return documents, leaves


class _Wait:
    """A wait as the triggerer has it, which gives back the tokens of dead pilots. It begins again if no pilot is left."""

    def __init__(self, recorder: Recorder, owner: Round) -> None:
        self.recorder = recorder
        self.outcomes: list[str] = []
        self._owner = owner
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._task: asyncio.Task[None] | None = None

    @property
    def runs(self) -> bool:
        """Whether it goes on."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin, in a thread with an event loop."""
        self._thread.start()

    def stop(self) -> None:
        """End it if it goes on."""
        if self.runs and self._task:
            self._loop.call_soon_threadsafe(self._task.cancel)
            self._thread.join(30)

    def _run(self) -> None:
        self._task = self._loop.create_task(self._wait())
        with suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._task)
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _wait(self) -> None:
        owner = self._owner
        pool = Pool(self.recorder.url, owner.database, owner.database, PASSWORD)
        conn_id = owner._set_connection("round_pool", native.picas_connection(pool))
        submitted = datetime.now(UTC).isoformat()
        pilots = {
            "submission": owner.key, "folder": str(owner.folder), "submitted": submitted, "job_ids": [], "ssh_conn_id": "spider",
        }  # fmt: skip
        while self.outcomes[-1:] in ([], ["no_pilots"]):
            trigger = PicasTokenStateTrigger(
                conn_id, None, "b", len(owner.plan.tokens), max_errors=len(owner.plan.tokens), deadline=time.time() + 900,
                pilots=pilots, max_scrubs=9, pilots_interval=2.0, on_kill_how="leave",
            )  # fmt: skip
            async for event in trigger.run():
                self.outcomes.append(str(event.payload["outcome"]))
        if "no_pilots" in self.outcomes:
            # The round starts a new pilot then, as a task does that submits again.
            self.outcomes = [outcome for outcome in self.outcomes if outcome != "no_pilots"]


class _Stalls:
    """Measures how long this machine keeps a thread waiting."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._measure, daemon=True)

    def __enter__(self) -> _Stalls:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()

    def _measure(self) -> None:
        before = time.monotonic()
        while not self._stop.wait(0.1):
            now = time.monotonic()
            self.longest = max(self.longest, now - before - 0.1)
            before = now


def read_lines(path: Path) -> tuple[list[Run], list[Overlap]]:
    """What the commands wrote down."""
    runs: list[Run] = []
    overlaps: list[Overlap] = []
    ends: dict[str, tuple[float, int]] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        words = line.split()
        if len(words) != 6:
            continue  # it was killed while it wrote
        kind, token, claim, name, at, what = words
        if kind == "begin":
            runs.append(Run(token, claim, name, float(at)))
        elif kind == "end":
            ends[claim] = float(at), int(what)
        elif kind == "overlap":
            overlaps.append(Overlap(token, claim, what, float(at)))
    finished = [Run(run.token, run.claim, run.pilot, run.begun, *ends.get(run.claim, (None, None))) for run in runs]
    return finished, overlaps


def _kept(folder: Path, kind: str) -> list[Kept]:
    changes = [json.loads(path.read_text())["change"] for path in sorted((folder / kind).glob("*.json"))]
    return [Kept(kind, change["token"], change["claim"]) for change in changes]


def descendants(pid: int) -> list[int]:
    """The processes below a process, parents first."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in task.read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


def _signal(pids: Any, what: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, what)
