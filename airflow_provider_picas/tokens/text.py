"""Token content in messages: it is foreign, so it is bounded and stays on one line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def sample(values: Sequence[Any], most: int = 5, total: int | None = None) -> str:
    """A few values for a message: the first ones, and how many more there are (of ``total``, or of the values)."""
    more = (len(values) if total is None else total) - min(len(values), most)
    shown = ", ".join(one_line(str(value)) for value in values[:most])
    return shown + (f" and {more:,} more" if more > 0 else "")


def one_line(text: str, length: int = 200) -> str:
    """The text on one line, control characters escaped, at most ``length`` characters."""
    clean = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text[: length + 1])
    return clean if len(text) <= length and len(clean) <= length else f"{clean[: length - 1]}…"
