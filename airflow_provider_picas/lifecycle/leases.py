"""The rule by which the holder of a token is dead."""

from typing import Dict, NamedTuple, Optional, Sequence, Tuple

from airflow_provider_picas.lifecycle.json_values import Doc, number

LONGEST_LEASE = (
    7 * 86_400.0
)  # seconds; with a longer one, observers would also wait that long for pilots without a lease


GRACE = 1.0  # seconds on top of a lease: the database's clock has whole seconds


class Reading(NamedTuple):
    """A reading of a lease: how many times it was written, when last by the database's clock, and for how many seconds
    it holds."""

    renewals: float  # 0: written by a pilot that does not count them
    renewed: float
    lease: float

    @classmethod
    def of(cls, doc: Doc, default: float) -> "Reading":
        """The reading of the lease in a document. ``default``: its length if the document does not say."""
        lease = min(max(0.0, number(doc.get("lease"), default)), LONGEST_LEASE)
        return cls(number(doc.get("renewals")), number(doc.get("renewed")), lease)

    def holds(self, now: float) -> bool:
        """True if the lease has not expired at this time by the database's clock."""
        return now <= self.renewed + self.lease + GRACE

    def is_newer(self, than: "Reading") -> bool:
        """True if the pilot has written this after the other. Compares the numbers, since clocks step."""
        return self.renewals > than.renewals or (self.renewals == than.renewals and self.renewed != than.renewed)


class Silence:
    """The rule by which silent pilots count as dead, for one observer: a pilot, or a wait.

    A single reading of a lease proves nothing. A delayed write may have set it back, another copy of the database may
    lack it or have an old one, the database's clock may have stepped, or the database may have been unreachable. So a
    pilot is dead only when its lease has expired, and the observer has read nothing newer for longer than a renewal
    takes, by its own clock and while it was in contact with the database itself. Times are the observer's monotonic
    times unless noted as the database's.

    ``default``: seconds, the lease of a pilot whose lease was never read.
    """

    def __init__(self, default: float) -> None:
        self._longest = default
        self._seen: Dict[str, Tuple[Optional[Reading], float]] = {}  # the newest reading, and when it was first read

    def note(self, pilot: str, reading: Optional[Reading], answered: float) -> None:
        """Record the reading of a pilot's lease in a response that came at ``answered``; None: no lease."""
        newest = self._seen.get(pilot, (None, 0.0))[0]
        if reading is not None:
            self._longest = max(self._longest, reading.lease)
        if pilot not in self._seen or (reading is not None and (newest is None or reading.is_newer(newest))):
            self._seen[pilot] = (reading, answered)

    def seconds_until_dead(self, pilot: str, lock: float, now: float, asked: float, contact: float) -> Optional[float]:
        """Seconds until a pilot that was noted counts as dead: 0 or less when it does, None while its lease holds.

        ``lock``: when its oldest token was locked, and ``now``: when it was ``asked`` for leases, both by the database's
        clock. ``contact``: since when the observer has been in contact.
        """
        newest, first = self._seen[pilot]
        watched = asked - max(first, contact)
        if newest is None:
            # A pilot writes its lease before it claims, so this one was removed. It will be written again at the next renewal.
            return self._longest - watched if now > lock + 2 * self._longest else None
        # A clock that was set back would make dead pilots look alive for long, but they have been watched for a whole lease.
        if newest.holds(now) and watched <= newest.lease + GRACE:
            return None
        return newest.lease / 2 - watched

    def last_renewal(self, pilot: str) -> float:
        """When the newest lease of a pilot was written, by the database's clock."""
        newest = self._seen[pilot][0]
        return 0.0 if newest is None else newest.renewed

    def keep(self, pilots: Sequence[str]) -> None:
        """Forget all others."""
        self._seen = {pilot: self._seen[pilot] for pilot in pilots if pilot in self._seen}
