"""Runs the pilot's own code, one request after the other.

An operation is what one thread of a pilot does with the database: to claim, to send results, to renew the lease, to
reap. It is run from its beginning with the answers that it got so far, up to the next request. So a state of the model
has the answers only, no stack of Python, and the same answers need to be run only once. Random numbers and clocks are
replaced; sockets, threads and logs are left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple
from unittest import mock

from airflow_provider_picas.lifecycle import transitions
from airflow_provider_picas.lifecycle.leases import Reading
from airflow_provider_picas.lifecycle.pilot_config import Config
from airflow_provider_picas.lifecycle.transitions import Change, Token
from airflow_provider_picas.pilot import claims, conflicts, lease, observer, outbox, reaper, reporter
from airflow_provider_picas.pilot.clock import Quorum
from airflow_provider_picas.pilot.errors import Unreachable
from airflow_provider_picas.pilot.identity import Identity
from airflow_provider_picas.pilot.session import Session
from tests.model import couchdb
from tests.model.explorer import cached, forget

NOW = 1000.0  # the present, by all clocks; the past is below it
SECONDS = 6.0  # in one step of time
LEASE = 12.0
LONG_AGO = 18.0  # seconds: longer than anything that the pilot compares with
DOCUMENTS_NOW = 2000  # what documents hold as a time: no rule compares these

CONFIG = Config(command="true", submission="s", batch="b", lease=LEASE, max_retries=1, max_scrubs=1)

Doc = dict[str, Any]


def freeze(doc: Doc | None) -> str:
    """A document as a string, to be part of a state."""
    return "" if doc is None else json.dumps(doc, sort_keys=True)


def thaw(text: str) -> Doc | None:
    """The document in a string."""
    return json.loads(text) if text else None


class LeaseState(NamedTuple):
    """What a pilot knows of its own lease. Times: see ``NOW``."""

    renewals: int = 0
    renewed_at: float | None = None
    secured: bool = True
    in_time_since: float = 0.0
    check_next: bool = False  #: it was renewed, and the tokens are to be checked
    stored: int = 0  #: the last renewal that most nodes stored


class Seen(NamedTuple):
    """What a pilot remembers of another one's lease."""

    pilot: str
    reading: tuple[float, float, float] | None
    first: float


class Queued(NamedTuple):
    """A change that the reporter is to write. ``doc``: the revision that it knows; empty: it has to read it again."""

    change: str
    doc: str

    @classmethod
    def of(cls, change: Change) -> Queued:
        """A change of the pilot as part of a state."""
        return cls(json.dumps(change.to_json(), sort_keys=True), freeze(change.doc))

    def read(self) -> Change:
        """The change as the pilot has it."""
        change = Change.from_json(json.loads(self.change))
        change.doc = thaw(self.doc)
        return change

    @property
    def claim(self) -> str:
        """The claim that it belongs to."""
        return str(json.loads(self.change)["claim"])


class Doubt(NamedTuple):
    """A claim in a cluster that is not known to stand."""

    token: str
    beaten: bool
    seen: bool
    checks: int


class Around(NamedTuple):
    """What an operation finds in its pilot, at its beginning and at each answer. ``elapsed``: steps of time since it
    began."""

    elapsed: int
    quorum: bool
    held: tuple[str, ...]
    lease: LeaseState


class Memory(NamedTuple):
    """What an operation begins with."""

    pilot: str
    cluster: bool
    around: Around
    claim: int = 0  #: number of the next claim
    tokens: tuple[str, ...] = ()
    queue: tuple[Queued, ...] = ()
    seen: tuple[Seen, ...] = ()
    doubts: tuple[Doubt, ...] = ()
    files: tuple[str, ...] = ()


class Answer(NamedTuple):
    """What came back for a request; ``payload`` None: nothing did. ``status``: of an error."""

    around: Around
    payload: Any
    status: int = 0


