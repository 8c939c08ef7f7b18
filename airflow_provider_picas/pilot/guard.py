"""A process beside the pilot that ends its commands if it is killed.

The pilot writes this file to its scratch folder and runs it there: it imports nothing but the standard library.
"""

import os
import signal
import sys
import time
from contextlib import suppress
from typing import List, Union


def children_of(process: "Union[int, str]") -> "List[int]":
    """Pids of a process's children, as far as the kernel tells."""
    found, folder = [], f"/proc/{process}/task"
    with suppress(OSError):  # it may have ended, or one of its threads
        for task in os.listdir(folder):
            with suppress(OSError, ValueError), open(f"{folder}/{task}/children") as file:
                found += [int(pid) for pid in file.read().split()]
    return found


def kill_tree(process: int) -> None:
    """Kill a process and all below it."""
    pids = [process]
    for pid in pids:
        pids += children_of(pid)
    for pid in pids:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def processes_of(scratch: str, inside: bool = False) -> "List[int]":
    """Processes that have it from the pilot with this scratch folder, in their environment, to run a token.

    ``inside``: also others that work in the folder.
    """
    mark, found = b"\0PICAS_TOKEN_FILE=" + os.fsencode(scratch) + b"/", []
    for name in os.listdir("/proc") if os.path.isdir("/proc") else []:
        with suppress(OSError):  # it may have ended, or be another user's
            if name.isdigit():
                with open(f"/proc/{name}/environ", "rb") as file:
                    marked = mark in b"\0" + file.read()
                if marked or (inside and (os.readlink(f"/proc/{name}/cwd") + "/").startswith(scratch + "/")):
                    found.append(int(name))
    return found


def guard(scratch: str) -> None:
    """Wait until the pilot is no more. If it was killed, kill the commands that it leaves, and remove its scratch folder.

    Runs in a process of its own.
    """
    if os.read(0, 1):
        return  # the pilot has ended in good order; nothing is read when it died
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        pids = processes_of(scratch)
        if not pids and not processes_of(scratch, inside=True):
            os.execvp("rm", ["rm", "-rf", "--", scratch])
        for pid in pids:
            kill_tree(pid)
        time.sleep(0.02)


if __name__ == "__main__":
    guard(sys.argv[1])
