"""Dates in the headers of HTTP responses."""

from email.utils import parsedate_to_datetime
from typing import Optional


def parse_date(date: Optional[str]) -> Optional[float]:
    """Seconds since 1970 of an HTTP ``Date``; None if it is missing or not a date."""
    try:
        return parsedate_to_datetime(date or "").timestamp()
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
