"""The operator that fills a pool."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSkipException,
    BaseOperator,
    Context,
    determine_kwargs,
)

from airflow_provider_picas import assets, lineage
from airflow_provider_picas.couchdb import needed_views
from airflow_provider_picas.couchdb.pool import Document
from airflow_provider_picas.couchdb.push import TokenExistsError
from airflow_provider_picas.couchdb.settings import Settings
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.lifecycle.profile import PICAS
from airflow_provider_picas.links import PicasMonitoringLink, PicasPoolLink, push_links, push_page
from airflow_provider_picas.operators.instance import former_push_id, is_first_try, push_id
from airflow_provider_picas.operators.tokens import source
from airflow_provider_picas.operators.tokens.source import Attachments, Fields, Keys, Source
from airflow_provider_picas.tokens import documents, ids, views
from airflow_provider_picas.tokens.batch import Batch, label
from airflow_provider_picas.tokens.documents import BadTokenError
from airflow_provider_picas.tokens.push import DuplicateTokenError, MayDiffer, OnExisting, PushReport

ON_EMPTY = ("skip", "fail", "succeed")

PROGRESS_SECONDS = 10.0
"""Time between two progress lines in the task log."""

Items = Iterable[Any] | Callable[..., Any] | str | os.PathLike[str]


class PicasPushTokensOperator(BaseOperator):
    """Push tokens into a pool. Each token is written once, even if the task is retried or cleared.

    ``inputs`` and ``tokens`` are streamed, so memory does not grow with the number of tokens. Each may be a list,
    another task's output, a function that returns or yields them (called when the task runs, with the Airflow context
    variables that it has parameters for), or the path of a file. Files are JSON Lines (``.jsonl``, ``.ndjson``) or CSV
    with a header (``.csv``), optionally with ``.gz``; local, or any URL of Airflow's ``ObjectStoragePath``, such as
    ``s3://connection@bucket/file.csv``. An invalid or incomplete line fails the task, which names it; the lines before
    it are pushed, and the next run continues there. Cells of a CSV file are strings. In the columns ``priority``,
    ``cores``, ``gpu``, ``time``, ``max_retries`` and ``time_limit``, for ``inputs`` too, cells that look like numbers
    become numbers, and empty cells are omitted.

    :param inputs: one token each. The value (a line's JSON, or a row as a mapping) becomes the token's field ``input``.
    :param tokens: instead of ``inputs``: mappings with any other fields. ``priority`` is a number: this provider's
        pilots claim tokens with a higher one first (default 0); pilots of the PiCaS client ignore it.
    :param key: name of a field (of the token or of its ``input``), or a function of a token's fields. Its value becomes
        part of the token's id, so that the same input has the same id. Without it, tokens are numbered.
    :param attachments: name of a field, or a function of a token's fields, with the files to attach: a mapping of names
        to paths or bytes. The field itself is not pushed. A token holds 8 MB of JSON, which is about 6 MB of files.
    :param batch: a name for the batch. Default: a name derived from the task instance, so that each run has its own.
    :param on_existing: what to do with a token that already exists in the pool. ``reset`` (the default) runs it again,
        with its current fields, if it is in error or in no state, so that clearing the task reruns only the failed
        tokens. ``keep`` skips it. ``replace`` overwrites it unless a pilot holds it. ``fail`` fails if it belongs to
        another task. ``reset`` fails for a token of another push with a different input: its result would be mistaken
        for this one's. A retry or a clear keeps its own tokens and names them.
    :param on_empty: what to do when there is nothing to push: ``skip`` (the default), ``fail`` or ``succeed``.
    :param deploy_views: create missing views, if the login is allowed to. If it is not, and tokens could be neither
        counted nor claimed without them, the task fails before it writes a token. False: neither create nor check
        views.
    :param design_documents: more design documents to create, with PiCaS's views of the tokens for which a JavaScript
        condition holds: ``{"SingleCore": "doc.cores == 1"}``, for example, for the autopilot of the PiCaS client.
    :param picas_conn_id: a connection of type ``picas``.
    :param database: another database than the connection's.
    :param profile: the shape of the pool, if it is not the connection's: the name of a profile, or an object.

    Returns ``{"database", "batch", "tokens", "done_before", "done_before_ids", "label"}``: ``tokens`` is their number,
    and ``done_before`` how many of them were already done by an earlier run, which pushed them to a batch of the same
    name. The log and ``done_before_ids`` name some of these. ``label`` is a short name for people: the batch's name, or
    the first inputs.

    Pools in ``outlets`` (``assets.pool_asset``) get an event with this output in its extra, unless a later task of the
    DAG has the same pool in its ``outlets``: then that task emits the event, when the tokens are done.
    """

    template_fields: Sequence[str] = (
        "inputs", "tokens", "key", "attachments", "batch", "on_existing", "on_empty", "picas_conn_id", "database",
        "profile",
    )  # fmt: skip
    operator_extra_links = (PicasPoolLink(), PicasMonitoringLink())
    ui_color = "#d7ecf5"

    def __init__(
        self,
        *,
        inputs: Items | None = None,
        tokens: Items | None = None,
        key: str | Callable[[Fields], str | int] | None = None,
        attachments: str | Callable[[Fields], Mapping[str, Any]] | None = None,
        batch: str | None = None,
        on_existing: str = "reset",
        on_empty: str = "skip",
        deploy_views: bool = True,
        design_documents: Mapping[str, str] | None = None,
        picas_conn_id: str = PicasHook.default_conn_name,
        database: str | None = None,
        profile: str | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.inputs = inputs
        self.tokens = tokens
        self.key = key
        self.attachments = attachments
        self.batch = batch
        self.on_existing = on_existing
        self.on_empty = on_empty
        self.deploy_views = deploy_views
        self.design_documents = design_documents
        self.picas_conn_id = picas_conn_id
        self.database = database
        self.profile = profile
        self._settings: Settings | None = None

    def _do_render_template_fields(
        self, parent: Any, template_fields: Iterable[str], *args: Any, **kwargs: Any
    ) -> None:
        """Skip functions: Airflow would call them with its context and template engine, as if they were templates.

        Mapped tasks also pass here; they skip ``render_template_fields``.
        """
        templates = [name for name in template_fields if not callable(getattr(parent, name, None))]
        super()._do_render_template_fields(parent, templates, *args, **kwargs)

    def execute(self, context: Context) -> dict[str, Any]:
        if self.on_empty not in ON_EMPTY:
            raise AirflowFailException(f"`on_empty` is {self.on_empty!r}; it takes one of {', '.join(ON_EMPTY)}.")
        if self.on_existing not in list(OnExisting):
            raise AirflowFailException(
                f"`on_existing` is {self.on_existing!r}; it takes one of {', '.join(OnExisting)}."
            )
        if not isinstance(self.batch, str | None):
            raise AirflowFailException(f"`batch` is {self.batch!r:.200}; it takes the name of a batch, a string.")
        hook = PicasHook(self.picas_conn_id, database=self.database, profile=self.profile)
        push = self._push_id(context, hook)
        self._settings = hook.settings
        push_links(context, hook.settings)
        batch = ids.batch_id(self.batch) if self.batch else push
        push_page(context, self.picas_conn_id, hook.settings, batch, role="push", label=self.batch_label)
        try:
            given = self._source(context)
        except BadTokenError as error:
            raise AirflowFailException(str(error)) from None
        if self.deploy_views:
            self._deploy(hook)
        progress = Progress(self.log)
        try:
            report = hook.push(
                self._documents(given, batch, push),
                on_existing=self.on_existing,
                numbered=self.key is None,
                may_differ=MayDiffer.NONE if is_first_try(context) else MayDiffer.OWN,
                progress=progress.log,
            )
        except BadTokenError as error:
            raise AirflowFailException(
                f"{given.where}{error} The tokens before it were pushed ({progress.report.tokens:,}); another run"
                " does not push them twice."
            ) from None
        except (DuplicateTokenError, TokenExistsError) as error:
            raise AirflowFailException(str(error)) from None
        self.log.info("Batch %s in %s: %s, %s.", batch, hook.settings.place, report, progress.pace())
        for remark in report.remarks():
            self.log.warning("%s", remark)
        if not report.tokens:
            self._pushed_nothing()
        output = {
            **Batch(batch, hook.settings.database, report.tokens).as_dict(),
            "done_before": report.done_before,
            "done_before_ids": report.done_before_ids,
            "label": self.batch_label,
        }
        assets.hold_back(self)
        assets.add_to_events(context, self.outlets, output)
        return output

    @property
    def batch_label(self) -> str:
        """A label for people: the name of the batch, the file, or the first inputs that are in the DAG or in XCom."""
        return label(self.batch, self.inputs if self.tokens is None else self.tokens)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """The pool that was pushed to. Called by Airflow's OpenLineage provider."""
        return lineage.of(outputs=[lineage.pool(self._settings)]) if self._settings else None

    def _push_id(self, context: Context, hook: PicasHook) -> str:
        """The id of this push. A try after an upgrade of this provider keeps the id of the earlier tries."""
        push, former = push_id(context), former_push_id(context)
        if former is None or self.batch or next(hook.batch_documents(push), None) is not None:
            return push
        return push if next(hook.batch_documents(former), None) is None else former

    def _source(self, context: Context) -> Source:
        """The tokens to push. Raises BadTokenError."""
        if (self.inputs is None) == (self.tokens is None):
            raise AirflowFailException("Give either `inputs` or `tokens`.")
        given = self.inputs if self.tokens is None else self.tokens
        if callable(given):
            given = given(**determine_kwargs(given, (), context))
        return Source(given, source.input_fields if self.tokens is None else source.token_fields)

    def _documents(self, given: Source, batch: str, push: str) -> Iterator[Document]:
        key = Keys(self.key) if self.key is not None else None
        attach = Attachments(self.attachments) if self.attachments is not None else None
        profile = self._settings.profile if self._settings else PICAS
        for ordinal, fields in enumerate(given):
            key_of_token = key(fields, ordinal) if key else None
            fields, files = attach(fields, ordinal) if attach else (fields, {})
            yield documents.new_token(
                fields, batch=batch, push=push, ordinal=ordinal, key=key_of_token, attachments=files, profile=profile
            )

    def _pushed_nothing(self) -> None:
        if self.on_empty == "fail":
            raise AirflowFailException("There is nothing to push, and on_empty is 'fail'.")
        if self.on_empty == "skip":
            raise AirflowSkipException(
                "There is nothing to push. Set on_empty to 'succeed' or 'fail' for another outcome."
            )

    def _deploy(self, hook: PicasHook) -> None:
        """Create missing views. Raises AirflowFailException if views that are needed to find tokens are missing."""
        settings, conditions = hook.settings, self.design_documents or {}
        deployed = hook.deploy_views(conditions)
        if deployed.written:
            self.log.info("Wrote the design documents %s to %s.", ", ".join(deployed.written), settings.place)
        of_pool = settings.design_document if settings.profile.is_default else settings.profile.design
        needed = {of_pool, *conditions} - {*deployed.written, *deployed.unchanged}
        lacks = hook.do(needed_views.lacking(hook.pool, sorted(needed)))
        if not lacks:
            self._log_refused(deployed.refused, hook)
            return
        if deployed.refused:
            why = f"{settings.who} may not create them, since it is not an admin of the database. Ask an admin"
        else:
            why = "A push does not create them, since it does not know which tokens they are for. Ask an admin of the database"
        others = {name: conditions.get(name) for name in lacks if name != views.MONITOR and not views.is_own(name)}
        command = needed_views.command(
            self.picas_conn_id, self.database, others, login=bool(deployed.refused), profile=self.profile
        )
        raise AirflowFailException(
            f"Nothing was pushed. {settings.place} lacks {needed_views.describe(lacks)}, so tokens could be neither counted nor"
            f" claimed. {why} to run {command} once, or PiCaS's create_views.py. If your pilots do not need these views, set"
            " deploy_views=False."
        )

    def _log_refused(self, refused: Sequence[str], hook: PicasHook) -> None:
        if refused:
            self.log.warning(
                "%s may not write the design documents %s of %s, since it is not an admin of the database. The existing views"
                " suffice, but waits and pilots are slower, and pilots='auto' and resource_classes may not work. Ask an admin to"
                " run %s once.",
                hook.settings.who, ", ".join(refused), hook.settings.place,
                needed_views.command(self.picas_conn_id, self.database, self._conditions(refused), profile=self.profile),
            )  # fmt: skip

    def _conditions(self, names: Sequence[str]) -> dict[str, str | None]:
        return {name: condition for name, condition in (self.design_documents or {}).items() if name in names}


class Progress:
    """Logs the progress of a push from time to time."""

    def __init__(self, log: Any) -> None:
        self.report = PushReport()
        self._log = log
        self._started = self._logged = time.monotonic()

    def log(self, report: PushReport) -> None:
        """Log the progress, if it is due."""
        self.report = report
        if time.monotonic() - self._logged >= PROGRESS_SECONDS:
            self._logged = time.monotonic()
            self._log.info("So far %s, %s.", report, self.pace())

    def pace(self) -> str:
        """The time taken, and the rate in tokens per second."""
        seconds = time.monotonic() - self._started
        return f"in {seconds:.1f} s ({self.report.tokens / max(seconds, 0.001):,.0f} tokens/s)"
