"""The token document: the fields of a new one, and the fields that users may set."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from airflow_provider_picas.lifecycle.json_values import (
    LONG_INTEGER,
    MOST_NESTED,
    TOO_LARGE_NUMBER,
    holds_large_integer,
    is_nested_more,
)
from airflow_provider_picas.lifecycle.profile import PICAS, Profile
from airflow_provider_picas.lifecycle.transitions import JOB_ID_FIELDS
from airflow_provider_picas.tokens import ids
from airflow_provider_picas.tokens.states import to_string

TYPE = "token"

PICAS_FIELDS: dict[str, Any] = {
    "lock": 0,
    "done": 0,
    "hostname": "",
    "scrub_count": 0,
    "exit_code": "",
}
"""PiCaS's fields, with their values in a new token (client 1.1.2, and its example ``create_tokens.py``)."""

PROVIDER_FIELDS = ("batch", "push", "ordinal", "pilot", "claim", "seconds", "attempts")
"""The provider's fields; see ``docs/reference/tokens.md``."""

OWNED_FIELDS = frozenset({*PICAS_FIELDS, *PROVIDER_FIELDS, *JOB_ID_FIELDS, "type", "error", "output"})
"""Fields that an author may not set."""

MAX_BYTES = 8_000_000
"""CouchDB's default ``max_document_size``, in bytes of JSON."""

# json.dumps creates an encoder for each call.
_ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"), ensure_ascii=False)

MOST_DIGITS = 4_300
"""Limit on the digits of an integer that Python reads and writes."""

HUGE_INTEGER = f"has an integer of more than {MOST_DIGITS:,} digits, which Python cannot write back"


class HugeInteger(str):
    """The digits of an integer with too many digits for Python. In JSON it would become a string."""

    __slots__ = ()
    seen = False  # True once this process has read one: searching every token for them takes time


def integer(digits: str) -> int | HugeInteger:
    """An integer in JSON: a number, or its digits if there are too many of them."""
    if len(digits.lstrip("-")) <= MOST_DIGITS:
        return int(digits)
    HugeInteger.seen = True
    return HugeInteger(digits)


def holds_huge_integer(document: Mapping[str, Any]) -> bool:
    """True if a document that was read from CouchDB cannot be written back unchanged."""
    waiting: list[Any] = [document] if HugeInteger.seen else []
    while waiting:
        value = waiting.pop()
        if isinstance(value, HugeInteger):
            return True
        if isinstance(value, dict | list):
            waiting += value.values() if isinstance(value, dict) else value
    return False


class BadTokenError(ValueError):
    """An input cannot be a token; the message says which one and why."""


def is_token(document: Mapping[str, Any]) -> bool:
    """True if a document is a token by the condition in the views (``doc.type == "token"``)."""
    return to_string(document.get("type")) == TYPE


def new_token(
    fields: Mapping[str, Any],
    *,
    batch: str,
    push: str,
    ordinal: int,
    key: str | None = None,
    attachments: Mapping[str, Any] | None = None,
    profile: Profile = PICAS,
) -> dict[str, Any]:
    """A token in state todo. ``fields`` are the author's; ``key`` is the part of the id after the batch.

    ``attachments`` are those of ``inputs.inline_attachment``, by name. Raises BadTokenError for fields that are PiCaS's
    or the provider's, or that begin with an underscore, and for a priority that is not a number: views would treat it
    as 0.
    """
    for field in fields:
        if not isinstance(field, str):
            raise BadTokenError(f"Token {ordinal} has a field name that is not a string: {field!r:.80}.")
        if field.startswith("_"):
            raise BadTokenError(
                f"Token {ordinal} has the field {field!r:.80}: CouchDB reserves names that begin with '_'. Rename it."
                " To choose the ids of tokens, use `key`; to attach files, use `attachments`."
            )
        if field in OWNED_FIELDS:
            raise BadTokenError(
                f"Token {ordinal} has the field {field!r}, which PiCaS or this provider fills in. Rename it."
            )
    if not _fits_priority(fields):
        raise BadTokenError(f"Token {ordinal} has the priority {fields['priority']!r:.80}, which is not a number.")
    token_key = ids.ordinal_key(ordinal) if key is None else key
    token = {
        "_id": ids.token_id(batch, token_key),
        "type": TYPE,
        **PICAS_FIELDS,
        "batch": batch,
        "push": push,
        "ordinal": ordinal,
        **fields,
    }
    if not profile.is_default:
        token |= _of_profile(fields, batch, ordinal, profile)
        if not profile.is_claimable(token):
            raise BadTokenError(
                f"Token {ordinal} would not be a waiting token of the pool: profile {profile.name!r} counts it as"
                f" {profile.state_of(token) or 'no state'!r}, with type {token['type']!r:.80}."
            )
    return {**token, "_attachments": attachments} if attachments else token


def _of_profile(fields: Mapping[str, Any], batch: str, ordinal: int, profile: Profile) -> dict[str, Any]:
    """The fields that make a token one of a pool of another shape. Raises BadTokenError if the author's differ."""
    own = profile.fields_of_new(batch)
    if wrong := next((name for name in own if name in fields and fields[name] != own[name]), None):
        raise BadTokenError(
            f"Token {ordinal} has {fields[wrong]!r:.80} in the field {wrong!r}, which holds the name of the batch in this"
            f" pool: {batch!r}. Name the batch like that, or remove the field."
        )
    return own


