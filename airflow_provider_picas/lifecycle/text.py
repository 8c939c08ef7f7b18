"""Foreign text in logs."""

import re

_GROUP = re.compile(r"::(?=(?:end)?group::)")


def escape(text: str) -> str:
    """Foreign text on one line: control characters, escape sequences and the like are written out.

    So are the commands that fold lines in Airflow's log, which shows the pilots' (``::group::``).
    """
    return _GROUP.sub(": :", "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text))
