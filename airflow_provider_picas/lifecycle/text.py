"""Foreign text in logs."""

import re

_GROUP = re.compile(r"::(?=(?:end)?group::)")


def escape(text: str) -> str:
    """Foreign text on one line, with control characters, escape sequences and the like escaped.

    The commands that fold lines in Airflow's log (``::group::``) are also escaped, since that log shows the pilots'
    logs.
    """
    return _GROUP.sub(": :", "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text))
