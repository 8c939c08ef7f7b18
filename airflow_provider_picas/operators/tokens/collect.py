"""The operator that collects results and attachments of tokens, and the causes of failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from airflow.providers.common.compat.sdk import AirflowFailException, Context

from airflow_provider_picas import lineage, links
from airflow_provider_picas.couchdb.pool import Document
from airflow_provider_picas.couchdb.settings import Settings
from airflow_provider_picas.hooks.failures import FailedTokens, report
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.lifecycle.transitions import for_display
from airflow_provider_picas.operators.files import path_of, whole_file
from airflow_provider_picas.operators.results import format_of, write_rows
from airflow_provider_picas.operators.tokens.selecting import SelectingOperator
from airflow_provider_picas.parameters import optional_whole_number
from airflow_provider_picas.tokens import attachments, waiting
from airflow_provider_picas.tokens.batch import Batch
from airflow_provider_picas.tokens.counts import Completeness, Counts, ErrorBudget
from airflow_provider_picas.tokens.results import Row, for_xcom, json_line, parse_fields, row_of
from airflow_provider_picas.tokens.selection import Selection
from airflow_provider_picas.tokens.states import State
from airflow_provider_picas.tokens.text import sample
from airflow_provider_picas.tokens.waiting import Outcome

MAX_XCOM_BYTES = 48_000
"""Larger results (as JSON) are not pushed to XCom unless asked: some databases hold only 64 kB."""

MAX_ATTACHMENT_BYTES = 100_000_000
"""Attachments that are larger are not downloaded unless asked."""


class PicasCollectTokensOperator(SelectingOperator):
    """Collect the results of tokens. Takes all parameters of ``SelectingOperator``, and:

    :param states: the states to collect. Default: ``done`` and ``error``.
    :param fields: fields of the tokens to collect, in addition to ``id``, ``state``, ``exit_code``, ``lock`` and
        ``done`` (seconds since 1970). A path, such as ``output.words``, reaches into a mapping. Default: ``output``.
    :param path: a file, local or in an object store, which appears only when it is complete. Folders are created as
        needed, but not at the root of the file system, where a volume may not be mounted. Without a path, the rows are
        pushed to XCom, where a mapping with keys that Airflow reserves (``__type``, ``__classname__`` …) becomes a JSON
        string.
    :param file_format: ``jsonl``, ``csv`` or ``parquet``. Default: by the suffix of ``path``. In CSV, a string that a
        spreadsheet would evaluate as a formula is prefixed with an apostrophe. Parquet needs the extra ``parquet``.
    :param max_xcom_bytes: fail if the rows have more bytes than this, instead of pushing them to XCom.
    :param attachments: a folder, local or in an object store, for the attachments of the tokens, with a subfolder for
        each token. Names that are not safe, or differ only by case, are changed and get a digest.
    :param attachment_names: collect only attachments whose names match, such as ``*.csv``.
    :param max_attachment_bytes: skip larger attachments; they are named in the log and the output.
    :param max_errors: fail, after collecting, if the batch is not complete or more tokens are in error. Same values as
        for the sensor.

    The log and the output group tokens in error by cause, with ids and the end of one token's log.

    Returns ``{"database", "batch", "tokens", "counts", "collected", "rows" or "path", "errors", "attachments"}``.
    """

    template_fields: Sequence[str] = (
        *SelectingOperator.template_fields, "fields", "path", "file_format", "max_xcom_bytes", "attachments",
        "attachment_names", "max_attachment_bytes", "max_errors",
    )  # fmt: skip

    def __init__(
        self,
        *,
        states: Any = ("done", "error"),
        fields: str | Sequence[str] = ("output",),
        path: str | None = None,
        file_format: str | None = None,
        max_xcom_bytes: int | str = MAX_XCOM_BYTES,
        attachments: str | None = None,
        attachment_names: str | None = None,
        max_attachment_bytes: int | str = MAX_ATTACHMENT_BYTES,
        max_errors: float | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(states=states, **kwargs)
        self.fields = fields
        self.path = path
        self.file_format = file_format
        self.max_xcom_bytes = max_xcom_bytes
        self.attachments = attachments
        self.attachment_names = attachment_names
        self.max_attachment_bytes = max_attachment_bytes
        self.max_errors = max_errors
        self._settings: Settings | None = None

    def execute(self, context: Context) -> dict[str, Any]:
        with self._author_errors():
            batch = self._batch()
            selection = self._selection(batch)
            fields = parse_fields(self.fields)
            budget = None if self.max_errors in (None, "") else ErrorBudget.parse(self.max_errors)
            xcom_bytes = _limit("max_xcom_bytes", self.max_xcom_bytes, MAX_XCOM_BYTES)
            attachment_bytes = _limit("max_attachment_bytes", self.max_attachment_bytes, MAX_ATTACHMENT_BYTES)
            file_format = format_of(str(self.path), self.file_format) if self.path else ""
            hook = self._hook(batch)
            self._settings = hook.settings
            links.push_page(context, self.picas_conn_id, hook.settings, batch.id if batch else None, role="collect")
            counts = hook.count_existing(selection.batch)
            failed = FailedTokens(hook)
            profile = hook.settings.profile
            tokens = failed.watch(hook.editor.select(selection))
            found_in: Counter[State | None] = Counter()
            rows = _counted((row_of(for_display(token, profile), fields, profile) for token in tokens), found_in)
            if self.path:
                collected, size = write_rows(rows, self.path, file_format, fields)
                result: dict[str, Any] = {"collected": collected, "path": self.path}
                self._log_collected(selection, found_in, size, f"written to {self.path}")
            else:
                found, size = self._for_xcom(rows, selection, xcom_bytes)
                result = {"collected": len(found), "rows": found}
                self._log_collected(selection, found_in, size, "pushed to XCom")
            if selection.states is not None and State.ERROR not in selection.states and counts.error:
                failed.add(hook.tokens(State.ERROR, selection.batch))
            result["errors"] = failed.summary()
            result["attachments"] = self._download(hook, selection, attachment_bytes) if self.attachments else None
        for line in report(result["errors"], failed.tokens):
            self.log.info("%s", line)
        output = self._output(batch, hook, counts=counts.as_dict(), **result)
        if budget is not None:
            self._check_budget(context, output, counts, batch, budget)
        return output

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """The pool that was read and the file that was written. Called by Airflow's OpenLineage provider."""
        if self._settings is None:
            return None
        outputs = [lineage.file(str(self.path))] if self.path else []
        return lineage.of(inputs=[lineage.pool(self._settings)], outputs=outputs)

    def _log_collected(self, selection: Selection, found_in: Counter[State | None], size: int, where: str) -> None:
        names = {State.ERROR: "in error", None: "in no state"}
        parts = [
            f"{found_in[state]} {names.get(state, state)}"
            for state in (State.DONE, State.ERROR, State.LOCKED, State.TODO, None)
            if found_in[state]
        ]
        states = f": {', '.join(parts)}" if parts else ""
        self.log.info(
            "%s: %d results (%d bytes) %s%s.", selection.where.capitalize(), found_in.total(), size, where, states
        )

    def _for_xcom(self, rows: Iterator[Row], selection: Selection, limit: int) -> tuple[list[Row], int]:
        found: list[Row] = []
        size = 0
        for row in rows:
            size += len(json_line(row).encode("utf-8", "surrogatepass"))
            if size > limit:
                raise AirflowFailException(
                    f"The results of {selection.where} have more than {limit:,} bytes (reached at row {len(found) + 1}), which is"
                    " too large for XCom. Set `path`, such as path='/data/results.jsonl', collect fewer `fields`, or raise"
                    " max_xcom_bytes."
                )
            found.append(for_xcom(row))
        return found, size

    def _download(self, hook: PicasHook, selection: Selection, limit: int) -> dict[str, Any]:
        folder = path_of(self.attachments)
        pattern = self.attachment_names or "*"

        def save(token: Document) -> _Saved:
            saved = _Saved()
            stubs = attachments.stubs_of(token)
            for name, file_name in attachments.file_names(stubs).items():
                if not fnmatchcase(name, pattern):
                    continue
                if attachments.size(stubs[name]) > limit:
                    saved.too_large.append(f"{token['_id']}/{name}")
                    continue
                with whole_file(folder / attachments.folder_name(token["_id"], selection.batch) / file_name) as file:
                    saved.bytes += hook.download(token, name, file)
                saved.files += 1
            return saved

        total = _Saved()
        for saved in hook.side_by_side(save, hook.editor.select(selection)):
            total.add(saved)
        if total.files:
            self.log.info("%d attachments (%d bytes) written to %s.", total.files, total.bytes, folder)
        elif not total.too_large:
            self.log.info("No attachments were written to %s: the tokens have none that match %s.", folder, pattern)
        if total.too_large:
            self.log.warning(
                "%d attachments are larger than %d bytes and were skipped: %s.",
                len(total.too_large), limit, sample(total.too_large),
            )  # fmt: skip
        return {
            "folder": str(folder),
            "files": total.files,
            "bytes": total.bytes,
            "too_large": {"attachments": len(total.too_large), "names": total.too_large[:5]},
        }

    def _check_budget(
        self, context: Context, output: dict[str, Any], counts: Counts, batch: Batch | None, budget: ErrorBudget
    ) -> None:
        completeness = Completeness(counts, batch.tokens if batch else None)
        outcome = waiting.evaluate(completeness, budget).outcome
        if outcome is Outcome.COMPLETE:
            return
        context["ti"].xcom_push(key="return_value", value=output)  # also if the task fails next
        where = f"batch {batch.id}" if batch else "the pool"
        if outcome is Outcome.WAITING:
            raise AirflowFailException(f"Not all tokens in {where} have finished: {counts} of {completeness.total:,}.")
        raise AirflowFailException(waiting.explain(outcome, completeness, budget, where=where))


def _counted(rows: Iterable[Row], found_in: Counter[State | None]) -> Iterator[Row]:
    """The rows, counted by the states of their tokens as they pass."""
    for row in rows:
        found_in[row["state"]] += 1
        yield row


def _limit(name: str, value: Any, default: int) -> int:
    """A number of bytes, or the default for a template that rendered to an empty string. Raises ValueError."""
    limit = optional_whole_number(name, value)
    return default if limit is None else limit


@dataclass
class _Saved:
    """Attachments that were downloaded."""

    files: int = 0
    bytes: int = 0
    too_large: list[str] = field(default_factory=list)

    def add(self, other: _Saved) -> None:
        self.files += other.files
        self.bytes += other.bytes
        self.too_large += other.too_large
