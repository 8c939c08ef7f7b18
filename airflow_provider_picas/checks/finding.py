"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is. With a FAIL, a run would not work."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Finding:
    """One line of the report: ``text`` says what is, or what is wrong and what to do."""

    level: Level
    what: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:<4}  {self.what}: {self.text}"


def ok(what: str, text: str) -> Finding:
    """Something is as it must be."""
    return Finding(Level.OK, what, text)


def warned(what: str, text: str) -> Finding:
    """Something a run can do without."""
    return Finding(Level.WARN, what, text)


def failed(what: str, text: str) -> Finding:
    """Something without which a run would not work."""
    return Finding(Level.FAIL, what, text)
