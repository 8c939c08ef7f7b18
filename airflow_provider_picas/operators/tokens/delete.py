"""The operators that delete tokens, optionally into an archive, and restore them."""

from __future__ import annotations

import gzip
import secrets
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, BinaryIO, cast

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSkipException,
    BaseOperator,
    Context,
)

from airflow_provider_picas.couchdb.pool import Document
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.lifecycle.profile import PICAS, Profile
from airflow_provider_picas.operators.files import FileError, path_of, whole_file
from airflow_provider_picas.operators.tokens.selecting import SelectingOperator
from airflow_provider_picas.parameters import optional_seconds
from airflow_provider_picas.tokens import archive
from airflow_provider_picas.tokens.archive import BadArchiveError
from airflow_provider_picas.tokens.documents import HUGE_INTEGER, holds_huge_integer
from airflow_provider_picas.tokens.selection import EditReport, Selection
from airflow_provider_picas.tokens.states import State, state_of


class PicasDeleteTokensOperator(SelectingOperator):
    """Delete tokens, optionally after writing them to an archive. Takes all parameters of ``SelectingOperator``, and:

    :param states: the states to delete. Default: all but ``locked``, whose pilots would lose their work.
    :param archive: a folder, local or in an object store. The tokens and their attachments are written to a new file in
        it, which is complete before the first token is deleted. ``PicasRestoreTokensOperator`` restores them.
    :param finished_for: skip the task unless the whole batch finished at least this number of seconds ago.

    A token that changed after it was archived, or read, is not deleted.

    Returns ``{"database", "batch", "tokens", "archive", "archived", "deleted", "left"}``; ``archive`` is the file's
    path.
    """

    template_fields: Sequence[str] = (*SelectingOperator.template_fields, "archive", "finished_for")

    def __init__(
        self, *, archive: str | None = None, finished_for: float | str | timedelta | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.archive = archive
        self.finished_for = finished_for

    def execute(self, context: Context) -> dict[str, Any]:
        with self._author_errors():
            batch = self._batch()
            selection = self._selection(batch)
            hook = self._hook(batch)
            hook.count_existing(selection.batch)
            self._skip_unfinished(hook, selection)
            report = EditReport()
            chosen = self._chosen(hook, selection, report)
            path, archived, profile = None, 0, hook.settings.profile
            if self.archive is not None:
                path, archived = self._write(hook.with_attachments(chosen), hook, selection)
                self.log.info("%s: %d tokens are in the archive %s.", selection.where.capitalize(), archived, path)
                revisions = ((token["_id"], token["_rev"]) for token in read(path, profile)) if path else iter(())
            else:
                revisions = ((token["_id"], token["_rev"]) for token in chosen)
            report.add(hook.editor.delete(revisions))
        self._log_report(report, "deleted", hook, selection)
        return self._output(
            batch, hook, archive=path, archived=archived, deleted=report.changed, left=report.skipped_dict()
        )

    def _chosen(self, hook: PicasHook, selection: Selection, report: EditReport) -> Iterator[Document]:
        """The tokens to delete. Locked ones are skipped and reported, unless ``states`` includes ``locked``."""
        for token in hook.editor.select(selection):
            if selection.states is None and state_of(token, hook.settings.profile) is State.LOCKED:
                report.skip("is locked", token["_id"])
            elif self.archive is not None and holds_huge_integer(token):
                report.skip(HUGE_INTEGER, token["_id"])
            else:
                yield token

    def _skip_unfinished(self, hook: PicasHook, selection: Selection) -> None:
        seconds = optional_seconds("finished_for", self.finished_for)
        if seconds is None:
            return
        if selection.batch is None:
            raise ValueError("`finished_for` applies to a batch, but `batch` is empty.")
        if objection := hook.unfinished(selection.batch, seconds):
            raise AirflowSkipException(f"Batch {selection.batch} is skipped: {objection}.")

    def _write(self, tokens: Iterable[Document], hook: PicasHook, selection: Selection) -> tuple[str | None, int]:
        """Write an archive; its path and the number of tokens. None if there are no tokens."""
        tokens = iter(tokens)
        first = next(tokens, None)
        if first is None:
            return None, 0
        if not self.archive:
            raise AirflowFailException("`archive` is empty; it takes the path of a folder. Nothing was deleted.")
        stem = f"{selection.batch or hook.settings.database.replace('/', '_')}-{hook.now()}"
        # Unique: after a failure half-way, or beside another delete, each archive may hold the only copy of a token.
        path = path_of(self.archive) / f"{stem}-{secrets.token_hex(8)}{archive.SUFFIX}"
        written = 1
        with (
            whole_file(path) as file,
            gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0, compresslevel=6) as packed,
        ):
            packed.write(archive.line_of(first))
            for written, token in enumerate(tokens, 2):  # noqa: B007
                packed.write(archive.line_of(token))
        return str(path), written


class PicasRestoreTokensOperator(BaseOperator):
    """Restore the tokens of an archive, with their ids, fields, attempts, attachments and states.

    Tokens that exist in the pool are skipped. A token that was locked is locked again, although no pilot holds it.

    :param archive: path of a file that ``PicasDeleteTokensOperator`` wrote: its output's ``archive``.
    :param picas_conn_id: a connection of type ``picas``.
    :param database: another database than the connection's.
    :param profile: the shape of the pool, if it is not the connection's: the name of a profile, or an object.

    Returns ``{"database", "restored", "left"}``.
    """

    template_fields: Sequence[str] = ("archive", "picas_conn_id", "database", "profile")
    ui_color = "#d7ecf5"

    def __init__(
        self,
        *,
        archive: str,
        picas_conn_id: str = PicasHook.default_conn_name,
        database: str | None = None,
        profile: str | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.archive = archive
        self.picas_conn_id = picas_conn_id
        self.database = database
        self.profile = profile

    def execute(self, context: Context) -> dict[str, Any]:
        hook = PicasHook(self.picas_conn_id, database=self.database, profile=self.profile)
        try:
            report = hook.editor.restore(archive.restored(token) for token in read(self.archive, hook.settings.profile))
        except BadArchiveError as error:
            raise AirflowFailException(f"{error} The tokens before it were restored.") from None
        self.log.info("From %s to %s:", self.archive, hook.settings.place)
        for line in report.lines("restored"):
            self.log.info("  %s", line)
        return {"database": hook.settings.database, "restored": report.changed, "left": report.skipped_dict()}


def read(path: str, profile: Profile = PICAS) -> Iterator[Document]:
    """Yield the tokens of an archive. Raises BadArchiveError, and FileError if it cannot be read."""
    place = path_of(path)
    number = 0
    try:
        with place.open("rb") as file, gzip.open(cast(BinaryIO, file), "rb") as lines:
            for number, line in enumerate(lines, 1):
                yield archive.token_of(line, number, str(path), profile)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadArchiveError(f"{path} is not a complete gzip file: it ends after line {number} ({error}).") from None
    except OSError as error:
        raise FileError(f"{path} cannot be read ({error.strerror or error}).") from error
