"""The command ``airflow-picas``: make an Airflow connection from the credentials that the PiCaS client uses.

    airflow-picas import-connection ~/picas_cfg/picasconfig.py --conn-id picas_default
    airflow-picas import-connection ~/.config/picas/conf.yml

The password goes from the file into Airflow's database; it is on no command line and in no output.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from airflow_provider_picas.couchdb.settings import host_and_port
from airflow_provider_picas.pilot.picas_pilot import parse_picasconfig

CONF_YML = Path("~/.config/picas/conf.yml")
KEY_FILE = "key.dat"
"""Beside ``conf.yml``: the Fernet key of its password (client 1.1.2, ``crypto.py``)."""


class ImportFailedError(Exception):
    """The credentials cannot be read or stored; the message says which file and why, without their content."""


def read_credentials(path: Path) -> dict[str, str]:
    """Host, database, login and password from a ``picasconfig.py`` or a ``conf.yml``. Nothing in the file is executed."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ImportFailedError(f"{path} cannot be read ({reason}).") from None
    found = _from_yaml(path, text) if path.suffix in (".yml", ".yaml") else _from_python(path, text)
    missing = [name for name in ("host", "database", "login", "password") if not found.get(name)]
    if missing:
        raise ImportFailedError(f"{path} does not tell the {', '.join(missing)}.")
    return found


def _from_python(path: Path, text: str) -> dict[str, str]:
    try:
        values = parse_picasconfig(text)
    except ValueError as error:
        raise ImportFailedError(f"{path}: {error}.") from None
    names = {"host": "HOST_URL", "database": "DATABASE", "login": "USERNAME", "password": "PASSWORD"}
    return {field: values.get(f"PICAS_{name}", "") for field, name in names.items()}


def _from_yaml(path: Path, text: str) -> dict[str, str]:
    import yaml
    from cryptography.fernet import Fernet, InvalidToken

    try:
        values: Any = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ImportFailedError(f"{path} is no YAML.") from None
    if not isinstance(values, dict):
        raise ImportFailedError(f"{path} holds no settings.")
    key_file = path.with_name(KEY_FILE)
    try:
        password = Fernet(key_file.read_bytes().strip()).decrypt(str(values.get("encrypted_password", "")).encode())
    except OSError as error:
        raise ImportFailedError(f"The key of the password, {key_file}, cannot be read ({error.strerror}).") from None
    except (InvalidToken, ValueError):
        raise ImportFailedError(f"The password in {path} was not encrypted with the key in {key_file}.") from None
    return {
        "host": str(values.get("host_url") or ""),
        "database": str(values.get("database") or ""),
        "login": str(values.get("username") or ""),
        "password": password.decode(),
    }


def connection(credentials: dict[str, str]) -> dict[str, Any]:
    """The Airflow connection for some credentials, as ``airflow connections import`` reads it."""
    return {
        "conn_type": "picas",
        **host_and_port(credentials["host"]),
        "schema": credentials["database"],
        "login": credentials["login"],
        "password": credentials["password"],
    }


def store(conn_id: str, fields: dict[str, Any], *, overwrite: bool) -> None:
    """Store the connection with Airflow's own command, by a file that only the user can read."""
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
        output = output.replace(fields["password"], "***")  # an error of the database's may hold what was to be written
    if done.returncode != 0:
        raise ImportFailedError(f"Airflow did not take the connection: {output.strip()[-500:]}")
    if "already exists" in output:
        raise ImportFailedError(f"There is a connection {conn_id!r} already. Give --overwrite to replace it.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit code."""
    parser = argparse.ArgumentParser(prog="airflow-picas", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="command")
    importer = commands.add_parser("import-connection", help="make a connection from a picasconfig.py or conf.yml")
    importer.add_argument("file", type=Path, nargs="?", default=CONF_YML, help=f"default: {CONF_YML}")
    importer.add_argument("--conn-id", default="picas_default", help="default: picas_default")
    importer.add_argument("--overwrite", action="store_true", help="replace a connection of that name")
    options = parser.parse_args(arguments)
    try:
        credentials = read_credentials(options.file.expanduser())
        store(options.conn_id, connection(credentials), overwrite=options.overwrite)
    except ImportFailedError as error:
        print(f"airflow-picas: {error}", file=sys.stderr)
        return 1
    print(
        f"Connection {options.conn_id!r}: {credentials['login']} in {credentials['database']} on {credentials['host']}."
    )
    return 0
