"""The model: pilots, tokens and a database, all that they can do, and all that can happen to them.

What a pilot does with the database is the pilot's own code (``operations.py``). What is modelled: the database, time, when
a thread begins an operation, commands, and the faults. Between two requests of one thread, anything else may happen.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from airflow_provider_picas.lifecycle.states import state_of
from airflow_provider_picas.lifecycle.transitions import Change, Ended, Token, conclude, release
from tests.model import couchdb, operations
from tests.model.couchdb import Cluster, Copy
from tests.model.explorer import cached
from tests.model.operations import (
    CONFIG,
    DOCUMENTS_NOW,
    LONG_AGO,
    NOW,
    SECONDS,
    Answer,
    Around,
    Done,
    Doubt,
    LeaseState,
    Memory,
    Queued,
    Seen,
)  # fmt: skip

CLAIMER, REPORTER, LEASE = 0, 1, 2  # the threads that talk to the database
TIMED = ("reap", "settle", "renew")  # operations that compare times
LONGEST = 3  # steps of time for which an operation is remembered, while its pilot is frozen or cut off


@cached
def field(text: str, name: str) -> Any:
    """A field of a document."""
    return json.loads(text).get(name) or ""


class Operation(NamedTuple):
    """What a thread is about to do, and the answers that it got."""

    name: str
    memory: Memory
    answers: tuple[Answer, ...] = ()
    elapsed: int = 0


class Pilot(NamedTuple):
    """A pilot. ``status``: new, on, stopping, off or dead. ``thawed``: since the last step of time. ``cut``: it does not
    reach the database."""

    name: str
    status: str = "new"
    frozen: bool = False
    cut: bool = False
    thawed: bool = False
    quorum: bool = True
    lease: LeaseState = LeaseState()
    seen: tuple[Seen, ...] = ()
    ready: tuple[str, ...] = ()
    run: str = ""
    queue: tuple[Queued, ...] = ()
    unsafe: tuple[Queued, ...] = ()
    doubts: tuple[Doubt, ...] = ()
    threads: tuple[Operation | None, Operation | None, Operation | None] = (None, None, None)

    @property
    def lives(self) -> bool:
        return self.status in ("on", "stopping")

    @property
    def healthy(self) -> bool:
        """Whether it does what it should in time."""
        return self.lives and not (self.frozen or self.cut)

    @property
    def valid(self) -> bool:
        return bool(operations.valid(self.lease))

    def around(self, name: str, elapsed: int, kind: str = "") -> Around:
        """What an operation finds in this pilot, as far as it matters to it. ``kind``: of the request that was answered."""
        if name in ("claim", "send", "check", "end"):
            return Around(0, self.quorum, self.held if name == "send" else (), LeaseState())
        matters = name == "settle" or kind == "leases" or (name == "renew" and not kind)
        return Around(
            elapsed,
            self.quorum,
            self.held if name in ("settle", "reap") else (),
            self.lease if matters else LeaseState(),
        )

    @property
    def held(self) -> tuple[str, ...]:
        """The claims of its tokens, and of results that are not known to be written."""
        held = [field(text, "claim") for text in (*self.ready, self.run) if text]
        held += [queued.claim for queued in (*self.queue, *self.unsafe)]
        sending = self.threads[REPORTER]
        held += [queued.claim for queued in sending.memory.queue] if sending and sending.name == "send" else []
        return tuple(sorted(set(held)))

    def with_thread(self, thread: int, operation: Operation | None) -> Pilot:
        """With another operation in a thread."""
        threads = list(self.threads)
        threads[thread] = operation
        return self._replace(threads=tuple(threads))  # type: ignore[arg-type]


class Late(NamedTuple):
    """A write on its way, whose sender has given up."""

    kind: str
    pilot: str
    payload: Any


class Fates(NamedTuple):
    """What became of claims, for the properties alone: no pilot knows it. Each is a sorted tuple."""

    begun: tuple[str, ...] = ()
    ended: tuple[tuple[str, str], ...] = ()  #: token and claim of commands that ended by themselves
    accepted: tuple[
        tuple[str, str], ...
    ] = ()  #: results that a pilot believes, or the database has answered, to be written
    refused: tuple[str, ...] = ()  #: kept in a file for good
    gone: tuple[str, ...] = ()  #: with a pilot that was killed
    twice: str = ""  #: a claim that was run twice
    reaped: str = ""  #: a claim of a healthy pilot whose token another one has released


class Faults(NamedTuple):
    """What may still happen."""

    kills: int = 0
    freezes: int = 0
    network: int = 0  #: requests that are dropped, whose answer is lost, or that come late
    stops: int = 0
    unsent: int = 0  #: pilots that end before they could send everything
    secured: int = 0  #: results that are written to a file while their pilot tries to send them
    failures: int = 0  #: commands that fail
    partitions: int = 0  #: pilots that do not reach the database for a while
    cuts: int = 0  #: of a node
    clocks: int = 0  #: steps of the database's clock
    claims: int = 2
    settles: int = 3  #: checks of claims that are not known to stand


class State(NamedTuple):
    """Everything."""

    database: Cluster
    pilots: tuple[Pilot, ...]
    faults: Faults
    late: tuple[Late, ...] = ()
    files: tuple[str, ...] = ()  #: unsent results
    fates: Fates = Fates()
    claims: int = 0


Step = tuple[str, State]


def spend(state: State, name: str) -> State:
    """With one fault less."""
    return state._replace(faults=state.faults._replace(**{name: getattr(state.faults, name) - 1}))


def put(state: State, pilot: Pilot) -> State:
    """With another state of a pilot."""
    return state._replace(pilots=tuple(pilot if one.name == pilot.name else one for one in state.pilots))


@cached
def _token(text: str) -> Token:
    return Token(json.loads(text))


@cached
def _released(text: str) -> Queued:
    return Queued.of(release(Token(json.loads(text))))


@cached
def _concluded(text: str, how: str, code: int) -> Queued:
    return Queued.of(conclude(Token(json.loads(text)), Ended(how, code, 1.0), CONFIG, DOCUMENTS_NOW))


@cached
def _shown(token: str, leaves: tuple[str, ...], state: str) -> str:
    """The winning revision of a token if it is in this state."""
    kept = couchdb.winner_first(leaves)
    doc = couchdb.content(token, kept[0]) if kept else {}
    return operations.freeze(doc) if state_of(doc) == state else ""


class Pilots:
    """The model of some pilots and tokens. The keywords are the numbers of faults: see ``Faults``."""

    def __init__(
        self,
        pilots: int = 2,
        tokens: int = 1,
        cluster: bool = False,
        salt: str = "",
        timeless: bool = False,
        serial: bool = False,
        reapers: str = "",
        **faults: int,
    ) -> None:
        self.tokens = tuple(f"t{number}" for number in range(tokens))
        self.pilots = pilots
        self.cluster = cluster
        self.salt = salt
        self.faults = Faults(**faults)
        self.timeless = timeless  #: no time passes, and nobody reaps
        self.serial = serial  #: operations are not interleaved with each other, but with faults, time and replication
        self.reapers = reapers  #: the only pilots that reap; empty: all do
        self.unbounded = False

    def initial(self) -> State:
        """The pushed tokens, and pilots that have not begun."""
        new = {"type": "token", "lock": 0, "done": 0, "hostname": "", "scrub_count": 0, "exit_code": "", "batch": "b"}
        database = Cluster((Copy(), Copy()) if self.cluster else (Copy(),))
        database, _ = couchdb.write(database, None, [{"_id": name, **new} for name in self.tokens])
        pilots = tuple(Pilot("abc"[number], "on", lease=LeaseState(1, NOW, stored=1)) for number in range(self.pilots))
        for pilot in pilots:
            database, _ = couchdb.put_lease(database, None, pilot.name, couchdb.Lease(1, 0))
        return State(database, pilots, self.faults)

    # -- what can happen ----------------------------------------------------------------------------------------------

    def steps(self, state: State) -> Iterator[Step]:
        """Each next state."""
        for name, after in self._steps(state):
            if after != state:
                yield name, canonical(after)

    def _steps(self, state: State) -> Iterator[Step]:
        for pilot in state.pilots:
            if pilot.lives and not pilot.frozen:
                yield from self._work(state, pilot)
            elif pilot.status == "new":
                yield from self._begin(state, put(state, pilot._replace(status="on")), pilot, LEASE, "renew")
            yield from self._happens_to(state, pilot)
        yield from self._environment(state)

    def _work(self, state: State, pilot: Pilot) -> Iterator[Step]:
        if self.serial and any(any(other.threads) and not other.frozen for other in state.pilots if other != pilot):
            return
        for thread, operation in enumerate(pilot.threads):
            if self.serial and not operation and any(pilot.threads):
                continue
            if operation:
                yield from self._continue(state, pilot, thread, operation)
            elif not pilot.cut:
                for name in self._may_begin(state, pilot, thread):
                    yield from self._begin(state, state, pilot, thread, name)
        yield from self._commands(state, pilot)

    def _may_begin(self, state: State, pilot: Pilot, thread: int) -> list[str]:
        if pilot.status == "stopping":
            return self._may_begin_at_the_end(pilot, thread)
        if thread == LEASE:
            if pilot.lease.check_next and (not pilot.lease.secured or self._has_lost(state, pilot)):
                return ["check"]
            return ["renew"] if pilot.lease.renewed_at != NOW or not pilot.lease.secured else []
        if thread == REPORTER:
            return ["send"] if self._has_results(pilot) else []
        if pilot.ready or pilot.run:
            return []
        names = []
        if pilot.valid and self._shows(state, "todo") and (state.faults.claims or self.unbounded):
            names.append("claim")
        if pilot.valid and pilot.doubts and pilot.quorum and (state.faults.settles or self.unbounded):
            names.append("settle")
        reaps = not self.timeless and pilot.name in (self.reapers or pilot.name)
        if (state.files or self._may_reap(state, pilot)) and (self.unbounded or reaps):
            names.append("reap")
        return names

    def _has_lost(self, state: State, pilot: Pilot) -> bool:
        """Whether a token that a pilot holds shows another revision: otherwise a check has no effect."""
        held = [text for text in (*pilot.ready, pilot.run) if text]
        return any(
            couchdb.winner_first(copy.leaves(field(text, "_id"))) != [field(text, "_rev")]
            for text in held
            for copy in state.database.copies
        )

    def _may_reap(self, state: State, pilot: Pilot) -> bool:
        """Whether a locked token is held by a pilot that does not renew its lease: otherwise a look at it has no effect."""
        healthy = {one.name for one in state.pilots if one.healthy and self._is_fresh(state, one)} | {pilot.name}
        return any(
            field(text, "pilot") not in healthy for copy in state.database.copies for text in self._rows(copy, "locked")
        )

    @staticmethod
    def _is_fresh(state: State, pilot: Pilot) -> bool:
        """Whether all copies of its lease are new."""
        copies = state.database.copies
        return all(lease.renewed == 0 for copy in copies for name, lease in copy.leases if name == pilot.name)

    def _may_begin_at_the_end(self, pilot: Pilot, thread: int) -> list[str]:
        if thread == REPORTER and self._has_results(pilot):
            return ["send"]
        busy = pilot.ready or pilot.run or pilot.queue or pilot.unsafe or any(pilot.threads)
        return ["end"] if thread == LEASE and not busy else []

    @staticmethod
    def _has_results(pilot: Pilot) -> bool:
        return bool(pilot.queue or (pilot.unsafe and pilot.quorum))

    def _shows(self, state: State, what: str) -> bool:
        return any(self._rows(copy, what) for copy in state.database.copies)

    def _rows(self, copy: Copy, what: str) -> tuple[str, ...]:
        return tuple(filter(None, (_shown(token, copy.leaves(token), what) for token in self.tokens)))

    def _begin(self, before: State, state: State, pilot: Pilot, thread: int, name: str) -> Iterator[Step]:
        pilot = next(one for one in state.pilots if one.name == pilot.name)
        held = tuple(text for text in (*pilot.ready, pilot.run) if text)
        memory = Memory(pilot.name, self.cluster, pilot.around(name, 0))
        if name in ("renew", "check"):
            memory = memory._replace(tokens=held)
        elif name == "send":
            # The reporter takes all of them. Those that too few nodes stored are read again when writes are safe.
            queue = pilot.queue + (pilot.unsafe if pilot.quorum else ())
            pilot = pilot._replace(queue=(), unsafe=() if pilot.quorum else pilot.unsafe)
            memory = memory._replace(queue=queue)
        elif name == "reap":
            memory = memory._replace(seen=pilot.seen, files=state.files)
        elif name in ("claim", "settle"):
            memory = memory._replace(doubts=pilot.doubts, seen=pilot.seen if name == "settle" else ())
        if name == "claim":
            memory = memory._replace(claim=state.claims)
            state = state._replace(claims=state.claims + len(self.tokens))
            state = state if self.unbounded else spend(state, "claims")
        if name == "settle" and not self.unbounded:
            state = spend(state, "settles")
        operation = Operation(name, memory)
        pilot = pilot.with_thread(thread, operation)
        yield from self._continue(put(state, pilot), pilot, thread, operation)

    def _continue(self, state: State, pilot: Pilot, thread: int, operation: Operation) -> Iterator[Step]:
        request = operations.run(operation.name, operation.memory, operation.answers)
        if isinstance(request, Done):  # without a request
            yield (
                f"{pilot.name} {operation.name}",
                self._finish(state, pilot.with_thread(thread, None), operation, request),
            )
            return
        for what, after, payload, status in self._answers(state, pilot, request):
            now = next(one for one in after.pilots if one.name == pilot.name)
            now = now._replace(quorum=_quorum(now.quorum, request, payload))
            answer = Answer(now.around(operation.name, operation.elapsed, request[0]), payload, status)
            asked = operation._replace(answers=(*operation.answers, answer))
            found = operations.run(asked.name, asked.memory, asked.answers)
            label = f"{pilot.name} {operation.name}: {request[0]}{what}"
            if isinstance(found, Done):
                yield label, self._finish(put(after, now), now.with_thread(thread, None), asked, found)
            else:
                yield label, put(after, now.with_thread(thread, asked))

    # -- requests -----------------------------------------------------------------------------------------------------

    def _answers(self, state: State, pilot: Pilot, request: tuple[Any, ...]) -> Iterator[tuple[str, State, Any, int]]:
        kind = request[0]
        if pilot.cut:
            yield " fails", state, None, 0
            return
        if kind in ("write", "put_lease"):
            yield from self._writes(state, pilot, request)
            return
        for what, payload in self._reads(state, pilot, request):
            yield what, state, payload, 0
        if state.faults.network:
            yield " fails", spend(state, "network"), None, 0

    def _reads(self, state: State, pilot: Pilot, request: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
        kind, database = request[0], state.database
        seen: set[Any] = set()
        options: list[tuple[str, Any]]
        if kind in ("todo", "locked"):
            options = [(f" on {number}", self._rows(copy, kind)) for number, copy in enumerate(database.copies)]
        elif kind == "leases":
            options = [
                (f" on {number}", tuple(dict(copy.leases).get(name) for name in request[1]))
                for number, copy in enumerate(database.copies)
            ]
        else:
            options = []
            for side in couchdb.sides(database):
                found = [couchdb.read(database, side, name) for name in request[1]]
                for pick in range(max(map(len, found))):
                    options.append((f" {side} {pick}", tuple(one[min(pick, len(one) - 1)] for one in found)))
        for what, payload in options:
            if payload not in seen:
                seen.add(payload)
                yield (what if len(database.copies) > 1 else ""), payload

    def _writes(self, state: State, pilot: Pilot, request: tuple[Any, ...]) -> Iterator[tuple[str, State, Any, int]]:
        for side in couchdb.sides(state.database):
            after, payload = self._carry_out(state, pilot.name, request[0], request[1], side)
            where = f" {side}" if side is not None else ""
            yield where, after, payload, 0
            if state.faults.network:
                yield f"{where} answer lost", spend(after, "network"), None, 0
        if state.faults.network:
            yield " dropped", spend(state, "network"), None, 0
            if not state.late:
                yield (
                    " late",
                    spend(state, "network")._replace(late=(Late(request[0], pilot.name, request[1]),)),
                    None,
                    0,
                )

    def _carry_out(self, state: State, pilot: str, kind: str, payload: Any, side: int | None) -> tuple[State, Any]:
        if kind == "put_lease":
            database, stored = couchdb.put_lease(state.database, side, pilot, payload)
            return state._replace(database=database), stored
        docs = [json.loads(text) for text in payload]
        database, rows = couchdb.write(state.database, side, docs, self.salt)
        state = state._replace(database=database)
        for doc, row in zip(docs, rows, strict=True):
            if row.outcome == "ok" and (claim := self._reaped_by(state, pilot, doc)):
                state = state._replace(fates=state.fates._replace(reaped=claim))
            if row.outcome == "ok" and doc.get("claim") and state_of(doc) in ("done", "error"):
                state = self._note(state, accepted=(doc["_id"], doc["claim"]))
        return state, tuple(rows)

    def _reaped_by(self, state: State, name: str, doc: Any) -> str:
        """The claim of a healthy pilot that another one reaps with this write; empty: it reaps none."""
        claimer = next(pilot.threads[CLAIMER] for pilot in state.pilots if pilot.name == name)
        if claimer is None or claimer.name != "reap" or state_of(doc) == "locked":
            return ""
        leases = dict(state.database.copies[couchdb.LARGER].leases)
        others = [pilot for pilot in state.pilots if pilot.name != name and pilot.healthy and pilot.valid]
        fresh = [pilot for pilot in others if pilot.name in leases and leases[pilot.name].renewed == 0]
        held = [text for pilot in fresh for text in (*pilot.ready, pilot.run) if text]
        return next((field(text, "claim") for text in held if field(text, "_id") == doc["_id"]), "")

    @staticmethod
    def _note(state: State, **fates: Any) -> State:
        known = state.fates
        for name, value in fates.items():
            known = known._replace(**{name: tuple(sorted({*getattr(known, name), value}))})
        return state._replace(fates=known)

    # -- what operations change ---------------------------------------------------------------------------------------

    def _finish(self, state: State, pilot: Pilot, operation: Operation, done: Done) -> State:
        queue = list(done.queue or ()) + list(pilot.queue) + list(done.release)
        pilot = pilot._replace(queue=tuple(queue), unsafe=pilot.unsafe + done.unsafe)
        if operation.name in ("claim", "settle"):
            pilot = self._won(pilot, done)
        if done.doubts is not None:
            pilot = pilot._replace(doubts=done.doubts)
        if done.lease is not None:
            pilot = pilot._replace(lease=done.lease)
        if done.secured is not None:
            pilot = pilot._replace(
                lease=pilot.lease._replace(secured=pilot.lease.secured or done.secured, check_next=False)
            )
        if done.seen is not None:
            pilot = pilot._replace(seen=done.seen)
        pilot = self._held_again(pilot, done)
        if done.ended:
            pilot = Pilot(pilot.name, "off")
        state = self._sent(state, done)
        for claim, decision in done.settled:
            change = next(one for one in operation.memory.queue if one.claim == claim).read()
            state = self._settled(state, change, decision)
            state = state._replace(files=tuple(file for file in state.files if field(file, "claim") != claim))
        return put(state, pilot)

    @staticmethod
    def _won(pilot: Pilot, done: Done) -> Pilot:
        if pilot.status == "stopping":
            released = tuple(_released(text) for text in done.won)
            return pilot._replace(queue=pilot.queue + released)
        return pilot._replace(ready=pilot.ready + done.won)

    @staticmethod
    def _held_again(pilot: Pilot, done: Done) -> Pilot:
        revisions = dict(done.revisions)

        def current(text: str) -> str:
            doc = operations.thaw(text)
            return operations.freeze(dict(doc, _rev=revisions.get(doc["claim"], doc["_rev"]))) if doc else ""

        def lost(text: str) -> bool:
            return bool(text) and json.loads(text)["claim"] in done.lost

        ready = tuple(current(text) for text in pilot.ready if not lost(text))
        return pilot._replace(ready=ready, run="" if lost(pilot.run) else current(pilot.run))

    def _sent(self, state: State, done: Done) -> State:
        for text, decision in done.sent:
            state = state._replace(files=tuple(file for file in state.files if file != text))
            state = self._settled(state, Change.from_json(json.loads(text)), decision)
        return state

    def _settled(self, state: State, change: Change, decision: str) -> State:
        if decision == "refused":
            return self._note(state, refused=change.claim) if change.kind != "released" else state
        if change.kind in ("done", "failed"):
            return self._note(state, accepted=(change.token, change.claim))
        return state

    # -- commands -----------------------------------------------------------------------------------------------------

    def _commands(self, state: State, pilot: Pilot) -> Iterator[Step]:
        goes_on = pilot.status == "on"
        if pilot.run:
            yield from self._running(state, pilot, goes_on)
        for text in pilot.ready:
            token, rest = _token(text), tuple(other for other in pilot.ready if other != text)
            if goes_on and pilot.valid and not pilot.run and text == pilot.ready[0]:
                begun = self._begun(state, token)
                yield f"{pilot.name} runs {token.id}", put(begun, pilot._replace(ready=rest, run=text))
            if not goes_on or not pilot.valid:
                change = _released(text)
                yield (
                    f"{pilot.name} releases {token.id}",
                    put(state, pilot._replace(ready=rest, queue=(*pilot.queue, change))),
                )

    def _begun(self, state: State, token: Token) -> State:
        if token.claim in state.fates.begun:
            return state._replace(fates=state.fates._replace(twice=token.claim))
        return self._note(state, begun=token.claim)

    def _running(self, state: State, pilot: Pilot, goes_on: bool) -> Iterator[Step]:
        token = _token(pilot.run)
        ends = [("exit", 0)]
        if state.faults.failures:
            ends.append(("exit", 1))
        if not goes_on:
            ends.append(("received SIGTERM", 143))
        elif not pilot.valid:
            ends.append(("the pilot lost its lease", 137))
        for how, code in ends:
            after = put(state, pilot._replace(run="", queue=(*pilot.queue, _concluded(pilot.run, how, code))))
            if how == "exit":
                after = self._note(after, ended=(token.id, token.claim))
            yield f"{pilot.name} {token.id} ends: {how} {code}", spend(after, "failures") if code == 1 else after

    # -- what happens to pilots and around them -----------------------------------------------------------------------

    def _happens_to(self, state: State, pilot: Pilot) -> Iterator[Step]:
        if pilot.frozen:
            yield f"{pilot.name} is thawed", put(state, pilot._replace(frozen=False, thawed=True))
        if not pilot.lives:
            return
        faults = state.faults
        if faults.freezes and not pilot.frozen and (pilot.run or pilot.ready or any(pilot.threads)):
            yield f"{pilot.name} is frozen", put(spend(state, "freezes"), pilot._replace(frozen=True, thawed=False))
        if faults.partitions and not pilot.cut:
            yield f"{pilot.name} is cut off", put(spend(state, "partitions"), pilot._replace(cut=True))
        if pilot.cut:
            yield f"{pilot.name} reaches the database again", put(state, pilot._replace(cut=False))
        if faults.kills:
            yield f"{pilot.name} is killed", self._killed(spend(state, "kills"), pilot)
        if faults.stops and pilot.status == "on":
            yield f"{pilot.name} gets SIGTERM", put(spend(state, "stops"), pilot._replace(status="stopping"))
        if faults.secured and not pilot.frozen:
            yield from self._secures(state, pilot)
        if pilot.status == "stopping" and not (pilot.frozen or pilot.run or pilot.ready or pilot.threads[CLAIMER]):
            yield from self._ends_unsent(state, pilot)

    def _killed(self, state: State, pilot: Pilot) -> State:
        kept = {field(file, "claim") for file in state.files}
        for claim in {*pilot.held} - kept:
            state = self._note(state, gone=claim)
        return put(state, Pilot(pilot.name, "dead"))

    def _secures(self, state: State, pilot: Pilot) -> Iterator[Step]:
        sending = pilot.threads[REPORTER]
        results = [
            queued.change
            for queued in pilot.queue + (sending.memory.queue if sending else ())
            if field(queued.change, "kind") != "released" and queued.change not in state.files
        ]
        if results:
            after = spend(state, "secured")._replace(files=tuple(sorted({*state.files, *results})))
            yield f"{pilot.name} writes unsent results to files", after

    def _ends_unsent(self, state: State, pilot: Pilot) -> Iterator[Step]:
        sending = pilot.threads[REPORTER]
        rest = pilot.queue + pilot.unsafe + (sending.memory.queue if sending else ())
        if rest and state.faults.unsent:
            files = {queued.change for queued in rest}
            after = spend(state, "unsent")._replace(files=tuple(sorted({*state.files, *files})))
            yield f"{pilot.name} ends with unsent results", put(after, Pilot(pilot.name, "off"))

    def _environment(self, state: State) -> Iterator[Step]:
        if not self.timeless and (after := self.passed(state)) is not None:
            yield "time passes", after
        for late in state.late:
            for side in couchdb.sides(state.database):
                done, _ = self._carry_out(state, late.pilot, late.kind, late.payload, side)
                yield f"late {late.kind} of {late.pilot} arrives", done._replace(late=())
        database = state.database
        if state.faults.clocks and not any(pilot.threads[CLAIMER] for pilot in state.pilots):
            yield "the clock steps forward", stepped(spend(state, "clocks"), 1000)
            yield "the clock steps back", stepped(spend(state, "clocks"), -1000)
        if len(database.copies) > 1:
            if database.joined and state.faults.cuts:
                yield "a node is cut off", spend(state, "cuts")._replace(database=database._replace(joined=False))
            if not database.joined:
                yield "the node is back", state._replace(database=database._replace(joined=True))
            elif not database.synchronized:
                yield "nodes synchronize", state._replace(database=couchdb.synchronize(database))

    def passed(self, state: State) -> State | None:
        """After a step of time; None if a pilot has to act before: it stops a command at once when its lease is over, and answers
        come in time, unless it is frozen or cut off."""
        if any(self._is_busy(state, pilot) for pilot in state.pilots):
            return None
        database = state.database
        copies = tuple(copy._replace(leases=_aged(copy.leases, -SECONDS)) for copy in database.copies)
        late = tuple(
            one._replace(payload=_aged((("", one.payload),), -SECONDS)[0][1]) if one.kind == "put_lease" else one
            for one in state.late
        )
        state = state._replace(
            pilots=tuple(map(_older, state.pilots)), database=database._replace(copies=copies), late=late
        )
        for pilot in state.pilots:
            if pilot.healthy:
                state = self._renewed(state, pilot)
        return state

    def _is_busy(self, state: State, pilot: Pilot) -> bool:
        if not pilot.lives or pilot.frozen:
            return False
        if pilot.run and (pilot.status == "stopping" or not pilot.valid):
            return True
        if pilot.cut:
            return False
        late = pilot.status == "on" and bool(self._may_begin(state, pilot, LEASE))
        return late or any(operation and operation.elapsed for operation in pilot.threads)

    @staticmethod
    def _renewed(state: State, pilot: Pilot) -> State:
        """A pilot that is well renews its lease in time. What it would find otherwise is found by the operation ``renew``."""
        lease = pilot.lease
        side = None if state.database.joined else couchdb.LARGER
        database, _ = couchdb.put_lease(state.database, side, pilot.name, couchdb.Lease(lease.renewals + 1, 0))
        lease = lease._replace(renewals=lease.renewals + 1, stored=lease.renewals + 1, renewed_at=NOW)
        lease = lease._replace(check_next=bool(pilot.ready or pilot.run))
        return put(state._replace(database=database), pilot._replace(lease=lease, quorum=True))

    # -- what must hold -----------------------------------------------------------------------------------------------

    def violations(self, state: State) -> Iterator[str]:
        """What must never be."""
        if state.fates.twice:
            yield f"claim {state.fates.twice} is run twice"
        if state.fates.reaped:
            yield f"the token of claim {state.fates.reaped} is reaped, although its pilot is healthy"
        yield from self._overlaps(state)
        for token in self.tokens:
            yield from self._of_token(state, token)
        if self.is_complete(state):
            yield from self._results(state)

    def _overlaps(self, state: State) -> Iterator[str]:
        """No token is run by two pilots, unless one was frozen and could not stop its command."""
        running = [
            field(pilot.run, "_id") for pilot in state.pilots if pilot.run and not (pilot.frozen or pilot.thawed)
        ]
        if len(running) != len(set(running)):
            yield "two pilots run a token at the same time"

    def _of_token(self, state: State, token: str) -> Iterator[str]:
        """No token is lost, and an accepted result is neither replaced nor deleted, and the only one."""
        database = state.database
        if not couchdb.winner_first(couchdb.merge_leaves(*(copy.leaves(token) for copy in database.copies))):
            yield f"{token} is deleted"
            return
        accepted = {claim for name, claim in state.fates.accepted if name == token}
        if len(accepted) > 1:
            yield f"{token} has {len(accepted)} accepted results"
        if accepted and database.synchronized:
            shown = couchdb.current(database.copies[0], token) or {}
            leaves = [couchdb.content(token, rev) for rev in couchdb.winner_first(database.copies[0].leaves(token))]
            if not any(doc.get("claim") in accepted and state_of(doc) in ("done", "error") for doc in leaves):
                yield f"the accepted result of {token} is gone; it shows {shown.get('claim')}"

    def is_complete(self, state: State) -> bool:
        """All tokens are finished, and nothing is left to be done."""
        database = state.database
        if state.late or state.files or not database.joined or not database.synchronized:
            return False
        if any(
            pilot.lives and (pilot.run or pilot.ready or pilot.queue or pilot.unsafe or any(pilot.threads))
            for pilot in state.pilots
        ):
            return False
        docs = [couchdb.current(database.copies[0], token) for token in self.tokens]
        if any(self._hides_a_result(database.copies[0], token) for token in self.tokens):
            return False
        return all(state_of(doc or {}) in ("done", "error") for doc in docs)

    @staticmethod
    def _hides_a_result(copy: Copy, token: str) -> bool:
        """Whether a losing revision has a result that the token does not know of."""
        leaves = [couchdb.content(token, rev) for rev in couchdb.winner_first(copy.leaves(token))]
        shown = leaves[0]
        known = {shown.get("claim"), *(attempt.get("claim") for attempt in shown.get("attempts") or [])}
        return any(state_of(doc) in ("done", "error") and doc.get("claim") not in known for doc in leaves[1:])

    def _results(self, state: State) -> Iterator[str]:
        """Where all is done: each result that a command had is in its token or in a file, unless its pilot was killed."""
        for token, claim in state.fates.ended:
            doc = couchdb.current(state.database.copies[0], token) or {}
            known = {doc.get("claim"), *(attempt.get("claim") for attempt in doc.get("attempts") or [])}
            if claim not in {*known, *state.fates.refused, *state.fates.gone}:
                yield f"the result of {claim} is nowhere"
        for token in self.tokens:
            doc = couchdb.current(state.database.copies[0], token) or {}
            accepted = {claim for name, claim in state.fates.accepted if name == token}
            if accepted and doc.get("claim") not in accepted:
                yield f"{token} shows {doc.get('claim')}, and the accepted result is of {sorted(accepted)}"

    def recover(self, state: State) -> State | None:
        """The next step of a world without further faults, in which a new pilot is started where none is left."""
        return Recovery(self).step(state)


class Recovery:
    """Goes on without faults, one step at a time, in an order that gives each part its turn."""

    def __init__(self, model: Pilots) -> None:
        self._model = model

    def step(self, state: State) -> State | None:
        """The next state."""
        quiet = state._replace(faults=Faults(claims=state.faults.claims, settles=state.faults.settles))
        self._model.unbounded = True
        try:
            return self._step(quiet)
        finally:
            self._model.unbounded = False

    def _step(self, state: State) -> State | None:
        for repair in (self._mended, self._ended, self._worked):
            if (after := repair(state)) is not None:
                return after
        after = self._model.passed(state)
        return None if after is None else canonical(after)

    def _mended(self, state: State) -> State | None:
        """With one of the faults over that still last."""
        database = state.database
        if not database.joined:
            return state._replace(database=database._replace(joined=True))
        for pilot in state.pilots:
            if pilot.frozen or pilot.cut:
                return canonical(put(state, pilot._replace(frozen=False, cut=False, thawed=pilot.frozen)))
        if state.late:
            return next(after for name, after in self._model.steps(state) if name.startswith("late"))
        return None if database.synchronized else canonical(state._replace(database=couchdb.synchronize(database)))

    def _ended(self, state: State) -> State | None:
        """Further towards the end of pilots that have nothing to do, or with a new one."""
        for pilot in state.pilots:
            if pilot.status == "stopping" and (after := self._work(state, pilot)) is not None:
                return after
        if not any(pilot.status in ("new", "on") for pilot in state.pilots):
            another = Pilot(chr(ord(max(pilot.name for pilot in state.pilots)) + 1), "new")
            return state._replace(pilots=(*state.pilots[1:], another))
        idle = next((pilot for pilot in state.pilots if self._finds_nothing(state, pilot)), None)
        return put(state, idle._replace(status="stopping")) if idle else None

    def _worked(self, state: State) -> State | None:
        return next((after for pilot in state.pilots if (after := self._work(state, pilot)) is not None), None)

    def _finds_nothing(self, state: State, pilot: Pilot) -> bool:
        """Whether a pilot ends because no token is left for it."""
        busy = pilot.ready or pilot.run or pilot.queue or pilot.unsafe or pilot.doubts or any(pilot.threads)
        if pilot.status != "on" or busy or not pilot.valid or state.files:
            return False
        return not self._model._shows(state, "todo") and not self._model._may_reap(state, pilot)

    def _work(self, state: State, pilot: Pilot) -> State | None:
        model = self._model
        if pilot.status == "new":
            return self._to_end(
                model._begin(state, put(state, pilot._replace(status="on")), pilot, LEASE, "renew"), pilot, LEASE
            )
        if not pilot.lives:
            return None
        order = (LEASE, REPORTER, CLAIMER)
        for thread in order:
            if operation := pilot.threads[thread]:
                return self._to_end(model._continue(state, pilot, thread, operation), pilot, thread)
        for _, after in model._commands(state, pilot):
            return canonical(after)
        for thread in order:
            for name in model._may_begin(state, pilot, thread):
                after = self._to_end(model._begin(state, state, pilot, thread, name), pilot, thread)
                if after._replace(claims=state.claims) != state:
                    return after
        return None

    def _to_end(self, steps: Iterator[Step], pilot: Pilot, thread: int) -> State:
        """After a whole operation, whose requests are all answered."""
        while True:
            _, after = next(steps)
            after = canonical(after)
            now = next(one for one in after.pilots if one.name == pilot.name)
            if (operation := now.threads[thread]) is None:
                return after
            steps = self._model._continue(after, now, thread, operation)


def _quorum(before: bool, request: tuple[Any, ...], payload: Any) -> bool:
    """Whether the pilot believes that writes reach most copies, after an answer."""
    if request[0] == "put_lease" and payload is not None:
        return bool(payload)
    if request[0] == "write" and payload is not None:
        written = [row.outcome == "ok" for row in payload if row.rev]
        return any(written) if written else before
    return before


# -- time -------------------------------------------------------------------------------------------------------------


def stepped(state: State, seconds: float) -> State:
    """After a step of the database's clock."""
    copies = tuple(copy._replace(leases=_aged(copy.leases, -seconds)) for copy in state.database.copies)
    pilots = tuple(
        pilot._replace(seen=tuple(_seen_at(seen, -seconds) for seen in pilot.seen)) for pilot in state.pilots
    )
    return state._replace(pilots=pilots, database=state.database._replace(copies=copies))


