"""The attachments of tokens: which are logs, and safe file names for them."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from airflow_provider_picas.lifecycle.attempts import LOG_NAME, MAX_ATTEMPTS, attempt_number, log_number
from airflow_provider_picas.tokens import ids

MAX_LOG_BYTES = 1_000_000
"""Larger logs of foreign pilots are not copied: a reset with ``keep_logs`` skips their tokens."""

_NAME_LENGTH = 120  # characters of a file name
_LOG = re.compile(r"\.(err|out|log)$|stderr|stdout", re.IGNORECASE)
# Not allowed as file names on Windows.
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


def stubs_of(token: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The attachments of a token by name, as CouchDB describes them (``length``, ``content_type``, ``revpos``)."""
    stubs = token.get("_attachments")
    return {name: stub for name, stub in stubs.items() if isinstance(stub, dict)} if isinstance(stubs, dict) else {}


def size(stub: Mapping[str, Any]) -> int:
    """The size of an attachment in bytes."""
    length = stub.get("length")
    return length if isinstance(length, int) else 0


def digest(content: bytes) -> str:
    """The ``digest`` of an attachment that CouchDB does not compress."""
    return f"md5-{base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()}"


def log_names(token: Mapping[str, Any]) -> list[str]:
    """The names of a token's logs that are not empty, the latest first, with stderr before stdout."""
    stubs = {name: stub for name, stub in stubs_of(token).items() if _LOG.search(name) and size(stub)}
    return sorted(stubs, key=lambda name: (-_revpos(stubs[name]), not re.search(r"err", name, re.IGNORECASE), name))


def logs_to_copy(token: Mapping[str, Any]) -> dict[str, str]:
    """The logs of a foreign pilot that the next attempt would overwrite: the name of each copy, and of its original.

    The PiCaS examples attach ``logs_<id>.out`` and ``.err``. A log that was attached before the latest copy was made is
    already copied.
    """
    stubs, number = stubs_of(token), attempt_number(token)
    copies = {}
    for kind in ("out", "err"):
        stub = stubs.get(name := f"logs_{token['_id']}.{kind}")
        if stub is None:
            continue
        kept = [_revpos(stubs[other]) for other in stubs if (m := LOG_NAME.match(other)) and m[2] == kind]
        if _revpos(stub) > max(kept, default=0):
            copies[f"attempt-{number}.{kind}"] = name
    return copies


def too_large_to_copy(token: Mapping[str, Any]) -> bool:
    """True if the next attempt would overwrite a log that is larger than ``MAX_LOG_BYTES``."""
    stubs = stubs_of(token)
    return any(size(stubs[name]) > MAX_LOG_BYTES for name in logs_to_copy(token).values())


def outdated_logs(token: Mapping[str, Any]) -> list[str]:
    """Logs of attempts that are so old that ``attempts`` will no longer have them."""
    oldest = attempt_number(token) - MAX_ATTEMPTS
    return [name for name in stubs_of(token) if 0 < log_number(name) <= oldest]


def file_names(names: Iterable[str]) -> dict[str, str]:
    """A file name for each name of an attachment: a single safe part of a path, with no two that differ only by case.

    A changed name gets a digest of the original, so it is the same each time. A name that collides with a changed one
    is changed, too.
    """
    files = {name: _plain(name) for name in names}
    marked = {name for name, file in files.items() if file != name}
    while True:
        files = {name: _marked(_plain(name), name) if name in marked else file for name, file in files.items()}
        clashes: dict[str, list[str]] = {}
        for name, file in files.items():
            clashes.setdefault(file.lower(), []).append(name)
        met = {name for several in clashes.values() if len(several) > 1 for name in several} - marked
        if not met:
            return files
        marked |= met


def folder_name(token_id: str, batch: str | None = None) -> str:
    """The folder for a token's attachments: its key in the batch, or its id. No two differ only by case.

    A name with capitals gets a digest, since the other ids are not known.
    """
    name = token_id.removeprefix(f"{batch}:") if batch else token_id
    plain = _plain(name)
    return plain if plain == name and plain == plain.lower() else _marked(plain, name)


def _plain(name: str) -> str:
    kept = re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".").rstrip(".") or "_"
    if _RESERVED.fullmatch(kept):
        kept = f"_{kept}"
    return kept if len(kept) <= _NAME_LENGTH else kept[:_NAME_LENGTH]


def _marked(file: str, name: str) -> str:
    """The file name with a digest before its suffix."""
    stem, dot, ending = file.rpartition(".")
    if not stem or len(ending) > 10:
        stem, dot, ending = file, "", ""
    return f"{stem}-{ids.digest(name)}{dot}{ending}"


def _revpos(stub: Mapping[str, Any]) -> int:
    revpos = stub.get("revpos")
    return revpos if isinstance(revpos, int) else 0
