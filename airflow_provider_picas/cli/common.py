"""What several commands share."""

from __future__ import annotations

import argparse
import logging
import os


class CommandError(Exception):
    """A command cannot do what it was asked for; the message says why, and what to do."""


def add_connection(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a pool."""
    parser.add_argument(
        "--picas-conn-id", default="picas_default", help="connection of type PiCaS (default: picas_default)"
    )
    parser.add_argument("--database", help="another database than the connection's")


def use_hooks() -> None:
    """Prepare for hooks: they find connections in Airflow's database, too, as `airflow connections` does, and SSH's library
    keeps to itself what the hooks' errors say. To be called before Airflow is imported."""
    os.environ.setdefault("_AIRFLOW_PROCESS_CONTEXT", "server")
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)
