"""Run benchmarks, print a table, and write the figures as JSON."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("AIRFLOW__LOGGING__LOGGING_LEVEL", "ERROR")  # before Airflow is imported

from benchmarks import counts, memory, pilots, push, reset, waits, watching
from benchmarks.measure import PAIRS, Result
from benchmarks.server import COUCHDB_URL, Server, couchdb
from stack import paths

BENCHMARKS: dict[str, Callable[[Server, int], Iterator[Result]]] = {
    "push": push.run,
    "memory": memory.run,
    "counts": counts.run,
    "reset": reset.run,
    "waits": waits.run,
    "pilots": pilots.run,
    "watching": watching.run,
}
EXTRA = {"sizes": push.sizes}
"""Not run unless named."""

KEPT = Path(__file__).with_name("results")


def main() -> int:
    """0 when all goals are met, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", help=f"which of {', '.join([*BENCHMARKS, *EXTRA])}; default: all but {', '.join(EXTRA)}"
    )
    parser.add_argument("--pairs", type=int, default=PAIRS, help="measurements of each side (default %(default)s)")
    parser.add_argument(
        "--keep", action="store_true", help=f"write results.json and results.md of {KEPT.parent.name}/ anew"
    )
    options = parser.parse_args()
    known = {**BENCHMARKS, **EXTRA}
    if unknown := sorted(set(options.names) - set(known)):
        parser.error(f"there is no benchmark {unknown[0]!r}; there are {', '.join(known)}")
    with couchdb() as server:
        about = {"server": server.name, "machine": machine(), "date": time.strftime("%Y-%m-%d"), "pairs": options.pairs}
        print(f"On {server.name}{'' if os.environ.get(COUCHDB_URL) else ', the embedded server'}; {about['machine']}")
        results = []
        for name in options.names or BENCHMARKS:
            for result in known[name](server, options.pairs):
                print(line(result), flush=True)
                results.append(result)
    write(about, results, paths.HOME / "benchmarks" / f"{time.strftime('%Y%m%d-%H%M%S')}.json")
    if options.keep:
        write(about, results, KEPT.with_suffix(".json"))
        KEPT.with_suffix(".md").write_text(markdown(about, results))
    return int(any(result.met is False for result in results))


def machine() -> str:
    """What it was measured on, without names."""
    processor = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    memory_kb = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    model = " ".join(processor[1].split()) if processor else platform.machine()
    size = f"{int(memory_kb[1]) / 1e6:.0f} GB" if memory_kb else "unknown"
    load = os.getloadavg()[1]
    return (
        f"{os.cpu_count()} cores ({model}), memory {size}, Python {platform.python_version()}, load {load:.1f} before"
    )


def line(result: Result) -> str:
    """A result as a line of the table."""
    figures = ", ".join(f"{name}: {figure}" for name, figure in result.figures.items())
    verdict = {True: "met", False: "MISSED", None: ""}[result.met]
    goal = f"{result.goal} {verdict}" if result.goal else ""
    return f"{result.name:<62} {value(result):>12}  {goal:<12} {figures}"


def value(result: Result) -> str:
    """The value with its unit."""
    return f"{result.value:,.0f} {result.unit}" if result.unit else f"{result.value:.2f}"


def write(about: dict[str, Any], results: list[Result], path: Path) -> None:
    """The results as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    told = [{**dataclasses.asdict(result), "met": result.met} for result in results]
    path.write_text(json.dumps({**about, "results": told}, indent=1, ensure_ascii=False) + "\n")
    print(f"Written to {path.relative_to(paths.PROJECT)}")


def markdown(about: dict[str, Any], results: list[Result]) -> str:
    """The results as a table in Markdown."""
    rows = [
        f"| {result.name} | {value(result)} | {result.goal or ''}{' (missed)' if result.met is False else ''} | "
        + ", ".join(f"{name}: {figure}" for name, figure in result.figures.items())
        + " |"
        for result in results
    ]
    head = [
        "# Benchmarks",
        "",
        f"Medians of {about['pairs']} interleaved pairs, taken by `make bench ARGS=--keep` on {about['date']}: {about['server']};"
        f" {about['machine']}.",
        "Server and client share the machine. A ratio is the median of the ratios of the pairs; rates drift more than it does.",
        "",
        "| what | value | goal | figures |",
        "|---|---|---|---|",
    ]
    return "\n".join([*head, *rows]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
