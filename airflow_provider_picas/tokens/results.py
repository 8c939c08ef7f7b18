"""Results of tokens as rows, and how a row is written as JSON Lines, as CSV, and in the columns of Parquet."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from airflow_provider_picas.tokens.states import state_of

COLUMNS = ("id", "state", "exit_code", "lock", "done")
"""What each row begins with; ``lock`` and ``done`` are seconds since 1970, when the token was claimed and when it ended."""

Row = dict[str, Any]


def parse_fields(value: Any) -> list[str]:
    """Names of fields, from a list, or a text with commas. Raises ValueError."""
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"`fields` is {value!r:.200}; it takes a list of names of fields.")
    taken = [name for name in names if name in COLUMNS]
    if taken:
        raise ValueError(f"`fields` names {taken[0]!r}, which each row has already ({', '.join(COLUMNS)}).")
    return list(dict.fromkeys(names))


def row_of(token: Mapping[str, Any], fields: Sequence[str]) -> Row:
    """A token's row. A field may be a path, such as ``output.words``; what the token does not have is None."""
    own = {"id": token["_id"], "state": state_of(token)}
    picas = {name: None if token.get(name) == "" else token.get(name) for name in ("exit_code", "lock", "done")}
    return {**own, **picas, **{name: _at(token, name) for name in fields}}


def json_line(row: Row) -> str:
    """A row as a line of JSON."""
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n"


def csv_cells(row: Row) -> list[str]:
    """A row's cells: lists and mappings as JSON, None as nothing.

    A text that a spreadsheet would take for a formula (``=``, ``+``, ``-``, ``@``, a tab or a line break first) gets an
    apostrophe before it, unless it is a number: results may come from anybody's pilot. JSON Lines and Parquet are exact.
    """
    return [_cell(value) for value in row.values()]


class ColumnTypes:
    """The type of each column, found out row by row: ``bool``, ``int64``, ``double``, ``string``, or ``json`` if mixed."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._seen: dict[str, set[str]] = {column: set() for column in columns}

    def add(self, row: Row) -> None:
        """Look at a row."""
        for column, value in row.items():
            if value is not None:
                self._seen[column].add(_type_of(value))

    def types(self) -> dict[str, str]:
        """The types by column. A column without values is ``string``."""
        return {column: _common(seen) for column, seen in self._seen.items()}


def as_type(value: Any, kind: str) -> Any:
    """A value in a column of that type."""
    if value is None:
        return None
    if kind == "json":
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return float(value) if kind == "double" else value


def _at(token: Mapping[str, Any], path: str) -> Any:
    if path in token:
        return token[path]
    value: Any = token
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        formula = value[:1] in ("=", "+", "-", "@", "\t", "\r", "\n") and not re.fullmatch(
            r"[+-][0-9]{1,30}(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,4})?", value
        )
        return f"'{value}" if formula else value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _type_of(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int64" if -(2**63) <= value < 2**63 else "json"
    if isinstance(value, float):
        return "double"
    return "string" if isinstance(value, str) else "json"


def _common(seen: set[str]) -> str:
    if len(seen) == 1:
        return next(iter(seen))
    if not seen:
        return "string"
    return "double" if seen == {"int64", "double"} else "json"
