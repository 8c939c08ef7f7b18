"""The logs of pilots, as they grow on the cluster."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass

from airflow_provider_picas.slurm.remote import Command, Operation, quote
from airflow_provider_picas.tokens.text import one_line

PATTERNS = "pilot-*_*.log slurm-*.out"
"""Our own pilots' logs, and what sbatch names those of a script that does not say."""

FILES = 20  # logs that one look reads
NEWS_BYTES = 4_000  # of each that is shown: the last ones
LINES = 10  # of each that are shown: the last ones


@dataclass(frozen=True)
class LogNews:
    """What came to a log since the last look: its name, its size now, and its last lines."""

    name: str
    size: int
    lines: tuple[str, ...]


def news(folder: str, sizes: Mapping[str, int]) -> Operation[list[LogNews]]:
    """The logs in a submission's folder that have grown since they had ``sizes`` (bytes by name): the newest ones, their ends."""
    known = "".join(f"{name}) old={size};; " for name, size in ((quote(name), size) for name, size in sizes.items()))
    text = f"""
cd -- {quote(folder)} 2>/dev/null || exit 0
shown=0
for file in $(ls -t -- {PATTERNS} 2>/dev/null); do
  [ $shown -lt {FILES} ] || break
  old=0; case "$file" in {known}esac
  size=$(stat -c %s "$file" 2>/dev/null || echo 0)
  [ "$size" -gt "$old" ] || continue
  new=$((size-old)); [ $new -le {NEWS_BYTES} ] || new={NEWS_BYTES}
  echo "$file $size $(tail -c $new "$file" | base64 -w0)"
  shown=$((shown+1))
done
true"""
    output = yield Command(text)
    found = []
    for line in output.stdout.splitlines():
        name, _, rest = line.partition(" ")
        size, _, encoded = rest.partition(" ")
        if size.isdigit():
            content = base64.b64decode(encoded).decode("utf-8", "replace")
            lines = tuple(one_line(text, 500) for text in content.splitlines()[-LINES:] if text.strip())
            found.append(LogNews(name, int(size), lines))
    return found
