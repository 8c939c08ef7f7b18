"""Ids of documents, and of the local documents that pilots keep."""

from typing import Optional

from airflow_provider_picas.lifecycle.json_values import Doc


def has_path(name: str) -> bool:
    """Whether a URL's path can name a document or an attachment of this name. Dots alone mean folders in a URL, quoted or not."""
    return name not in (".", "..")


def lease_id(pilot: str) -> str:
    """The id of a pilot's lease."""
    return f"_local/picas-pilot-{pilot}"


def batch_range(batch: Optional[str]) -> Doc:
    """Limits of a batch's ids in a view that is sorted by id."""
    return {} if batch is None else {"startkey": batch + ":", "endkey": batch + ":\ufff0"}
