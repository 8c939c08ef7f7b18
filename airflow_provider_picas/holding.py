"""Who holds the locked tokens: whether anybody is known to work on, and who was not heard in time.

An operation as in ``reaping``.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from airflow_provider_picas.couchdb.pool import Document, Next, Pool
from airflow_provider_picas.pilot.picas_pilot import held_by_pilot
from airflow_provider_picas.reaping import Operation, read_leases
from airflow_provider_picas.tokens import leases
from airflow_provider_picas.tokens.states import State


@dataclass(frozen=True)
class Holders:
    """Who holds the locked tokens of a batch, or of the pool."""

    known: int  #: tokens that pilots with a lease hold, or jobs of the submission
    foreign: tuple[str, ...]  #: ids of the others: whether their pilots live, nobody can tell
    patience: (
        float  #: seconds, half a lease, that silent pilots have to be heard again after an outage; 0: none is silent
    )


def holders(pool: Pool, batch: str | None, jobs: Container[str] = ()) -> Operation[Holders]:
    """Look who holds tokens. ``jobs``: ids of those of the submission."""
    locked: list[Document] = []
    after: Next | None = None
    while True:
        found, after = yield from pool.tokens(State.LOCKED, batch, after=after)
        locked += found
        if after is None:
            break
    known, now = yield from read_leases(pool, leases.holders(locked))
    silent = [
        lease.lease / 2
        for lease in known.values()
        if not lease.ended and now > lease.renewed + lease.lease + leases.GRACE
    ]
    foreign = [
        str(token["_id"]) for token in locked if not held_by_pilot(token) and str(token.get("slurm_job_id")) not in jobs
    ]
    return Holders(len(locked) - len(foreign), tuple(foreign), max(silent, default=0.0))
