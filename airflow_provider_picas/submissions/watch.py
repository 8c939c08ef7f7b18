"""Watches the pilots of a submission: their state in Slurm, and the tokens of dead ones.

These operations need both sides: their steps are requests to CouchDB and steps on the cluster, so the caller has both
hooks.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

from airflow_provider_picas.couchdb import conflicts, edits, errors, overview
from airflow_provider_picas.couchdb.http import Request, Response, json_body
from airflow_provider_picas.couchdb.pool import PAGE, TOO_LARGE, Document, Pool, page_of
from airflow_provider_picas.lifecycle import transitions
from airflow_provider_picas.lifecycle.ids import lease_id
from airflow_provider_picas.lifecycle.profile import JOB_FIELD, PICAS, Profile
from airflow_provider_picas.lifecycle.transitions import held_by_pilot, reap
from airflow_provider_picas.slurm import jobs as slurm_jobs
from airflow_provider_picas.slurm.jobs import Job, Phase, SlurmStatus
from airflow_provider_picas.slurm.remote import RemoteError
from airflow_provider_picas.submissions import deaths
from airflow_provider_picas.submissions.deaths import LEASE, Evaluation, Holders, Lease, ObservedLeases
from airflow_provider_picas.submissions.submission import Operation, Submission
from airflow_provider_picas.submissions.unsent import send_unsent
from airflow_provider_picas.tokens import documents
from airflow_provider_picas.tokens.states import State, state_of
from airflow_provider_picas.tokens.text import one_line

QUORUM_PROBE = "_local/picas-quorum"  # written to check whether a quorum of a cluster's nodes stores a write
FIRST_READ = 4  # tokens read by the first request: their size is not known yet
_FIELDS = ("_id", "_rev", "type", "lock", "done", "exit_code", "hostname", "slurm_job_id", "pilot", "claim")


@dataclass
class PilotStatus:
    """The result of one check. ``slurm`` is None if it did not answer; then ``outage`` says why. ``before``: the
    database's clock before Slurm was queried."""

    slurm: SlurmStatus | None = None
    before: float = 0.0
    outage: str | None = None
    reaped: list[tuple[str, str]] = field(default_factory=list)  #: token id, cause
    given_up: list[tuple[str, str]] = field(default_factory=list)  #: token id, cause: scrubbed too often, now in error
    sent: int = 0  #: number of results sent from the submission's folder
    #: Why results are still there, by token: these tokens are not released.
    unsent: dict[str, str] = field(default_factory=dict)
    stuck: dict[str, str] = field(default_factory=dict)  #: why tokens of dead pilots cannot be released
    holders: Holders = field(default_factory=Holders)  #: of the tokens that are still locked after this check
    #: Without Slurm's answer, for one of several submissions: True if one of its pilots has a lease that holds, or may
    #: have; and the length of its longest lease, in seconds.
    lease_holds: bool = True
    longest_lease: float = LEASE

    def add_earlier(self, earlier: PilotStatus) -> None:
        """Add the results of an earlier check of the same caller. Stuck tokens are kept: this check may have been cut
        short."""
        self.reaped[:0], self.given_up[:0] = earlier.reaped, earlier.given_up
        self.sent += earlier.sent
        gone = {token for token, _ in (*self.reaped, *self.given_up)}
        self.stuck = {token: why for token, why in {**earlier.stuck, **self.stuck}.items() if token not in gone}

    @property
    def locked(self) -> int:
        """The number of tokens that are still held after this check."""
        return self.holders.known + len(self.holders.foreign)

    @property
    def jobs(self) -> dict[str, Job] | None:
        """The submission's jobs by id; None when Slurm did not answer."""
        return self.slurm.jobs if self.slurm else None

    @property
    def trouble(self) -> str | None:
        """What this check could not do, for people."""
        if self.unsent and not self.outage:
            token, why = next(iter(self.unsent.items()))
            return f"The result of {one_line(token)} is still in the submission's folder: {why}"
        if self.outage or self.slurm is None or self.slurm.sacct_error is None:
            return self.outage
        return f"sacct does not answer ({self.slurm.sacct_error}): for some time, only squeue shows how pilots ended."

    def worked_on(self, max_lock_age: float | None) -> bool:
        """True if known pilots hold tokens, or if tokens of unknown holders are released after ``max_lock_age``."""
        return self.holders.known > 0 or (max_lock_age is not None and self.locked > 0)

    @property
    def pilots_remain(self) -> bool | None:
        """True if a pilot is pending or running; None if unknown."""
        if self.jobs is None:
            return None
        return any(job.phase is not Phase.ENDED for job in self.jobs.values())


