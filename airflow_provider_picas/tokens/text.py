"""Foreign text in messages and logs: text from tokens, servers, login nodes and pilots is truncated and escaped here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow_provider_picas.lifecycle.text import escape


def sample(values: Sequence[Any], most: int = 5, total: int | None = None) -> str:
    """A few values for a message: the first ones, and the number of others (of ``total``, or of the values)."""
    more = (len(values) if total is None else total) - min(len(values), most)
    shown = ", ".join(one_line(str(value)) for value in values[:most])
    return shown + (f" and {more:,} more" if more > 0 else "")


def number_of(number: int, noun: str) -> str:
    """A number and its noun: ``1 token``, ``1,200 tokens``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def one_line(text: str, length: int = 200) -> str:
    """The text on one line, with control characters escaped, and at most ``length`` characters.

    This disarms escape sequences, right-to-left marks and the like, and the commands that fold lines in Airflow's log
    (``::group::``, ``::endgroup::``).
    """
    clean = escape(text[: length + 1])
    return clean if len(text) <= length and len(clean) <= length else f"{clean[: length - 1]}…"


def last_lines(text: str, characters: int, length: int = 500) -> str:
    """The last lines of a multi-line string, at most ``characters`` of it, each passed through ``one_line``."""
    return "\n".join(one_line(line, length) for line in text[-characters:].splitlines())
