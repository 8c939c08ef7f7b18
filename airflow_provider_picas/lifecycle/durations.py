"""Durations as Slurm prints them."""

import re
from typing import Optional


def seconds_of(text: str) -> Optional[float]:
    """``[days-][hours:]minutes:seconds[.fraction]`` as seconds; None for anything else, such as UNLIMITED."""
    match = re.fullmatch(
        r"(?:([0-9]{1,9})-)?(?:([0-9]{1,9}):)?(?:([0-9]{1,9}):)?([0-9]{1,18}(?:\.[0-9]+)?)", text.strip()
    )
    if not match:
        return None
    days, first, second, seconds = (float(part or 0) for part in match.groups())
    hours, minutes = (first, second) if match[3] else (0.0, first)
    return days * 86_400 + hours * 3_600 + minutes * 60 + seconds
