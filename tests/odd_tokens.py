"""Tokens as pools really hold them: what pilots, scripts and people have written into ``lock``, ``done`` and ``exit_code``."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

ABSENT = object()
"""The document has no such field."""

TIMES: list[Any] = [
    ABSENT, 0, 1, -1, 99, 1_763_820_000, 1_763_820_000.5, -0.0, 0.4, 5e-324, 10**400, None, True, False,
    "", " ", "0", "00", " 0\n", "1763820000", "-1", "0x10", "0b", "1e3", "abc", "Infinity", "-Infinity", "NaN",
    [], [0], [None], [5], [1, 2], [[3]], {}, {"time": 5},
]  # fmt: skip

EXIT_CODES: list[Any] = [
    ABSENT, 0, 1, -1, 127, 255, 0.0, 0.5, -0.5, 1.5, 1e-7, -1e-7, 1e21, 1e-6, 123456789012345680000, 10**400, None, True, False,
    "", " ", "0", "1", "-0", "+0", "+1", "00", "08", "0x0", "0xA", "0x", "0b1", "0.9", ".5",
    "1e-7", "0 errors", "ok", " 0", "\t0",
    "\u00a00", "\ufeff0", "\u200b0", "\u0660", "--1", "- 1", "0;0", "1_000", "9" * 5_000, "Infinity",
    [], [0], [1], [0, 1], [None], [[0]], ["0x0", 5], {}, {"code": 0},
]  # fmt: skip


def token(token_id: str, lock: Any, done: Any, exit_code: Any) -> dict[str, Any]:
    """A token document with these fields, without those that are ``ABSENT``."""
    fields = {"lock": lock, "done": done, "exit_code": exit_code}
    return {"_id": token_id, "type": "token", **{name: value for name, value in fields.items() if value is not ABSENT}}


def odd_tokens(number: int | None = None) -> Iterator[dict[str, Any]]:
    """All combinations of the odd values, or so many of them, always the same."""
    everything = list(itertools.product(TIMES, TIMES, EXIT_CODES))
    chosen = everything if number is None else random.Random(8).sample(everything, number)
    for place, values in enumerate(chosen):
        yield token(f"odd:{place:08d}", *values)
