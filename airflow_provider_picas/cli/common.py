"""Common code of several commands."""

from __future__ import annotations

import argparse
import logging
import os


class CommandError(Exception):
    """A command cannot be carried out; the message says why, and what to do."""


def add_connection(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a pool."""
    parser.add_argument(
        "--picas-conn-id", default="picas_default", help="connection of type PiCaS (default: picas_default)"
    )
    parser.add_argument("--database", help="another database than the connection's")


def add_profile(parser: argparse.ArgumentParser) -> None:
    """Add the option that names the shape of the pool."""
    parser.add_argument("--profile", help="another profile than the connection's: its name, or a profile as JSON")


def with_options(text: str) -> str:
    """The text of an error, with the package's parameters replaced by the command's options."""
    return text.replace("`picas_conn_id`", "`--picas-conn-id`").replace("`ssh_conn_id`", "`--ssh-conn-id`")


def use_hooks() -> None:
    """Prepare for hooks: they also find connections in Airflow's database, as `airflow connections` does, and the SSH
    library does not log what the hooks' errors already say. Call this before Airflow is imported."""
    os.environ.setdefault("_AIRFLOW_PROCESS_CONTEXT", "server")
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)
