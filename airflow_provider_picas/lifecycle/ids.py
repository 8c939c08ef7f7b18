"""Ids of documents, and of the local documents that pilots keep."""

from typing import Optional, Tuple

from airflow_provider_picas.lifecycle.json_values import Doc

MONITOR = "Monitor"  # the design document of the PiCaS client (its create_views.py)
PROVIDER = "airflow-picas-1"  # the design document of this package; a change of its views gets a new number
PAGE = "airflow-picas-page-1"  # that of the page in Airflow's UI: another one, so that its index is built beside the others
END_OF_PREFIX = "\ufff0"  # sorts after every character of an id, in views (ICU) and in _all_docs (code points)


def has_path(name: str) -> bool:
    """True if a URL's path can name a document or an attachment of this name. Only dots mean folders in a URL, even if
    quoted."""
    return name not in (".", "..")


def lease_id(pilot: str) -> str:
    """The id of a pilot's lease."""
    return f"_local/picas-pilot-{pilot}"


def drain_flag(submission: str) -> str:
    """The id of a submission's drain flag."""
    return f"_local/picas-submission-{submission}"


def watched_flag(submission: str) -> str:
    """The id of the document that says until when somebody watches a submission's pilots."""
    return f"_local/picas-watched-{submission}"


def id_range(batch: str) -> Tuple[str, str]:
    """First and last key of a batch's tokens in ``_all_docs`` and in the views of ``Monitor``."""
    return f"{batch}:", f"{batch}:{END_OF_PREFIX}"


def batch_range(batch: Optional[str]) -> Doc:
    """The range of a batch's ids in a view that is sorted by id."""
    if batch is None:
        return {}
    start, end = id_range(batch)
    return {"startkey": start, "endkey": end}
