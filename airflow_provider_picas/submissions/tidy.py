"""Removes what remains when pilots have done their work. Operations, as in ``watch``."""

from __future__ import annotations

import json

from airflow_provider_picas.couchdb import batch_pilots, chains
from airflow_provider_picas.couchdb.http import json_body
from airflow_provider_picas.couchdb.pool import Document, Pool
from airflow_provider_picas.lifecycle.ids import drain_flag, lease_id, watched_flag
from airflow_provider_picas.lifecycle.json_values import number
from airflow_provider_picas.slurm import sbatch_record
from airflow_provider_picas.slurm.pilot_job import CONFIG_FILE
from airflow_provider_picas.slurm.remote import OURS, Command, Output, ok, quote, whole
from airflow_provider_picas.submissions.stop import MOST_CALLS
from airflow_provider_picas.submissions.submission import Operation, Submission

KEEP_LEASES = 7 * 86_400  # seconds to keep the lease of a pilot after its last sign of life
# Seconds to keep flags, the records of batches' pilots and of chains, and the memory of rescheduled sensors.
KEEP_OTHERS = 90 * 86_400
PAGE = 1_000  # local documents read by one request
MOST_PAGES = 20


def pilot_options(submission: Submission) -> Operation[Document | None]:
    """The options of our own pilots; empty for those of a script. None if somebody has changed the file: the pilots may
    claim other tokens, too."""
    config: Output = yield Command(f"cat -- {quote(f'{submission.folder}/{CONFIG_FILE}')}")
    try:
        options = json.loads(config.stdout) if config.code == 0 else {}
    except (ValueError, RecursionError):
        return None
    return options if isinstance(options, dict) and isinstance(options.get("batch", ""), str | None) else None


def cancel_pending(submission: Submission) -> Operation[int]:
    """Cancel the pilots that have not started. Returns the number of pilots."""
    names = quote(",".join(sbatch_record.job_names(submission.key, MOST_CALLS)))
    text = f"""
jobs=$(squeue --noheader --all --array --states=PENDING {OURS} --name={names} --format='%F %i') || exit 5
[ -n "$jobs" ] || exit 0
scancel {OURS} --state=PENDING $(printf '%s\\n' "$jobs" | cut -d' ' -f1 | sort -u) || exit 6
printf '%s\\n' "$jobs" | wc -l"""
    output: Output = yield from ok(Command(text), "Pending pilots could not be cancelled")
    return whole(output.stdout)


def local_documents(pool: Pool, key: str | None) -> Operation[int]:
    """Delete the leases of an ended submission, and all local documents that are too old. Returns the number of
    documents.

    ``key``: a submission that has ended; None: delete only what is too old.
    """
    removed = 0
    records = (batch_pilots.PREFIX, chains.PREFIX)
    for prefix in (lease_id(""), drain_flag(""), watched_flag(""), "_local/picas-wait-", *records):
        start = prefix
        for _ in range(MOST_PAGES):
            found, now = yield from pool.local_documents(prefix, start=start, limit=PAGE)
            gone = [document for document in found if _is_obsolete(document, key, float(now or 0))]
            if gone:
                deletions = [{"_id": one["_id"], "_rev": one["_rev"], "_deleted": True} for one in gone]
                yield from pool.write([json_body(one) for one in deletions])
                removed += len(gone)
            if len(found) < PAGE:
                break
            start = found[-1]["_id"]
    return removed


def _is_obsolete(document: Document, key: str | None, now: float) -> bool:
    """True if a local document is no longer needed. ``now``: the database's clock."""
    if not document["_id"].startswith(lease_id("")):
        since = number(document.get("raised") or document.get("since"))
        return 0 < since < now - KEEP_OTHERS
    silent_since = number(document.get("renewed")) + 2 * number(document.get("lease"))
    if silent_since < now - KEEP_LEASES:
        return True
    return key is not None and document.get("submission") == key and (bool(document.get("ended")) or silent_since < now)
