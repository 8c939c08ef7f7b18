"""The demo's progress display: a live line on a terminal, a line from time to time elsewhere."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import TextIO

from airflow_provider_picas.tokens.states import State

RATE_SECONDS = 5.0  # period over which the rate is measured
QUIET_SECONDS = 3.0  # between two lines if there is no terminal

STYLES = {State.DONE: ("█", "32"), State.ERROR: ("▒", "31"), State.LOCKED: ("▓", "33"), State.TODO: ("░", "2")}
"""Sign and colour of each state in the bar, in the order in which they stand there."""


class Progress:
    """The tokens by state, with rate and time remaining. ``say`` prints a permanent line above it."""

    def __init__(self, output: TextIO = sys.stdout) -> None:
        self.output = output
        self.live = output.isatty()
        self.colour = self.live and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self._samples: deque[tuple[float, int]] = deque()
        self._next = 0.0
        self._last = ""

    def update(self, counts: Mapping[State | None, int]) -> None:
        """Show these counts."""
        now = time.monotonic()
        finished = counts.get(State.DONE, 0) + counts.get(State.ERROR, 0)
        self._samples.append((now, finished))
        while now - self._samples[0][0] > RATE_SECONDS:
            self._samples.popleft()
        if not sum(counts.values()):
            return
        columns = shutil.get_terminal_size().columns if self.live else 100
        line = render(counts, self.rate(), columns=columns, colour=self.colour, signs=can_encode(self.output))
        if self.live:
            self.output.write(f"\r{line}\033[K")
            self.output.flush()
        elif now >= self._next and line != self._last:
            self._next = now + QUIET_SECONDS
            print(line, file=self.output, flush=True)
        self._last = line

    def rate(self) -> float:
        """Recently finished tokens per second."""
        (begin, before), (end, after) = self._samples[0], self._samples[-1]
        return (after - before) / (end - begin) if end > begin else 0.0

    def say(self, line: str) -> None:
        """Print a permanent line."""
        self.clear()
        print(line, file=self.output, flush=True)

    def clear(self) -> None:
        """Remove the live line."""
        if self.live:
            self.output.write("\r\033[K")
            self.output.flush()


def can_encode(output: TextIO) -> bool:
    try:
        "█".encode(output.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def render(
    counts: Mapping[State | None, int], rate: float, *, columns: int = 80, colour: bool = False, signs: bool = True
) -> str:
    """One line: a bar, the counts, the rate and the time remaining; not longer than the width of the terminal."""
    total = sum(counts.values())
    left = counts.get(State.TODO, 0) + counts.get(State.LOCKED, 0)
    words = "  ".join(f"{state} {counts.get(state, 0):,}" for state in STYLES)
    if counts.get(None):
        words += f"  in no state {counts[None]:,}"
    if rate > 0 and left:
        words += f"  {rate:.0f}/s  {left / rate:.0f} s left"
    width = max(0, min(40, columns - len(words) - 6))
    return f"  {bar(counts, total, width, colour=colour, signs=signs)}  {words}"[: None if colour else columns - 1]


def bar(counts: Mapping[State | None, int], total: int, width: int, *, colour: bool, signs: bool) -> str:
    """A bar of ``width`` characters, divided by state."""
    text, drawn, seen = "", 0, 0
    for state, (sign, code) in STYLES.items():
        seen += counts.get(state, 0)
        upto = round(width * seen / total) if total else 0
        part = (sign if signs else str(state)[0]) * (upto - drawn)
        text += f"\033[{code}m{part}\033[0m" if colour and part else part
        drawn = upto
    return text
