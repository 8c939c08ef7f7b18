"""The earlier attempts that a token keeps, and their logs."""

import collections
import re
from typing import Any, Dict, List, Mapping

from airflow_provider_picas.lifecycle.json_values import Doc, list_or_empty, number

MAX_ATTEMPTS = 10  # earlier attempts that a token keeps, and their logs


# Kinds as they are written into documents, with the words of this version. The kind is the part of a reason before the colon.
# Both are read. Only the former is written: pilots of the version before count an unknown kind as the death of a pilot.
_KINDS = {"given back": "released"}
RELEASED = "given back"


def reason_of(attempt: Mapping[str, Any]) -> str:
    """The reason of an attempt, in the words of this version."""
    kind, colon, rest = str(attempt.get("reason", "")).partition(":")
    return _KINDS.get(kind, kind) + colon + rest


def attempts_by_kind(doc: Doc) -> Dict[str, int]:
    """The numbers of attempts since a push or a person last reset the token, by kind: "failed", "released" or "reaped".

    Any other word is the cause of a reaping.
    """
    counts: Dict[str, int] = collections.Counter()
    for attempt in reversed(list_or_empty(doc.get("attempts"))):
        known = attempt if isinstance(attempt, dict) else {}
        kind = reason_of(known).partition(":")[0]
        if kind in ("pushed again", "reset"):
            break
        counts[kind if kind in ("failed", "released") else "reaped"] += 1
        earlier = known.get("earlier")
        for kind, count in earlier.items() if isinstance(earlier, dict) else ():
            counts[_KINDS.get(str(kind), str(kind))] += int(number(count))
    return counts


def add_attempt(doc: Doc, attempt: Doc) -> List[Any]:
    """The token's attempts with one more. Beyond ten, the oldest are dropped; the first that is kept counts them by kind."""
    attempts = [*list_or_empty(doc.get("attempts")), attempt]
    gone, kept = attempts[:-MAX_ATTEMPTS], attempts[-MAX_ATTEMPTS:]
    earlier = attempts_by_kind({"attempts": gone})
    if earlier and isinstance(kept[0], dict):
        written = {kind: word for word, kind in _KINDS.items()}
        kept[0] = dict(kept[0], earlier={written.get(kind, kind): count for kind, count in earlier.items()})
    return kept


LOG_NAME = re.compile(r"attempt-([0-9]{1,9})\.(out|err)\Z")


def log_number(name: str) -> int:
    """The number of the attempt whose log is attached under this name; 0 for another attachment."""
    match = LOG_NAME.match(name)
    return int(match.group(1)) if match else 0


def attempt_number(doc: Mapping[str, Any]) -> int:
    """The number of the token's next attempt, from 1: higher than all attempts with a record or a log."""
    names = doc.get("_attachments")
    logs = [log_number(name) for name in names] if isinstance(names, dict) else []
    return max([len(list_or_empty(doc.get("attempts"))), *logs]) + 1
