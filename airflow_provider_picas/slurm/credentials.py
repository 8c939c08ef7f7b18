"""The credentials in the form of the PiCaS client and its examples: ``picasconfig.py``."""

from __future__ import annotations

FILE = "picasconfig.py"
CA_FILE = "ca.pem"
"""File in the same folder with the certificates of the connection's ``ca_file``."""


def picasconfig(url: str, database: str, login: str | None, password: str) -> bytes:
    """The text of ``picasconfig.py``: four assignments of literals (client 1.1.2, ``examples/picasconfig.py``)."""
    values = {
        "PICAS_HOST_URL": url,
        "PICAS_DATABASE": database,
        "PICAS_USERNAME": login or "",
        "PICAS_PASSWORD": password,
    }
    return "".join(f"{name} = {value!a}\n" for name, value in values.items()).encode()
