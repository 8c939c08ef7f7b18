"""Releases the tokens of dead pilots."""

import time
from contextlib import suppress
from typing import Dict, List, Optional, Sequence, Set, Tuple

from airflow_provider_picas.lifecycle.exit_codes import Failed
from airflow_provider_picas.lifecycle.ids import batch_range
from airflow_provider_picas.lifecycle.json_values import Doc, number
from airflow_provider_picas.lifecycle.transitions import Change, held_by_pilot, reap
from airflow_provider_picas.pilot.claims import MONITOR
from airflow_provider_picas.pilot.conflicts import Conflicts
from airflow_provider_picas.pilot.heads import own_views
from airflow_provider_picas.pilot.log import log
from airflow_provider_picas.pilot.observer import Observer
from airflow_provider_picas.pilot.portions import BULK_BYTES, size_of
from airflow_provider_picas.pilot.session import Session


class Reaper:
    """Finds locked tokens whose pilots are dead. Used by one thread."""

    PAGE = 500  # tokens read in one request
    PAGES = 4  # requests in one round; the next round continues from there

    def __init__(self, session: Session, conflicts: Optional[Conflicts] = None) -> None:
        self._session = session
        self._database = session.database
        self._config = session.config
        self._profile = session.config.pool_profile()
        self._conflicts = conflicts or Conflicts(session)
        self._observer = Observer(session)
        self._read_next: Dict[str, float] = {}  # when to read the lease of a live pilot again (monotonic)
        self._met: Set[str] = set()  # pilots that held tokens in the current pass
        self._skip = 0  # locked tokens that were checked in the current pass
        self._living_then = True  # True if live pilots held tokens in the last complete pass, or before the first one
        self._living_since = False  # the same for the current pass

    def reap(self, but: Sequence[str] = ()) -> Tuple[int, bool]:
        """Release the tokens of dead pilots, except ``but``. Returns their number, and True if live pilots hold others.

        Raises Unreachable.
        """
        total = 0
        for _ in range(self.PAGES):
            docs, more = self._locked()
            reaped, living = self._reap_among([doc for doc in docs if doc["_id"] not in but])
            total += reaped
            self._living_since = self._living_since or living
            self._skip += len(docs) - reaped
            if not more:
                self._skip, self._living_then, self._living_since = 0, self._living_since, False
                self._observer.keep(list(self._met))
                self._read_next = {name: at for name, at in self._read_next.items() if name in self._met}
                self._met = set()
                break
        return total, self._living_then or self._living_since

    def _reap_among(self, locked: List[Doc]) -> Tuple[int, bool]:
        docs = [doc for doc in locked if held_by_pilot(doc) and doc["pilot"] != self._session.me.pilot]
        # The tokens are read before the leases: a pilot renews before it claims, so an expired lease covers them.
        oldest: Dict[str, float] = {}
        for doc in docs:
            oldest[doc["pilot"]] = min(number(doc.get("lock")), oldest.get(doc["pilot"], float("inf")))
        self._met.update(oldest)
        asked = time.monotonic()
        due = {pilot: lock for pilot, lock in oldest.items() if asked >= self._read_next.get(pilot, 0)}
        found = self._observer.check(due)
        self._read_next.update({pilot: finding.read_again for pilot, finding in found.items() if finding.read_again})
        causes = {pilot: finding.death for pilot, finding in found.items()}
        now = int(self._session.clock.now())
        dead = [(doc, causes.get(doc["pilot"])) for doc in docs]
        alone = self._conflicts.without([doc["_id"] for doc, cause in dead if cause])
        changes = [
            reap(doc, cause, self._config.max_scrubs, now, self._profile)
            for doc, cause in dead
            if cause and doc["_id"] in alone
        ]
        rows = self._write(changes)
        reaped = [change for change in changes if rows.get(change.token, {}).get("rev")]
        for change in reaped:
            why = change.attempt["reason"] if change.attempt else (change.error or {}).get("message")
            log(f"{change.token}: {why}")
        return len(reaped), len(reaped) < len(docs)

    def _write(self, changes: List[Change]) -> Dict[str, Doc]:
        """The rows of the written tokens. A request that is too large is split in halves; single tokens that are too
        large are skipped."""
        if not changes:
            return {}
        half = len(changes) // 2
        docs = [change.apply() for change in changes]
        if not half or sum(map(size_of, docs)) <= BULK_BYTES:
            status, rows = self._database.bulk(docs)
            if status != 413:
                return rows
        if not half:
            self._database.skip(changes[0].token, "is too large to be released")
            return {}
        return dict(self._write(changes[:half]), **self._write(changes[half:]))

    def _locked(self) -> Tuple[List[Doc], Optional[str]]:
        """A page of locked tokens, and the start of the next one if there are more."""
        # If others release tokens in the meantime, some are missed until the next pass.
        query = {"limit": self.PAGE, "skip": self._skip}
        if not self._profile.is_default:
            key = [self._config.batch or "", "locked"]
            with suppress(Failed):
                view = own_views(self._profile) + "counts"
                return self._database.page(view, reduce=False, startkey=key, endkey=[*key, {}], **query)
            return [], None
        if self._config.batch is not None:
            with suppress(Failed):  # no such view: see Monitor
                key = [self._config.batch, "locked"]
                return self._database.page(own_views(self._profile) + "counts", reduce=False, key=key, **query)
        with suppress(Failed):
            return self._database.page(MONITOR + "locked", **batch_range(self._config.batch), **query)
        return [], None
