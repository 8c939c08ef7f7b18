"""Deploys the design documents with the views. Operations, as in ``pool``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_picas.couchdb import errors
from airflow_provider_picas.couchdb.http import Operation
from airflow_provider_picas.couchdb.pool import Document, Pool
from airflow_provider_picas.tokens import views

_TRIES = 10  # for a design document that others change at each try; the request has the backoff


@dataclass
class Deployment:
    """The result of deploying the views: names of design documents, sorted."""

    written: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)  #: needed, but the login may not write them


def deploy(pool: Pool, conditions: Mapping[str, str] | None = None) -> Operation[Deployment]:
    """Write missing design documents. ``conditions`` are additional ones, by name (``views.monitor``).

    The provider's own is replaced if it differs. In the others, which pilots also use, only missing views are added:
    a changed design document is indexed again, and queries wait for that.
    """
    result = Deployment()
    further = {name: views.monitor(condition) for name, condition in (conditions or {}).items()}
    wanted = {**further, **views.design_documents(pool.profile)}
    present = yield from pool.fetch([f"_design/{name}" for name in wanted])
    for name, content in wanted.items():
        outcome = yield from deploy_one(pool, name, present.get(f"_design/{name}"), content)
        getattr(result, outcome).append(name)
    return result


def deploy_one(pool: Pool, name: str, present: Document | None, wanted: Mapping[str, Any]) -> Operation[str]:
    """Write a design document if it is missing or differs. Returns ``written``, ``unchanged`` or ``refused``."""
    for _ in range(_TRIES):
        document = _design_to_write(name, present, wanted)
        if document is None:
            return "unchanged"
        try:
            yield from pool.put(document)
        except errors.ConflictError:  # another client is deploying, too
            present = yield from design_document(pool, name)
            continue
        except (errors.ForbiddenError, errors.UnauthorizedError):
            return "refused"
        return "written"
    raise errors.ConflictError(f"The design document {name!r} of {pool.settings.place} keeps changing.")


def design_document(pool: Pool, name: str) -> Operation[Document | None]:
    """A design document, or None if the database does not have it."""
    try:
        return (yield from pool.get(f"_design/{name}"))
    except errors.NotFoundError as error:
        if error.database_missing:
            raise
        return None


def _design_to_write(name: str, present: Document | None, wanted: Mapping[str, Any]) -> Document | None:
    if present is None:
        return {"_id": f"_design/{name}", **wanted}
    if views.is_own(name):
        return {**present, **wanted} if views.differs(present, wanted) else None
    missing = views.missing_views(present, wanted)
    if not missing:
        return None
    views_there = present.get("views")
    kept = views_there if isinstance(views_there, dict) else {}
    return {**present, "views": {**kept, **{view: wanted["views"][view] for view in missing}}}
