"""Merges the revisions of tokens in conflict."""

import time
from typing import Callable, Optional, Sequence, Set

from airflow_provider_picas.lifecycle.conflicts import merge
from airflow_provider_picas.lifecycle.json_values import Doc, number
from airflow_provider_picas.lifecycle.leases import Shown, Silence
from airflow_provider_picas.lifecycle.pilot_config import Config
from airflow_provider_picas.lifecycle.transitions import held_by_pilot
from airflow_provider_picas.pilot.clock import Clock
from airflow_provider_picas.pilot.database import Database
from airflow_provider_picas.pilot.identity import Identity
from airflow_provider_picas.pilot.log import log


class Conflicts:
    """Merges conflicting revisions of tokens, which result when nodes of a cluster did not see each other.

    Used by one thread. ``contact``: as for ``Reaper``; ``held``: this pilot's claims that have not ended.
    """

    def __init__(
        self,
        database: Database,
        config: Config,
        me: Identity,
        clock: Clock,
        contact: Callable[[], float],
        held: Callable[[], Set[str]] = set,
    ) -> None:
        self._database = database
        self._config = config
        self._me = me
        self._clock = clock
        self._contact = contact
        self._held = held
        self._silence = Silence(config.lease)

    def settle(self, branches: Sequence[Doc]) -> Optional[Doc]:
        """Merge the revisions of a token. Returns the token; None: not yet possible. Raises Unreachable."""
        if len(branches) == 1:
            return branches[0]
        plan = merge(branches, self._may_run)
        if plan is None:
            return None
        winner = branches[0]
        if plan.new is not None:
            new = dict(plan.new)
            if plan.source is not None:
                found = self._database.with_attachments(plan.source).get("_attachments") or {}
                parts = ("content_type", "data")
                new["_attachments"] = {name: {part: file[part] for part in parts} for name, file in found.items()}
                log(
                    f"{winner['_id']}: the result of claim {new.get('claim')} lost against another revision; it is adopted."
                )
            row = self._database.bulk([new])[1].get(winner["_id"], {})
            if not row.get("rev") or row.get("accepted"):
                return None
            winner = dict(new, _rev=row["rev"])
        for doc in plan.losers:
            self._database.delete(doc)
        return winner

    def without(self, ids: Sequence[str]) -> Set[str]:
        """The tokens without conflicting revisions. The revisions of the others are merged if possible."""
        alone = set()
        for name, branches in self._database.branches(ids).items():
            if len(branches) == 1:
                alone.add(name)
            elif branches:
                self.settle(branches)  # the caller sees the result the next time
        return alone

    def _may_run(self, doc: Doc) -> bool:
        """True if a pilot may be running the token under this revision."""
        if not held_by_pilot(doc):
            return False
        pilot = doc["pilot"]
        if pilot == self._me.pilot:
            return doc["claim"] in self._held()
        asked = time.monotonic()
        lease = self._database.leases([pilot]).get(pilot)
        if lease and lease.get("ended"):
            return False
        answered = time.monotonic()
        self._silence.note(pilot, Shown.of(lease, self._config.lease) if lease else None, answered)
        now, lock = self._clock.at(asked), number(doc.get("lock"))
        missing = self._silence.missing(pilot, lock, now, asked, answered - self._contact())
        return missing is None or missing > 0
