"""The archive of deleted tokens: JSON Lines, one token per line, with attachments in base64; compressed with gzip."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from airflow_provider_picas.lifecycle.profile import PICAS, Profile
from airflow_provider_picas.tokens.text import one_line

SUFFIX = ".jsonl.gz"


class BadArchiveError(ValueError):
    """A file that is not an archive, or is truncated; the message names the line."""


def line_of(token: Mapping[str, Any]) -> bytes:
    """A token as a line of the archive. Its attachments must have their ``data``. ``_rev`` is kept, to show what was
    archived."""
    for name, attachment in (token.get("_attachments") or {}).items():
        if "data" not in attachment:
            raise ValueError(f"The attachment {name!r:.80} of token {token['_id']!r:.80} has no data.")
    return json.dumps(token, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass") + b"\n"


def token_of(line: bytes, number: int, place: str, profile: Profile = PICAS) -> dict[str, Any]:
    """The token in a line. ``number`` (from 1) and ``place`` are for the message of BadArchiveError."""
    try:
        if not line.endswith(b"\n"):
            raise ValueError("it is truncated")
        token = json.loads(line)
    except ValueError as error:
        raise BadArchiveError(f"Line {number} of {place} is not JSON ({one_line(str(error), 80)}).") from None
    if not (isinstance(token, dict) and isinstance(token.get("_id"), str) and profile.is_token(token)):
        kinds = "a string" if profile.types is None else " or ".join(map(repr, profile.types))
        raise BadArchiveError(f"Line {number} of {place} is not a token: it needs `_id`, and `type` must be {kinds}.")
    if token["_id"].startswith("_"):
        raise BadArchiveError(f"Line {number} of {place} has the id {token['_id']!r:.80}, which CouchDB reserves.")
    return token


def restored(token: Mapping[str, Any]) -> dict[str, Any]:
    """An archived token as a new document: unchanged, except for fields that CouchDB assigns."""
    document = {name: value for name, value in token.items() if name not in ("_rev", "_attachments")}
    attachments = token.get("_attachments") or {}
    if attachments:
        document["_attachments"] = {
            name: {key: value for key, value in attachment.items() if key in ("content_type", "data")}
            for name, attachment in attachments.items()
        }
    return document
