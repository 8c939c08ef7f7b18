"""Ids of documents, and of the local documents that pilots keep."""

import hashlib
import re
from typing import Any, Optional, Tuple

from airflow_provider_picas.lifecycle.json_values import Doc

MONITOR = "Monitor"  # the design document of the PiCaS client (its create_views.py)
PROVIDER = "airflow-picas-1"  # the design document of this package; a change of its views gets a new number
PAGE = "airflow-picas-page-1"  # that of the page in Airflow's UI: another one, so that its index is built beside the others
STAGES = "airflow-picas-stages-1"  # the design document for tokens that make tokens, only where stages are used
END_OF_PREFIX = "\ufff0"  # sorts after every character of an id, in views (ICU) and in _all_docs (code points)

BATCH_LENGTH = 120  # characters
KEY_LENGTH = 59  # characters: with the colon, 180 for a token id
_DIGEST_LENGTH = 10  # hexadecimal digits, 40 bits
_BATCH = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_STAGE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,29}\Z")


def digest(*parts: str) -> str:
    """A short digest of some strings. The same strings always give the same digest."""
    text = "\0".join(f"{len(part)}:{part}" for part in parts)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST_LENGTH]


def token_key(key: Any) -> str:
    """The part of a token id after the batch: the key itself if it fits, else its readable part and a digest.

    Raises ValueError for a key that is empty or is neither a string nor a whole number.
    """
    if isinstance(key, bool) or not isinstance(key, (str, int)) or key == "":
        raise ValueError(f"A token key must be a non-empty string or a whole number, not {key!r:.80}.")
    text = str(key)
    if len(text) <= KEY_LENGTH and re.match(r"[A-Za-z0-9._:-]+\Z", text):
        return text
    return readable(text, digest(text), KEY_LENGTH)


def readable(text: str, suffix: str, length: int) -> str:
    """``text`` reduced to the characters that ids may contain, cut to fit ``length``, with ``suffix`` appended."""
    # ':' separates batch from key, so it is replaced; ids begin with a letter or a digit.
    kept = re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._-") or "x"
    return f"{kept[: length - len(suffix) - 1].rstrip('._-')}-{suffix}"


def is_stage(name: Any) -> bool:
    """True if a stage can have this name."""
    return isinstance(name, str) and bool(_STAGE.match(name))


def stage_batch(batch: str, stage: str) -> str:
    """The batch of a stage that the tokens of another batch fill: ``<batch>.<stage>``, made readable and shortened if it does not
    fit into ids: a batch that is the value of a field may be any string."""
    name = f"{batch}.{stage}"
    return (
        name
        if len(name) <= BATCH_LENGTH and _BATCH.match(name)
        else readable(batch, f"{digest(batch)}.{stage}", BATCH_LENGTH)
    )


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
