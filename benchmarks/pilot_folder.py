"""Starts pilots as processes of this machine: ours, with a folder as the submit operator makes it, and the PiCaS client's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from airflow_provider_picas.pilot import archive
from airflow_provider_picas.slurm import credentials
from benchmarks.peers.control_group import inside
from stack import paths
from stack.pool import Pool


def start(
    pool: Pool, folder: Path, number: int, group: Path | None = None, **settings: Any
) -> list[subprocess.Popen[bytes]]:
    """Start some pilots, in a control group. ``settings``: of ``pilot.json``. Their logs are in the folder."""
    (folder / "credentials").mkdir(mode=0o700, parents=True)
    config = credentials.picasconfig(pool.url, pool.database, pool.user, pool.password)
    (folder / "credentials" / credentials.FILE).write_bytes(config)
    (folder / "pilot.json").write_text(json.dumps({"submission": "bench", **settings}))
    (folder / archive.FILE).write_bytes(archive.build())
    return [_start_one(folder, place, number, group) for place in range(number)]


def _start_one(folder: Path, place: int, number: int, group: Path | None) -> subprocess.Popen[bytes]:
    with (folder / f"pilot-{place}.log").open("ab") as log:
        return subprocess.Popen(
            inside(group, [sys.executable, "-I", str(folder / archive.FILE), str(folder / "pilot.json")]),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "SLURM_ARRAY_TASK_ID": str(place), "SLURM_ARRAY_TASK_COUNT": str(number)},
        )


def start_client(
    pool: Pool, place: Path, number: int, command: list[str], group: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start a pilot of the PiCaS client. Its log is in the folder."""
    program = [str(paths.PICAS_VENV / "bin" / "python"), str(paths.PROJECT / "benchmarks" / "client_pilot.py")]
    given = {"url": pool.url, "database": pool.database, "user": pool.user, "password": pool.password}
    with (place / f"client-{number}.log").open("wb") as log:
        process = subprocess.Popen(inside(group, program), stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT)
    assert process.stdin is not None
    process.stdin.write(json.dumps({**given, "command": command}).encode())
    process.stdin.close()
    return process
