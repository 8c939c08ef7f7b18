"""Builds the wheel, as pip does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from stack import paths


def build_wheel(target: Path, project: Path = paths.PROJECT) -> Path:
    """Build the wheel of a folder's sources; its path in the folder ``target``."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)]
    ended = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False, timeout=300)
    assert ended.returncode == 0, ended.stderr
    (wheel,) = target.glob("*.whl")
    return wheel