def check_update(fields: Mapping[str, Any]) -> None:
    """Raise BadTokenError for fields that an author may not set in a token in the pool, or that are not valid JSON."""
    if not isinstance(fields, Mapping) or not fields:
        raise BadTokenError(
            f"`fields` must be a mapping of the fields to set, such as {{'priority': 5}}, not {fields!r:.200}."
        )
    for field in fields:
        if not isinstance(field, str) or not field or field.startswith("_"):
            raise BadTokenError(f"{field!r:.80} cannot be set: field names must be strings that do not begin with '_'.")
        if field in OWNED_FIELDS:
            raise BadTokenError(f"The field {field!r} cannot be set: PiCaS or this provider fills it in.")
    if not _fits_priority(fields):
        raise BadTokenError(
            f"The priority {fields['priority']!r:.80} cannot be set: it is not a number. A template renders to a string,"
            " unless the DAG has render_template_as_native_obj=True."
        )
    if fault := _json_fault(fields):
        raise BadTokenError(f"`fields` is not JSON: {fault}.")
    if path := _large_integer(fields):
        raise BadTokenError(f"`fields` cannot be stored: {path} is {TOO_LARGE_NUMBER}.")


def _fits_priority(fields: Mapping[str, Any]) -> bool:
    """True if the priority, if given, is a number: pilots and views treat anything else as 0."""
    return "priority" not in fields or type(fields["priority"]) in (int, float)


def encode(document: Mapping[str, Any]) -> bytes:
    """The document as JSON. Raises BadTokenError if it is not valid JSON, too large for CouchDB, or new and nested too
    deeply.

    These checks are cheap, and an error is costly: one document that is too large makes CouchDB refuse the whole
    request.
    """
    name = document.get("ordinal", document.get("_id"))
    try:
        text = _ENCODER.encode(document).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise BadTokenError(f"Token {name} is not JSON: {_json_fault(document) or error}.") from None
    # A quick test, which is rarely true.
    deep = len(text) > 2 * MOST_NESTED and text.count(b"[") + text.count(b"{") > MOST_NESTED
    if deep and "_rev" not in document and is_nested_more(document, MOST_NESTED + 1):
        raise BadTokenError(f"Token {name} is nested more than {MOST_NESTED} deep, which pilots cannot read.")
    if "_rev" not in document and LONG_INTEGER.search(text) and (path := _large_integer(document)):
        raise BadTokenError(f"Token {name} cannot be stored: {path} is {TOO_LARGE_NUMBER}.")
    if len(text) > MAX_BYTES:
        raise BadTokenError(
            f"Token {name} has {len(text):,} bytes; CouchDB accepts {MAX_BYTES:,}. Store the data elsewhere and push its path."
        )
    return text


def _json_fault(value: Any) -> str | None:
    """The first place where a value is not valid JSON: its path, and the value there."""
    return _fault(value, _scalar_fault)


def _large_integer(value: Any) -> str | None:
    """The path of the first integer that CouchDB does not store."""
    fault = _fault(value, lambda item: "" if holds_large_integer(item) else None)
    return None if fault is None else fault.rstrip()


def _fault(value: Any, of_scalar: Callable[[Any], str | None]) -> str | None:
    waiting: list[tuple[str, Any, int]] = [("", value, 0)]
    while waiting:
        path, value, depth = waiting.pop()
        parts: list[tuple[str, Any]] = []
        if isinstance(value, Mapping):
            bad_key = next((key for key in value if not isinstance(key, str)), None)
            if bad_key is not None:
                return f"{path or 'it'} has the key {bad_key!r:.80}, which is not a string"
            parts = [(f"{path}.{key}" if path else key, item) for key, item in value.items()]
        elif isinstance(value, list | tuple):
            parts = [(f"{path}[{place}]", item) for place, item in enumerate(value)]
        elif (fault := of_scalar(value)) is not None:
            return f"{path or 'it'} {fault}"
        if parts and depth > MOST_NESTED:
            return "it is nested too deeply"  # or contains itself
        waiting += [(name, item, depth + 1) for name, item in reversed(parts)]
    return None


def _scalar_fault(value: Any) -> str | None:
    """Why a scalar value is not valid JSON."""
    if value is None or isinstance(value, bool | int):
        return None
    if isinstance(value, float):
        return None if math.isfinite(value) else f"is {value}"
    if not isinstance(value, str):
        return f"is of type {type(value).__name__}"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "contains a lone surrogate"
    return None


RUN_FIELDS = frozenset({"priority", "cores", "gpu", "time", "max_retries", "time_limit"})
"""Author's fields that control how a token is run, not what it computes."""


def authors_fields(document: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a token that its author set, without attachments."""
    return {
        field: value for field, value in document.items() if field not in OWNED_FIELDS and not field.startswith("_")
    }


def differs(present: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """True if a token in the pool differs from its author's current fields. Attachments are not compared."""
    return not has(present, authors_fields(wanted))


def input_differs(present: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """``differs``, but for the fields that say how a token is run, which may be changed in the pool."""
    fields = authors_fields(wanted)
    return not has(present, {name: value for name, value in fields.items() if name not in RUN_FIELDS})


def has(document: Mapping[str, Any], fields: Mapping[str, Any]) -> bool:
    """True if a document has these fields, with these values."""
    return all(field in document and _same(document[field], value) for field, value in fields.items())


def _same(one: Any, other: Any) -> bool:
    """True if two values are the same JSON. True differs from 1, and a tuple equals a list."""
    pairs = [(one, other)]
    while pairs:
        one, other = pairs.pop()
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            if one.keys() != other.keys():
                return False
            pairs += [(one[name], other[name]) for name in one]
        elif isinstance(one, list | tuple) and isinstance(other, list | tuple):
            if len(one) != len(other):
                return False
            pairs += zip(one, other, strict=True)
        elif one != other or isinstance(one, bool) != isinstance(other, bool):
            return False
    return True
