"""The command's environment, and the files that it writes."""

import collections
import json
import os
import re
import stat
from typing import Any, Dict, List, Optional, Tuple

from airflow_provider_picas.lifecycle.json_values import Doc, parse_value

FIELD_BYTES = 64 * 1024  # largest value in the command's environment
FIELDS_BYTES = 512 * 1024  # limit for all values together
_FIELD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_]*\Z")  # a field name that can be part of a variable's name
# Never passed on from the job's environment.
_HIDDEN = {"PICAS_HOST_URL", "PICAS_USERNAME", "PICAS_PASSWORD", "PICAS_INPUT", "PICAS_OMITTED"}


def job_environment(base: Dict[str, str], credentials: str) -> Dict[str, str]:
    """The job's environment without credentials; ``credentials`` is the folder to remove from PYTHONPATH."""
    env = {name: value for name, value in base.items() if name not in _HIDDEN and not name.startswith("PICAS_FIELD_")}
    hidden = os.path.realpath(credentials)
    paths = [path for path in env.pop("PYTHONPATH", "").split(os.pathsep) if path and os.path.realpath(path) != hidden]
    if paths:
        env["PYTHONPATH"] = os.pathsep.join(paths)
    return env


def encoded(env: Dict[str, str]) -> Dict[bytes, bytes]:
    """An environment as bytes. The job's is encoded once, not for each token."""
    return {os.fsencode(name): os.fsencode(value) for name, value in env.items()}


def with_variables(env: Dict[bytes, bytes], more: Dict[str, str]) -> Dict[bytes, bytes]:
    """An encoded environment with more variables."""
    new = dict(env)
    new.update(encoded(more))
    return new


def token_environment(doc: Doc) -> Dict[str, str]:
    """``PICAS_TOKEN_ID``, ``PICAS_INPUT`` and the scalar fields as ``PICAS_FIELD_<NAME>``.

    ``PICAS_OMITTED`` names the fields that do not fit into an environment; the token's file has them.
    """
    fields: Dict[str, List[Any]] = collections.defaultdict(list)
    for name in doc:
        if name != "input" and _FIELD.match(name):
            fields["PICAS_FIELD_" + name.upper()].append(doc[name])
    given = doc.get("input")
    nested = isinstance(given, (dict, list))
    wanted = [
        ("PICAS_TOKEN_ID", doc["_id"]),
        ("PICAS_INPUT", json.dumps(given, separators=(",", ":")) if nested else given),
        # Names that differ only in case are ambiguous: neither is set.
        *((name, values[0]) for name, values in sorted(fields.items()) if len(values) == 1),
    ]
    env: Dict[str, str] = {}
    omitted, left = [], FIELDS_BYTES
    for name, value in wanted:
        if value is None or isinstance(value, (dict, list)):
            continue
        text = value if isinstance(value, str) else json.dumps(value)
        size = len(text.encode("utf-8", "surrogatepass"))
        if size <= min(FIELD_BYTES, left) and _fits_environment(text):
            env[name] = text
            left -= size
        else:
            omitted.append(name)
    if omitted:
        env["PICAS_OMITTED"] = " ".join(omitted)[:FIELD_BYTES]
    return env


def _fits_environment(text: str) -> bool:
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def read_json(path: str, most: int) -> Tuple[Any, bool, Optional[str]]:
    """The JSON in a command's file: the value, True if there is one, and an error. A missing or empty file has no value."""
    data, fault = read_file(path, most, "store large results elsewhere")
    if fault or not data.strip():
        return None, False, fault
    try:
        return parse_value(data), True, None
    except ValueError as error:
        return None, False, f"{os.path.basename(path)} {error}"


def read_file(path: str, most: int, advice: str) -> Tuple[bytes, Optional[str]]:
    """The content of a command's file, and an error. A missing file is empty. ``advice``: what to do if it is too large."""
    name = os.path.basename(path)
    try:
        # A command may leave a pipe or a device there, which must not hang the pilot.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return b"", f"{name} is not a regular file"
            with open(descriptor, "rb", closefd=False) as file:
                data = file.read(most + 1)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return b"", None
    except OSError as error:
        return b"", f"{name} cannot be read: {error.strerror}"
    if len(data) > most:
        return b"", f"{name} has more than {most:,} bytes: {advice}"
    return data, None


def write_file(path: str, data: bytes) -> None:
    """Write a new file. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    finally:
        os.close(descriptor)
