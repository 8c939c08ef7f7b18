"""Writing rows of results to a file: JSON Lines, CSV or Parquet."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, BinaryIO

from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_picas.operators.files import whole_file
from airflow_provider_picas.tokens.results import COLUMNS, ColumnTypes, Row, as_type, csv_cells, json_line

FORMATS = {"jsonl": (".jsonl", ".ndjson"), "csv": (".csv",), "parquet": (".parquet", ".pq")}
"""Formats, and the endings of file names that stand for them."""

_ROW_GROUP = 10_000  # rows of a Parquet file that are in memory at the same time


def format_of(path: str, file_format: str | None) -> str:
    """The format of a file: the given one, or that of its suffix. Raises AirflowFailException."""
    if file_format:
        if file_format not in FORMATS:
            raise AirflowFailException(f"`file_format` is {file_format!r:.80}; it takes one of {', '.join(FORMATS)}.")
        found: str | None = file_format
    else:
        found = next((name for name, endings in FORMATS.items() if path.lower().endswith(endings)), None)
    if found is None:
        raise AirflowFailException(
            f"The format of {path!r:.200} is not known from its name: end it in"
            f" {', '.join(endings[0] for endings in FORMATS.values())}, or give file_format."
        )
    if found == "parquet":
        _pyarrow()  # raises before anything is read
    return found


def write_rows(rows: Iterable[Row], path: str, file_format: str, fields: Sequence[str]) -> tuple[int, int]:
    """Write rows to a file, which appears only when it is complete. Returns the numbers of rows and of bytes. Raises
    FileError.

    Memory does not grow with the number of rows.
    """
    write = {"jsonl": _write_json_lines, "csv": _write_csv, "parquet": _write_parquet}[file_format]
    with whole_file(path) as file:
        number = write(rows, file, [*COLUMNS, *fields])
        return number, file.tell()


def _write_json_lines(rows: Iterable[Row], file: BinaryIO, columns: Sequence[str]) -> int:
    number = 0
    for number, row in enumerate(rows, 1):  # noqa: B007
        file.write(json_line(row).encode("utf-8", "surrogatepass"))
    return number


def _write_csv(rows: Iterable[Row], file: BinaryIO, columns: Sequence[str]) -> int:
    number = 0
    text = io.TextIOWrapper(file, encoding="utf-8", errors="replace", newline="", write_through=True)
    try:
        writer = csv.writer(text)
        writer.writerow(columns)
        for number, row in enumerate(rows, 1):  # noqa: B007
            writer.writerow(csv_cells(row))
        text.flush()
    finally:
        text.detach()
    return number


def _write_parquet(rows: Iterable[Row], file: BinaryIO, columns: Sequence[str]) -> int:
    """Keep rows in a temporary file first: the type of a column is known only when all rows have been read."""
    pyarrow, parquet = _pyarrow()
    kinds = ColumnTypes(columns)
    number = 0
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="surrogatepass", prefix="picas-") as kept:
        for number, row in enumerate(rows, 1):  # noqa: B007
            kinds.add(row)
            kept.write(json_line(row))
        kept.seek(0)
        arrow = {"bool": "bool", "int64": "int64", "double": "double", "string": "string", "json": "string"}
        types = kinds.types()
        schema = pyarrow.schema([(name, arrow[kind]) for name, kind in types.items()])
        with parquet.ParquetWriter(file, schema) as writer:
            while some := [json.loads(line) for line in islice(kept, _ROW_GROUP)]:
                data = {name: [_clean(as_type(row[name], kind)) for row in some] for name, kind in types.items()}
                writer.write_table(pyarrow.table(data, schema=schema))
    return number


def _clean(value: Any) -> Any:
    """Replace lone surrogates: Arrow's strings are UTF-8, which does not have them."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise AirflowFailException(
            "Parquet needs pyarrow: install 'airflow-provider-picas[parquet]' where tasks run, or write CSV or JSON Lines."
        ) from None
    return pyarrow, parquet
