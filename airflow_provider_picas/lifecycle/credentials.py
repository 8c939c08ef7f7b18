"""The PiCaS client's files of credentials: ``picasconfig.py`` and ``conf.yml`` (client 1.1.2: picas_config.py)."""

import ast
import os
import re
import sys
from typing import Dict, List, NamedTuple, Optional, Tuple

from airflow_provider_picas.lifecycle.fernet import decrypt_fernet

CLIENT_FOLDER = "~/.config/picas"
CONF_YML = "conf.yml"
KEY_FILE = "key.dat"  # beside conf.yml: the Fernet key of its password
_WORDS = ("id", "attr", "value") if sys.version_info >= (3, 8) else ("id", "attr", "s")  # fields of a node
_SETTINGS = {
    "host_url": "PICAS_HOST_URL",
    "database": "PICAS_DATABASE",
    "username": "PICAS_USERNAME",
    "encrypted_password": "PICAS_PASSWORD",
}  # names in conf.yml, and in picasconfig.py


class Credentials(NamedTuple):
    """The content of a file of credentials. The names of the values are those of ``picasconfig.py``."""

    values: Dict[str, str]
    secret: str  # the file to protect from others: the one with the password, or with the key to it


def read_credentials(path: str) -> Credentials:
    """Read a ``picasconfig.py`` or ``conf.yml``. Raises OSError, or ValueError without the file's text: it holds a
    password."""
    with open(path, encoding="utf-8") as file:
        text = file.read()
    if not path.endswith((".yml", ".yaml")):
        return parse_picasconfig(text, path)
    values = {_SETTINGS[name]: value for name, value in parse_conf_yml(text).items() if name in _SETTINGS}
    key_file = _key_file(path)
    if values.get("PICAS_PASSWORD"):
        values["PICAS_PASSWORD"] = _decrypt_with(key_file, values["PICAS_PASSWORD"])
    return Credentials(values, key_file)


def parse_picasconfig(text: str, path: str = "picasconfig.py") -> Credentials:
    """Read the assignments of string literals to ``PICAS_…`` names. Of other code, two forms in the client's examples
    are understood: settings that PicasConfig reads from ``conf.yml``, and ``decrypt_password`` of a literal. Raises as
    ``read_credentials``.
    """
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise ValueError(f"line {error.lineno} is not valid Python") from None
    found = Credentials({}, path)
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        names = [target.id for target in targets if isinstance(target, ast.Name) and target.id.startswith("PICAS_")]
        for name in names:
            try:
                value = ast.literal_eval(node.value)  # type: ignore[attr-defined]
            except ValueError:
                value, key_file = _value_of_code(name, node, tree, path)
                found = found._replace(secret=key_file) if name == "PICAS_PASSWORD" else found
            if isinstance(value, str):
                found.values[name] = value
    return found


def _value_of_code(name: str, node: ast.AST, tree: ast.AST, path: str) -> Tuple[Optional[str], str]:
    """The value that an assignment computes, and the file with the key to the password. Raises as ``read_credentials``."""
    words = _words(node)
    setting = next((word for word in words if word in _SETTINGS), None)
    calls = [part for part in ast.walk(tree) if isinstance(part, ast.Call) and "PicasConfig" in _words(part.func)]
    if setting and calls:
        paths = [word for word in _words(calls[0]) if word.endswith((".yml", ".yaml"))]
        conf = read_credentials(os.path.expanduser((paths or [f"{CLIENT_FOLDER}/{CONF_YML}"])[0]))
        return conf.values.get(_SETTINGS[setting]), conf.secret
    encrypted = next((word for word in words if word.startswith("gAAAA")), None)  # as every Fernet token
    if encrypted and "decrypt_password" in words:
        key_file = _key_file(path)
        return _decrypt_with(key_file, encrypted), key_file
    raise ValueError(f"{name} is neither a string literal nor a setting that PicasConfig reads from {CONF_YML}")


def _words(node: ast.AST) -> List[str]:
    """The names, attributes and string literals in some code."""
    found = []
    for part in ast.walk(node):
        for field in _WORDS:
            word = getattr(part, field, None)
            word = word.decode("ascii", "replace") if isinstance(word, bytes) else word
            if isinstance(word, str):
                found.append(word)
    return found


_CONF_LINE = re.compile(
    r"""([A-Za-z_]+):\s+(?:"((?:[^"\\]|\\["\\abtnvfrxuU])*)"|'((?:[^']|'')*)'|([^\s"'#&*!|>%@`{}\[\],].*?))\s*(?:\s#.*)?$"""
)


def parse_conf_yml(text: str) -> Dict[str, str]:
    """Parse the YAML that the client writes: ``name: text`` on each line. Raises ValueError for anything else."""
    values: Dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.lstrip().startswith("#") or line.rstrip() == "---":
            continue
        match = _CONF_LINE.match(line)
        try:
            name, double, single, plain = match.groups() if match else ("", "\\", None, None)
            if double is not None:
                double = ast.literal_eval(f'"{double}"')  # these escapes are also Python's
        except SyntaxError:
            raise ValueError(f"line {number} is not in the format of the PiCaS client, <name>: <text>") from None
        values[name] = double or (single or "").replace("''", "'") or plain or ""
    return values


def _key_file(path: str) -> str:
    """The file with the key to the password in a file: beside that file, or in the client's own place."""
    beside = os.path.join(os.path.dirname(path), KEY_FILE)
    return beside if os.path.isfile(beside) else os.path.join(os.path.expanduser(CLIENT_FOLDER), KEY_FILE)


def _decrypt_with(key_file: str, encrypted: str) -> str:
    """A password that was encrypted with the key in a file. Raises ValueError."""
    try:
        with open(key_file, "rb") as file:
            key = file.read()
    except OSError as error:
        raise ValueError(f"the key to its password, {key_file}, cannot be read ({error.strerror})") from None
    try:
        return decrypt_fernet(encrypted.encode(), key).decode()
    except ValueError:
        raise ValueError(f"its password was not encrypted with the key in {key_file}") from None