def _aged(leases: tuple[tuple[str, couchdb.Lease], ...], seconds: float) -> tuple[tuple[str, couchdb.Lease], ...]:
    return tuple((name, lease._replace(renewed=int(_limit(lease.renewed + seconds)))) for name, lease in leases)


def _limit(seconds: float) -> float:
    return max(-LONG_AGO, min(LONG_AGO, seconds))


def _past(moment: float) -> float:
    return max(NOW - LONG_AGO, moment - SECONDS)


def _older(pilot: Pilot) -> Pilot:
    lease = pilot.lease
    renewed_at = None if lease.renewed_at is None else _past(lease.renewed_at)
    in_time = renewed_at is not None and NOW - renewed_at <= operations.LEASE / 2
    since = _past(lease.in_time_since) if in_time else 0.0  # else it is set at the next renewal, and not read before
    return pilot._replace(
        thawed=False,
        lease=lease._replace(renewed_at=renewed_at, in_time_since=since),
        seen=tuple(_seen_at(seen._replace(first=_past(seen.first)), -SECONDS) for seen in pilot.seen),
        threads=tuple(
            operation
            and operation._replace(elapsed=min(LONGEST if operation.name in TIMED else 1, operation.elapsed + 1))
            for operation in pilot.threads
        ),  # type: ignore[arg-type]
    )


