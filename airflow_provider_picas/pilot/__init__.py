"""The pilot: one file that the submit operator ships to the cluster. It imports nothing of this package; what it decides about a
token (``Change``, ``reap``) the package uses too, so that there is one rule."""

from __future__ import annotations

from pathlib import Path

FILE = Path(__file__).with_name("picas_pilot.py")
"""The pilot's file. It needs Python 3.6 or newer and its standard library."""
