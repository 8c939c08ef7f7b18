"""Inputs of a push: files of JSON Lines or CSV, read line by line, and attachments of tokens.

Errors are BadTokenErrors. They do not name the line: ``Lines.record`` has it, also for errors that are found later in a
token.
"""

from __future__ import annotations

import base64
import csv
import gzip
import json
import mimetypes
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from airflow_provider_picas.tokens.documents import MAX_BYTES, BadTokenError

NUMBERS = ("priority", "cores", "gpu", "time", "max_retries", "time_limit")
"""Columns of a CSV file whose cells are converted to numbers if possible, and omitted if empty."""


class BinaryFile(Protocol):
    """The required methods of an open file."""

    def readline(self, size: int, /) -> bytes:
        """A line with its end, or ``size`` bytes of it."""


class Lines:
    """The lines of a UTF-8 file. ``record`` is the line, counted from 1, where the current record begins."""

    def __init__(self, file: BinaryFile) -> None:
        self._file = file
        self._read = 0
        self.record = 0

    def begin_record(self) -> None:
        """The next line is the first one of a record."""
        self.record = self._read + 1

    def __iter__(self) -> Iterator[str]:
        while line := self._next():
            self._read += 1
            if len(line) > MAX_BYTES:
                raise BadTokenError(
                    f"The line is longer than {MAX_BYTES:,} bytes, which is more than a token can hold."
                )
            try:
                yield line.decode("utf-8-sig" if self._read == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise BadTokenError(f"The line is not valid UTF-8 ({error.reason} at byte {error.start}).") from None

    def _next(self) -> bytes:
        try:
            return self._file.readline(MAX_BYTES + 1)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise BadTokenError(f"The compressed file is damaged ({error}). It may be truncated.") from None


def json_lines(lines: Lines) -> Iterator[Any]:
    """The values of a file of JSON Lines. Blank lines are skipped."""
    lines.begin_record()
    for line in lines:
        if not line.isspace():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                at = f": character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else ""
                why = getattr(error, "msg", error)
                raise BadTokenError(f"The line is not valid JSON ({why}{at}). The file may be truncated.") from None
            if isinstance(value, int | float) and not line.endswith("\n"):
                raise BadTokenError(
                    "The file ends with a number without a newline: it may be truncated. If it is complete, add a newline."
                )
            yield value
        lines.begin_record()


def csv_rows(lines: Lines) -> Iterator[dict[str, Any]]:
    """The rows of a CSV file with a header, as mappings. Cells are strings, except in the columns in ``NUMBERS``."""
    csv.field_size_limit(max(csv.field_size_limit(), MAX_BYTES))
    rows = _csv_records(lines)
    header = next(rows, None)
    if header is None:
        raise BadTokenError("The file is empty: a CSV file begins with a line of column names.")
    _check_header(header)
    for row in rows:
        if len(row) != len(header):
            raise BadTokenError(
                f"The row has {len(row)} cells, but the header has {len(header)}. The file may be truncated."
            )
        yield {
            name: number(cell) if name in NUMBERS else cell
            for name, cell in zip(header, row, strict=True)
            if cell or name not in NUMBERS
        }


def number(text: str) -> int | float | str:
    """A string as a number if it is one, else the string."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _csv_records(lines: Lines) -> Iterator[list[str]]:
    reader = csv.reader(_ended(lines), strict=True)
    while True:
        lines.begin_record()
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise BadTokenError(f"Invalid CSV row ({error}). The file may be truncated.") from None
        if row:
            yield row


def _ended(lines: Lines) -> Iterator[str]:
    """The lines. The last one must end in a newline: nothing else distinguishes a complete cell from a truncated one."""
    for line in lines:
        if not line.endswith(("\n", "\r")):
            raise BadTokenError(
                "The file does not end with a newline: it may be truncated. If it is complete, add a newline."
            )
        yield line


def _check_header(header: list[str]) -> None:
    if len(header) == 1 and any(separator in header[0] for separator in ";\t"):
        raise BadTokenError(f"The header has one column, {header[0]!r:.80}. Columns are separated by commas.")
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None or "" in header:
        raise BadTokenError(
            f"The header has {f'two columns named {twice!r:.80}' if twice else 'a column without a name'}."
        )


def inline_attachment(name: Any, content: bytes) -> dict[str, str]:
    """A file in CouchDB's format for inline attachments. Its content type is guessed from the name."""
    if not isinstance(name, str) or not name or name.startswith("_"):
        raise BadTokenError(
            f"An attachment cannot be named {name!r:.80}: a name must be a string that does not begin with '_'."
        )
    guessed, encoding = mimetypes.guess_type(name)
    content_type = guessed if guessed and not encoding else "application/octet-stream"
    return {"content_type": content_type, "data": base64.b64encode(content).decode()}


def find_key(fields: Mapping[str, Any], name: str) -> Any:
    """The field to use as a token's key: a field of the token, or of its ``input``. Raises KeyError."""
    for place in (fields, fields.get("input")):
        if isinstance(place, Mapping) and name in place:
            return place[name]
    raise KeyError(name)
