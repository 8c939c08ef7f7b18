"""``airflow-picas deploy-views``: create the views of a pool, once, as an admin of its database."""

from __future__ import annotations

import argparse
import getpass
import sys
from dataclasses import replace
from typing import Any

from airflow_provider_picas.cli.common import CommandError, add_connection, add_profile, use_hooks
from airflow_provider_picas.couchdb import needed_views, new_tokens
from airflow_provider_picas.couchdb.errors import CouchDBError


def add(commands: Any) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser(
        "deploy-views",
        help="create the views of a pool, as an admin of its database",
        description="Create the design documents with the views that count tokens and find those to claim: PiCaS's Monitor and"
        " the provider's own. Existing views are kept, except those of another version of the provider's own. A push does the"
        " same if its login is an admin of the database.",
    )
    add_connection(parser)
    add_profile(parser)
    parser.add_argument(
        "--login",
        metavar="ADMIN",
        help="an admin of the database (default: the connection's login); the password is prompted for, or read from stdin",
    )
    parser.add_argument(
        "--design-document",
        metavar="NAME=CONDITION",
        action="append",
        default=[],
        help="another design document with PiCaS's views, for tokens that match a JavaScript condition, such as"
        " 'SingleCore=doc.cores == 1'; can be repeated",
    )
    parser.add_argument(
        "--stages", action="store_true", help="also create the view for tokens that make tokens (docs/howto/stages.md)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    use_hooks()
    from airflow_provider_picas.checks.pool import OneTry

    conditions = _conditions(options.design_document)
    hook = OneTry(options.picas_conn_id, database=options.database, profile=options.profile)
    try:
        if options.login:
            hook.settings = replace(hook.settings, login=options.login, password=_password(options.login))
        deployed = hook.deploy_views(conditions)
        if options.stages:
            outcome = hook.do(new_tokens.deploy(hook.pool))
            getattr(deployed, outcome).append(hook.settings.profile.stages_design)
    except CouchDBError as error:
        raise CommandError(str(error)) from None
    place = hook.settings.place
    if deployed.written:
        print(f"Wrote the design documents {', '.join(deployed.written)} to {place}.")
    if deployed.unchanged:
        print(f"The design documents {', '.join(deployed.unchanged)} of {place} already have all views.")
    if deployed.refused:
        command = needed_views.command(options.picas_conn_id, options.database, conditions, profile=options.profile)
        raise CommandError(
            f"{hook.settings.who} may not write the design documents {', '.join(deployed.refused)} to {place}: it is not an"
            f" admin of the database. Run {command} with the login of an admin."
        )
    return 0


def _password(login: str) -> str:
    if sys.stdin.isatty():
        return getpass.getpass(f"Password of {login}: ")
    return sys.stdin.readline().rstrip("\n")


def _conditions(given: list[str]) -> dict[str, str]:
    found = {}
    for text in given:
        name, _, condition = (part.strip() for part in text.partition("="))
        if not name or not condition:
            raise CommandError(
                f"--design-document takes NAME=CONDITION, such as 'SingleCore=doc.cores == 1', not {text!r:.80}."
            )
        found[name] = condition
    return found
