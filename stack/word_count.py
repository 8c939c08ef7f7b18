"""Lines and words of files, counted without pilots: ``python3 word_count.py FILE...`` prints them as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable


def count(files: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Lines and words of each file, read line by line: a different method than the pilots'."""
    counted = {}
    for name in files:
        lines = words = 0
        with open(name, "rb") as file:
            for line in file:
                lines += line.endswith(b"\n")
                words += len(line.split())
        counted[name] = (lines, words)
    return counted


if __name__ == "__main__":
    print(json.dumps(count(sys.argv[1:])))
