"""Ids of batches and tokens: readable, stable, and safe everywhere (file names, URLs, shells, view keys)."""

from __future__ import annotations

import re

from airflow_provider_picas.lifecycle.ids import BATCH_LENGTH, KEY_LENGTH, digest, readable, token_key

__all__ = ["BATCH_LENGTH", "KEY_LENGTH", "digest", "token_key"]

TOKEN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,179}")
"""The form of every id. PiCaS's examples open files with the name of the token."""


def push_id(deployment: str, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> str:
    """The id of a task instance's push, the same for each retry and after a clear.

    The readable part is the task and the run; the digest, over all five parts, distinguishes ids with the same readable
    part. ``map_index`` is -1 for a task that is not mapped. At most 120 characters.
    """
    name = f"{dag_id}.{task_id}.{run_id}" + (f".{map_index}" if map_index >= 0 else "")
    return readable(name, digest(deployment, dag_id, run_id, task_id, str(map_index)), BATCH_LENGTH)


def batch_id(name: str) -> str:
    """The id of a batch that an author named: the name itself if it fits, else its readable part and a digest.

    Raises ValueError when the name is empty.
    """
    if not name:
        raise ValueError("The name of a batch is empty.")
    if len(name) <= BATCH_LENGTH and TOKEN_ID.fullmatch(name) and ":" not in name:
        return name
    return readable(name, digest(name), BATCH_LENGTH)


def ordinal_key(ordinal: int) -> str:
    """The key of a token without a given key: its place in the push, from 0, so that ids sort in the order of the push."""
    return f"{ordinal:08d}"


def token_id(batch: str, key: str) -> str:
    """``<batch>:<key>``."""
    return f"{batch}:{key}"


def in_batch(document_id: str, batch: str) -> bool:
    """True if a token belongs to a batch. Views use a linguistic order, so their key ranges may hold ids that differ by
    case."""
    return document_id.startswith(f"{batch}:")
