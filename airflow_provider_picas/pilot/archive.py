"""Packs the pilot into the one file that is sent to a cluster. This module is not in it: it needs a newer Python.

``python3 -m zipfile -e picas_pilot.pyz folder`` unpacks it; ``python3 folder pilot.json`` runs the unpacked pilot.
"""

from __future__ import annotations

import functools
import io
import zipfile
from pathlib import Path

FILE = "picas_pilot.pyz"
"""The name of the archive on the cluster."""

_PACKAGE = Path(__file__).parent.parent
_NOT_SENT = {"archive.py", "node_check.py"}
_MAIN = "from airflow_provider_picas.pilot.main import start\n\nstart()\n"
_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest date in a zip file


@functools.cache
def build() -> bytes:
    """Build the archive. The same source gives the same bytes: a retry may overwrite an archive that is in use."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted({"__main__.py": _MAIN.encode(), **sources()}.items()):
            entry = zipfile.ZipInfo(name, _DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content)
    return file.getvalue()


def sources() -> dict[str, bytes]:
    """The pilot's modules, by their path in the archive."""
    files = [_PACKAGE / "__init__.py", *_PACKAGE.glob("lifecycle/*.py"), *_PACKAGE.glob("pilot/*.py")]
    return {str(file.relative_to(_PACKAGE.parent)): file.read_bytes() for file in files if file.name not in _NOT_SENT}
