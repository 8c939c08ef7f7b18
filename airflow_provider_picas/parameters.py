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


def whole_number(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """A whole number within the bounds. Raises ValueError."""
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} is a whole number, not {value!r:.80}.") from None
    if (least is not None and number < least) or (most is not None and number > most):
        bounds = f"from {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} is a whole number {bounds}, not {number}.")
    return number


def optional_seconds(name: str, value: Any) -> float | None:
    """Seconds, at least 0, or None for None and what a template made of it. Raises ValueError."""
    if value in (None, "", "None"):
        return None
    try:
        if (seconds := float(value)) >= 0 and not isinstance(value, bool):
            return seconds
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(f"{name} is a number of seconds, not {value!r:.80}.")


def number_above_zero(name: str, value: Any) -> float:
    """A number above 0. Raises ValueError."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = 0.0
    if not number > 0 or isinstance(value, bool):
        raise ValueError(f"{name} is {value!r:.80}; it takes a number above 0.")
    return number
