"""What a wait decides, the same in all of its modes: a sensor that pokes, a trigger, and a sensor that continues for a
trigger.

``Wait`` does no I/O. Its owner counts tokens and checks pilots, passes the results to ``note_counts`` and
``note_pilots``, and does what ``decide`` says. It also logs, so that the modes log the same. ``now`` is in seconds, by
the owner's monotonic clock.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Collection
from typing import Any

from airflow_provider_picas.couchdb.pool import Pool
from airflow_provider_picas.couchdb.settings import Settings
from airflow_provider_picas.slurm import jobs
from airflow_provider_picas.slurm.remote import Pause, UnreachableError
from airflow_provider_picas.submissions.deaths import ObservedLeases
from airflow_provider_picas.submissions.report import PilotsLog
from airflow_provider_picas.submissions.seen import SlurmRecord
from airflow_provider_picas.submissions.submission import Operation, Submission
from airflow_provider_picas.submissions.watch import PilotStatus, check_pilots
from airflow_provider_picas.tokens.chain import ChainCounts, Looks
from airflow_provider_picas.tokens.counts import Completeness, Counts
from airflow_provider_picas.tokens.progress_line import Pilots, ProgressLines
from airflow_provider_picas.tokens.waiting import Decision, Endurance, Outcome, Progress, Settling, Terms

log = logging.getLogger(__name__)

FIRST_INTERVAL = 5.0  # seconds between two checks of the pilots while something changes
LONGEST_INTERVAL = 60.0  # seconds, while nothing changes
ENDED_AFTER = 2.0  # seconds for which no job may remain: one that was just submitted may appear a moment later
GONE_AFTER = 60.0  # seconds for which Slurm must know no job of a submission before it counts as gone


class Wait:
    """The state of one wait.

    ``deadline`` and ``no_pilots_before``: by the same clock as ``now``; before the latter it is not an error that no
    pilots remain. ``resubmits``: the owner submits pilots again. Then a cluster that does not answer, and none of whose
    pilots' leases has held for longer than a lease, does not count if another one answers. ``outage``: as for
    ``Endurance``. ``max_lock_age``: as for ``PilotStatus.worked_on``.
    """

    def __init__(
        self,
        terms: Terms,
        log: Any,
        *,
        deadline: float = math.inf,
        outage: float | None = None,
        max_lock_age: float | None = None,
        no_pilots_before: float = -math.inf,
        resubmits: bool = False,
    ) -> None:
        self.terms = terms
        self.deadline = deadline
        self.max_lock_age = max_lock_age
        self.no_pilots_before = no_pilots_before
        self.resubmits = resubmits
        self.completeness: Completeness | None = None  #: as of the last counts
        self.no_pilots = False  #: it is certain that no pilots remain
        self.refusal: str | None = None  #: why the cluster refuses the login of this process
        self.endurance = Endurance(outage)
        self.lines = ProgressLines()
        self.looks = Looks()
        self._watched: dict[str, WatchedPilots] = {}  #: by submission
        self._log = log
        self._progress = Progress(terms.no_progress)
        self._settling = Settling()
        self._pilots: Pilots | None = None  #: Slurm's last answer; None while it does not answer
        self._no_pilots_since: float | None = None

    @property
    def last(self) -> Completeness:
        """The last counts; zeros before the first."""
        return self.completeness or self.terms.completeness(Counts())

    # -- tokens -------------------------------------------------------------------------------------------------------

    def note_counts(self, counts: Counts | ChainCounts, now: float) -> None:
        """Record the counts of the tokens."""
        self.completeness = self.terms.completeness(counts)
        self._progress.note(counts, now)
        if isinstance(counts, ChainCounts):
            self.looks.note(counts, now)

    def log_progress(self, now: float) -> None:
        """Log the progress, if a line is due."""
        if self.completeness is not None and (line := self.lines.next(self.completeness, self._pilots, now)):
            self._log.info("%s", line)

    # -- pilots -------------------------------------------------------------------------------------------------------

    def watched(self, submission: str) -> WatchedPilots:
        """What is known of the pilots of a submission. All that are watched have to be named before the first check."""
        return self._watched.setdefault(submission, WatchedPilots(self._log))

    def others(self, submission: str) -> set[str] | None:
        """The other submissions that are watched and whose clusters answer, as far as is known; None without others."""
        known = {key: watched.status for key, watched in self._watched.items() if key != submission}
        return {key for key, status in known.items() if status is None or status.outage is None} if known else None

    def note_refusal(self, submission: str, refusal: str | None) -> None:
        """Record why the cluster of a submission refuses the login of this process; None: it does not."""
        self.watched(submission).refusal = refusal
        self.refusal = next((each.refusal for each in self._watched.values() if each.refusal is not None), None)

    def note_pilots(
        self, status: PilotStatus, now: float, *, submission: str = "", absent_since: float | None = None
    ) -> float:
        """Record and log a check of the pilots. Returns the seconds until ``no_pilots`` can be certain; infinity while
        pilots of any submission remain, or may remain.

        ``absent_since``: for an owner that remembers no earlier check: since when Slurm may have known no job.
        """
        watched = self.watched(submission)
        watched.note(status, now)
        watched.pilots_log.report(status)
        known = [one for one in self._watched.values() if one.status is not None]
        listed = [one.status.jobs for one in known if one.status and one.status.jobs is not None]
        self._pilots = jobs.pilots(job for some in listed for job in some.values()) if listed else None
        others_answer = self.resubmits and bool(listed)
        remain = any(one.remain(self.max_lock_age) and not (others_answer and one.lost(now)) for one in known)
        if remain or len(known) < len(self._watched) or now < self.no_pilots_before:
            self.forget_absence()
            return math.inf
        have_jobs = all(listed)
        if self._no_pilots_since is None:
            self._no_pilots_since = now if have_jobs or absent_since is None else absent_since
        certain_at = self._no_pilots_since + (ENDED_AFTER if have_jobs else GONE_AFTER)
        self.no_pilots = self.no_pilots or now >= certain_at
        return max(0.0, certain_at - now)

    def forget_absence(self) -> None:
        """Pilots remain, or were submitted again."""
        self.no_pilots, self._no_pilots_since = False, None

    @property
    def pilots_absent(self) -> bool:
        """True if the last check found no pilots."""
        return self._no_pilots_since is not None

    # -- decisions ----------------------------------------------------------------------------------------------------

    def decide(self, now: float) -> Outcome:
        """The outcome at ``now``; ``WAITING`` if the wait continues."""
        decision = self._evaluate()
        if self._settling.over(decision, now) or (decision.over and now >= self.deadline):
            return decision.outcome
        if not decision.over and self._progress.remaining(now) <= 0:
            return Outcome.NO_PROGRESS
        if not decision.over and self.refusal is not None:
            return Outcome.UNWATCHED
        return Outcome.TIMED_OUT if now >= self.deadline else Outcome.WAITING

    def _evaluate(self) -> Decision:
        if self.completeness is None:
            return Decision(Outcome.WAITING)
        decision = self.terms.evaluate(self.completeness)
        if not decision.over and self.no_pilots and self.terms.lacks_pilots(self.completeness):
            return Decision(Outcome.NO_PILOTS)
        return decision

    def settled_in(self, now: float) -> float:
        """Seconds until a decision that is not final yet becomes final, if the counts stay; infinity without one."""
        return self._settling.remaining(now)

    def decide_again_in(self, now: float) -> float:
        """Seconds until ``decide`` may decide otherwise, or a line is due, without new counts."""
        settled_in = self._settling.remaining(now)
        decided_in = self._progress.remaining(now) if math.isinf(settled_in) else settled_in
        return min(self.deadline - now, decided_in, self.lines.remaining(now))


class WatchedPilots:
    """What a wait knows of the pilots of one submission, and what it has done for them."""

    def __init__(self, log: Any) -> None:
        self.status: PilotStatus | None = None  #: the last check
        self._silent_since: float | None = None  #: since when Slurm has not answered and no lease has held
        self.refusal: str | None = None  #: why the cluster refuses the login of this process
        self.observer = ObservedLeases()
        self.pilots_log = PilotsLog(log)
        self.credentials = SentCredentials(log)
        self.slurm_record = SlurmRecord()

    def note(self, status: PilotStatus, now: float) -> None:
        """Record a check."""
        self.status = status
        if status.jobs is not None or status.lease_holds:
            self._silent_since = None
        elif self._silent_since is None:
            self._silent_since = now

    def remain(self, max_lock_age: float | None) -> bool:
        """True if pilots remain or may remain, or if somebody holds tokens."""
        status = self.status
        return status is None or status.pilots_remain is not False or status.worked_on(max_lock_age)

    def lost(self, now: float) -> bool:
        """True if the cluster does not answer, and no pilot's lease has held for longer than a lease."""
        status, since = self.status, self._silent_since
        if status is None or since is None or status.holders.known:
            return False
        return now - since > status.longest_lease


