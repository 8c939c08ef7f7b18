"""Common code of the operators that work on selected tokens of a pool."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, ClassVar

from airflow.providers.common.compat.sdk import AirflowFailException, BaseOperator, Context

from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.hooks.regex import PatternError
from airflow_provider_picas.parameters import flag
from airflow_provider_picas.tokens.batch import Batch
from airflow_provider_picas.tokens.selection import EditReport, Selection, UnknownBatchError


class SelectingOperator(BaseOperator):
    """Base of operators on selected tokens. A token is selected if all conditions hold.

    :param batch: the push operator's output, or the name of a batch.
    :param whole_pool: without a batch, select all tokens of the pool. A template that rendered to an empty string is
        not enough.
    :param states: some of ``todo``, ``locked``, ``done``, ``error``: a list, or a comma-separated string.
    :param keys: only these tokens, given by their keys in the batch or by their ids.
    :param error_pattern: a regular expression to search in the token's errors: the line ``exit code <n>``, and then a
        line for each exception and message. ``^`` and ``$`` match at each line.
    :param older_than: only tokens that were locked at least this number of seconds ago; no waiting tokens.
    :param min_scrubs: only tokens that were released this number of times or more.
    :param max_scrubs: only tokens that were released fewer times than this.
    :param picas_conn_id: a connection of type ``picas``.
    :param database: another database than the batch's or the connection's.
    :param profile: the shape of the pool, if it is not the connection's: the name of a profile, or an object.
    """

    template_fields: Sequence[str] = (
        "batch", "whole_pool", "states", "keys", "error_pattern", "older_than", "min_scrubs", "max_scrubs", "picas_conn_id",
        "database", "profile",
    )  # fmt: skip
    ui_color = "#d7ecf5"

    def __init__(
        self,
        *,
        batch: str | Mapping[str, Any] | None = None,
        whole_pool: bool | str = False,
        states: str | Iterable[str] | None = None,
        keys: str | Iterable[str | int] | None = None,
        error_pattern: str | None = None,
        older_than: float | str | timedelta | None = None,
        min_scrubs: int | str | None = None,
        max_scrubs: int | str | None = None,
        picas_conn_id: str = PicasHook.default_conn_name,
        database: str | None = None,
        profile: str | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.batch = batch
        self.whole_pool = whole_pool
        self.states = states
        self.keys = keys
        self.error_pattern = error_pattern
        self.older_than = older_than
        self.min_scrubs = min_scrubs
        self.max_scrubs = max_scrubs
        self.picas_conn_id = picas_conn_id
        self.database = database
        self.profile = profile

    @contextmanager
    def _author_errors(self) -> Iterator[None]:
        """Fail the task without a retry for an error of the author: another try would fail in the same way."""
        try:
            yield
        except (PatternError, UnknownBatchError, ValueError) as error:
            raise AirflowFailException(str(error)) from error

    def _batch(self) -> Batch | None:
        batch = Batch.parse(self.batch)
        if batch is None and not flag("whole_pool", self.whole_pool):
            raise ValueError(
                "`batch` is empty. Give the push operator's output, or the name of a batch; to select all tokens of the"
                " pool, set whole_pool=True."
            )
        return batch

    def _selection(self, batch: Batch | None) -> Selection:
        return Selection.parse(
            batch.id if batch else None,
            states=self.states,
            keys=self.keys,
            error_pattern=self.error_pattern,
            older_than=self.older_than,
            min_scrubs=self.min_scrubs,
            max_scrubs=self.max_scrubs,
        )

    def _hook(self, batch: Batch | None) -> PicasHook:
        database = self.database or (batch.database if batch else None)
        return PicasHook(self.picas_conn_id, database=database, profile=self.profile)

    def _log_report(self, report: EditReport, what: str, hook: PicasHook, selection: Selection) -> None:
        self.log.info("%s in %s:", selection.where.capitalize(), hook.settings.place)
        for line in report.lines(what):
            self.log.info("  %s", line)

    def _output(self, batch: Batch | None, hook: PicasHook, **more: Any) -> dict[str, Any]:
        """A result that can be passed on as a batch, if there is one."""
        tokens = batch.tokens if batch else None
        return {"database": hook.settings.database, "batch": batch.id if batch else None, "tokens": tokens, **more}


class EditingOperator(SelectingOperator):
    """Base of operators that change the selected tokens and log what they changed. Takes all parameters of
    ``SelectingOperator``, and:

    :param dry_run: change nothing; log what would be done.

    A token that a pilot claims or finishes in the meantime is skipped.

    Returns ``{"database", "batch", "tokens", "reset" or "updated", "ids", "left"}``, which can be passed on as a batch
    unless it was the whole pool. ``reset`` or ``updated`` is the number of tokens, ``ids`` are some of them, and
    ``left`` has for each reason the number of skipped tokens and some of their ids.
    """

    changed: ClassVar[str]
    """What is done to the tokens: a participle for the log and the output."""

    template_fields: Sequence[str] = (*SelectingOperator.template_fields, "dry_run")

    def __init__(self, *, dry_run: bool | str = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dry_run = dry_run  # type: ignore[method-assign, assignment]  # Airflow's method of that name is never called on a task

    def execute(self, context: Context) -> dict[str, Any]:
        with self._author_errors():
            dry_run = flag("dry_run", self.dry_run)
            batch = self._batch()
            selection = self._selection(batch)
            hook = self._hook(batch)
            report = self._edit(hook, selection, dry_run)
        self._log_report(report, f"would be {self.changed}" if dry_run else self.changed, hook, selection)
        output = {self.changed: report.changed, "ids": report.changed_ids, "left": report.skipped_dict()}
        return self._output(batch, hook, **output)

    def _edit(self, hook: PicasHook, selection: Selection, dry_run: bool) -> EditReport:
        """Change the selected tokens, or with ``dry_run`` only report what would be changed."""
        raise NotImplementedError
