"""Tokens as a person sees them: the rows of a table, a filter for them, and everything of one token.

The values are JSON that others wrote, so each is checked, and strings are bounded and made printable.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_provider_picas.lifecycle.attempts import log_number
from airflow_provider_picas.lifecycle.json_values import list_or_empty, number
from airflow_provider_picas.lifecycle.profile import PICAS, Profile
from airflow_provider_picas.lifecycle.transitions import JOB_ID_FIELDS, for_display
from airflow_provider_picas.tokens import attachments, ids
from airflow_provider_picas.tokens.causes import cause_of, message_of
from airflow_provider_picas.tokens.selection import scrubs_of
from airflow_provider_picas.tokens.states import State, state_of, to_number, to_string
from airflow_provider_picas.tokens.text import one_line

LONGEST_TEXT = 65_536  # characters of a value that are shown
LONGEST_FIELD = 8_192  # characters of one of the other fields
MOST_FIELDS = 100  # of a token
MOST_ATTEMPTS = 50  # of a token, the latest; pilots keep ten
MOST_ATTACHMENTS = 500
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")  # of terminals
_FIRST_TIME, _LAST_TIME = 1_000_000_000, 100_000_000_000  # other numbers are not times
_SHOWN = frozenset({
    "_id", "_rev", "_attachments", "type", "lock", "done", "exit_code", "hostname", "scrub_count", "input", "output",
    "error", "priority", "pilot", "seconds", "attempts", *JOB_ID_FIELDS,
})  # fmt: skip
_PICTURES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
_TEXTS = frozenset({"application/json", "application/x-ndjson", "application/yaml", "application/xml"})
_TEXT_ENDINGS = (".txt", ".log", ".out", ".err", ".csv", ".json", ".md", ".yaml", ".yml", ".tsv", ".py", ".sh")


@dataclass(frozen=True)
class Filter:
    """Conditions on a token; None sets none. ``key``: the beginning of the key. ``cause``: the id of a cause. ``name``: the
    name that the pool itself gives to the token's state."""

    batch: str | None = None
    key: str | None = None
    cause: str | None = None
    node: str | None = None
    pilot: str | None = None
    min_attempts: int | None = None
    name: str | None = None

    @property
    def reads(self) -> bool:
        """True if tokens must be read to find those that match: ids do not tell."""
        return any((self.cause, self.node, self.pilot, self.min_attempts, self.name))

    def matches(self, row: Mapping[str, Any]) -> bool:
        """True if the row of a token meets the conditions."""
        return (
            (self.key is None or row["key"].startswith(self.key))
            and (self.cause is None or row["cause_id"] == self.cause)
            and (self.node is None or row["node"] == self.node)
            and (self.pilot is None or self.pilot in (row["pilot"], row["job"]))
            and (self.min_attempts is None or row["attempts"] >= self.min_attempts)
            and (self.name is None or row["name"] == self.name)
        )


def key_of(token_id: str, batch: str | None) -> str:
    """The part of a token's id after the batch."""
    return token_id.removeprefix(f"{batch}:") if batch else token_id


def cause_id(cause: str) -> str:
    """A short id of a cause."""
    return ids.digest(cause)


def row_of(token: Mapping[str, Any], batch: str | None, profile: Profile = PICAS) -> dict[str, Any]:
    """The row of a token."""
    shown = for_display(token, profile)
    state = state_of(token, profile)
    ended, cause = ended_at(shown) if state in (State.DONE, State.ERROR) else None, None
    if state is State.ERROR:
        cause = one_line(cause_of(shown), 300)
    running = state is not State.TODO
    return {
        "id": str(token["_id"]),
        "key": key_of(str(token["_id"]), batch),
        "state": str(state or "stateless"),
        "name": profile.further_name_of(token),
        "node": short(shown.get("hostname")) if running else None,
        "pilot": short(shown.get("pilot")) if running else None,
        "job": _job(shown) if running else None,
        "attempts": attempts_of(shown, state),
        "exit_code": short(shown.get("exit_code"), 40) if running else None,
        "seconds": _seconds(shown, ended) if running else None,
        "started": _time(shown.get("lock")) if running else None,
        "ended": ended,
        "cause": cause,
        "cause_id": cause_id(cause) if cause else None,
        "priority": _number(shown.get("priority")),
    }


def attempts_of(token: Mapping[str, Any], state: State | None) -> int:
    """How often a token in a state was run, the present run included."""
    kept = list_or_empty(token.get("attempts"))
    dropped = _dropped(kept)
    return max(len(kept) + dropped, scrubs_of(token)) + (state is not State.TODO)


def ended_at(token: Mapping[str, Any]) -> float | None:
    """When a token ended; None if it does not say."""
    errors = list_or_empty(token.get("error"))
    last = errors[-1].get("time") if errors and isinstance(errors[-1], Mapping) else None
    return _time(token.get("done")) or _time(last)


