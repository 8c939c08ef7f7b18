"""Leases of pilots, and which locked tokens have lost their pilot.

A pilot keeps one ``_local/picas-pilot-<id>`` document; see ``docs/development/architecture.md`` and ``docs/reference/pilot.md``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_picas.lifecycle import causes_of_death
from airflow_provider_picas.lifecycle.json_values import number
from airflow_provider_picas.lifecycle.leases import Reading, Silence
from airflow_provider_picas.lifecycle.transitions import held_by_pilot
from airflow_provider_picas.slurm.jobs import FORGOTTEN, Job, Phase, SlurmStatus
from airflow_provider_picas.tokens.text import one_line

ROUNDING = 2.0  # seconds: of two times in whole seconds, one counts as later only if they differ by more
SKEW = 30.0  # seconds by which the clocks of a node and of the cluster may differ
QUIET = 30.0  # seconds, at most, for which nobody may save a token before it counts as too old
UNKNOWN = 1.0  # seconds until leases are read again that may have been old
LEASE = 120.0  # seconds, for a pilot whose lease was never read: pilot.json's default


@dataclass(frozen=True)
class Lease:
    """A pilot's last record of itself, and the parts of it that are signs of life."""

    pilot: str
    submission: str
    job: str | None
    hostname: str
    shown: Reading
    ended: bool

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> Lease:
        """The lease in a document."""
        return cls(
            pilot=str(document.get("pilot", "")),
            submission=str(document.get("submission", "")),
            job=document.get("job"),
            hostname=str(document.get("hostname", "")),
            shown=Reading.of(dict(document), LEASE),
            ended=bool(document.get("ended")),
        )


@dataclass(frozen=True)
class Saved:
    """What a wait has seen of the saves of a locked token. ``quiet``: seconds for which it has seen none. ``last``: when it
    noticed the last one, by the database's clock; 0 if it has seen none."""

    quiet: float
    last: float


class ObservedLeases:
    """A wait's memory of the leases and tokens that it has read, from one check to the next: see ``Silence``."""

    def __init__(self) -> None:
        self._revisions: dict[str, tuple[str, float, float]] = {}  # by token: its revision, since when, the last save
        self._silence = Silence(LEASE)
        self._of_conflicts: ObservedLeases | None = None
        #: The locked tokens of the last check, by id, without their content.
        self.locked: dict[str, dict[str, Any]] = {}

    def of_conflicts(self) -> ObservedLeases:
        """Leases of the pilots that hold revisions that lost against others."""
        self._of_conflicts = self._of_conflicts or ObservedLeases()
        return self._of_conflicts

    def note_revisions(self, asked: float, now: float) -> dict[str, Saved]:
        """Compare the revisions of the locked tokens with those of the last check. ``asked``: when they were read, by the
        monotonic clock; ``now``: by the database's.

        Some pilots save a token at each line of a log. One that is still being saved has a live holder.
        """
        known, self._revisions = self._revisions, {}
        for name, token in self.locked.items():
            revision = str(token.get("_rev"))
            before, since, last = known.get(name, (revision, asked, 0.0))
            self._revisions[name] = (revision, since, last) if before == revision else (revision, asked, now)
        return {name: Saved(asked - since, last) for name, (_, since, last) in self._revisions.items()}

    def note(self, pilots: Sequence[str], found: Mapping[str, Lease], answered: float) -> None:
        """Record leases that were read. ``pilots``: all that hold tokens. ``answered``: when, by the monotonic clock."""
        for pilot in pilots:
            self._silence.note(pilot, found[pilot].shown if pilot in found else None, answered)
        self._silence.keep(pilots)

    def silent(
        self, locked: Sequence[Mapping[str, Any]], now: float, asked: float | None, contact: float
    ) -> dict[str, float]:
        """The pilots whose leases have expired, each with ``Silence.seconds_until_dead``.

        ``asked``: a monotonic time at which the leases were the newest ones; None: unknown, so no pilot counts as dead.
        """
        locks: dict[str, float] = {}
        for token in locked:
            if held_by_pilot(dict(token)):
                pilot, lock = str(token["pilot"]), number(token.get("lock"))
                locks[pilot] = min(lock, locks.get(pilot, lock))
        if asked is None:
            return dict.fromkeys(locks, UNKNOWN)
        found = {
            pilot: self._silence.seconds_until_dead(pilot, lock, now, asked, contact) for pilot, lock in locks.items()
        }
        return {pilot: missing for pilot, missing in found.items() if missing is not None}


def holders(locked: Sequence[Mapping[str, Any]]) -> list[str]:
    """The pilots with a lease that hold these tokens, without duplicates."""
    return sorted({str(token["pilot"]) for token in locked if held_by_pilot(dict(token))})


@dataclass(frozen=True)
class Holders:
    """Who holds locked tokens."""

    known: int = 0  #: number of tokens held by pilots with a lease, or by jobs of the submission
    foreign: tuple[str, ...] = ()  #: ids of the others: it is unknown whether their pilots are alive
    patience: float = 0.0
    """Seconds for which silent pilots must stay silent, and old tokens unchanged, until they count as dead; 0 if there are
    none."""