def check_pilots(
    pool: Pool,
    batch: str | None,
    submission: Submission | None,
    *,
    max_scrubs: int,
    max_lock_age: float | None,
    observer: ObservedLeases | None = None,
    contact: float = -math.inf,
    others: Collection[str] | None = None,
) -> Operation[PilotStatus]:
    """Check the jobs and the locked tokens, send unsent results of pilots, and release the tokens of dead pilots.

    ``observer``: remembers earlier checks. Without it, no pilot counts as dead by silence alone. ``contact``: monotonic
    time since which the database has answered without a break, as far as is known. ``others``: keys of other
    submissions that this wait watches and whose clusters answer; None: it watches this one alone.

    The returned status records an outage of the cluster. During an outage leases are not evaluated: a result may be in
    the submission's folder.
    """
    status = PilotStatus()
    if submission is not None:
        _, status.before = yield from read_leases(pool, [])
        try:
            status.slurm = yield from slurm_jobs.query(submission.key, submission.folder, submission.since)
        except RemoteError as error:
            status.outage = str(error)
    key = submission.key if submission else None
    evaluate = partial(Evaluation, key=key, slurm=status.slurm, before=status.before, max_lock_age=max_lock_age)
    evaluate = partial(evaluate, others=others)
    observer = observer or ObservedLeases()
    read = partial(_locked, pool, batch, evaluate, observer, contact)
    evaluation, locked = yield from read()
    dead = _dead(evaluation, locked)
    if dead and status.outage is None:
        status.outage, probe = yield from _probe(pool)
        evaluation, locked = yield from read(probe)  # what was read from a node that is cut off may be old
        dead = _still_dead(dead, evaluation, locked)
    if dead and submission is not None and status.outage is None:
        try:
            status.sent, status.unsent = yield from send_unsent(pool, submission.folder)
        except RemoteError as error:
            status.outage = str(error)
        if status.sent:
            # The next check handles pilots that died meanwhile: their results may have arrived after the folder was read.
            evaluation, locked = yield from read()
            dead = _still_dead(dead, evaluation, locked)
        dead = [(token, cause) for token, cause in dead if token["_id"] not in status.unsent]
    if dead and status.outage is None:
        yield from _release(pool, dead, evaluate, observer, contact, max_scrubs, status)
    if submission is not None and status.slurm is None and others is not None:
        yield from _note_leases(pool, submission.key, status)
    gone = {token for token, _ in (*status.reaped, *status.given_up)}
    status.holders = evaluation.holders([token for token in locked if token["_id"] not in {*gone, *status.stuck}])
    status.holders = replace(status.holders, foreign=(*status.holders.foreign, *status.stuck))  # no pilot works on them
    return status


def holders(pool: Pool, batch: str | None, submission: Submission) -> Operation[Holders]:
    """Who holds the locked tokens. Raises RemoteError."""
    slurm = yield from slurm_jobs.query(submission.key, submission.folder, submission.since)
    evaluate = partial(Evaluation, key=submission.key, slurm=slurm)
    evaluation, locked = yield from _locked(pool, batch, evaluate, ObservedLeases(), -math.inf)
    return evaluation.holders(locked)


def _locked(
    pool: Pool,
    batch: str | None,
    evaluate: Callable[..., Evaluation],
    observer: ObservedLeases,
    contact: float,
    probe: Probe | None = None,
) -> Operation[tuple[Evaluation, list[Document]]]:
    """All locked tokens, and the result of ``evaluate`` for the database's time and the leases of their pilots."""
    read = time.monotonic()
    locked = yield from _read_locked(pool, batch, observer)
    # The leases are read after the tokens: a pilot renews before it claims, so an expired lease covers its tokens.
    pilots = deaths.holders(locked)
    known, now, asked = (yield from _dated_leases(pool, pilots, probe)) if locked else ({}, 0.0, None)
    observer.note(pilots, known, time.monotonic())
    saved = observer.note_revisions(read, now) if locked else {}
    return evaluate(now, known, silent=observer.silent(locked, now, asked, contact), saved=saved), locked


