"""The threads that claim tokens and run them."""

import collections
import os
import random
import threading
import time
import traceback
from contextlib import suppress
from typing import Deque, Dict, List, NamedTuple, Optional

from airflow_provider_picas.lifecycle.backoff import Backoff
from airflow_provider_picas.lifecycle.exit_codes import EX_IOERR, EX_NOPERM, EX_SOFTWARE, EX_UNAVAILABLE, Failed
from airflow_provider_picas.lifecycle.json_values import Doc, number
from airflow_provider_picas.lifecycle.pilot_config import Config
from airflow_provider_picas.lifecycle.transitions import Change, Ended, Token, conclude, release
from airflow_provider_picas.pilot.attempt import Run
from airflow_provider_picas.pilot.claims import EMPTY_FOR, EMPTY_QUERIES, Claims
from airflow_provider_picas.pilot.clock import Clock
from airflow_provider_picas.pilot.database import Database
from airflow_provider_picas.pilot.errors import Unreachable
from airflow_provider_picas.pilot.heads import LOAD
from airflow_provider_picas.pilot.lease import Lease, drain_flag_of, stop_if_drained
from airflow_provider_picas.pilot.log import log
from airflow_provider_picas.pilot.new_tokens import pending_lists
from airflow_provider_picas.pilot.outbox import Outbox
from airflow_provider_picas.pilot.processes import Processes
from airflow_provider_picas.pilot.reaper import Reaper
from airflow_provider_picas.pilot.reporter import GATHER, SHORT, Reporter
from airflow_provider_picas.pilot.wall_clock import WallClock
from airflow_provider_picas.pilot.work import DRAIN, GO, Work

SOON = 1.0  # seconds without work after which a pilot checks often if its submission is drained


class Workplace(NamedTuple):
    """Where commands run on this node."""

    scratch: str  # each attempt has a folder in it
    files: str  # the folder with copies of the submission's files
    environment: Dict[bytes, bytes]  # the job's, without credentials


class Slot(threading.Thread):
    """Runs tokens, one after the other."""

    def __init__(
        self,
        number: int,
        work: Work,
        reporter: Reporter,
        lease: Lease,
        clock: Clock,
        processes: Processes,
        config: Config,
        place: Workplace,
    ) -> None:
        super().__init__(name=f"slot-{number}", daemon=True)
        self._number = number
        self._work = work
        self._reporter = reporter
        self._lease = lease
        self._clock = clock
        self._processes = processes
        self._config = config
        self._place = place
        self._tokens = 0
        self._spare: Optional[str] = None  # the empty folder of an earlier run, for the next one

    def run(self) -> None:
        """Run tokens until no more are to be started."""
        work = self._work
        while True:
            run = work.next_run(self._make)
            if run is None:
                return
            change: Optional[Change] = release(run.token)
            try:
                change = self._attempt(run)
            except Exception:
                log(f"Running {run.token.id} failed:", traceback.format_exc())
                work.stop(DRAIN, "internal error in the pilot", EX_SOFTWARE)
            finally:
                work.finish(run, change, self._reporter)
                self._spare = run.clean() or self._spare

    def _make(self, token: Token) -> Run:
        self._tokens += 1
        folder = os.path.join(self._place.scratch, f"{self._number}-{self._tokens}")
        return Run(token, folder, self._place.files, self._config, self._processes)

    def _attempt(self, run: Run) -> Optional[Change]:
        """The change to write into the token, or None if another pilot has it."""
        work = self._work
        if not self._lease.valid() or work.stopping.is_set():
            return release(run.token)
        try:
            spare, self._spare = self._spare, None
            run.prepare(spare)
            ended = run.execute(self._place.environment)
        except OSError as error:
            # This is the node's fault, not the token's: other nodes may succeed.
            work.stop(DRAIN, f"this node cannot run commands in {run.folder}: {error}", EX_IOERR)
            return release(run.token)
        if run.token.lost and ended.how != "exit":
            return None  # otherwise there is a result, which will be refused and kept
        if ended.how == "exit" and ended.code in (137, 143):
            # Slurm signals pilot and command together: check if the signal was for both.
            work.stopping.wait(1.0)
            if work.stopping.is_set():
                ended = ended._replace(how=work.why)
        change = conclude(run.token, ended, self._config, int(self._clock.now()))
        self._log_end(ended, change)
        return change

    def _log_end(self, ended: Ended, change: Change) -> None:
        if ended.how == "exit":
            self._reporter.gather = GATHER if self._work.learn(ended.seconds) < SHORT else 0.0
            if change.kind != "done" and ended.code in self._config.stop_exit_codes:
                self._work.stop(DRAIN, f"{change.token} ended with exit code {ended.code}", ended.code)
        if change.kind != "done" or ended.seconds >= 1:
            why = (change.error or {}).get("message") or (change.attempt or {}).get("error", "")
            log(f"{change.token} {change.kind} after {ended.seconds:.1f} s" + (f": {why}" if why else ""))