def _seen_at(seen: Seen, seconds: float) -> Seen:
    if seen.reading is None:
        return seen
    renewals, renewed, lease = seen.reading
    return seen._replace(reading=(renewals, NOW + _limit(renewed - NOW + seconds), lease))


# -- the same states --------------------------------------------------------------------------------------------------


def canonical(state: State) -> State:
    """The state with the smallest numbers of renewals that have the same order: only that is ever compared."""
    if all(pilot.lease.renewals < 2 for pilot in state.pilots):
        return state
    numbers: dict[str, set[float]] = defaultdict(lambda: {0})
    for pilot in state.pilots:
        numbers[pilot.name].update((pilot.lease.renewals, pilot.lease.stored))
    for name, lease in _all_leases(state):
        numbers[name].add(lease.renewals)
    for pilot in state.pilots:
        for seen in (
            *pilot.seen,
            *(seen for operation in pilot.threads if operation for seen in operation.memory.seen),
        ):
            if seen.reading:
                numbers[seen.pilot].add(seen.reading[0])
        for operation in pilot.threads:
            for around in (
                (operation.memory.around, *(answer.around for answer in operation.answers)) if operation else ()
            ):
                numbers[pilot.name].update((around.lease.renewals, around.lease.stored))
    ranks = {name: {number: rank for rank, number in enumerate(sorted(found))} for name, found in numbers.items()}
    if all(rank == number for found in ranks.values() for number, rank in found.items()):
        return state
    return _Renumbered(ranks).state(state)


