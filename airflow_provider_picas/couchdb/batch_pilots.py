"""The pilots submitted for a batch: the task that submits writes a small local document for each submission.

So a wait for the batch finds its pilots by itself. Operations, as in ``pool``.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from airflow_provider_picas.couchdb import errors
from airflow_provider_picas.couchdb.http import Operation, Request, json_body
from airflow_provider_picas.couchdb.pool import Pool

PREFIX = "_local/picas-pilots-"
SLURM = "slurm"
"""The field of a record with Slurm's answer, as a wait has seen it: ``submissions.seen.record_of``."""
_MOST = 1_000  # limit on the submissions of a batch that are read


def note(pool: Pool, batch: str, pilots: Mapping[str, Any], *, ended: bool = False) -> Operation[None]:
    """Record the pilots of a batch. ``pilots``: the output of the operator that submitted them. ``ended``: their wait
    is over."""
    document_id = _document_id(batch, pilots)
    document = {"pilots": dict(pilots), "since": int(time.time()), "ended": ended}
    if ended:
        with suppress(errors.NotFoundError):
            present = yield from pool.get(document_id)
            document |= {SLURM: present[SLURM]} if SLURM in present else {}
    for _ in range(3):
        try:
            yield Request("PUT", pool.document_path(document_id), body=json_body(document))
            return
        except errors.ConflictError:  # CouchDB overwrites a local document, other servers require the revision
            present = yield from pool.get(document_id)
            document["_rev"] = present["_rev"]


def find(pool: Pool, batch: str) -> Operation[list[dict[str, Any]]]:
    """The pilots that were submitted for a batch and whose wait is not over: for each task the output of its last
    submission."""
    documents, _ = yield from pool.local_documents(prefix(batch), limit=_MOST)
    found = [document.get("pilots") for document in documents if not document.get("ended")]
    tasks: dict[str, dict[str, Any]] = {}
    for pilots in found:
        if not isinstance(pilots, dict) or not isinstance(pilots.get("submission"), str):
            continue  # others may write local documents, too
        task, number = _task(pilots)
        if task not in tasks or number > _task(tasks[task])[1]:
            tasks[task] = pilots
    return list(tasks.values())


def history(pool: Pool, batch: str) -> Operation[list[dict[str, Any]]]:
    """All pilots that are known to have been submitted for the batch, the latest first."""
    documents, _ = yield from pool.local_documents(prefix(batch), limit=_MOST)
    return [document["pilots"] for document in sorted(documents, key=_since, reverse=True)]


def prefix(batch: str) -> str:
    """What the ids of the records of a batch's submissions begin with."""
    return f"{PREFIX}{batch}:"


def records_in(documents: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of submissions among local documents, the latest first."""
    return [document for document in sorted(documents, key=_since, reverse=True) if _is_record(document)]


def note_slurm(pool: Pool, batch: str, submission: str, seen: Mapping[str, Any]) -> Operation[bool]:
    """Add what Slurm says of a submission to its record, for the page. False if there is no record."""
    for _ in range(3):
        try:
            present = yield from pool.get(f"{PREFIX}{batch}:{submission}")
            document = {**present, SLURM: dict(seen)}
            yield Request("PUT", pool.document_path(present["_id"]), body=json_body(document))
            return True
        except errors.ConflictError:
            continue
        except errors.NotFoundError:
            return False
    return True


def _is_record(document: Mapping[str, Any]) -> bool:
    pilots = document.get("pilots")
    return isinstance(pilots, dict) and isinstance(pilots.get("submission"), str)


def batches(pool: Pool) -> Operation[list[str]]:
    """The batches for which pilots were submitted, the latest first."""
    documents, _ = yield from pool.local_documents(PREFIX, limit=_MOST)
    names = (
        document["_id"].removeprefix(PREFIX).partition(":")[0]
        for document in sorted(documents, key=_since, reverse=True)
    )
    return list(dict.fromkeys(names))


def _since(document: Mapping[str, Any]) -> float:
    since = document.get("since")
    return float(since) if isinstance(since, int | float) else 0.0


def _document_id(batch: str, pilots: Mapping[str, Any]) -> str:
    return f"{PREFIX}{batch}:{pilots['submission']}"


def _task(pilots: Mapping[str, Any]) -> tuple[str, int]:
    """The task that submitted the pilots, and the number of the submission, in which its key ends."""
    match = re.fullmatch(r"(.*)\.([0-9]{1,9})", str(pilots.get("submission")))
    return (match[1], int(match[2])) if match else (str(pilots.get("submission")), 0)
