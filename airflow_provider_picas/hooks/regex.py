"""Regular expressions of DAG authors: checked, and matched with a time limit, since a match can take forever."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence

SECONDS = 10.0
"""Seconds that matching the texts of one page of tokens may take."""

_LONGEST = 1_000  # characters of a pattern
# A match cannot be interrupted, but a process can.
_PROGRAM = """
import json, re, sys
asked = json.load(sys.stdin.buffer)
search = re.compile(asked["pattern"], re.MULTILINE).search
json.dump([search(text) is not None for text in asked["texts"]], sys.stdout)
"""


class PatternError(ValueError):
    """A pattern that is not a regular expression, or takes too long."""


def check(pattern: str) -> None:
    """Raise PatternError for a pattern that is not a regular expression."""
    if not isinstance(pattern, str):
        raise PatternError(f"The error pattern must be a string (a regular expression), not {pattern!r:.80}.")
    if len(pattern) > _LONGEST:
        raise PatternError(f"The error pattern has {len(pattern):,} characters; the limit is {_LONGEST:,}.")
    try:
        re.compile(pattern, re.MULTILINE)
    except (re.error, RecursionError, OverflowError) as error:
        raise PatternError(
            f"The error pattern {pattern!r:.200} is not a valid Python regular expression: {error}."
            " To search for literal text, put a backslash before each special character."
        ) from None


def search(pattern: str, texts: Sequence[str], seconds: float = SECONDS) -> list[bool]:
    """For each string, True if the pattern is found in it. ``^`` and ``$`` match at each line.

    Raises PatternError if this takes longer than ``seconds``.
    """
    check(pattern)
    asked = json.dumps({"pattern": pattern, "texts": list(texts)}).encode()
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _PROGRAM], input=asked, capture_output=True, timeout=seconds, check=True
        )
    except subprocess.TimeoutExpired:
        raise PatternError(
            f"The error pattern {pattern!r:.200} took more than {seconds:g} s for {len(texts):,} tokens."
            " Simplify it: avoid nested repetition, such as (a+)+."
        ) from None
    except subprocess.CalledProcessError as error:
        raise PatternError(
            f"The error pattern {pattern!r:.200} could not be searched for: {error.stderr.decode(errors='replace')[-300:]}."
        ) from None
    found: list[bool] = json.loads(done.stdout)
    return found