def _all_leases(state: State) -> Iterable[tuple[str, couchdb.Lease]]:
    for copy in state.database.copies:
        yield from copy.leases
    for late in state.late:
        if late.kind == "put_lease":
            yield late.pilot, late.payload
    for pilot in state.pilots:
        for operation in pilot.threads:
            for request, answer in _lease_answers(operation):
                yield from ((name, lease) for name, lease in zip(request, answer, strict=True) if lease is not None)


def _lease_answers(operation: Operation | None) -> Iterator[tuple[tuple[str, ...], tuple[Any, ...]]]:
    """The leases among the answers of an operation, with the pilots that were asked for."""
    for place, answer in enumerate(operation.answers if operation else ()):
        if isinstance(answer.payload, tuple) and any(isinstance(one, couchdb.Lease) for one in answer.payload):
            assert operation is not None
            request = operations.run(operation.name, operation.memory, operation.answers[:place])
            assert not isinstance(request, Done)
            yield request[1], answer.payload


class _Renumbered:
    def __init__(self, ranks: dict[str, dict[float, int]]) -> None:
        self._ranks = ranks

    def state(self, state: State) -> State:
        copies = tuple(
            copy._replace(leases=tuple((name, self._lease(name, lease)) for name, lease in copy.leases))
            for copy in state.database.copies
        )
        late = tuple(
            one._replace(payload=self._lease(one.pilot, one.payload)) if one.kind == "put_lease" else one
            for one in state.late
        )
        pilots = tuple(self._pilot(pilot) for pilot in state.pilots)
        return state._replace(database=state.database._replace(copies=copies), late=late, pilots=pilots)

    def _lease(self, pilot: str, lease: couchdb.Lease) -> couchdb.Lease:
        return lease._replace(renewals=self._ranks[pilot][lease.renewals])

    def _pilot(self, pilot: Pilot) -> Pilot:
        return pilot._replace(
            lease=self._known(pilot.name, pilot.lease),
            seen=self._seen(pilot.seen),
            threads=tuple(operation and self._operation(pilot.name, operation) for operation in pilot.threads),  # type: ignore[arg-type]
        )

    def _known(self, pilot: str, lease: LeaseState) -> LeaseState:
        ranks = self._ranks[pilot]
        return lease._replace(renewals=ranks[lease.renewals], stored=ranks[lease.stored])

    def _seen(self, seen: tuple[Seen, ...]) -> tuple[Seen, ...]:
        return tuple(
            one._replace(reading=(self._ranks[one.pilot][one.reading[0]], *one.reading[1:])) if one.reading else one
            for one in seen
        )  # type: ignore[misc]

    def _around(self, pilot: str, around: Around) -> Around:
        return around._replace(lease=self._known(pilot, around.lease))

    def _operation(self, pilot: str, operation: Operation) -> Operation:
        memory = operation.memory
        answers = list(operation.answers)
        for place, answer in enumerate(answers):
            payload = answer.payload
            if isinstance(payload, tuple) and any(isinstance(one, couchdb.Lease) for one in payload):
                request: Any = operations.run(operation.name, memory, operation.answers[:place])
                names = request[1]
                payload = tuple(one and self._lease(name, one) for name, one in zip(names, payload, strict=True))
            answers[place] = answer._replace(around=self._around(pilot, answer.around), payload=payload)
        memory = memory._replace(around=self._around(pilot, memory.around), seen=self._seen(memory.seen))
        return operation._replace(memory=memory, answers=tuple(answers))