class Asks(BaseException):
    """The next request of an operation."""

    def __init__(self, request: tuple[Any, ...]) -> None:
        super().__init__(request)
        self.request = request


class Done(NamedTuple):
    """What an operation has changed. None: nothing."""

    won: tuple[str, ...] = ()  #: claimed tokens
    doubts: tuple[Doubt, ...] | None = None
    release: tuple[Queued, ...] = ()  #: claims that may have been written
    queue: tuple[Queued, ...] | None = None
    unsafe: tuple[Queued, ...] = ()
    settled: tuple[tuple[str, str], ...] = ()  #: claims whose change landed or was refused
    lease: LeaseState | None = None
    revisions: tuple[tuple[str, str], ...] = ()  #: by claim
    lost: tuple[str, ...] = ()
    secured: bool | None = None  #: the tokens were checked: with success, or they could not be read
    seen: tuple[Seen, ...] | None = None
    sent: tuple[tuple[str, str], ...] = ()  #: unsent files, and what became of each
    reaped: int = 0
    ended: bool = False


class _Unique(NamedTuple):
    hex: str


class _Time:
    """The module ``time`` of the pilot's code."""

    now = NOW
    number = 0

    @classmethod
    def monotonic(cls) -> float:
        return cls.now

    @staticmethod
    def sleep(seconds: float) -> None:
        raise AssertionError("the pilot sleeps in an operation")

    @classmethod
    def uuid4(cls) -> Any:
        cls.number += 1
        return _Unique(f"{cls.number:016x}")


def _no_log(*words: object) -> None:
    pass


@contextmanager
def real_code() -> Iterator[None]:
    """Replace what is random, or takes time, in the modules of the pilot."""
    modules = (claims, conflicts, lease, observer, outbox, reaper, reporter)
    with mock.patch.object(transitions, "uuid", _Time):
        patches = [mock.patch.object(module, "log", _no_log) for module in modules if hasattr(module, "log")]
        patches += [mock.patch.object(module, "time", _Time) for module in modules if hasattr(module, "time")]
        patches.append(mock.patch.object(claims.Claims, "CHECKS", 2))
        forget()
        for patch in patches:
            patch.start()
        try:
            yield
        finally:
            forget()
            for patch in patches:
                patch.stop()


class _Clock:
    """The database's clock."""

    def __init__(self, quorum: Quorum, lock: int = DOCUMENTS_NOW) -> None:
        self.quorum = quorum
        self._lock = lock

    def now(self) -> float:
        return self._lock

    def at(self, moment: float) -> float:
        return moment


