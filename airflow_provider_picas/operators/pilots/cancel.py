"""The operator that stops pilots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, BaseOperator, Context

from airflow_provider_picas.couchdb.errors import CouchDBError
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.hooks.submission import WatchedSubmission
from airflow_provider_picas.slurm.remote import RemoteError
from airflow_provider_picas.submissions.report import PilotsLog
from airflow_provider_picas.submissions.stop import StopMode
from airflow_provider_picas.submissions.submission import Watched
from airflow_provider_picas.tokens.batch import Batch

DRAIN_WAIT = 300.0  # seconds for drained pilots to end; after that their credentials are left in place


class PicasCancelPilotsOperator(BaseOperator):
    """Stop the pilots of a submission. Usable as a teardown: if no pilots remain, it only removes the credentials.

    :param pilots: the output of the operator that submitted them.
    :param how: ``cancel`` (the default): cancel the jobs at once and release their tokens. ``drain``: our own pilots
        finish the tokens in hand, then stop; this task waits up to five minutes for them, to remove their credentials.
        PiCaS client pilots cannot be drained. In both cases, no wait submits them again.
    :param batch: the push operator's output, whose tokens are released.
    :param picas_conn_id: a connection of type ``picas``.
    :param database: another database than the batch's or the connection's.

    Returns the number of tokens that this task released. Pilots normally release their tokens themselves. The log names
    tokens that cannot be released.
    """

    template_fields: Sequence[str] = ("pilots", "how", "batch", "picas_conn_id", "database")
    ui_color = "#e6dcf2"

    def __init__(
        self,
        *,
        pilots: Mapping[str, Any],
        how: str = StopMode.CANCEL,
        batch: str | Mapping[str, Any] | None = None,
        picas_conn_id: str = PicasHook.default_conn_name,
        database: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.pilots = pilots
        self.how = how
        self.batch = batch
        self.picas_conn_id = picas_conn_id
        self.database = database

    def execute(self, context: Context) -> int:
        try:
            watched, batch, how = Watched.parse(self.pilots), Batch.parse(self.batch), StopMode(self.how)
        except ValueError as error:
            raise AirflowFailException(str(error)) from None
        if watched is None:
            self.log.info("No pilots were submitted, so there are none to stop.")
            return 0
        hook = PicasHook(self.picas_conn_id, database=self.database or (batch.database if batch else None))
        try:
            with WatchedSubmission(watched, hook, batch.id if batch else None) as submitted:
                return self._stop(submitted, how)
        except (RemoteError, CouchDBError) as error:
            raise AirflowException(str(error)) from None

    def _stop(self, submitted: WatchedSubmission, how: StopMode) -> int:
        news = submitted.stop(how)
        if how is StopMode.DRAIN:
            self.log.info(
                "The pilots of %s will stop when they have finished their current tokens.", submitted.watched.key
            )
            submitted.remove_credentials(DRAIN_WAIT)
            return 0
        self.log.info("The pilots of %s were cancelled.", submitted.watched.key)
        if news:
            PilotsLog(self.log).report_cancelled(news)
        submitted.remove_credentials()
        return len(news.reaped) if news else 0
