"""Reads the inputs of a push as fields of tokens, one after the other."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from airflow.providers.common.compat.sdk import ObjectStoragePath

from airflow_provider_picas.operators.files import FileError, path_of
from airflow_provider_picas.tokens import ids, inputs
from airflow_provider_picas.tokens.documents import MAX_BYTES, BadTokenError
from airflow_provider_picas.tokens.inputs import Lines

Fields = Mapping[str, Any]

READERS: dict[str, Callable[[Lines], Iterator[Any]]] = {
    ".jsonl": inputs.json_lines,
    ".ndjson": inputs.json_lines,
    ".csv": inputs.csv_rows,
}
"""How files are read, by the end of their names; ``.gz`` may follow."""


class Source:
    """Inputs or fields of tokens, read on demand: the items of an iterable, or the lines of a file.

    ``where`` says for messages what is being read: a file and its line, or an empty string. ``to_fields`` makes a
    token's fields from an item and its place.
    """

    def __init__(self, given: Any, to_fields: Callable[[Any, int], Fields]) -> None:
        """Raises BadTokenError for any other type. A file is not opened yet."""
        self._to_fields = to_fields
        self._path: Any = None
        self._lines: Lines | None = None
        if isinstance(given, str | os.PathLike | ObjectStoragePath):
            self._path = _path(given)
        elif isinstance(given, Mapping | bytes) or not isinstance(given, Iterable):
            raise BadTokenError(
                f"Tokens come from a list or another iterable, or a file of them, not from {given!r:.200}."
            )
        else:
            self._items: Iterable[Any] = given

    @property
    def where(self) -> str:
        """``"<file>, line <number>: "``, or an empty string if it is not a file."""
        return f"{self._path}, line {self._lines.record:,}: " if self._lines else ""

    def __iter__(self) -> Iterator[Fields]:
        for place, item in enumerate(self._items if self._path is None else self._rows()):
            yield self._to_fields(item, place)

    def _rows(self) -> Iterator[Any]:
        packed = self._path.name.endswith(".gz")
        try:
            file = self._path.open("rb", compression="gzip" if packed else None)
        except FileNotFoundError:
            raise BadTokenError(f"File {self._path} does not exist.") from None
        with file:
            # Files of stores have no readline with a size. gzip has one, and returns all lines before a break.
            self._lines = Lines(file if packed else io.BufferedReader(file))
            yield from _reader(self._path)(self._lines)


def input_fields(value: Any, place: int) -> Fields:
    """A token whose ``input`` is the value."""
    return {"input": value}


def token_fields(fields: Any, place: int) -> Fields:
    """A token with these fields."""
    if not isinstance(fields, Mapping):
        raise BadTokenError(
            f"Token {place} is not a mapping of fields: {fields!r:.200}. Use `inputs` for plain values."
        )
    return fields


def any_fields(item: Any, place: int) -> Fields:
    """A token with these fields, or with this ``input``."""
    return item if isinstance(item, Mapping) else input_fields(item, place)


class Keys:
    """The keys of tokens: the value of a field, or of a function of the fields."""

    def __init__(self, key: str | Callable[[Fields], Any]) -> None:
        self._key = key

    def __call__(self, fields: Fields, place: int) -> str:
        try:
            value = self._key(fields) if callable(self._key) else inputs.find_key(fields, self._key)
        except KeyError:
            if callable(self._key):
                raise
            raise BadTokenError(f"Token {place} has no field {self._key!r} for its key.") from None
        try:
            return ids.token_key(value)
        except ValueError as error:
            raise BadTokenError(f"Token {place}: {error}") from None


class Attachments:
    """The files of tokens: names with paths or bytes, in a field, which is removed, or from a function of the fields."""

    def __init__(self, files: str | Callable[[Fields], Any]) -> None:
        self._files = files

    def __call__(self, fields: Fields, place: int) -> tuple[Fields, dict[str, Any]]:
        """The fields without the files, and the files by name, in CouchDB's format."""
        if callable(self._files):
            files, rest = self._files(fields), dict(fields)
        else:
            rest = {name: value for name, value in fields.items() if name != self._files}
            files = fields.get(self._files)
        if not files:
            return rest, {}
        if not isinstance(files, Mapping):
            raise BadTokenError(
                f"Token {place}: attachments must be a mapping of names to paths or bytes, not {files!r:.200}."
            )
        try:
            attached = {name: inputs.inline_attachment(name, _content(file)) for name, file in files.items()}
        except (BadTokenError, FileError) as error:
            raise BadTokenError(f"Token {place}: {error}") from None
        return rest, attached


def _path(given: Any) -> Any:
    try:
        path = path_of(given)
        if _reader(path):
            return path
    except (FileError, ValueError) as error:  # ObjectStoragePath raises ValueError for an unknown protocol
        raise BadTokenError(f"{str(given)!r:.200} is not the path of an input file: {error}") from None
    raise BadTokenError(
        f"{str(given)!r:.200} is interpreted as the path of an input file, but does not end in {', '.join(READERS)}, or one of"
        " these and .gz. Pass a list from another task as `inputs=task.output`, not as a template in a string."
    )


def _reader(path: Any) -> Any:
    return READERS.get(os.path.splitext(str(path.name).removesuffix(".gz"))[1])


def _content(file: Any) -> bytes:
    """The content to attach: bytes, or a file that is read each time, since the same path may be rewritten for each token."""
    if isinstance(file, bytes):
        return file
    path = path_of(file)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise BadTokenError(f"The attachment {path} has {size:,} bytes, but a token can hold {MAX_BYTES:,} in all.")
        content: bytes = path.read_bytes()
        return content
    except FileNotFoundError:
        raise BadTokenError(f"There is no file {path} to attach.") from None
    except IsADirectoryError:
        raise BadTokenError(f"The attachment {path} is a folder.") from None