class Requests:
    """The pilot's ``Database``, whose answers are given."""

    place = "the database"

    def __init__(self, memory: Memory, answers: Sequence[Answer]) -> None:
        self._answers = list(answers)
        self.quorum = Quorum()
        self.around = memory.around
        self._enter(memory.around)

    def _enter(self, around: Around) -> None:
        self.around = around
        _Time.now = NOW + SECONDS * around.elapsed
        self.quorum.note(around.quorum)

    def _ask(self, *request: Any) -> Any:
        if not self._answers:
            raise Asks(request)
        answer = self._answers.pop(0)
        self._enter(answer.around)
        if answer.payload is None:
            raise Unreachable("no answer", answer.status)
        return answer.payload

    def todo(self) -> list[Doc]:
        """Rows of the view of waiting tokens."""
        return [json.loads(text) for text in self._ask("todo")]

    def page(self, view: str, **query: Any) -> tuple[list[Doc], None]:
        """Rows of the view of locked tokens."""
        assert "counts" in view, view
        return [json.loads(text) for text in self._ask("locked")], None

    def branches(self, ids: Sequence[str]) -> dict[str, list[Doc]]:
        """The revisions of tokens that are not deleted, the winner first."""
        if not ids:
            return {}
        found = zip(ids, self._ask("read", tuple(ids)), strict=True)
        return {name: [couchdb.content(name, rev) for rev in couchdb.winner_first(leaves)] for name, leaves in found}

    def read(self, ids: Sequence[str]) -> dict[str, Doc | None]:
        """The winning revisions."""
        return {name: found[0] if found else None for name, found in self.branches(ids).items()}

    def revisions(self, ids: Sequence[str]) -> dict[str, str | None]:
        """The names of the winning revisions."""
        return {name: doc["_rev"] if doc else None for name, doc in self.read(ids).items()}

    def bulk(self, docs: Sequence[Doc]) -> tuple[int, dict[str, Doc]]:
        """Write tokens."""
        rows = self._ask("write", tuple(freeze(doc) for doc in docs))
        answer: dict[str, Doc] = {}
        for row in rows:
            shown = {"ok": {"rev": row.rev}, "accepted": {"rev": row.rev, "accepted": True}}
            answer[row.token] = shown.get(row.outcome, {"error": "conflict"})
        written = [row.outcome == "ok" for row in rows if row.rev]
        if written:
            self.quorum.note(any(written))
        return 202 if any(row.outcome == "accepted" for row in rows) else 201, answer

    def delete(self, doc: Doc) -> None:
        """Delete a revision."""
        self.bulk([{"_id": doc["_id"], "_rev": doc["_rev"], "_deleted": True}])

    def with_attachments(self, doc: Doc) -> Doc:
        """Tokens have none in the model."""
        return doc

    def leases(self, pilots: Sequence[str]) -> dict[str, Doc]:
        """The leases of pilots."""
        if not pilots:
            return {}
        found = zip(pilots, self._ask("leases", tuple(pilots)), strict=True)
        return {pilot: self._lease_document(pilot, lease) for pilot, lease in found if lease is not None}

    def _lease_document(self, pilot: str, stored: couchdb.Lease) -> Doc:
        renewed = stored.renewed
        if abs(renewed) < LONG_AGO:
            renewed += int(SECONDS * self.around.elapsed)  # by the clock of this operation
        return {
            "pilot": pilot,
            "renewals": stored.renewals,
            "renewed": NOW + renewed,
            "lease": LEASE,
            "ended": stored.ended,
        }

    def put_local(self, name: str, doc: Doc) -> None:
        """Write a lease."""
        stored = self._ask("put_lease", couchdb.Lease(doc["renewals"], 0, doc["ended"]))
        self.quorum.note(stored)
        if not stored:
            raise Unreachable("too few nodes stored it", 202)

    def skip_for(self, name: str, seconds: float, waits: bool = True) -> None:
        """Nothing is skipped."""


class _Work:
    """The pilot's ``Work``, as far as the lease needs it."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self.tokens = tokens
        self.lost: list[str] = []

    def held(self) -> list[Token]:
        return list(self.tokens)

    def activity(self, watched: bool = False) -> Doc:
        return {}

    def lose(self, token: Token, how: str) -> None:
        self.lost.append(token.claim)

    def stop(self, level: int, why: str, code: int = 0) -> None:
        raise AssertionError("only Slurm's news make a pilot stop here, and there are none")


class PilotLease(lease.Lease):
    """The pilot's lease with what it knows. Flags are left out."""

    def __init__(self, database: Any, memory: Memory, work: Any = None) -> None:
        me = Identity(memory.pilot, "node", None, (0, 1))
        super().__init__(database, CONFIG, me, _Clock(database.quorum, int(NOW)), work)  # type: ignore[arg-type]
        self.know(memory.around.lease)

    def know(self, state: LeaseState) -> None:
        """Take over what is known."""
        self._renewals, self._renewed_at = state.renewals, state.renewed_at
        self._stored = state.stored, NOW - LONG_AGO if state.renewed_at is None else state.renewed_at
        self._secured, self._in_time_since = state.secured, state.in_time_since

    def state(self, elapsed: int, check_next: bool) -> LeaseState:
        """What is known, by the clock at the end of the operation."""
        shift = SECONDS * elapsed
        renewed_at = None if self._renewed_at is None else self._renewed_at - shift
        since = self._in_time_since - shift
        return LeaseState(self._renewals, renewed_at, self._secured, since, check_next, self._stored[0])

    def _check_flags(self) -> None:
        pass


