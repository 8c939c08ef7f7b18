"""Debian's packages, downloaded with all libraries they need as an ordinary user: nothing is installed on this machine."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from stack.processes import StackError


def call(
    argv: list[str],
    *,
    cwd: Path | None = None,
    stdin: IO[bytes] | None = None,
    env: Mapping[str, str] | None = None,
) -> str:
    """The output of the command; ``env`` is added to this process's. Raises StackError with the end of its error output."""
    environment = {**os.environ, "LC_ALL": "C", **(env or {})}
    ended = subprocess.run(argv, cwd=cwd, stdin=stdin, capture_output=True, text=True, env=environment, check=False)
    if ended.returncode:
        said = "\n".join((ended.stderr or ended.stdout).splitlines()[-15:])
        raise StackError(f"`{' '.join(argv)[:200]}` failed with code {ended.returncode}. Its output:\n{said}")
    return ended.stdout


def download(
    packages: Sequence[str], apt: Path, *, without: tuple[str, ...], sources: Path | None = None
) -> list[Path]:
    """Fetch the packages and all libraries they need, with package lists and a cache of our own in the folder ``apt``.

    ``without`` has how the names of libraries begin that stay the system's own. For apt, nothing is installed, so that
    the result does not depend on the packages of this machine. ``sources`` is used instead of this machine's sources.
    """
    for folder in ("lists/partial", "cache/archives/partial", "debs"):
        (apt / folder).mkdir(parents=True)
    (apt / "status").touch()
    options = {
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
        "APT::Sandbox::User": "root",  # root's apt-get would drop to a user that may not write here
        "Debug::NoLocking": "1",
        "Dir::Cache": str(apt / "cache"),
        "Dir::State::lists": str(apt / "lists"),
        "Dir::State::status": str(apt / "status"),
        **({"Dir::Etc::sourcelist": str(sources), "Dir::Etc::sourceparts": "/dev/null"} if sources else {}),
    }
    apt_get = ["apt-get", "-q", *(word for key, value in options.items() for word in ("-o", f"{key}={value}"))]
    call([*apt_get, "update"])
    plan = call([*apt_get, "--simulate", "--no-install-recommends", "install", *packages])
    closure = {line.split()[1] for line in plan.splitlines() if line.startswith("Inst ")}
    needed = [name for name in sorted(closure) if name in packages or _is_library(name, without)]
    call([*apt_get, "download", *needed], cwd=apt / "debs")
    return sorted((apt / "debs").glob("*.deb"))


def _is_library(package: str, without: tuple[str, ...]) -> bool:
    return (
        package.startswith(("lib", "zlib"))
        and not package.startswith(without)
        and not package.endswith(("-perl", "-common"))
    )