def _read_locked(pool: Pool, batch: str | None, observer: ObservedLeases) -> Operation[list[Document]]:
    """The locked tokens, with the fields that are needed to evaluate their pilots.

    Tokens may be large. Those whose revision has not changed since the last check are not read again.
    """
    names = yield from pool.all_ids(State.LOCKED, batch)
    locked: dict[str, Document] = {}
    for start in range(0, len(names), PAGE):
        revisions = yield from pool.revisions(names[start : start + PAGE])
        known = {name: observer.locked.get(name, {}) for name in revisions}
        same = {name: token for name, token in known.items() if token.get("_rev") == revisions[name]}
        locked |= same
        yield from _read_changed(pool, [name for name in revisions if name not in same], locked)
    observer.locked = {name: locked[name] for name in names if name in locked}
    return [token for token in observer.locked.values() if state_of(token, pool.profile) is State.LOCKED]


def _read_changed(pool: Pool, names: Sequence[str], locked: dict[str, Document]) -> Operation[None]:
    """Read tokens in pages of some megabytes, and keep the fields that are needed."""
    start, page, job_field = 0, FIRST_READ, pool.profile.job_field
    kept = {*_FIELDS, *pool.profile.fields}
    while start < len(names):
        documents_read, size = yield from pool.fetch_measured(names[start : start + page])
        for name, token in documents_read.items():
            locked[name] = {field: token[field] for field in kept if field in token}
            if job_field != JOB_FIELD:
                locked[name][JOB_FIELD] = token.get(job_field)
        start += page
        page = page_of(size, len(documents_read))


def _dead(evaluation: Evaluation, locked: Sequence[Document]) -> list[tuple[Document, str]]:
    """The tokens whose pilots are dead, each with the cause."""
    return [(token, cause) for token in locked if (cause := evaluation.death(token))]


def _still_dead(
    dead: Sequence[tuple[Document, str]], evaluation: Evaluation, locked: Sequence[Document]
) -> list[tuple[Document, str]]:
    """The tokens in ``dead`` whose pilots are still dead in a later check."""
    before = {token["_id"] for token, _ in dead}
    return [(token, cause) for token, cause in _dead(evaluation, locked) if token["_id"] in before]


class Probe(NamedTuple):
    """A write of ``QUORUM_PROBE``: its content, and when it was sent (monotonic)."""

    mark: str
    sent: float


def _probe(pool: Pool) -> Operation[tuple[str | None, Probe | None]]:
    """Write ``QUORUM_PROBE``. Returns why the database's node may lack writes to other nodes, as the cut-off minority of
    a cluster, or else the probe; neither if the server is not a CouchDB.

    Pilots that reach the other nodes renew their leases there.
    """
    probe = Probe(uuid.uuid4().hex, time.monotonic())
    # Nodes compare revisions, as strings of the same length, to find the newest: milliseconds since 1970 have 13 digits.
    body = json_body({"mark": probe.mark, "_rev": f"0-{time.time_ns() // 1_000_000}"})
    try:
        response: Response = yield Request("PUT", pool.document_path(QUORUM_PROBE), body=body)
    except errors.ConflictError:
        return None, None  # the document exists; CouchDB overwrites it, other servers require its revision
    if response.status != 202:
        return None, probe
    outage = "CouchDB stores writes on too few nodes of its cluster (202). Until that changes, no pilot counts as dead."
    return outage, None


def read_leases(pool: Pool, pilots: Sequence[str]) -> Operation[tuple[dict[str, Lease], float]]:
    """The leases of some pilots, and the database's time."""
    known, now, _ = yield from _dated_leases(pool, pilots, None)
    return known, now


def _dated_leases(
    pool: Pool, pilots: Sequence[str], probe: Probe | None
) -> Operation[tuple[dict[str, Lease], float, float | None]]:
    """The leases of some pilots, the database's time, and a monotonic time at which these were the newest leases.

    Requests may reach different nodes of a cluster, and one that is cut off answers with old leases. So if the response
    does not show the ``probe``, that time is unknown (None). Without a probe, it is when they were queried.
    """
    asked = time.monotonic()
    names = [*map(lease_id, pilots), *([QUORUM_PROBE] if probe else [])]
    query, body = {"include_docs": "true"}, json_body({"keys": names})
    response: Response = yield Request("POST", pool.path("_local_docs"), query, body)
    found = response.documents()
    if response.time is None:
        raise errors.UnavailableError("CouchDB's response has no Date header; a proxy may have removed it.")
    written = found.pop(QUORUM_PROBE, {}).get("mark")
    known, now = {lease.pilot: lease for lease in map(Lease.parse, found.values())}, float(response.time)
    if probe is None:
        return known, now, asked
    return known, now, probe.sent if written == probe.mark else None


