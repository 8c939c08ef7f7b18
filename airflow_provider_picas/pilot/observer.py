"""Decides by their leases which other pilots are dead."""

import time
from typing import Dict, Mapping, NamedTuple, Optional, Sequence

from airflow_provider_picas.lifecycle import causes_of_death
from airflow_provider_picas.lifecycle.json_values import Doc
from airflow_provider_picas.lifecycle.leases import Reading, Silence
from airflow_provider_picas.pilot.session import Session


class Finding(NamedTuple):
    """What the lease of a pilot shows."""

    death: Optional[str] = None  # why the pilot counts as dead; None: it may be alive
    read_again: float = 0.0  # when to read its lease again (monotonic): later while the lease holds


class Observer:
    """Reads the leases of other pilots, and remembers them as ``Silence`` requires. Used by one thread."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._silence = Silence(session.config.lease)

    def check(self, locks: Mapping[str, float]) -> Dict[str, Finding]:
        """Check pilots, each with the time at which its oldest token was locked. Raises Unreachable."""
        asked: Optional[float] = time.monotonic()
        me = self._session.me.pilot
        leases = self._session.database.leases([*locks, me] if locks else [])
        answered, stored = time.monotonic(), self._session.stored()
        if stored:
            # A node that is cut off answers with old leases. This pilot's own lease shows how old they may be.
            renewals, sent = stored
            asked = sent if leases.get(me, {}).get("renewals") == renewals else None
        return {pilot: self._evaluate(pilot, lock, leases.get(pilot), asked, answered) for pilot, lock in locks.items()}

    def keep(self, pilots: Sequence[str]) -> None:
        """Forget all others."""
        self._silence.keep(pilots)

    def _evaluate(
        self, pilot: str, lock: float, lease: Optional[Doc], asked: Optional[float], answered: float
    ) -> Finding:
        """``asked``: a time at which this was the newest lease; None: unknown. ``answered``: when it was received. Both
        are monotonic."""
        known, default = lease or {}, self._session.config.lease
        holder = causes_of_death.holder(pilot, known.get("job"), known.get("hostname"))
        if known.get("ended"):
            return Finding(causes_of_death.ended(holder))
        reading = Reading.of(known, default) if lease else None
        self._silence.note(pilot, reading, answered)
        if asked is None:
            return Finding()
        now = self._session.clock.at(asked)
        until_dead = self._silence.seconds_until_dead(pilot, lock, now, asked, answered - self._session.contact())
        if until_dead is None:
            # Not in each round, but soon enough to read its last lease long before it expires.
            return Finding(read_again=answered + (reading.lease if reading else default) / 6)
        if until_dead > 0:
            return Finding()
        if not lease:
            return Finding(causes_of_death.no_lease(pilot))
        return Finding(causes_of_death.silent(holder, now - self._silence.last_renewal(pilot)))