class CheckInterval:
    """When to check the pilots again: soon while something changes, later while nothing does.

    ``fixed``: seconds between two checks, regardless of changes; None: ``FIRST_INTERVAL`` to ``LONGEST_INTERVAL``.
    """

    def __init__(self, fixed: float | None) -> None:
        self._fixed = fixed
        self._interval = fixed or FIRST_INTERVAL
        self._states: object = None

    def after(self, status: PilotStatus, *, absent: bool) -> float:
        """Seconds to pause after a check, with jitter. ``absent``: no pilots were found."""
        states = {name: job.state for name, job in (status.jobs or {}).items()}
        quiet = states == self._states and not status.reaped and not absent
        self._states = states
        self._interval = min(LONGEST_INTERVAL, self._interval * 1.5) if quiet else FIRST_INTERVAL
        pause = (self._fixed or self._interval) * random.uniform(0.9, 1.0)
        if status.holders.patience > 0:  # check silent pilots again as soon as they may count as dead
            pause = min(pause, max(FIRST_INTERVAL, status.holders.patience + 0.1))
        return pause


class SentCredentials:
    """The database login that the pilots have, as far as this wait has sent it."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self._sent: Settings | None = None

    def differ(self, settings: Settings) -> bool:
        """True if the pilots may have another login than the connection's."""
        return settings != self._sent

    def note(self, settings: Settings, conn_id: str, result: bool | Exception) -> None:
        """Record and log an attempt to send them. ``result``: True if files were replaced, or the error."""
        if isinstance(result, UnreachableError):
            return  # the next check tries again
        if isinstance(result, Exception):
            self._log.warning("The pilots' credentials could not be renewed: %s", result)
        elif result:
            self._log.info("Connection %r has changed: the pilots' credentials on the cluster were replaced.", conn_id)
        self._sent = settings


def check_twice(
    pool: Pool,
    batch: str | None,
    submission: Submission,
    *,
    max_scrubs: int,
    max_lock_age: float | None,
    others: Collection[str] | None = None,
) -> Operation[PilotStatus]:
    """``check_pilots`` for an owner that remembers no earlier check: if a pilot is silent, it waits and checks again."""
    observer = ObservedLeases()
    limits: Any = {"max_scrubs": max_scrubs, "max_lock_age": max_lock_age, "observer": observer, "others": others}
    status: PilotStatus = yield from check_pilots(pool, batch, submission, **limits)
    if status.outage is not None or (patience := status.holders.patience) <= 0:
        return status
    log.info("Some pilots did not renew their leases in time. Checking them again in %.0f s.", patience)
    yield Pause(patience + 0.1)
    later: PilotStatus = yield from check_pilots(pool, batch, submission, **limits)
    later.add_earlier(status)
    return later
