"""The operator that stops pilots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, BaseOperator, Context

from airflow_provider_picas.couchdb.errors import CouchDBError
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.hooks.pilots import PilotsHook
from airflow_provider_picas.slurm.remote import RemoteError
from airflow_provider_picas.submissions.end import remove_credentials
from airflow_provider_picas.submissions.on_kill import stop_for_good
from airflow_provider_picas.submissions.report import PilotsLog
from airflow_provider_picas.submissions.stop import StopMode
from airflow_provider_picas.submissions.submission import Submission
from airflow_provider_picas.submissions.watch import PilotStatus
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
    :param profile: the shape of the pool, if it is not the connection's: the name of a profile, or an object.

    Returns the number of tokens that this task released. Pilots normally release their tokens themselves. The log names
    tokens that cannot be released.
    """

    template_fields: Sequence[str] = ("pilots", "how", "batch", "picas_conn_id", "database", "profile")
    ui_color = "#e6dcf2"

    def __init__(
        self,
        *,
        pilots: Mapping[str, Any],
        how: str = StopMode.CANCEL,
        batch: str | Mapping[str, Any] | None = None,
        picas_conn_id: str = PicasHook.default_conn_name,
        database: str | None = None,
        profile: str | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.pilots = pilots
        self.how = how
        self.batch = batch
        self.picas_conn_id = picas_conn_id
        self.database = database
        self.profile = profile

    def execute(self, context: Context) -> int:
        try:
            submission, batch, how = Submission.parse(self.pilots), Batch.parse(self.batch), StopMode(self.how)
        except ValueError as error:
            raise AirflowFailException(str(error)) from None
        if submission is None:
            self.log.info("No pilots were submitted, so there are none to stop.")
            return 0
        database = self.database or (batch.database if batch else None)
        hook = PicasHook(self.picas_conn_id, database=database, profile=self.profile)
        try:
            with PilotsHook(hook, submission.ssh_conn_id) as hooks:
                stopping = stop_for_good(hook.pool, batch.id if batch else None, submission, how, self.log)
                return self._finish(hooks, submission, how, hooks.do(stopping))
        except (RemoteError, CouchDBError) as error:
            raise AirflowException(str(error)) from None

    def _finish(self, hooks: PilotsHook, submission: Submission, how: StopMode, status: PilotStatus | None) -> int:
        if how is StopMode.DRAIN:
            self.log.info("The pilots of %s will stop when they have finished their current tokens.", submission.key)
            hooks.do(remove_credentials(submission, DRAIN_WAIT))
            return 0
        self.log.info("The pilots of %s were cancelled.", submission.key)
        if status:
            PilotsLog(self.log).report_cancelled(status)
        hooks.do(remove_credentials(submission))
        return len(status.reaped) if status else 0
