"""Splits documents into portions of a size that CouchDB and proxies accept."""

import json
from typing import Iterator, List, Sequence

from airflow_provider_picas.lifecycle.json_values import Doc
from airflow_provider_picas.lifecycle.portions import portions as split

BULK_BYTES = 16_000_000  # documents and logs in one request, approximately


def size_of(doc: Doc) -> int:
    """Bytes of a document in a request."""
    return len(json.dumps(doc, separators=(",", ":")))


def portions(docs: Sequence[Doc]) -> Iterator[List[Doc]]:
    """Documents in portions of ``BULK_BYTES``, or of one document."""
    return split(docs, size_of, BULK_BYTES)
