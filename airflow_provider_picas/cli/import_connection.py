"""``airflow-picas import-connection``: create an Airflow connection from the PiCaS client's credentials.

    airflow-picas import-connection ~/picas_cfg/picasconfig.py --conn-id picas_default
    airflow-picas import-connection ~/.config/picas/conf.yml

The password goes from the file into Airflow's database; it appears on no command line and in no output.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from airflow_provider_picas.cli.common import CommandError
from airflow_provider_picas.couchdb.settings import host_and_port
from airflow_provider_picas.lifecycle import credentials as lifecycle_credentials
from airflow_provider_picas.lifecycle.credentials import CLIENT_FOLDER

CONF_YML = Path(CLIENT_FOLDER) / lifecycle_credentials.CONF_YML


class ImportFailedError(CommandError):
    """The credentials cannot be read or stored; the message says which file and why, without their content."""


def add(commands: Any) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser("import-connection", help="create a connection from a picasconfig.py or conf.yml")
    parser.add_argument("file", type=Path, nargs="?", default=CONF_YML, help=f"default: {CONF_YML}")
    parser.add_argument("--conn-id", default="picas_default", help="default: picas_default")
    parser.add_argument("--overwrite", action="store_true", help="replace a connection of that name")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code. Raises ImportFailedError."""
    credentials = read_credentials(options.file.expanduser())
    store(options.conn_id, connection(credentials), overwrite=options.overwrite)
    print(
        f"Connection {options.conn_id!r}: {credentials['login']} in {credentials['database']} on {credentials['host']}."
    )
    return 0


def read_credentials(path: Path) -> dict[str, str]:
    """Host, database, login and password from a ``picasconfig.py`` or a ``conf.yml``. Nothing in the file is executed."""
    try:
        values = lifecycle_credentials.read_credentials(str(path)).values
    except OSError as error:  # from this file, or from the conf.yml that it reads
        raise ImportFailedError(f"{error.filename or path} cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise ImportFailedError(f"{path} is not a text file in UTF-8.") from None
    except ValueError as error:
        raise ImportFailedError(f"{path}: {error}.") from None
    names = {"host": "HOST_URL", "database": "DATABASE", "login": "USERNAME", "password": "PASSWORD"}
    found = {field: values.get(f"PICAS_{name}", "") for field, name in names.items()}
    missing = [name for name, value in found.items() if not value]
    if missing:
        raise ImportFailedError(f"{path} does not set {', '.join(missing)}.")
    return found


def connection(credentials: dict[str, str]) -> dict[str, Any]:
    """The Airflow connection for some credentials, in the format of ``airflow connections import``."""
    return {
        "conn_type": "picas",
        **host_and_port(credentials["host"]),
        "schema": credentials["database"],
        "login": credentials["login"],
        "password": credentials["password"],
    }


def store(conn_id: str, fields: dict[str, Any], *, overwrite: bool) -> None:
    """Store the connection with Airflow's own command, through a file that only the user can read."""
    descriptor, name = tempfile.mkstemp(suffix=".json")  # 0600
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump({conn_id: fields}, file)
        command = [
            sys.executable,
            "-m",
            "airflow",
            "connections",
            "import",
            *(["--overwrite"] if overwrite else []),
            name,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        os.unlink(name)
    output = done.stdout + done.stderr
    if fields["password"]:
        output = output.replace(fields["password"], "***")  # an error of the database may contain the values
    if done.returncode != 0:
        raise ImportFailedError(f"Airflow did not accept the connection: {output.strip()[-500:]}")
    if "already exists" in output:
        raise ImportFailedError(f"Connection {conn_id!r} already exists. Use --overwrite to replace it.")
