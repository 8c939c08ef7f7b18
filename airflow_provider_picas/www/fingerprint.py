"""What a bundle was built from: run by ``stack/page.py`` and ``hatch_build.py``, which build it. Not in the wheel."""

from __future__ import annotations

import hashlib
from pathlib import Path

PAGE = Path(__file__).parent
STAMP = PAGE / "dist" / "built-from"
MADE = "types.ts"  # from openapi.json
OTHERS = ("openapi.json", "package-lock.json", "package.json", "vite.config.ts")


def fingerprint() -> str:
    """Changes with the sources of the bundle."""
    sources = [path for folder in ("src", "public") for path in (PAGE / folder).rglob("*") if path.is_file()]
    digest = hashlib.sha256()
    for path in sorted([*(path for path in sources if path.name != MADE), *(PAGE / name for name in OTHERS)]):
        digest.update(f"{path.relative_to(PAGE)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def built() -> bool:
    """Whether the bundle is that of the sources."""
    return STAMP.exists() and STAMP.read_text() == fingerprint()


def mark() -> None:
    """Say that the bundle was just built."""
    STAMP.write_text(fingerprint())