@cached
def valid(state: LeaseState) -> bool:
    """The pilot's own view of its lease."""
    _Time.now = NOW
    own = PilotLease(_NO_DATABASE, Memory("", False, Around(0, True, (), state)))
    return own.valid()


def _session(database: Any, memory: Memory, lock: int = DOCUMENTS_NOW) -> Session:
    """The pilot's session for one operation."""
    me = Identity(memory.pilot, "node", None, (0, 1))
    own = PilotLease(database, memory)

    def known(what: Callable[[], Any]) -> Callable[[], Any]:
        def tell() -> Any:
            own.know(_by_clock_of_operation(database.around))
            return what()

        return tell

    held = lambda: set(database.around.held)  # noqa: E731
    stored = known(own.stored) if memory.cluster else (lambda: None)
    return Session(database, CONFIG, me, _Clock(database.quorum, lock), known(own.contact), held, stored)  # type: ignore[arg-type]


def _by_clock_of_operation(around: Around) -> LeaseState:
    state, shift = around.lease, SECONDS * around.elapsed
    renewed_at = None if state.renewed_at is None else state.renewed_at + shift
    return state._replace(renewed_at=renewed_at, in_time_since=state.in_time_since + shift)


def _remember(silence: Any, seen: Sequence[Seen]) -> None:
    silence._seen = {one.pilot: (None if one.reading is None else Reading(*one.reading), one.first) for one in seen}


def _remembered(silence: Any, elapsed: int) -> tuple[Seen, ...]:
    shift = SECONDS * elapsed
    found = []
    for pilot, (reading, first) in sorted(silence._seen.items()):
        known = None
        if reading is not None:
            far = abs(reading.renewed - NOW) >= LONG_AGO
            known = (reading.renewals, reading.renewed - (0 if far else shift), reading.lease)
        found.append(Seen(pilot, known, max(NOW - LONG_AGO, first - shift)))
    return tuple(found)


# -- the operations ---------------------------------------------------------------------------------------------------


def claim(database: Requests, memory: Memory, most: int = 2) -> Done:
    """Claim waiting tokens, as ``Claims.take`` does with its candidates."""
    _Time.number = memory.claim
    session = _session(database, memory, DOCUMENTS_NOW + memory.claim)
    made = claims.Claims(session, memory.cluster, conflicts.Conflicts(session))
    _doubt(made, memory.doubts)
    won: list[Token] = []
    with suppress(Unreachable):
        candidates = [doc for doc in database.todo() if not made._is_unsettled(doc["_id"])]
        won = made._claim(candidates[:most])
    release = tuple(Queued.of(transitions.release(token)) for token in made.in_flight)
    return Done(tuple(freeze(token.doc) for token in won), _doubts(made), release)


def settle(database: Requests, memory: Memory) -> Done:
    """Check claims that are not known to stand: ``Claims.settle``."""
    session = _session(database, memory)
    both = conflicts.Conflicts(session)
    _remember(both._observer._silence, memory.seen)
    made = claims.Claims(session, memory.cluster, both)
    _doubt(made, memory.doubts)
    won: list[Token] = []
    with suppress(Unreachable):
        won = made.settle()
    seen = _remembered(both._observer._silence, database.around.elapsed)
    return Done(tuple(freeze(token.doc) for token in won), _doubts(made), seen=seen)


def _doubt(made: claims.Claims, doubts: Sequence[Doubt]) -> None:
    for doubt in doubts:
        token = Token(json.loads(doubt.token))
        entry = claims.Unsettled(token, doubt.beaten)
        entry.seen, entry.checks, entry.next_check = doubt.seen, doubt.checks, 0.0
        made._unsettled[token.id] = entry


