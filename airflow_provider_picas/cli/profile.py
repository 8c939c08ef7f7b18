"""``airflow-picas profile``: make the profile of a pool from its own design documents."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from airflow_provider_picas.cli.common import CommandError, add_connection, use_hooks
from airflow_provider_picas.couchdb.errors import CouchDBError
from airflow_provider_picas.lifecycle.profile import PICAS, SHIPPED, Profile
from airflow_provider_picas.tokens import design_reader
from airflow_provider_picas.tokens.text import one_line

if TYPE_CHECKING:
    from airflow_provider_picas.hooks.picas import PicasHook

MOST = 100  # design documents that are read
OURS = "airflow-picas-"  # the names of this package's design documents begin so


def add(commands: Any) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser(
        "profile",
        help="make the profile of a pool from its own design documents",
        description="Read the views todo, locked, done and error of a pool's design documents, and print the profile that they"
        " amount to as JSON, for the connection's extra `profile`. What cannot be read is said on separate lines.",
    )
    add_connection(parser)
    parser.add_argument("--design-document", metavar="NAME", help="read only this one, such as ddcal")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    use_hooks()
    from airflow_provider_picas.checks.pool import OneTry

    hook = OneTry(options.picas_conn_id, database=options.database)
    try:
        documents = dict(_documents(hook, options.design_document))
    except CouchDBError as error:
        raise CommandError(str(error)) from None
    if not documents:
        which = f"no design document {options.design_document!r}" if options.design_document else "no design documents"
        raise CommandError(f"{hook.settings.place} has {which} of its own.")
    known = [_show(name, document) for name, document in documents.items()]
    return 0 if any(known) else 1


def _documents(hook: PicasHook, name: str | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    from airflow_provider_picas.couchdb.http import Request

    query = {"startkey": '"_design/"', "endkey": '"_design0"', "limit": str(MOST), "include_docs": "true"}
    response = hook.send(Request("GET", hook.pool.path("_all_docs"), query))
    for document_id, document in response.documents().items():
        design = document_id.removeprefix("_design/")
        if not design.startswith(OURS) and name in (None, design):
            yield design, document


def _show(name: str, document: Mapping[str, Any]) -> bool:
    """Print what a design document amounts to. True if it could be read."""
    reading = design_reader.profile_of(document, _name(name))
    print(f"{one_line(name)}:")
    for remark in reading.remarks:
        print(f"  {one_line(remark, 500)}")
    if reading.profile is None:
        print("  It does not give a profile. docs/howto/pools.md describes how to write one.")
        return False
    if shipped := next((known for known in SHIPPED.values() if _same(known, reading.profile)), None):
        print(f'  The profile is shipped: "profile": {json.dumps(shipped.name)}')
        return True
    print(f'  "profile": {json.dumps(reading.profile.to_json())}')
    if reading.profile.states != PICAS.states:
        print("  Add to `writes` what your own views need to call a token of our pilots done, such as its status.")
    return True


def _same(one: Profile, other: Profile) -> bool:
    """True if two profiles see the same tokens in the same states and batches."""
    return (one.types, one.states, one.batch_field) == (other.types, other.states, other.batch_field)


def _name(design: str) -> str:
    """A name for the profile of a design document."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", design).strip("_.-")[:59] or "pool"
    return f"{name}_" if name in SHIPPED else name
