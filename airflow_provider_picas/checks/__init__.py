"""Checks that a pool and a cluster are ready for a run, through the hooks that tasks and triggers use.

``everything`` yields the finding of each check, in an order in which later checks may rely on earlier ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from airflow_provider_picas.checks import cluster, job, pool
from airflow_provider_picas.checks.finding import Finding, Level, failed
from airflow_provider_picas.checks.node import Probe, clock_finding
from airflow_provider_picas.checks.wanted import Wanted
from airflow_provider_picas.couchdb.errors import CouchDBError

__all__ = ["Finding", "Level", "Wanted", "everything"]


def everything(wanted: Wanted, note: Callable[[str], None] = lambda text: None) -> Iterator[Finding]:
    """Run all requested checks. ``note`` is called with progress messages."""
    picas = pool.OneTry(wanted.picas_conn_id, database=wanted.database)
    yield from pool.check(picas)
    yield from _here(picas)
    probe = Probe.of(picas)
    with cluster.OneTry(wanted.ssh_conn_id) as slurm:
        usable = True
        for finding in cluster.check(slurm, probe, wanted.remote_folder, submit=wanted.submit):
            usable = usable and finding.level is not Level.FAIL
            yield finding
        if not wanted.submit:
            return
        if usable:
            yield from job.check(slurm, probe, wanted, note)
        else:
            yield failed("compute node", "No job was submitted: first fix what failed on the cluster.")


def _here(picas: pool.OneTry) -> Iterator[Finding]:
    """Check this machine's clock, if the database sends the time."""
    try:
        yield clock_finding("clock here", time.time() - picas.now())
    except CouchDBError:
        return