def _note_leases(pool: Pool, key: str, status: PilotStatus) -> Operation[None]:
    """Record whether pilots of a submission, whose cluster does not answer, have leases that hold."""
    found, now = yield from overview.pilots(pool)
    leases = [lease for lease in map(Lease.parse, found) if lease.submission == key]
    status.longest_lease = max((lease.shown.lease for lease in leases), default=LEASE)
    status.lease_holds = (
        now is None
        or len(found) >= overview.MOST_LEASES
        or any(lease.shown.holds(now) for lease in leases if not lease.ended)
    )


def _release(
    pool: Pool,
    dead: Sequence[tuple[Document, str]],
    evaluate: Callable[..., Evaluation],
    observer: ObservedLeases,
    contact: float,
    max_scrubs: int,
    status: PilotStatus,
) -> Operation[None]:
    """Release the tokens of dead pilots, in portions of some megabytes. Skip tokens that changed since the decision."""
    start, page = 0, FIRST_READ
    while start < len(dead):
        some = dead[start : start + page]
        found, size = yield from conflicts.branches_measured(pool, [token["_id"] for token, _ in some])
        yield from _settle_conflicts(pool, found, evaluate, observer, contact)
        alone = {name: revisions[0] for name, revisions in found.items() if len(revisions) == 1}
        whole_tokens = [
            (alone[token["_id"]], cause)
            for token, cause in some
            if token["_id"] in alone and alone[token["_id"]]["_rev"] == token["_rev"]
        ]
        yield from _reap(pool, whole_tokens, max_scrubs, status)
        start += page
        page = page_of(size, len(found))


def _settle_conflicts(
    pool: Pool,
    found: Mapping[str, list[Document]],
    evaluate: Callable[..., Evaluation],
    observer: ObservedLeases,
    contact: float,
) -> Operation[None]:
    """Merge conflicting revisions of tokens, for the next check.

    In a cluster, another revision may have a result, or a live pilot may run it.
    """
    losers = [document for revisions in found.values() for document in revisions[1:]]
    if not losers:
        return
    pilots, others = deaths.holders(losers), observer.of_conflicts()
    outage, probe = yield from _probe(pool)
    if outage:
        return
    known, now, asked = yield from _dated_leases(pool, pilots, probe)
    others.note(pilots, known, time.monotonic())
    evaluation = evaluate(now, known, silent=others.silent(losers, now, asked, contact))

    def may_run(token: Document) -> bool:
        return held_by_pilot(token) and evaluation.death(token) is None

    for revisions in found.values():
        if len(revisions) > 1:
            yield from conflicts.settle(pool, revisions, may_run)


def _reap(pool: Pool, dead: Sequence[tuple[Document, str]], max_scrubs: int, status: PilotStatus) -> Operation[None]:
    """Release the tokens, or put them in error if this was done too often. Skip tokens that changed in the meantime."""
    if not dead:
        return
    _, now = yield from read_leases(pool, [])
    causes = {token["_id"]: cause for token, cause in dead}
    changed = []
    for token, cause in dead:
        if documents.holds_huge_integer(token):
            status.stuck[token["_id"]] = documents.HUGE_INTEGER
        else:
            changed.append(_released(token, cause, max_scrubs, int(now), pool.profile))
    for some in edits.requests_of(changed):
        rows = yield from pool.write([new.text for new in some])
        for new, row in zip(some, rows, strict=True):
            name = row.id
            if row.error is None:
                (status.given_up if new.document["done"] else status.reaped).append((name, causes[name]))
            elif row.error == TOO_LARGE:
                status.stuck[name] = "is too large to be written again"


def _released(token: Document, cause: str, max_scrubs: int, now: int, profile: Profile = PICAS) -> Document:
    if not held_by_pilot(token):
        # A PiCaS client's token: it has no claim, and its revision is a sufficient fence.
        count = token.get("scrub_count")
        if isinstance(count, int) and count >= max_scrubs:
            message = f"Given up after {count} scrubs, the last one because {cause}."
            return transitions.errored(token, message, now, profile)
        return transitions.scrubbed(token, f"reaped: {cause}", profile)
    changed: Document = reap(token, cause, max_scrubs, now, profile).apply()
    return changed
