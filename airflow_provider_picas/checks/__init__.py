"""Whether a pool and a cluster have what a run needs: small checks through the hooks that tasks and triggers use.

``everything`` yields what each check found, in an order in which a later one may rely on the earlier ones.
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
    """Check all that is wanted. ``note`` is called with what happens meanwhile."""
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
            yield failed("compute node", "No job was submitted: first put right what failed on the cluster.")


def _here(picas: pool.OneTry) -> Iterator[Finding]:
    """This machine's clock, if the database tells the time."""
    try:
        yield clock_finding("clock here", time.time() - picas.now())
    except CouchDBError:
        return
