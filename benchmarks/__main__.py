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
os.environ.setdefault("AIRFLOW__PICAS__DEPLOYMENT", "bench")

from benchmarks import (
    churn,
    costs,
    counts,
    long_tokens,
    many_pilots,
    memory,
    page,
    pilots,
    push,
    reset,
    simulation,
    size,
    waits,
    watching,
)
from benchmarks.measure import PAIRS, Goal, Result
from benchmarks.peers import faults, rates
from benchmarks.server import COUCHDB_URL, Server, couchdb
from stack import paths

BENCHMARKS: dict[str, Callable[[Server, int], Iterator[Result]]] = {
    "push": push.run,
    "memory": memory.run,
    "counts": counts.run,
    "reset": reset.run,
    "waits": waits.run,
    "pilots": pilots.run,
    "long": long_tokens.run,
    "watching": watching.run,
}
EXTRA = {
    "sizes": push.sizes,
    "page": page.run,
    "peers": rates.run,
    "faults": faults.run,
    "size": size.run,
    "many": many_pilots.run,
    "costs": costs.run,
    "simulation": simulation.run,
    "churn": churn.run,
}
"""Not run unless named."""

KEPT = Path(__file__).with_name("results")


def main() -> int:
    """Run the benchmarks. Returns 0 if all goals are met, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", help=f"which of {', '.join([*BENCHMARKS, *EXTRA])}; default: all but {', '.join(EXTRA)}"
    )
    parser.add_argument("--pairs", type=int, default=PAIRS, help="measurements of each side (default %(default)s)")
    parser.add_argument(
        "--keep", action="store_true", help=f"write them to results.json and results.md of {KEPT.parent.name}/"
    )
    options = parser.parse_args()
    known = {**BENCHMARKS, **EXTRA}
    if unknown := sorted(set(options.names) - set(known)):
        parser.error(f"unknown benchmark {unknown[0]!r}; known are {', '.join(known)}")
    taken: dict[str, Any] = {}
    with couchdb() as server:
        for name in options.names or BENCHMARKS:
            about = {
                "server": server.name,
                "machine": machine(),
                "date": time.strftime("%Y-%m-%d"),
                "pairs": options.pairs,
            }
            print(
                f"{name}, on {server.name}{'' if os.environ.get(COUCHDB_URL) else ', the embedded server'}; {machine()}"
            )
            results = []
            for result in known[name](server, options.pairs):
                print(line(result), flush=True)
                results.append(result)
            taken[name] = {**about, "results": [{**dataclasses.asdict(one), "met": one.met} for one in results]}
    write(taken, paths.HOME / "benchmarks" / f"{time.strftime('%Y%m%d-%H%M%S')}.json")
    if options.keep:
        kept = KEPT.with_suffix(".json")
        before = json.loads(kept.read_text()) if kept.exists() else {}
        all_kept = {name: found for name in known if (found := {**before, **taken}.get(name))}
        write(all_kept, kept)
        KEPT.with_suffix(".md").write_text(markdown(all_kept))
    return int(any(result["met"] is False for one in taken.values() for result in one["results"]))


def machine() -> str:
    """The machine of the measurement, without names."""
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
    status = {True: "met", False: "MISSED", None: ""}[result.met]
    goal = f"{result.goal} {status}" if result.goal else ""
    return f"{result.name:<62} {value(result.value, result.unit):>12}  {goal:<12} {figures}"


def value(number: float, unit: str) -> str:
    """The value with its unit."""
    return f"{number:,.0f} {unit}" if unit else f"{number:.2f}"


def write(taken: dict[str, Any], path: Path) -> None:
    """The results as JSON, by benchmark."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(taken, indent=1, ensure_ascii=False) + "\n")
    print(f"Written to {path.relative_to(paths.PROJECT)}")


def markdown(taken: dict[str, Any]) -> str:
    """The results as a table in Markdown for each benchmark."""
    lines = [
        "# Benchmarks",
        "",
        "Taken by `make bench ARGS=--keep`. A ratio is the median of the ratios of interleaved pairs: server and client share",
        "the machine, and rates drift more than ratios do. Waits are measured once, over many events.",
    ]
    for name, one in taken.items():
        lines += [
            "",
            f"## {name}",
            "",
            f"{one['pairs']} pairs, on {one['date']}: {one['server']}; {one['machine']}.",
            "",
            "| what | value | goal | figures |",
            "|---|---|---|---|",
        ]
        for result in one["results"]:
            goal = Goal(**result["goal"]) if result["goal"] else ""
            missed = " (missed)" if result["met"] is False else ""
            figures = ", ".join(f"{what}: {figure}" for what, figure in result["figures"].items())
            lines.append(
                f"| {result['name']} | {value(result['value'], result['unit'])} | {goal}{missed} | {figures} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
