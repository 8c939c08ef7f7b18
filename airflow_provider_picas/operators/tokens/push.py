"""The operator that fills a pool."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException, BaseOperator, Context

from airflow_provider_picas.couchdb.pool import Deployment, Document
from airflow_provider_picas.couchdb.push import TokenExistsError
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.links import PicasMonitoringLink, PicasPoolLink, push_links
from airflow_provider_picas.operators.instance import push_id
from airflow_provider_picas.tokens import documents, ids
from airflow_provider_picas.tokens.batch import Batch
from airflow_provider_picas.tokens.documents import BadTokenError
from airflow_provider_picas.tokens.push import DuplicateTokenError, OnExisting

ON_EMPTY = ("skip", "fail", "succeed")


class PicasPushTokensOperator(BaseOperator):
    """Push tokens into a pool, each once, however often the task runs.

    :param inputs: one token each; the value becomes the token's field ``input``.
    :param tokens: instead of ``inputs``: mappings with any further fields, such as ``input`` and ``priority``.
    :param key: name of a field, or a function of a token's fields, whose value becomes part of the token's id. Without it,
        tokens are numbered.
    :param batch: a name for the batch. Default: one made from the task instance, so that each run has its own.
    :param on_existing: what to do with a token that is in the pool already: ``reset`` (the default: run it again if it is in
        error, so that clearing the task runs just what failed), ``keep``, ``replace``, or ``fail``.
    :param on_empty: what to do when there is nothing to push: ``skip`` (the default), ``fail`` or ``succeed``.
    :param deploy_views: create the views that the pool lacks, if the login may.
    :param picas_conn_id: a connection of type ``picas``.
    :param database: another database than the connection's.

    Returns ``{"database", "batch", "tokens"}``, where ``tokens`` is their number.
    """

    template_fields: Sequence[str] = (
        "inputs", "tokens", "key", "batch", "on_existing", "on_empty", "picas_conn_id", "database",
    )  # fmt: skip
    operator_extra_links = (PicasPoolLink(), PicasMonitoringLink())
    ui_color = "#d7ecf5"

    def __init__(
        self,
        *,
        inputs: Iterable[Any] | None = None,
        tokens: Iterable[Mapping[str, Any]] | None = None,
        key: str | Callable[[Mapping[str, Any]], str | int] | None = None,
        batch: str | None = None,
        on_existing: str = "reset",
        on_empty: str = "skip",
        deploy_views: bool = True,
        picas_conn_id: str = PicasHook.default_conn_name,
        database: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.inputs = inputs
        self.tokens = tokens
        self.key = key
        self.batch = batch
        self.on_existing = on_existing
        self.on_empty = on_empty
        self.deploy_views = deploy_views
        self.picas_conn_id = picas_conn_id
        self.database = database

    def execute(self, context: Context) -> dict[str, Any]:
        if (self.inputs is None) == (self.tokens is None):
            raise AirflowFailException("Give either `inputs` or `tokens`.")
        if self.on_empty not in ON_EMPTY:
            raise AirflowFailException(f"on_empty is {self.on_empty!r}; it is one of {', '.join(ON_EMPTY)}.")
        if self.on_existing not in list(OnExisting):
            raise AirflowFailException(f"on_existing is {self.on_existing!r}; it is one of {', '.join(OnExisting)}.")
        hook = PicasHook(self.picas_conn_id, database=self.database)
        push_links(context, hook.settings)
        push = push_id(context)
        batch = ids.batch_id(self.batch) if self.batch else push
        if self.deploy_views:
            self._report(hook.deploy_views(), hook)
        try:
            report = hook.push(self._documents(batch, push), on_existing=self.on_existing)
        except (BadTokenError, DuplicateTokenError, TokenExistsError) as error:
            raise AirflowFailException(str(error)) from None
        self.log.info("Batch %s in %s: %s.", batch, hook.settings.place, report)
        if not report.tokens:
            self._nothing()
        return Batch(batch, hook.settings.database, report.tokens).as_dict()

    def _nothing(self) -> None:
        if self.on_empty == "fail":
            raise AirflowFailException("There is nothing to push, and on_empty is 'fail'.")
        if self.on_empty == "skip":
            raise AirflowSkipException(
                "There is nothing to push. Set on_empty to 'succeed' or 'fail' for another outcome."
            )

    def _report(self, deployed: Deployment, hook: PicasHook) -> None:
        if deployed.written:
            self.log.info("Wrote the design documents %s to %s.", ", ".join(deployed.written), hook.settings.place)
        if deployed.refused:
            self.log.warning(
                "%s may not write the design documents %s to %s. Pilots and counts need Monitor; without the other,"
                " counting is slower. Ask who keeps the database to push once with an admin's login.",
                hook.settings.login or "Nobody", ", ".join(deployed.refused), hook.settings.place,
            )  # fmt: skip

    def _documents(self, batch: str, push: str) -> Iterator[Document]:
        for ordinal, fields in enumerate(self._fields()):
            key = self._key_of(fields, ordinal)
            yield documents.new_token(fields, batch=batch, push=push, ordinal=ordinal, key=key)

    def _fields(self) -> Iterator[Mapping[str, Any]]:
        if self.inputs is not None:
            if isinstance(self.inputs, str | bytes | Mapping):
                raise BadTokenError(
                    f"`inputs` is a list or another iterable, one token each, not {self.inputs!r:.200}."
                )
            for value in self.inputs:
                yield {"input": value}
            return
        for ordinal, fields in enumerate(self.tokens or ()):
            if not isinstance(fields, Mapping):
                raise BadTokenError(
                    f"Token {ordinal} is no mapping of fields: {fields!r:.200}. Use `inputs` for plain values."
                )
            yield fields

    def _key_of(self, fields: Mapping[str, Any], ordinal: int) -> str | None:
        if self.key is None:
            return None
        if callable(self.key):
            value: Any = self.key(fields)
        elif self.key in fields:
            value = fields[self.key]
        else:
            raise BadTokenError(f"Token {ordinal} has no field {self.key!r}, which is to be its key.")
        try:
            return ids.token_key(value)
        except ValueError as error:
            raise BadTokenError(f"Token {ordinal}: {error}") from None
