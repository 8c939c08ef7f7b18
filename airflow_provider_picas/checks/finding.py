"""The finding of a check."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """The severity. With a FAIL, a run would not work."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``text``: the result, or what is wrong and what to do."""

    level: Level
    what: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:<4}  {self.what}: {self.text}"


def ok(what: str, text: str) -> Finding:
    """A check passed."""
    return Finding(Level.OK, what, text)


def warned(what: str, text: str) -> Finding:
    """A check failed that a run does not depend on."""
    return Finding(Level.WARN, what, text)


def failed(what: str, text: str) -> Finding:
    """A check failed that a run depends on."""
    return Finding(Level.FAIL, what, text)
