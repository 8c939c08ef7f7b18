"""This version against an earlier one: ``python -m benchmarks.against REVISION [NAME ...]``.

Both are checked out, and each benchmark runs in turns with the one and the other, one pair at a time, on the same
server. What is compared are the seconds of the provider's own side of each pair. The two checkouts share this
environment, so its packages must suit both.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from urllib.parse import quote

from benchmarks.measure import in_pairs
from benchmarks.server import COUCHDB_URL, couchdb
from stack import paths
from stack.couchdb import CouchDBAdmin

OURS = {"push": (1,), "reset": (0, 1), "counts": (0, 1), "pilots": (1,)}
"""Benchmarks, and which sides of their pairs are the provider's."""

SLOWER = 1.05
"""The ratio above which the command fails."""


def main() -> int:
    """Print a line for each result. Returns 0 if nothing is slower than ``SLOWER`` allows, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.against", description=__doc__)
    parser.add_argument("revision", help="the earlier version, as git names it")
    parser.add_argument("names", nargs="*", choices=[*OURS, []], help="benchmarks; default: all of these")
    parser.add_argument("--pairs", type=int, default=5, help="runs of each version (default %(default)s)")
    options = parser.parse_args()
    slower = False
    with couchdb() as server, checkout(options.revision) as before, checkout("HEAD") as after:
        os.environ[COUCHDB_URL] = with_login(server.admin)
        print(f"HEAD against {options.revision}, {options.pairs} pairs, on {server.name}")
        for name in options.names or OURS:
            runs: dict[Path, list[dict[str, float]]] = {before: [], after: []}

            def measure(tree: Path, name: str = name, runs: dict[Path, list[dict[str, float]]] = runs) -> float:
                runs[tree].append(seconds(tree, name))
                return 0.0

            in_pairs(lambda: measure(after), lambda: measure(before), options.pairs)
            slower |= compare(name, runs[after], runs[before])
    return int(slower)


def compare(name: str, after: list[dict[str, float]], before: list[dict[str, float]]) -> bool:
    """Print a line for each result of a benchmark. True if one is slower than ``SLOWER`` allows.

    A result that one of the versions does not have is named, and not compared.
    """
    slower = False
    for what in {**after[0], **before[0]}:
        if what not in after[0] or what not in before[0]:
            print(f"{name}: {what:<70} only {'HEAD' if what in after[0] else 'the earlier version'} has it", flush=True)
            continue
        ratios = [new[what] / old[what] for new, old in zip(after, before, strict=True)]
        slower |= median(ratios) > SLOWER
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"{name}: {what:<70} {median(ratios):.3f}  ({spread})", flush=True)
    return slower


@contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """A work tree of a revision, removed at the end."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        tree = Path(folder) / "tree"
        git = ["git", "-C", str(paths.PROJECT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), revision], check=True)
        try:
            (tree / ".stack").symlink_to(paths.HOME)
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def seconds(tree: Path, name: str) -> dict[str, float]:
    """Run one benchmark once in a checkout; the seconds of the provider's side, by result."""
    command = [sys.executable, "-m", "benchmarks", name, "--pairs=1", "--keep"]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    kept = json.loads((tree / "benchmarks" / "results.json").read_text())
    if done.returncode not in (0, 1):  # 1: a goal is missed
        raise RuntimeError(f"The benchmark {name} failed in {tree}: {done.stderr[-2_000:]}")
    return {
        f"{result['name']} ({'first' if side == 0 else 'second'})": result["pairs"][0][side]
        for result in kept[name]["results"]
        if result["pairs"]
        for side in OURS[name]
    }


def with_login(admin: CouchDBAdmin) -> str:
    """The server's URL with its admin's login, for the processes that measure."""
    scheme, _, rest = admin.url.partition("://")
    return f"{scheme}://{quote(admin.admin, safe='')}:{quote(admin.password, safe='')}@{rest}"


if __name__ == "__main__":
    sys.exit(main())
