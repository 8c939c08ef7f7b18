"""Revisions in conflict, and how to merge them."""

import re
from typing import Any, Callable, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from airflow_provider_picas.lifecycle.attempts import add_attempt
from airflow_provider_picas.lifecycle.json_values import Doc, list_or_empty, number
from airflow_provider_picas.lifecycle.states import is_finished
from airflow_provider_picas.lifecycle.transitions import JOB_ID_FIELDS


def revision_rank(doc: Doc) -> Tuple[int, str]:
    """CouchDB's rank of a revision in conflict. The highest wins, the same on all nodes."""
    generation, _, digest = doc["_rev"].partition("-")
    return int(generation) if re.match("[0-9]{1,18}\\Z", generation) else 0, digest


def winner_first(revisions: Iterable[Doc]) -> List[Doc]:
    """Revisions in conflict that are not deleted, in CouchDB's order."""
    return sorted((doc for doc in revisions if not doc.get("_deleted")), key=revision_rank, reverse=True)


class Merger(NamedTuple):
    """How to merge the revisions of a token that are in conflict.

    Only the winner is written to, and only other revisions are deleted. So the token survives if others do the same
    meanwhile.
    """

    new: Optional[Doc]  # to write on top of the winner before anything is deleted; None: the winner is unchanged
    source: Optional[Doc]  # the revision whose attachments ``new`` has
    losers: List[Doc]  # to delete

    def document(self, files: Mapping[str, Doc]) -> Doc:
        """``new`` with the attachments of its source, which must include their data."""
        parts = ("content_type", "data")
        attachments = {name: {part: file[part] for part in parts} for name, file in files.items()}
        return dict(self.new or {}, **({"_attachments": attachments} if self.source else {}))


def merge(branches: Sequence[Doc], may_run: Callable[[Doc], bool]) -> Optional[Merger]:
    """How to merge revisions in conflict, the winner first. None: wait, since a pilot may run the token under a lost
    revision.

    A result that lost is adopted, the first one if there are several. If the winner also has a result, that one stays,
    since others have seen it, and the other is kept as an attempt.
    """
    winner, losers = branches[0], list(branches[1:])
    results = sorted((doc for doc in losers if is_finished(doc)), key=lambda doc: number(doc.get("done")))
    if is_finished(winner):
        kept = winner
    elif results:
        kept = results[0]
    else:
        return None if any(may_run(doc) for doc in losers) else Merger(None, None, losers)
    new = dict(kept)
    if kept is not winner:
        for attempt in list_or_empty(winner.get("attempts")):
            if attempt not in list_or_empty(new.get("attempts")) and not _is_of(attempt, kept):
                new["attempts"] = add_attempt(new, attempt)
        new["scrub_count"] = max(int(number(doc.get("scrub_count"))) for doc in (kept, winner))
    for doc in results:
        if (doc.get("claim"), doc.get("done")) != (kept.get("claim"), kept.get("done")):
            new["attempts"] = add_attempt(new, _other_result(doc))
    if new == winner:
        return Merger(None, None, losers)
    return Merger(dict(new, _rev=winner["_rev"]), None if kept is winner else kept, losers)


def _is_of(attempt: Any, doc: Doc) -> bool:
    return isinstance(attempt, dict) and attempt.get("claim") == doc.get("claim")


def _other_result(doc: Doc) -> Doc:
    fields = ("lock", "hostname", "claim", "done", "exit_code", "seconds", *JOB_ID_FIELDS)
    known = {name: doc[name] for name in fields if name in doc}
    return dict(known, reason="second result: its revision lost against one with a result")
