"""What the commands of the stack have in common."""

from __future__ import annotations

import sys
from collections.abc import Callable

from stack.processes import StackError


def exit_code(work: Callable[[], int], interrupted: str = "Interrupted; nothing is left running.") -> int:
    """The exit code of a command that does this work: 1 with the message of a StackError, 130 if it was interrupted."""
    try:
        return work()
    except StackError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        return 130