def details_of(token: Mapping[str, Any], batch: str | None, profile: Profile = PICAS) -> dict[str, Any]:
    """Everything of a token."""
    shown, row = for_display(token, profile), row_of(token, batch, profile)
    if row["cause"]:
        row["cause"] = message_of(shown)
    others = [name for name in shown if name not in _SHOWN][:MOST_FIELDS]
    kept = list_or_empty(shown.get("attempts"))
    return {
        **{name: row[name] for name in ("id", "key", "state", "name", "priority", "cause")},
        "rev": str(token.get("_rev", "")),
        "scrubs": scrubs_of(token),
        **{name: text_of(shown[name]) if name in shown else None for name in ("input", "output")},
        "error": text_of(shown["error"]) if shown.get("error") else None,
        "fields": {one_line(name): text_of(shown[name], LONGEST_FIELD) for name in others},
        "attempts": _attempts(shown, row),
        "earlier": _dropped(kept),
        "attachments": attachments_of(token),
    }


def _attempts(token: Mapping[str, Any], row: Mapping[str, Any]) -> list[dict[str, Any]]:
    kept = [each for each in list_or_empty(token.get("attempts")) if isinstance(each, Mapping)]
    names = attachments.log_names(token)[:MOST_ATTACHMENTS]
    logs: dict[int, list[str]] = {}
    for name in names:
        logs.setdefault(log_number(name), []).append(name)
    found = []
    for place, attempt in list(enumerate(kept, start=1))[-MOST_ATTEMPTS:]:
        ended = _time(attempt.get("done"))
        found.append({
            "number": place,
            "node": short(attempt.get("hostname")),
            "pilot": short(attempt.get("pilot")),
            "job": _job(attempt),
            "started": _time(attempt.get("lock")),
            "ended": ended,
            "seconds": _seconds(attempt, ended),
            "exit_code": short(attempt.get("exit_code"), 40),
            "reason": short(attempt.get("reason"), 500),
            "error": printable(to_string(attempt["error"])[:2_000]) if attempt.get("error") else None,
            "logs": logs.get(place, []),
        })  # fmt: skip
    if row["state"] != State.TODO:
        last = {name: row[name] for name in ("node", "pilot", "job", "started", "ended", "seconds", "exit_code")}
        number_ = len(kept) + 1
        reason = {"locked": "running", "stateless": None}.get(row["state"], row["state"])
        own = [*logs.get(number_, []), *logs.get(0, [])]
        found.append({"number": number_, **last, "reason": reason, "error": row["cause"], "logs": own})
    return found


def _dropped(kept: Sequence[Any]) -> int:
    first = kept[0] if kept and isinstance(kept[0], Mapping) else {}
    earlier = first.get("earlier")
    return int(sum(number(count) for count in earlier.values())) if isinstance(earlier, Mapping) else 0


# -- attachments ------------------------------------------------------------------------------------------------------


def attachments_of(token: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The attachments of a token, by name. ``show``: how a browser may show each."""
    stubs = attachments.stubs_of(token)
    return [
        {
            "name": name,
            "bytes": attachments.size(stubs[name]),
            "type": one_line(str(stubs[name].get("content_type", "")), 100),
            "show": how_to_show(name, stubs[name]),
        }
        for name in sorted(stubs)[:MOST_ATTACHMENTS]
    ]


def how_to_show(name: str, stub: Mapping[str, Any]) -> str:
    """``text``, ``picture`` or ``download``. Formats that can hold scripts, such as SVG, are text or downloads."""
    kind = str(stub.get("content_type", "")).partition(";")[0].strip().lower()
    if kind in _PICTURES:
        return "picture"
    text = kind.startswith("text/") or kind in _TEXTS or name.lower().endswith(_TEXT_ENDINGS)
    return "text" if text or attachments.log_names({"_attachments": {name: {**stub, "length": 1}}}) else "download"


# -- values -----------------------------------------------------------------------------------------------------------


def text_of(value: Any, longest: int = LONGEST_TEXT) -> dict[str, Any]:
    """A value as text: strings as they are, others as JSON; with its whole size and the first part of it."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2, default=str)
    size = len(text.encode("utf-8", "replace"))
    return {"text": printable(text[:longest]), "bytes": size, "cut": len(text) > longest}


def printable(text: str) -> str:
    """Text of several lines without control characters, escape sequences and marks that change its direction."""
    return "".join(char if char in "\n\t" or char.isprintable() else ascii(char)[1:-1] for char in text)


def terminal_output(text: str) -> str:
    """What a command wrote, without colours and cursor movements: each line that it drew over another is a line."""
    return printable(_ESCAPES.sub("", text.replace("\r\n", "\n").replace("\r", "\n")))


def short(value: Any, length: int = 200) -> str | None:
    """A value on one line; None if it is empty."""
    return None if value is None or value == "" else one_line(to_string(value)[: length + 1], length)


def _time(value: Any) -> float | None:
    seconds = to_number(value) if value is not None else 0.0
    return seconds if _FIRST_TIME <= seconds <= _LAST_TIME else None


def _number(value: Any) -> float | None:
    return number(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _seconds(fields: Mapping[str, Any], ended: float | None) -> float | None:
    measured, started = _number(fields.get("seconds")), _time(fields.get("lock"))
    if measured is not None or ended is None or started is None:
        return measured
    return max(0.0, ended - started)


def _job(fields: Mapping[str, Any]) -> str | None:
    return next((text for name in JOB_ID_FIELDS if (text := short(fields.get(name)))), None)
