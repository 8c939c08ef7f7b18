"""The directive ``measured``: figures of a benchmark, from benchmarks/results.json, so that no page repeats them by hand.

Its argument is the name of the benchmark. Its content, if it has any, names the rows to show, one per line.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from generated import table
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results.json"


class Measured(SphinxDirective):
    """A table, and a line that says on what it was measured, and when."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(RESULTS))
        measured = json.loads(RESULTS.read_text()).get(self.arguments[0])
        if measured is None:
            raise self.error(f"benchmarks/results.json has no benchmark {self.arguments[0]!r}.")
        rows = {row["name"]: row for row in measured["results"]}
        wanted = [line.strip() for line in self.content if line.strip()] or list(rows)
        if missing := [name for name in wanted if name not in rows]:
            raise self.error(f"The benchmark {self.arguments[0]!r} has no row {missing[0]!r}.")
        origin = f"*{measured['server']}; {measured['machine']}; {measured['date']}.*"
        lines = [*table(("measured", "value", "figures"), (_cells(rows[name]) for name in wanted)), "", origin]
        return self.parse_text_to_nodes(StringList(lines, str(RESULTS)))


def _cells(row: dict[str, Any]) -> tuple[str, str, str]:
    figures = ", ".join(f"{name}: {value}" for name, value in row["figures"].items())
    value = f"{row['value']:,.0f}" if row["value"] >= 100 else f"{row['value']:.2g}"
    return row["name"], f"{value} {row['unit']}", figures


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("measured", Measured)
    return {"parallel_read_safe": True}
