"""The views that are needed to count and claim tokens: checks if a pool has them, and says what to do if not."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from airflow_provider_picas.couchdb.deployment import design_document
from airflow_provider_picas.couchdb.http import Operation
from airflow_provider_picas.couchdb.pool import Document, Pool
from airflow_provider_picas.tokens import views
from airflow_provider_picas.tokens.states import State
from airflow_provider_picas.tokens.text import one_line

OF_PROFILE = ("counts", "tokens", "todo")
"""The views of a pool of another shape that are needed."""

NO_STAGES = (
    "If a pilot dies before it has made new tokens, a wait for them fails. Ask an admin of the database to run"
    " `airflow-picas deploy-views --stages` once."
)


def lacking(pool: Pool, names: Iterable[str]) -> Operation[dict[str, list[str]]]:
    """The design documents that lack views needed to find tokens, each with the missing ones."""
    found: dict[str, list[str]] = {}
    for name in names:
        present = yield from design_document(pool, name)
        own = name == pool.profile.design and not pool.profile.is_default
        if missing := _missing(present, OF_PROFILE if own else list(State)):
            found[name] = missing
    return found


def ready_for_our_pilots(pool: Pool) -> Operation[bool]:
    """True if our own pilots can find tokens: in the provider's view, or else in PiCaS's."""
    if not pool.profile.is_default:
        return not (yield from lacking(pool, [pool.profile.design]))
    if not _missing((yield from design_document(pool, views.PROVIDER)), [State.TODO]):
        return True
    return not _missing((yield from design_document(pool, views.MONITOR)), [State.TODO])


def _missing(present: Document | None, wanted: Collection[str]) -> list[str]:
    return views.missing_views(present, {"views": dict.fromkeys(wanted)})


def describe(lacks: Mapping[str, Collection[str]]) -> str:
    """What is missing, for a sentence."""
    return " and ".join(
        f"the views {', '.join(missing)} of design document {one_line(name)!r}" for name, missing in lacks.items()
    )


def command(
    conn_id: str,
    database: str | None,
    conditions: Mapping[str, str | None] | None = None,
    *,
    login: bool = True,
    profile: str | Mapping[str, Any] | None = None,
) -> str:
    """The command that creates the views. ``conditions``: more design documents to create, by name. ``profile``: if it is
    not the connection's.

    ``login``: the command must use another login than the connection's, and asks for its password.
    """
    words = ["airflow-picas", "deploy-views", "--picas-conn-id", conn_id]
    words += ["--database", database] if database else []
    words += ["--profile", profile if isinstance(profile, str) else json.dumps(profile)] if profile else []
    for name, condition in (conditions or {}).items():
        words += ["--design-document", f"{name}={condition or 'CONDITION'}"]
    words += ["--login", "ADMIN"] if login else []
    return f"`{one_line(shlex.join(words), 1_000)}`"
