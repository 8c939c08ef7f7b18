"""The logs of pilots, as they grow on the cluster."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass

from airflow_provider_picas.slurm.remote import Command, Operation, quote, whole
from airflow_provider_picas.tokens.text import one_line

PATTERNS = ("pilot-*_*.log", "slurm-*.out")
"""Logs of our own pilots, and sbatch's default name."""

NEWEST = 2_000  # logs whose sizes one check compares
FILES = 20  # logs that it reads
SHOWN_BYTES = 4_000  # bytes of each that are shown: the last ones
LINES = 10  # lines of each that are shown: the last ones


@dataclass(frozen=True)
class LogUpdate:
    """The growth of a log since the last check: its name, its current size, and its last lines."""

    name: str
    size: int
    lines: tuple[str, ...]


def updates(folder: str, sizes: Mapping[str, int]) -> Operation[list[LogUpdate]]:
    """The logs in a submission's folder that have grown since they had ``sizes`` (bytes by name): the newest ones,
    their ends."""
    # Compare the sizes here: a command with all of them would be too long.
    names = " -o ".join(f"-name {quote(pattern)}" for pattern in PATTERNS)
    listed = yield Command(f"""
cd -- {quote(folder)} 2>/dev/null || exit 0
find . -maxdepth 1 \\( {names} \\) -printf '%T@ %s %f\\n' | LC_ALL=C sort -rn | head -n {NEWEST}""")
    grown: dict[str, int] = {}
    for line in listed.stdout.splitlines():
        size, _, name = line.partition(" ")[2].partition(" ")
        if whole(size) > sizes.get(name, 0) and len(grown) < FILES:
            grown[name] = whole(size)
    if not grown:
        return []
    shown = {name: min(size - sizes.get(name, 0), SHOWN_BYTES) for name, size in grown.items()}
    ends = "\n".join(f"show {quote(name)} {grown[name] - number + 1} {number}" for name, number in shown.items())
    output = yield Command(f"""
cd -- {quote(folder)} 2>/dev/null || exit 0
show() {{ echo "$1 $(tail -c +$2 -- "$1" | head -c $3 | base64 -w0)"; }}
{ends}
true""")
    found = []
    for line in output.stdout.splitlines():
        name, _, encoded = line.rpartition(" ")
        if name not in grown:
            continue  # a name with a newline, which is not one of ours
        content = base64.b64decode(encoded).decode("utf-8", "replace")
        lines = tuple(one_line(text, 500) for text in content.splitlines()[-LINES:] if text.strip())
        found.append(LogUpdate(name, grown[name], lines))
    return found