class Claimer(threading.Thread):
    """Keeps the slots busy; reaps when there is no work, and decides when no tokens remain."""

    def __init__(
        self,
        work: Work,
        claims: Claims,
        reaper: Reaper,
        outbox: Outbox,
        reporter: Reporter,
        database: Database,
        lease: Lease,
        clock: Clock,
        wall_clock: WallClock,
        config: Config,
    ) -> None:
        super().__init__(name="claimer", daemon=True)
        self._work = work
        self._claims = claims
        self._reaper = reaper
        self._outbox = outbox
        self._reporter = reporter
        self._database = database
        self._lease = lease
        self._clock = clock
        self._wall_clock = wall_clock
        self._config = config
        self._reap_every = min(5.0, config.lease / 3)  # seconds
        self._nothing_since: Optional[float] = None  # since when no token was found
        self._idle_since: Optional[float] = None  # since when there was also no other work
        self._next_reap = time.monotonic() + self._reap_every
        self._took = 0.0  # seconds of the last search for tokens
        self._living = False  # True if live pilots hold tokens
        self._totals: Deque[Optional[int]] = collections.deque(
            maxlen=EMPTY_QUERIES
        )  # in a cluster, while no token is found

    def run(self) -> None:
        """Claim until the pilot ends."""
        work, backoff = self._work, Backoff(longest=5.0)
        self._wall_clock.queried.wait(5)
        while work.level == GO:
            try:
                self._step()
                backoff = Backoff(longest=5.0)
            except Unreachable as error:
                self.release_in_flight()
                if backoff.tries == 0:
                    log(f"{error}; waiting to claim.")
                work.pause(backoff.pause())
            except Failed as error:
                work.stop(DRAIN, str(error), error.code)
            except Exception:
                log("The claimer failed:", traceback.format_exc())
                work.stop(DRAIN, "internal error in the pilot", EX_SOFTWARE)
        with suppress(Unreachable, Failed):  # others see in the lease that this pilot has ended
            for token in self._claims.settle():
                self._reporter.put(release(token))

    @property
    def conflicts(self) -> int:
        """The number of claims that others won."""
        return self._claims.conflicts

    def release_in_flight(self) -> None:
        """Release the tokens that may have been claimed, if they were."""
        in_flight, self._claims.in_flight = self._claims.in_flight, []
        for token in in_flight:
            self._reporter.put(release(token))

    def _fits(self, doc: Doc) -> bool:
        """True if a token is expected to end before the job does."""
        remaining = self._wall_clock.remaining()
        if remaining is None:
            return True
        own = number(doc.get("time")) * 60
        return (own if own > 0 else self._work.expected()) + self._config.margin < remaining

    def _step(self) -> None:
        work, claims = self._work, self._claims
        outage = max(self._config.outage, self._config.lease)
        lost_for = self._database.quorum.lost_for()
        if lost_for > outage:
            work.stop(DRAIN, f"too few of the database's nodes have stored writes for {lost_for:.0f} s", EX_UNAVAILABLE)
            return
        if self._lease.valid() and self._start(claims.settle()):
            return
        wanted = work.wanted()
        if not wanted or not self._lease.valid():
            work.wait(0.5)
            return
        busy, begin = self._busy(), time.monotonic()
        tokens = claims.take(wanted, self._fits, work.deaths_allowed(self._reporter.pending()))
        self._took = time.monotonic() - begin
        self.release_in_flight()
        if self._start(tokens):
            return
        if claims.contested:
            work.pause(random.uniform(0.01, 0.1))
        elif claims.deferred or self._database.skips_for_now():
            work.wait(2.0, until=lambda: not self._busy())
        elif not busy or self._busy():  # else a token of this pilot may wait again since the search: search once more
            self._find_nothing(work)

    def _start(self, tokens: List[Token]) -> bool:
        """Pass tokens to the slots. True if there were any."""
        if tokens:
            self._work.add(tokens)
            self._nothing_since = self._idle_since = None
            self._totals.clear()
        return bool(tokens)

    def _is_sure(self, idle: float) -> bool:
        """True if no tokens remain. In a cluster, a copy of the database that lags may show no waiting token.

        So this takes several queries, over new connections, of copies that have the same number of tokens each time.
        """
        if not self._claims.cluster:
            return True
        self._totals.append(self._claims.total())
        self._database.close()
        return idle >= EMPTY_FOR and len(self._totals) == EMPTY_QUERIES and len(set(self._totals)) == 1

    def _find_nothing(self, work: Work) -> None:
        busy = self._busy()
        refusal = self._claims.refusal()
        if refusal and not busy:
            work.stop(DRAIN, refusal, EX_NOPERM)
            return
        if self._claims.unfit and not busy:
            work.stop(DRAIN, "no token fits into the remaining wall-clock time")
            return
        now, lease = time.monotonic(), self._config.lease
        self._nothing_since = self._nothing_since or now
        if busy:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since, self._next_reap = now, now
        idle = 0.0 if self._idle_since is None else now - self._idle_since
        if now >= self._next_reap:
            # Unsent results go first: a token with a known result must not be run again.
            sent = self._outbox.send(self._database)
            self._reporter.carry_out(self._outbox.take_parents())
            if self._config.stages is not None:  # a pilot may have died before it made them
                self._reporter.carry_out(pending_lists(self._database, self._config.batch, self._config.pool_profile()))
            reaped, self._living = self._reaper.reap(but=self._outbox.remaining)
            if sent or reaped:
                return
            least = min(LOAD * (time.monotonic() - now), lease / 3)
            self._next_reap = now + max(least, self._reap_every if busy else min(self._reap_every, 0.3 + idle))
        # In a cluster, leases are as old as this pilot's last renewal: see ``Observer.check``.
        until_dead = lease + 3 + (lease / 3 if self._claims.cluster else 0)
        lingers = self._living and min(idle, self._clock.contact()) <= until_dead
        if not busy and idle >= self._config.wait_for_work and not lingers and self._is_sure(idle):
            skipped = self._database.skipped()
            work.stop(DRAIN, "no tokens remain" + (f", except {skipped} that were skipped" if skipped else ""))
            return
        if (
            self._config.wait_for_work
            and idle > SOON
            and stop_if_drained(work, drain_flag_of(self._database, self._config.submission))
        ):
            return
        # Each check is a request: do not repeat it whenever another slot finishes, unless that was the last one.
        longest = min(max(3.0, LOAD * self._took), lease / 6)
        pause = random.uniform(0.5, 1) * min(longest, 0.2 + now - self._nothing_since)
        work.wait(pause, until=lambda: busy and not self._busy())

    def _busy(self) -> bool:
        """True if this pilot holds tokens, or has results to send."""
        work = self._work
        with work.changed:
            return bool(work.runs or work.ready or self._reporter.pending() or self._claims.unsettled())
