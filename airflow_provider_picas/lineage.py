"""OpenLineage datasets of pools and files. This needs Airflow's OpenLineage provider, which calls it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from airflow_provider_picas.assets import SCHEME
from airflow_provider_picas.couchdb.settings import Settings


def pool(settings: Settings) -> Any:
    """The dataset of a pool, named like its asset: host and database."""
    from airflow.providers.common.compat.openlineage.facet import Dataset  # noqa: PLC0415 - loads OpenLineage

    return Dataset(namespace=f"{SCHEME}://{urlsplit(settings.url).netloc}", name=settings.database)


def file(path: str) -> Any:
    """The dataset of a file that a task wrote; a URL keeps its scheme."""
    from airflow.providers.common.compat.openlineage.facet import Dataset  # noqa: PLC0415

    address = urlsplit(path)
    if not address.scheme:
        return Dataset(namespace="file", name=path)
    return Dataset(namespace=f"{address.scheme}://{address.netloc}", name=address.path.lstrip("/"))


def of(inputs: Iterable[Any] = (), outputs: Iterable[Any] = ()) -> Any:
    """The ``OperatorLineage`` for an operator's inputs and outputs."""
    from airflow.providers.openlineage.extractors import (  # type: ignore[import-not-found,unused-ignore] # noqa: PLC0415
        OperatorLineage,
    )

    return OperatorLineage(inputs=list(inputs), outputs=list(outputs))