@dataclass(frozen=True)
class Evaluation:
    """The facts by which locked tokens are evaluated.

    ``slurm`` has the jobs of the submission ``key``, or is None if Slurm does not answer. Slurm's answer is applied
    only to these jobs: others share the pool, and job ids are reused. ``now`` is the database's clock, and ``before``
    its value before Slurm was queried, so that Slurm's times, by the cluster's clock, can be compared with the tokens'
    times.
    """

    now: float
    leases: Mapping[str, Lease]
    key: str | None = None
    slurm: SlurmStatus | None = None
    before: float = 0.0
    max_lock_age: float | None = None  #: seconds; applies to pilots without leases
    silent: Mapping[str, float] = field(default_factory=dict)  #: the result of ``ObservedLeases.silent``
    #: Keys of other submissions whose clusters answer: their own checks evaluate their pilots. None: there are no others.
    others: Collection[str] | None = None
    saved: Mapping[str, Saved] = field(default_factory=dict)  #: by token: that of ``ObservedLeases.note_revisions``

    def death(self, token: Mapping[str, Any]) -> str | None:
        """Why the pilot that holds a locked token counts as dead, or None if it does not."""
        lock = number(token.get("lock"))
        if held_by_pilot(dict(token)):
            return self._lost_lease(str(token["pilot"]), lock)
        return self._dead_client(token, lock)

    def holders(self, locked: Sequence[Mapping[str, Any]]) -> Holders:
        """Who holds these tokens."""
        jobs = self.slurm.jobs if self.slurm else {}
        foreign = [
            str(token["_id"])
            for token in locked
            if not held_by_pilot(dict(token)) and str(token.get("slurm_job_id")) not in jobs
        ]
        ended = {pilot for pilot, lease in self.leases.items() if lease.ended}
        silent = [self.silent[pilot] for pilot in holders(locked) if pilot in self.silent and pilot not in ended]
        old = [self._quiet_for(token) for token in locked if not held_by_pilot(dict(token)) and self._is_old(token)]
        return Holders(len(locked) - len(foreign), tuple(foreign), max([0.0, *silent, *old]))

    def _lost_lease(self, pilot: str, lock: float) -> str | None:
        dead = self.silent.get(pilot, 1.0) <= 0
        lease, pilot = self.leases.get(pilot), one_line(pilot)
        if lease is not None and lease.submission in (self.others or ()):
            return None  # its folder may hold results
        if lease is None:
            return causes_of_death.no_lease(pilot) if dead else None
        holder = causes_of_death.holder(pilot, one_line(str(lease.job), 80), one_line(lease.hostname, 80))
        if lease.ended:
            return causes_of_death.ended(holder)
        job = self._job(lease.job)
        if job is not None and lease.submission == self.key:
            if job.phase is Phase.ENDED and job.state != FORGOTTEN:  # a live pilot's lease overrides a forgotten job
                return causes_of_death.job_ended(holder, job.cause)
            if lock + ROUNDING < self._last_start(job, lease):
                return causes_of_death.requeued(holder)
        return causes_of_death.silent(holder, self.now - lease.shown.renewed) if dead else None

    def _job(self, identifier: Any) -> Job | None:
        return self.slurm.jobs.get(str(identifier)) if self.slurm else None

    def _last_start(self, job: Job, lease: Lease) -> float:
        """When the job last started, or at the earliest will start, by the database's clock; 0 if unknown.

        A token that was locked before then belongs to an earlier copy of the job.
        """
        assert self.slurm is not None
        if job.phase is Phase.WAITING:
            return self.before
        if self.now - lease.shown.renewed > lease.shown.lease / 2:
            return (
                0.0  # the database's clock may have stepped since the token was locked: wait for the end of the lease
            )
        return self.before + job.started - self.slurm.at if job.started and job.phase is Phase.RUNNING else 0.0

    def _dead_client(self, token: Mapping[str, Any], lock: float) -> str | None:
        """PiCaS client pilots have no lease. One of this submission has ended when its job has. The time of the lock,
        by the node's clock, must fit, since another cluster may use the same job id."""
        job = self._job(token.get("slurm_job_id"))
        if job and self.slurm and job.started and job.started - SKEW <= lock and self._may_be_on(job, token):
            if job.phase is not Phase.ENDED:
                return None
            ended = job.ended or self.slurm.at  # squeue knows that the job has ended before sacct knows when
            if lock <= ended + SKEW:
                return f"job {job.id} on {job.node or one_line(str(token.get('hostname')), 80)} has ended: {job.cause}"
        if self._is_old(token) and self._quiet_for(token) <= 0:
            return f"it was locked for {self.now - lock:.0f} s"
        return None

    def _may_be_on(self, job: Job, token: Mapping[str, Any]) -> bool:
        """True if a token of this job id may be held by this job. Several clusters may use the same id: then the host
        decides."""
        if self.others is None:
            return True
        host, node = str(token.get("hostname")).partition(".")[0], job.node.partition(".")[0]
        prefix, several, _ = node.partition("[")
        return bool(prefix) and (host.startswith(prefix) if several else host == node)

    def _is_old(self, token: Mapping[str, Any]) -> bool:
        """True if nobody has locked or saved the token for ``max_lock_age``, as far as is known."""
        last = max(number(token.get("lock")), self._saves(token).last)
        return self.max_lock_age is not None and self.now > last + self.max_lock_age

    def _quiet_for(self, token: Mapping[str, Any]) -> float:
        """Seconds for which nobody may save an old token until it counts as abandoned: somebody may be at it."""
        return min(QUIET, (self.max_lock_age or 0.0) / 2) - self._saves(token).quiet

    def _saves(self, token: Mapping[str, Any]) -> Saved:
        return self.saved.get(str(token.get("_id")), Saved(QUIET, 0.0))
