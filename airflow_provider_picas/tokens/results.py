"""Results of tokens as rows, and rows as JSON Lines, CSV and Parquet columns."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from airflow_provider_picas.lifecycle.profile import PICAS, Profile
from airflow_provider_picas.tokens.states import state_of

COLUMNS = ("id", "state", "exit_code", "lock", "done")
"""The first columns of each row. ``lock`` and ``done``: when the token was claimed and when it ended, in seconds since 1970."""

Row = dict[str, Any]


def parse_fields(value: Any) -> list[str]:
    """Names of fields, from a list, or a comma-separated string. Raises ValueError."""
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"`fields` is {value!r:.200}; it takes a list of field names.")
    taken = [name for name in names if name in COLUMNS]
    if taken:
        raise ValueError(f"`fields` names {taken[0]!r}, which every row already has ({', '.join(COLUMNS)}).")
    return list(dict.fromkeys(names))


def row_of(token: Mapping[str, Any], fields: Sequence[str], profile: Profile = PICAS) -> Row:
    """A token's row. A field may be a path, such as ``output.words``. Missing fields are None."""
    own = {"id": token["_id"], "state": state_of(token, profile)}
    picas = {name: None if token.get(name) == "" else token.get(name) for name in ("exit_code", "lock", "done")}
    return {**own, **picas, **{name: _at(token, name) for name in fields}}


def json_line(row: Row) -> str:
    """A row as a line of JSON."""
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n"


# Keys by which Airflow's serialization recognizes objects (``airflow.sdk.serde``, and ``airflow.serialization`` before 3.0).
_AIRFLOW_KEYS = frozenset({"__classname__", "__version__", "__data__", "__id__", "__type", "__var"})


def for_xcom(value: Any) -> Any:
    """The value in a form that is safe in XCom: a mapping with keys that Airflow reserves for its objects becomes a
    JSON string.

    Anyone who runs a pilot can write a token's output. Airflow would create a Connection, for example, from
    ``{"__type": "airflow.sdk.definitions.connection.Connection", "__var": …}``, or refuse the whole result.
    """
    if isinstance(value, list):
        return [for_xcom(item) for item in value]
    if not isinstance(value, dict):
        return value
    if _AIRFLOW_KEYS.isdisjoint(value):
        return {key: for_xcom(item) for key, item in value.items()}
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def csv_cells(row: Row) -> list[str]:
    """A row's cells: lists and mappings as JSON, None as an empty string.

    A string that a spreadsheet would evaluate as a formula is prefixed with an apostrophe, unless it is a number:
    results may come from anyone's pilot. Spreadsheets in Dutch, German and other languages split cells at semicolons,
    even within quotes, so the part after each semicolon is treated in the same way. JSON Lines and Parquet are exact.
    """
    return [_cell(value) for value in row.values()]


class ColumnTypes:
    """The type of each column, inferred row by row: ``bool``, ``int64``, ``double``, ``string``, or ``json`` if mixed."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._seen: dict[str, set[str]] = {column: set() for column in columns}

    def add(self, row: Row) -> None:
        """Include a row."""
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


_NUMBER = re.compile(r"[+-][0-9]{1,30}(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,4})?")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # including full-width forms


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        # The same JSON, without a semicolon at which a spreadsheet would split it.
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace(";", "\\u003b")
    first, *others = value.split(";")
    return ";".join(
        [f"'{first}" if _is_formula(value) else first, *(f"'{part}" if _is_formula(part) else part for part in others)]
    )


def _is_formula(text: str) -> bool:
    return text.startswith(_FORMULA) and not _NUMBER.fullmatch(text)


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
