"""Arguments of operators that a template may have rendered to a string."""

from __future__ import annotations

from typing import Any

_ON = ("true", "1", "yes", "on")
_OFF = ("false", "0", "no", "off", "none", "")


def flag(name: str, value: Any) -> bool:
    """A switch: a boolean, or the string that a template rendered it to. Raises ValueError for any other string."""
    word = str(value).strip().lower()
    if word in _ON:
        return True
    if word in _OFF:
        return False
    raise ValueError(f"`{name}` is {value!r:.80}; it takes true or false (also yes, no, on, off, 1, 0).")


def positive_number(name: str, value: Any) -> int:
    """A whole number from 1. Raises ValueError."""
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = 0
    if number < 1 or isinstance(value, bool) or (isinstance(value, float) and value != number):
        raise ValueError(f"`{name}` is {value!r:.80}; it takes a whole number from 1.")
    return number


def optional_positive_number(name: str, value: Any) -> int | None:
    """``positive_number``, or None for None and for the string that a template rendered it to."""
    return None if value in (None, "", "None") else positive_number(name, value)
