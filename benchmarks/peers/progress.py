"""The progress of a run, with the CPU time of the whole machine. Standard library only: peers have their own environments."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.peers import control_group

_TICKS = os.sysconf("SC_CLK_TCK")
PATIENCE = 300.0  # seconds for one run


class Progress(NamedTuple):
    """A moment of a run."""

    at: float  #: seconds of a clock
    done: int  #: tasks that have ended
    busy: float  #: CPU seconds, as of ``busy``


def busy() -> float:
    """The CPU seconds that the processes of the control group have used; without one, all processes of the machine."""
    if (used := control_group.busy()) is not None:
        return used
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / _TICKS


def now(done: int, more: float = 0.0) -> Progress:
    """The progress at this moment. ``more``: CPU seconds of processes outside of the control group."""
    return Progress(time.monotonic(), done, busy() + more)


def follow(
    count: Callable[[], int], tasks: int, pause: float = 0.2, more: Callable[[], float] = lambda: 0.0
) -> list[Progress]:
    """Read the number of ended tasks until all have ended. Raises RuntimeError if this takes too long.

    ``more``: CPU seconds of processes outside of the control group.
    """
    found = [now(count(), more())]
    while found[-1].done < tasks:
        if found[-1].at - found[0].at > PATIENCE:
            raise RuntimeError(f"{found[-1].done} of {tasks} tasks have ended after {PATIENCE:g} s.")
        time.sleep(pause)
        found.append(now(count(), more()))
    return found


class Speed(NamedTuple):
    """The speed of a run, and its price."""

    rate: float  #: tasks a second
    cpu: float  #: CPU seconds of the machine for each task


def speed(readings: list[Progress], idle: float) -> Speed:
    """The speed between the first and the last reading at which some tasks, but not all, had ended: without the start of
    the workers, and without the pause before the end is seen.

    ``idle``: CPU seconds a second of everything else on this machine. Raises RuntimeError if there are too few readings.
    """
    last = readings[-1].done
    running = [one for one in readings if 0 < one.done < last]
    if len(running) < 2 or running[-1].done - running[0].done < last / 3:
        raise RuntimeError(f"Too few readings of a run of {last} tasks: {[one.done for one in readings]}.")
    first = running[0]
    end = next(one for one in running if one.done == running[-1].done)  # pilots write several results at once
    seconds, tasks = end.at - first.at, end.done - first.done
    return Speed(tasks / seconds, max(0.0, end.busy - first.busy - idle * seconds) / tasks)
