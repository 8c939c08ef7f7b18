"""Pilots as a person sees them: from their leases, and from what a wait has recorded of Slurm's answer."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from airflow_provider_picas.couchdb import batch_pilots, errors
from airflow_provider_picas.couchdb.http import Operation
from airflow_provider_picas.couchdb.page import in_scope
from airflow_provider_picas.couchdb.pool import Pool
from airflow_provider_picas.lifecycle.json_values import number
from airflow_provider_picas.slurm.jobs import Job, Phase, SlurmStatus
from airflow_provider_picas.slurm.reasons import meaning
from airflow_provider_picas.submissions.deaths import Lease
from airflow_provider_picas.tokens.table import short, terminal_output
from airflow_provider_picas.tokens.text import one_line

RECORD_EVERY, RECORD_AGAIN = 15.0, 60.0
"""Seconds between two records of a wait: while Slurm's answer changes, and while only the pilots' hours grow."""
MOST_REASONS = 10
MOST_RUNNING = 200  # tokens of a pilot that are shown
TAIL = 4_000  # characters of the end of a running token's output
_PROGRESS = 200  # characters
_STATES = ("idle", "working", "draining", "stopping")


def record_of(jobs: Collection[Job], at: int) -> dict[str, Any]:
    """What a wait records of Slurm's answer on a submission, for the page: a few hundred bytes. ``at``: when it came."""
    phases = Counter(job.phase for job in jobs)
    reasons = Counter(job.reason for job in jobs if job.phase is Phase.WAITING and job.reason not in ("", "None"))
    return {
        "at": at,
        "waiting": phases[Phase.WAITING],
        "running": phases[Phase.RUNNING] + phases[Phase.UNKNOWN],
        "ended": phases[Phase.ENDED],
        "reasons": [[one_line(reason, 100), jobs_] for reason, jobs_ in reasons.most_common(MOST_REASONS)],
        "core_hours": round(sum(job.elapsed * job.cpus for job in jobs) / 3600, 4),
    }


class SlurmRecord:
    """Writes what a wait sees of Slurm into the record of its submission, when it changes: the page asks no cluster."""

    def __init__(self) -> None:
        self._written: dict[str, Any] = {}
        self._at = -math.inf
        self._is_there = True

    def write(self, pool: Pool, batch: str | None, submission: str, slurm: SlurmStatus | None) -> Operation[None]:
        """Write it, if it is due. Whatever the database answers, the wait continues."""
        if batch is None or slurm is None or not self._is_there:
            return
        seen, now = record_of(slurm.jobs.values(), slurm.at), time.monotonic()
        if now - self._at < (RECORD_EVERY if self._differs(seen) else RECORD_AGAIN):
            return
        self._at = now
        try:
            self._is_there = yield from batch_pilots.note_slurm(pool, batch, submission, seen)
            self._written = seen
        except errors.CouchDBError:
            return

    def _differs(self, seen: Mapping[str, Any]) -> bool:
        return any(self._written.get(name) != seen[name] for name in ("waiting", "running", "ended", "reasons"))


def of_batch(leases: Iterable[Mapping[str, Any]], batch: str | None, submissions: Collection[str]) -> list[Any]:
    """The leases of the pilots that work for a batch: of its submissions, or those that run a token of it."""
    return [
        lease
        for lease in leases
        if batch is None
        or lease.get("submission") in submissions
        or any(in_scope(token, batch) for token in _running(lease))
    ]


def summary(leases: Iterable[Mapping[str, Any]], now: float, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Pilots by what they do. ``records``: what waits have recorded of Slurm, a record for each submission."""
    states = Counter(state_of(lease, now) for lease in leases)
    silent, ended = states["silent"], states["ended"]
    working = sum(states.values()) - silent - ended
    found: dict[str, Any] = {"running": working, "waiting": 0, "silent": silent, "ended": ended, "reasons": []}
    found |= {"source": "leases", "at": now, "core_hours": None}
    if not records:
        return found
    totals = {
        name: int(sum(number(record.get(name)) for record in records)) for name in ("running", "waiting", "ended")
    }
    reasons: Counter[str] = Counter()
    for record in records:
        for reason, jobs in _reasons(record):
            reasons[reason] += jobs
    named = [{"reason": one, "text": meaning(one), "jobs": jobs} for one, jobs in reasons.most_common(MOST_REASONS)]
    hours = sum(number(record.get("core_hours")) for record in records)
    at = min(number(record.get("at")) for record in records)
    return {**found, **totals, "reasons": named, "source": "slurm", "at": at, "core_hours": hours}


def _reasons(record: Mapping[str, Any]) -> Iterable[tuple[str, int]]:
    reasons = record.get("reasons")
    for each in reasons[:MOST_REASONS] if isinstance(reasons, list) else ():
        if isinstance(each, list) and len(each) == 2 and isinstance(each[0], str):
            yield one_line(each[0], 100), int(number(each[1]))


def state_of(lease: Mapping[str, Any], now: float) -> str:
    """What a pilot does. ``silent`` is no verdict: its lease has expired, and it may still live."""
    read = Lease.parse(lease)
    if read.ended:
        return "ended"
    if not read.shown.holds(now):
        return "silent"
    state = lease.get("state")
    return state if state in _STATES else "unknown"


def pilot_of(lease: Mapping[str, Any], now: float, batch: str | None) -> dict[str, Any]:
    """A pilot by its lease."""
    renewed, state = number(lease.get("renewed")), state_of(lease, now)
    counts = lease.get("counts")
    numbers = counts if isinstance(counts, Mapping) else {}
    running = _running(lease) if state != "ended" else {}
    tokens = islice((item for item in running.items() if in_scope(item[0], batch)), MOST_RUNNING)
    return {
        "pilot": short(lease.get("pilot")) or "?",
        "submission": short(lease.get("submission"), 300),
        "job": short(lease.get("job")),
        "node": short(lease.get("hostname")),
        "state": state,
        "started": number(lease.get("began")) or None,
        "heard": renewed or None,
        "ended": (renewed or None) if state == "ended" else None,
        "done": int(number(numbers.get("done"))),
        "failed": int(number(numbers.get("failed")) + number(numbers.get("retried"))),
        "now": [_run(token, run, renewed) for token, run in tokens],
    }


def _running(lease: Mapping[str, Any]) -> Mapping[str, Any]:
    running = lease.get("running")
    return running if isinstance(running, Mapping) else {}


def _run(token: str, run: Any, renewed: float) -> dict[str, Any]:
    known = run if isinstance(run, Mapping) else {}
    seconds = known.get("seconds")
    since = renewed - number(seconds) if isinstance(seconds, int | float) and renewed else None
    progress, tail = known.get("progress"), known.get("tail")
    if isinstance(progress, str):
        progress = one_line(progress, _PROGRESS)
    elif not isinstance(progress, int | float | bool | None):
        progress = one_line(str(progress)[:_PROGRESS], _PROGRESS)
    return {
        "token": token,
        "since": since,
        "progress": progress,
        "tail": terminal_output(tail[-TAIL:]) if isinstance(tail, str) else None,
    }
