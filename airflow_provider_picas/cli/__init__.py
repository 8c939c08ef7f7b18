"""The command ``airflow-picas``. Each subcommand is a module; modules that need Airflow are imported when it runs."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Sequence

from airflow_provider_picas import __version__
from airflow_provider_picas.cli import check, deploy_views, import_connection, pool, profile
from airflow_provider_picas.cli.common import CommandError, with_options


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    made = argparse.ArgumentParser(
        prog="airflow-picas",
        description="Set up and inspect PiCaS token pools and their pilots, from where Airflow runs.",
    )
    made.add_argument("--version", action="version", version=f"airflow-provider-picas {__version__}")
    commands = made.add_subparsers(required=True, metavar="command")
    for command in (check, pool, deploy_views, profile, import_connection):
        command.add(commands)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    options = parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for characters that the terminal's encoding lacks
    try:
        code = int(options.run(options))
        sys.stdout.flush()
        return code
    except CommandError as error:
        print(f"airflow-picas: {with_options(str(error))}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # such as `| head`
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
