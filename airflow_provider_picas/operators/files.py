"""Files that operators read and write: local, or in an object store through Airflow's ``ObjectStoragePath``."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from airflow.providers.common.compat.sdk import AirflowException, ObjectStoragePath

LOCAL = ("", "file", "local")


class FileError(AirflowException):
    """A file cannot be read or written; the message says which and why."""


def path_of(path: Any) -> Any:
    """The path that an author gave: a local path, or a URL such as ``s3://connection@bucket/folder``."""
    if isinstance(path, ObjectStoragePath):
        return path
    if isinstance(path, str | os.PathLike) and str(path) and "\0" not in str(path):
        return ObjectStoragePath(str(path))
    raise FileError(f"{path!r:.200} is not a path.")


def is_local(path: Any) -> bool:
    """True if a path is on a disk of this machine."""
    return path.protocol in LOCAL


@contextmanager
def whole_file(path: Any) -> Iterator[BinaryIO]:
    """Open a file for writing that appears under its name only when it is complete and synced to disk.

    It is written to a temporary file beside it, whose name begins with a dot, and then renamed. For an object store it
    is written locally first, and then sent. This replaces an existing file. Raises FileError, and leaves nothing
    behind.
    """
    path = path_of(path)
    try:
        if is_local(path):
            with _beside(Path(path.path)) as file:
                yield file
        else:
            with tempfile.NamedTemporaryFile(prefix="picas-") as file:
                yield cast(BinaryIO, file)
                file.flush()
                _send(file.name, path)
    except OSError as error:
        raise FileError(
            f"{path} cannot be written ({error.strerror or error}). An earlier file of that name is unchanged."
            " Check that the folder can be written, and that there is room."
        ) from error


@contextmanager
def _beside(path: Path) -> Iterator[BinaryIO]:
    _make_folder(path.parent)
    part = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    _sync_folder(path.parent)


def _make_folder(folder: Path) -> None:
    """Create a folder, but not at the root: if it is missing there, a volume is not mounted or the name is wrong."""
    top = Path(*folder.absolute().parts[:2])
    if not top.exists():
        raise FileError(
            f"{folder} cannot be written: {top} does not exist on this machine. Mount or create it where tasks run, or use"
            " another folder."
        )
    folder.mkdir(parents=True, exist_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _send(file: str, path: Any) -> None:
    """Copy a file to a store, and rename it when it is complete: some stores show a file before that."""
    part = path.parent / f"{path.name}.{secrets.token_hex(4)}.part"
    path.parent.mkdir(parents=True, exist_ok=True)
    size = os.path.getsize(file)
    try:
        path.fs.put_file(file, part.path)
        arrived = path.fs.info(part.path)["size"]
        if arrived != size:
            raise OSError(f"{arrived:,} of {size:,} bytes arrived")
        path.fs.mv(part.path, path.path)
    except BaseException:
        with suppress(Exception):
            path.fs.rm_file(part.path)
        raise
