"""The batch script that starts our own pilot on a node."""

from __future__ import annotations

from airflow_provider_picas.pilot import archive
from airflow_provider_picas.slurm.remote import quote

CONFIG_FILE = "pilot.json"
LOG_FILE = "pilot-%A_%a.log"
"""Name of a pilot's log, as sbatch writes it: job and task of the array."""

EX_CONFIG = 78  # the script's exit code if the node is unsuitable or the setup fails; see docs/pilot.md

WARNING = "B:TERM@20"
"""``--signal``: the pilot gets SIGTERM 20 seconds (Slurm: up to 80) before the wall-clock ends, and gives its tokens back."""

_PYTHONS = ("python3", *(f"python3.{minor}" for minor in range(14, 5, -1)), "/usr/libexec/platform-python")


def batch_script(folder: str, config: str, setup: str | None, program: str = archive.FILE) -> bytes:
    """The script: the author's setup, then the pilot in place of the shell, so that Slurm's signals reach it.

    If a command of the setup fails, the job ends, so that the error is reported once and not by every token. This uses
    a trap and not ``set -e``, under which the functions of many module systems end the shell.
    """
    lines = ["#!/bin/bash", "# Made by airflow-provider-picas."]
    if setup and setup.strip():
        failed = (
            f'echo "The setup failed with code $?, so this pilot takes no token: $BASH_COMMAND" >&2; exit {EX_CONFIG}'
        )
        lines += [f"trap {quote(failed)} ERR", setup.rstrip("\n"), "trap - ERR"]
    lines += python_lines(f"{folder}/{program}", f"{folder}/{config}")
    return ("\n".join(lines) + "\n").encode()


def python_lines(program: str, config: str) -> list[str]:
    """Shell code that replaces the shell with a Python program, run by the first Python that is new enough."""
    old = "import sys; sys.exit(sys.version_info < (3, 6))"
    return [
        f"for python in {' '.join(_PYTHONS)}; do",
        f'  command -v "$python" >/dev/null && "$python" -I -c {quote(old)} 2>/dev/null || continue',
        f'  exec "$python" -I {quote(program, config)}',
        "done",
        'echo "There is no Python 3.6 or newer on $(hostname). Load one in the setup, such as: module load Python" >&2',
        f"exit {EX_CONFIG}",
    ]
