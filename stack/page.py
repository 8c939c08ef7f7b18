"""The page inside Airflow's UI (``airflow_provider_picas/www``): its packages, its bundle, its checks.

``python3 -m stack.page [install] [lint] [test]``, one after the other.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

from stack import couchdb, paths
from stack.processes import StackError

SOURCE = paths.PROJECT / "airflow_provider_picas" / "www"
BUNDLES = SOURCE / "dist"
PACKAGES = paths.HOME / "page"
LINK = SOURCE / "node_modules"


def install() -> None:
    """Fetch the packages if ``package-lock.json`` has changed, and build the bundle if a source has. Raises StackError."""
    PACKAGES.mkdir(parents=True, exist_ok=True)
    with (PACKAGES / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _install_packages()
        _build()


def _install_packages() -> None:
    stamp = PACKAGES / "installed"
    wanted = hashlib.sha256((SOURCE / "package-lock.json").read_bytes()).hexdigest()
    if not (stamp.exists() and stamp.read_text() == wanted and (PACKAGES / "node_modules" / "vite").exists()):
        for name in ("package.json", "package-lock.json"):
            shutil.copy(SOURCE / name, PACKAGES / name)
        npm("ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", folder=PACKAGES)
        stamp.write_text(wanted)
    # Node looks for packages beside the sources. They are kept below .stack/, which `make clean` removes.
    if not (LINK.is_symlink() and LINK.resolve() == (PACKAGES / "node_modules").resolve()):
        if LINK.is_symlink():
            LINK.unlink()
        elif LINK.exists():
            shutil.rmtree(LINK)
        LINK.symlink_to(os.path.relpath(PACKAGES / "node_modules", SOURCE))


def _build() -> None:
    bundle = runpy.run_path(str(SOURCE / "fingerprint.py"))
    if not bundle["built"]():
        npm("run", "build", "--loglevel=error")
        bundle["mark"]()


def npm(*arguments: str, folder: Path = SOURCE, show: bool = False) -> None:
    """Run npm, in the page's folder. Raises StackError with what it said, or, with ``show``, after it said it."""
    node = couchdb.node()
    env = {**os.environ, "PATH": f"{node.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    env.setdefault("npm_config_cache", str(paths.HOME / "cache" / "npm"))
    ended = subprocess.run([*couchdb.npm(node), *arguments], cwd=folder, env=env, capture_output=not show, text=True)
    if ended.returncode:
        said = "" if show else "\n" + "\n".join((ended.stdout + ended.stderr).strip().splitlines()[-30:])
        raise StackError(f"`npm {' '.join(arguments)}` failed in {folder}.{said}")


def remove() -> None:
    """Remove what ``install`` made beside the sources."""
    if LINK.is_symlink():
        LINK.unlink()
    shutil.rmtree(BUNDLES, ignore_errors=True)


def main(words: list[str]) -> int:
    try:
        for word in words:
            if word == "install":
                install()
            else:
                npm("run", "--silent", word, show=True)
    except StackError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
