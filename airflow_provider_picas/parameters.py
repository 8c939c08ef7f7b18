"""Arguments of operators that a template may have rendered to a string."""

from __future__ import annotations

from datetime import timedelta
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


def as_number(value: Any) -> float:
    """A number, or the string that a template rendered it to; NaN for anything else."""
    try:
        return float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return float("nan")


def whole_number(name: str, value: Any, least: int = 0, most: int | None = None) -> int:
    """A whole number within the bounds. Raises ValueError."""
    found = as_number(value)
    if found.is_integer() and least <= found <= (found if most is None else most):
        return int(found)
    bounds = f"from {least}" if most is None else f"from {least} to {most}"
    raise ValueError(f"`{name}` is {value!r:.80}; it takes a whole number {bounds}.")


def optional_whole_number(name: str, value: Any, least: int = 0) -> int | None:
    """``whole_number``, or None for None and for a string that a template rendered from it."""
    return None if _is_none(value) else whole_number(name, value, least)


def positive_number(name: str, value: Any) -> int:
    """A whole number from 1. Raises ValueError."""
    return whole_number(name, value, least=1)


def optional_positive_number(name: str, value: Any) -> int | None:
    """``positive_number``, or None for None and for a string that a template rendered from it."""
    return optional_whole_number(name, value, least=1)


def optional_seconds(name: str, value: Any) -> float | None:
    """Seconds, at least 0, of a number or a timedelta; None for None and for a string that a template rendered from it.

    Raises ValueError.
    """
    if _is_none(value):
        return None
    if (seconds := as_number(value.total_seconds() if isinstance(value, timedelta) else value)) >= 0:
        return seconds
    raise ValueError(f"`{name}` is {value!r:.80}; it takes a number of seconds, or a timedelta.")


def number_above_zero(name: str, value: Any) -> float:
    """A number above 0. Raises ValueError."""
    if (found := as_number(value)) > 0:
        return found
    raise ValueError(f"`{name}` is {value!r:.80}; it takes a number above 0.")


def _is_none(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value in ("", "None"))
