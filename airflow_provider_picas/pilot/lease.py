"""Renews the pilot's lease."""

import random
import threading
import time
import traceback
from typing import Optional, Tuple
from urllib.parse import quote

from airflow_provider_picas.lifecycle.backoff import Backoff
from airflow_provider_picas.lifecycle.causes_of_death import is_from_slurm
from airflow_provider_picas.lifecycle.ids import drain_flag, lease_id, watched_flag
from airflow_provider_picas.lifecycle.json_values import Doc, number
from airflow_provider_picas.lifecycle.pilot_config import Config
from airflow_provider_picas.lifecycle.transitions import reason_of_reaping
from airflow_provider_picas.pilot.clock import Clock
from airflow_provider_picas.pilot.database import Database
from airflow_provider_picas.pilot.errors import Unreachable
from airflow_provider_picas.pilot.identity import Identity
from airflow_provider_picas.pilot.log import log
from airflow_provider_picas.pilot.portions import portions
from airflow_provider_picas.pilot.work import DRAIN, STOP, Work

FIRST_REVISION = 1_000_000_000  # of a lease: stays at ten digits for as long as a pilot can live


def drain_flag_of(database: Database, submission: str) -> Doc:
    """The drain flag of a submission; empty if there is none. Raises Unreachable."""
    prefix, _, name = drain_flag(submission).partition("/")
    return database.get(prefix + "/" + quote(name, safe="")) or {}


def stop_if_drained(work: Work, flag: Doc) -> bool:
    """Drain the pilot if the drain flag of its submission is set. True if it is."""
    if not flag.get("drain"):
        return False
    work.stop(DRAIN, "its submission is being drained")
    return True