def _doubts(made: claims.Claims) -> tuple[Doubt, ...]:
    entries = made._unsettled.values()
    return tuple(sorted(Doubt(freeze(one.token.doc), one.beaten, one.seen, min(one.checks, 2)) for one in entries))


class _NoOutbox:
    def record(self, change: Change) -> None:
        """What is refused is in ``settled``."""


def send(database: Requests, memory: Memory) -> Done:
    """Write changes: ``Reporter._send_once``."""
    session = _session(database, memory)
    settled: list[tuple[str, str]] = []
    made = reporter.Reporter(
        database,
        _NoOutbox(),
        lambda change, decision: settled.append((change.claim, decision)),
        conflicts.Conflicts(session),
    )  # type: ignore[arg-type]
    changes = [queued.read() for queued in memory.queue]
    made._sending = {change.claim: change for change in changes}
    with suppress(Unreachable):
        made._send_once(changes, False)
    unsafe = tuple(Queued.of(change) for change in made._unsafe.values())
    return Done(
        queue=tuple(Queued.of(change) for change in made._sending.values()), unsafe=unsafe, settled=tuple(settled)
    )


def renew(database: Requests, memory: Memory) -> Done:
    """Renew the lease, and write the tokens again if that was late: the first half of ``Lease.run``."""
    work = _Work([Token(json.loads(text)) for text in memory.tokens])
    own = PilotLease(database, memory, work)
    check_next = False
    with suppress(Unreachable):
        own.renew()
        if not own._secured:
            own._write_tokens_again()
        check_next = True
    revisions = tuple((token.claim, token.doc["_rev"]) for token in work.tokens)
    return Done(lease=own.state(database.around.elapsed, check_next), revisions=revisions)


def check(database: Requests, memory: Memory) -> Done:
    """Check that the pilot still holds its tokens: the second half of ``Lease.run``."""
    work = _Work([Token(json.loads(text)) for text in memory.tokens])
    own = PilotLease(database, memory, work)
    try:
        own.check_tokens()
    except Unreachable:
        return Done(secured=False)
    return Done(secured=True, lost=tuple(work.lost))


def reap(database: Requests, memory: Memory) -> Done:
    """Send the results that other pilots could not send, then release the tokens of dead pilots: ``Reaper.reap``."""
    sent, remaining = [], []
    seen: tuple[Seen, ...] | None = None
    reaped = 0
    try:
        for text in memory.files:
            change = Change.from_json(json.loads(text))
            if not database.quorum.holds():
                remaining.append(change.token)
                continue
            try:
                sent.append((text, outbox.Outbox._send_one(database, change)))  # type: ignore[arg-type]
            except Unreachable as error:
                if not error.status:
                    raise
                remaining.append(change.token)
        session = _session(database, memory)
        made = reaper.Reaper(session)
        for silence in (made._observer._silence, made._conflicts._observer._silence):
            _remember(silence, memory.seen)
        try:
            reaped, _ = made.reap(but=remaining)
        finally:
            seen = _remembered(made._observer._silence, database.around.elapsed)
    except Unreachable:
        pass
    return Done(seen=seen, sent=tuple(sent), reaped=reaped)


def end(database: Requests, memory: Memory) -> Done:
    """Record in the lease that the pilot has ended: ``Lease.end``."""
    own = PilotLease(database, memory, _Work([]))
    with suppress(Unreachable):
        own.renew(ended=True)
    return Done(ended=True)


OPERATIONS = {function.__name__: function for function in (claim, settle, send, renew, check, reap, end)}

_NO_DATABASE = mock.Mock(quorum=Quorum())


@cached
def run(name: str, memory: Memory, answers: tuple[Answer, ...]) -> Done | tuple[Any, ...]:
    """Run an operation with these answers: what it has changed, or its next request."""
    database = Requests(memory, answers)
    _Time.now = NOW + SECONDS * memory.around.elapsed
    try:
        return OPERATIONS[name](database, memory)
    except Asks as asks:
        return asks.request
