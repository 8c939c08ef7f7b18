"""A process beside the pilot that ends its commands if it is killed.

The pilot writes this file to its scratch folder and runs it there, so it imports only the standard library.
"""

import os
import signal
import sys
import time
from contextlib import suppress
from typing import List, Union


def children_of(process: "Union[int, str]") -> "List[int]":
    """Pids of a process's children, as far as the kernel shows them."""
    found, folder = [], f"/proc/{process}/task"
    with suppress(OSError):  # it may have ended, or one of its threads
        for task in os.listdir(folder):
            found += children_of_thread(process, task)
    return found


def children_of_thread(process: "Union[int, str]", thread: "Union[int, str]") -> "List[int]":
    """Pids of the children that one thread of a process has started, or adopted."""
    try:
        descriptor = os.open(f"/proc/{process}/task/{thread}/children", os.O_RDONLY)
    except OSError:
        return []
    try:
        pids = b""
        with suppress(OSError):
            while True:
                more = os.read(descriptor, 65536)
                if not more:
                    break
                pids += more
        return [int(pid) for pid in pids.split()]
    finally:
        os.close(descriptor)


def kill_tree(process: int) -> None:
    """Kill a process and all its descendants."""
    pids = [process]
    for pid in pids:
        pids += children_of(pid)
    for pid in pids:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def processes_of(scratch: str, inside: bool = False) -> "List[int]":
    """Processes whose environment shows that they run a token for the pilot with this scratch folder.

    ``inside``: also other processes whose working directory is in the folder.
    """
    mark, found = b"\0PICAS_TOKEN_FILE=" + os.fsencode(scratch) + b"/", []
    for name in os.listdir("/proc") if os.path.isdir("/proc") else []:
        with suppress(OSError):  # it may have ended, or belong to another user
            if name.isdigit():
                with open(f"/proc/{name}/environ", "rb") as file:
                    marked = mark in b"\0" + file.read()
                if marked or (inside and (os.readlink(f"/proc/{name}/cwd") + "/").startswith(scratch + "/")):
                    found.append(int(name))
    return found


def guard(scratch: str) -> None:
    """Wait for the end of the pilot. If it was killed, kill its remaining commands, and remove its scratch folder.

    Runs in a separate process.
    """
    if os.read(0, 1):
        return  # the pilot has ended normally; if it died, nothing is read
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
