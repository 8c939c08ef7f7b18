"""The pilot: one file that the submit operator ships to the cluster. It stands alone and is never imported."""

from __future__ import annotations

from pathlib import Path

FILE = Path(__file__).with_name("picas_pilot.py")
"""The pilot's file. It needs Python 3.6 or newer and its standard library."""
