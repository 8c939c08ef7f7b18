"""The PiCaS client's own credentials, ``~/.config/picas/conf.yml`` with its key: scripts read them with
``PicasConfig(load=True)``.

There is one such file for each account, so it is never replaced by that of another pool.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping

from cryptography.fernet import Fernet

from airflow_provider_picas.lifecycle.credentials import CONF_YML, KEY_FILE, parse_conf_yml
from airflow_provider_picas.lifecycle.fernet import decrypt_fernet
from airflow_provider_picas.slurm.remote import Command, Operation, Output, RemoteFile, Send, ok
from airflow_provider_picas.tokens.text import one_line

FOLDER = ".config/picas"
MARK = "# Written by airflow-provider-picas. Remove this line to keep the file from being changed.\n"
_LARGEST = 65_536  # bytes that are read of each file
_READ = f"""
cd && pwd -P || exit 3
cd {FOLDER} 2>/dev/null || exit 0
for name in {CONF_YML} {KEY_FILE}; do
  [ -f "$name" ] || continue
  content=$(head -c {_LARGEST} -- "$name" | base64 | tr -d '\\n') && echo "$name $content" || exit 4
done"""


def write(url: str, database: str, login: str | None, password: str) -> Operation[bool]:
    """Write the file as the client does, unless it is there for the same account. Its key is made if there is none. True
    if files were written.

    A file that this package has written gets a new password. Raises ValueError if the file is for another pool or
    account, or if a file is not the client's, and RemoteError.
    """
    output: Output = yield from ok(Command(_READ), "The PiCaS client's credentials could not be read")
    home, found = _parse(output.stdout)
    place = f"{home}/{FOLDER}"
    wanted = {"host_url": url, "database": database, "username": login or ""}
    key, conf = found.get(KEY_FILE), found.get(CONF_YML)
    if conf is not None:
        values = _values(conf, place)
        if differing := [name for name, value in wanted.items() if values.get(name) != value]:
            raise ValueError(
                f"{place}/{CONF_YML} on the cluster is for {_named(values)}, not for {_named(wanted)}; {differing[0]} differs."
                " An account has one such file: move it away, or use another account for this pool."
            )
        if not conf.startswith(MARK.encode()) or (key and _password(values, key) == password):
            return False
    key = key or Fernet.generate_key()
    encrypted = _encrypt(password, key, place)
    made = Command(f"umask 077; mkdir -p ~/{FOLDER}")
    yield from ok(made, f"The folder {place} could not be created")
    files = [RemoteFile(f"{place}/{KEY_FILE}", key), RemoteFile(f"{place}/{CONF_YML}", _text(wanted, encrypted))]
    yield from ok(Send(files), "The PiCaS client's credentials could not be written")
    return True


def _parse(text: str) -> tuple[str, dict[str, bytes]]:
    """The home, and the content of the files that exist."""
    home, *lines = text.splitlines() or [""]
    try:
        return home, {name: base64.b64decode(content) for name, _, content in (line.partition(" ") for line in lines)}
    except binascii.Error:
        raise ValueError("The PiCaS client's credentials on the cluster did not arrive as they were sent.") from None


def _values(conf: bytes, place: str) -> dict[str, str]:
    try:
        return parse_conf_yml(conf.decode())
    except ValueError:
        raise ValueError(
            f"{place}/{CONF_YML} on the cluster is not in the format of the PiCaS client. Move it away."
        ) from None


def _password(values: Mapping[str, str], key: bytes) -> str | None:
    try:
        return decrypt_fernet(values.get("encrypted_password", "").encode(), key).decode()
    except ValueError:
        return None


def _text(values: Mapping[str, str], encrypted: str) -> bytes:
    """The YAML. A JSON string is also one of YAML."""
    lines = {**values, "encrypted_password": encrypted}
    return (MARK + "".join(f"{name}: {json.dumps(lines[name])}\n" for name in sorted(lines))).encode()


def _encrypt(password: str, key: bytes, place: str) -> str:
    try:
        return Fernet(key.strip()).encrypt(password.encode()).decode()
    except ValueError:
        raise ValueError(f"{place}/{KEY_FILE} on the cluster is not a key of the PiCaS client. Move it away.") from None


def _named(values: Mapping[str, str]) -> str:
    parts = (one_line(values.get(name, ""), 200) for name in ("username", "database", "host_url"))
    return "{} in {} on {}".format(*parts)