class Lease(threading.Thread):
    """Renews the pilot's lease by the database's clock, and checks the drain flag and whether tokens were reaped."""

    def __init__(self, database: Database, config: Config, me: Identity, clock: Clock, work: Work) -> None:
        super().__init__(name="lease", daemon=True)
        self._database = database
        self._config = config
        self._me = me
        self._clock = clock
        self._work = work
        self._renewals = 0  # number of attempts to renew
        self._watched = False  # somebody watches this submission's pilots
        self._renewed_at: Optional[float] = None
        self._stored = (0, float("-inf"))
        self._secured = True  # False after a late renewal, until the pilot has verified that it still holds its tokens
        self._in_time_since = 0.0  # since when no renewal was late
        self._ended = threading.Event()

    def valid(self) -> bool:
        """True if others must still believe that this pilot is alive, with a margin."""
        room = min(5.0, 0.15 * self._config.lease)
        return (
            self._secured
            and self._renewed_at is not None
            and time.monotonic() - self._renewed_at < self._config.lease - room
        )

    def stored(self) -> Tuple[int, float]:
        """The last renewal that most nodes of the database stored: its number, and when it was sent (monotonic)."""
        return self._stored

    def contact(self) -> float:
        """Seconds for which this pilot has renewed its lease in time, as it expects of others; 0 if it is late itself."""
        now, renewed_at = time.monotonic(), self._renewed_at
        return now - self._in_time_since if renewed_at is not None and self._in_time(now, renewed_at) else 0.0

    def _in_time(self, now: float, renewed_at: float) -> bool:
        return now - renewed_at <= self._config.lease / 2

    def renew(self, ended: bool = False) -> None:
        """Write the lease. Raises Unreachable, also if too few nodes of a cluster store it: others may not see it then."""
        started = time.monotonic()
        self._renewals += 1
        lease = {
            "pilot": self._me.pilot,
            "submission": self._config.submission,
            "job": self._me.job,
            "hostname": self._me.hostname,
            "renewed": int(self._clock.now()),
            "renewals": self._renewals,  # reveals a delayed write of an older lease
            "lease": self._config.lease,
            "classes": self._config.classes,
            "ended": ended,
            # Nodes of a cluster compare revisions to find the newest lease. They are compared as strings, so the length must
            # not change.
            "_rev": f"0-{FIRST_REVISION + self._renewals}",
        }
        self._database.put_local(lease_id(self._me.pilot), dict(lease, **self._work.activity(self._watched)))
        if self._renewed_at is not None and not self.valid():
            self._secured = False
        if self._renewed_at is None or not self._in_time(started, self._renewed_at):
            self._in_time_since = time.monotonic()
        self._renewed_at, self._stored = started, (self._renewals, started)

    def run(self) -> None:
        """Renew every third of a lease, more often while the database does not answer."""
        third = self._config.lease / 3
        longest = min(5.0, third / 2)  # after an outage, renew before others evaluate the lease
        backoff, pause = Backoff(0.5, longest), third * random.uniform(0.5, 1)  # spreads pilots that start together
        while not self._ended.wait(pause):
            try:
                self.renew()
                if not self._secured:
                    self._write_tokens_again()
                self.check_tokens()
                self._secured = True
                # Repeat a renewal at once if it took too long, for example because the pilot was frozen.
                backoff, pause = Backoff(0.5, longest), third if self.valid() else 0.0
            except Unreachable as error:
                if backoff.tries == 0:
                    log(f"The lease cannot be renewed: {error}.")
                pause = backoff.pause()
            except Exception:
                log("The lease thread failed:", traceback.format_exc())
                pause = backoff.pause()

    def _write_tokens_again(self) -> None:
        """Write a new revision of the tokens that this pilot still holds, so that observers of its old lease cannot
        reap them.

        Raises Unreachable if one of them cannot be written.
        """
        tokens = {token.id: token for token in self._work.held()}
        docs = self._database.read(list(tokens)) if tokens else {}
        mine = [doc for name, doc in docs.items() if doc and tokens[name].is_claimed_in(doc)]
        for some in portions(mine):
            status, rows = self._database.bulk(some)
            for doc in some:
                revision = rows.get(doc["_id"], {}).get("rev")
                if status != 201 or not revision:
                    raise Unreachable(f"{self._database.place} did not store token {doc['_id']} ({status})", status)
                tokens[doc["_id"]].doc["_rev"] = revision
        if mine:
            log(f"The lease was renewed late. This pilot still holds {len(mine)} tokens.")

    def _check_flags(self) -> None:
        """Stop if the submission is drained. Notice whether somebody watches, who wants to see the commands' output."""
        drain, watched = drain_flag(self._config.submission), watched_flag(self._config.submission)
        try:
            flags = self._database.local([drain, watched])
        except Unreachable:
            flags = {drain: drain_flag_of(self._database, self._config.submission)}
        self._watched = number(flags.get(watched, {}).get("until")) > self._clock.now()
        stop_if_drained(self._work, flags.get(drain, {}))

    def check_tokens(self) -> None:
        """Check the flags of the submission, and stop work on tokens that this pilot has lost. Raises Unreachable."""
        self._check_flags()
        tokens = {token.id: token for token in self._work.held()}
        revisions = self._database.revisions(list(tokens)) if tokens else {}
        changed = [name for name, revision in revisions.items() if revision != tokens[name].doc["_rev"]]
        for name, branches in self._database.branches(changed).items():
            token = tokens[name]
            # In a cluster another revision may win while this pilot's exists: the pilot of that one waits.
            doc = next(filter(token.is_claimed_in, branches), branches[0] if branches else None)
            if not doc or not token.is_claimed_in(doc):
                reason = reason_of_reaping(doc or {}, token.claim)
                given = f"was released ({reason})" if reason else "was taken by another pilot or reset"
                self._work.lose(token, given if doc else "was deleted")
                if is_from_slurm(reason):  # all tokens that it claims would be reaped
                    self._work.stop(STOP, "Slurm reported this job as ended or requeued")

    def end(self, clean: bool) -> None:
        """Stop renewing. ``clean``: there are no unsent results, so record that the pilot has ended."""
        self._ended.set()
        self.join(2)
        try:
            if clean and not self.is_alive():  # the connection belongs to the thread
                self.renew(ended=True)
        except Unreachable as error:
            log(f"The end of this pilot could not be recorded: {error}.")
