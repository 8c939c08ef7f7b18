"""A control group of Linux that counts the CPU time of the processes in it, and of all that they start.

Without the right to make one, the CPU time of the whole machine is taken instead (see ``progress``). Standard library
only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

VARIABLE = "PICAS_BENCH_CPU_FILE"
"""Names the file with the CPU time, for the programs that note their progress."""

_ROOTS = {Path("/sys/fs/cgroup/cpuacct"): "cpuacct.usage", Path("/sys/fs/cgroup"): "cpu.stat"}


@contextmanager
def control_group() -> Iterator[Path | None]:
    """A control group for the processes of one run; None if it cannot be made."""
    file = _make()
    if file is None:
        yield None
        return
    os.environ[VARIABLE] = str(file)
    try:
        yield file.parent
    finally:
        del os.environ[VARIABLE]
        with suppress(OSError):  # a process has not ended yet
            file.parent.rmdir()


def _make() -> Path | None:
    """The file with the CPU time of a new group; None if none can be made."""
    for root, name in _ROOTS.items():
        group = root / f"picas-bench-{os.getpid()}"
        with suppress(OSError):
            group.mkdir()
            if (group / name).exists():
                return group / name
            group.rmdir()
    return None


def inside(group: Path | None, argv: list[str]) -> list[str]:
    """The command line that runs a program in the group."""
    return argv if group is None else ["/bin/sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh", *argv]


def busy() -> float | None:
    """CPU seconds of the group in ``VARIABLE``; None if there is none."""
    file = os.environ.get(VARIABLE)
    if file is None:
        return None
    text = Path(file).read_text()
    return int(text) / 1e9 if text.strip().isdigit() else int(text.split()[1]) / 1e6
