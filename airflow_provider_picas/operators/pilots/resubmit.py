"""The operator that submits the pilots of a batch again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, BaseOperator, Context

from airflow_provider_picas.couchdb import batch_pilots
from airflow_provider_picas.couchdb.errors import CouchDBError
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.hooks.pilots import credential_files
from airflow_provider_picas.hooks.slurm import SlurmHook
from airflow_provider_picas.links import PicasMonitoringLink, PicasPoolLink, push_links, push_page
from airflow_provider_picas.operators.instance import submission_key, submission_keys
from airflow_provider_picas.operators.pilots.submit import output_of
from airflow_provider_picas.parameters import optional_positive_number
from airflow_provider_picas.slurm import earlier_submission, submission_folder
from airflow_provider_picas.slurm.remote import RemoteError, RemoteFile
from airflow_provider_picas.slurm.submission_folder import SubmissionRefusedError
from airflow_provider_picas.submissions.submission import Submission
from airflow_provider_picas.tokens.batch import Batch
from airflow_provider_picas.tokens.text import one_line, sample


class PicasResubmitPilotsOperator(BaseOperator):
    """Submit the pilots of a batch again: same script or command, setup, files, options, environment and cluster.

    These are copied on the cluster from the folder of the earlier submission, which is kept for ``keep_days`` of the
    operator that submitted it. The credentials are the connection's current ones. This is a separate submission, which
    a retry finds.

    :param batch: the push operator's output, or the name of a batch.
    :param pilots: the output of the operator that submitted them. Default: the last ones submitted for the batch.
    :param max_pilots: limit on the pilots of each sbatch call. Default: the same number as before.
    :param picas_conn_id: a connection of type ``picas``.
    :param database: another database than the batch's or the connection's.
    :param profile: the shape of the pool, if it is not the connection's: the name of a profile, or an object.

    Returns what ``PicasSubmitPilotsOperator`` returns.
    """

    template_fields: Sequence[str] = ("batch", "pilots", "max_pilots", "picas_conn_id", "database", "profile")
    operator_extra_links = (PicasPoolLink(), PicasMonitoringLink())
    ui_color = "#e6dcf2"

    def __init__(
        self,
        *,
        batch: str | Mapping[str, Any],
        pilots: Mapping[str, Any] | None = None,
        max_pilots: int | str | None = None,
        picas_conn_id: str = PicasHook.default_conn_name,
        database: str | None = None,
        profile: str | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.batch = batch
        self.pilots = pilots
        self.max_pilots = max_pilots
        self.picas_conn_id = picas_conn_id
        self.database = database
        self.profile = profile

    def execute(self, context: Context) -> dict[str, Any]:
        try:
            batch = Batch.parse(self.batch)
            if batch is None:
                raise ValueError("`batch` is empty. Give the push operator's output, or the name of a batch.")
            picas = PicasHook(self.picas_conn_id, database=self.database or batch.database, profile=self.profile)
            push_links(context, picas.settings)
            push_page(context, self.picas_conn_id, picas.settings, batch.id, role="pilots")
            submission = Submission.parse(self.pilots or None) or latest(picas, batch.id)
            if submission is None:
                raise ValueError(f"No submission of pilots is recorded for batch {batch.id}.")
            output = self._submit(context, picas, batch, submission)
            picas.do(batch_pilots.note(picas.pool, batch.id, output))
        except SubmissionRefusedError as error:
            raise (AirflowException if error.for_now else AirflowFailException)(str(error)) from None
        except ValueError as error:
            raise AirflowFailException(str(error)) from None
        except (RemoteError, CouchDBError) as error:
            raise AirflowException(str(error)) from None
        return output

    def _submit(self, context: Context, picas: PicasHook, batch: Batch, submission: Submission) -> dict[str, Any]:
        remote_folder = submission.folder.rpartition("/")[0]
        with SlurmHook(submission.ssh_conn_id) as slurm:
            found = (slurm.adopt(key, remote_folder) for key in submission_keys(context))
            done = next((existing for existing in found if existing), None)
            if done is None:
                origin = slurm.do(
                    earlier_submission.read(submission.key, submission.folder, submission.calls, batch.id)
                )
                for what, text in describe(origin, submission.ssh_conn_id):
                    self.log.info("%s: %s", what, text)
                finished = picas.count(batch.id).finished
                done = slurm.submit(self._plan(context, picas, origin, remote_folder, finished))
                self.log.info(
                    "Submitted job %s as %s; its files are in %s.", sample(done.job_ids), done.key, done.folder
                )
            else:
                self.log.info("Submission %s already exists: job %s.", done.key, sample(done.job_ids))
        return output_of(submission.ssh_conn_id, done)

    def _plan(
        self, context: Context, picas: PicasHook, origin: earlier_submission.Origin, remote_folder: str, finished: int
    ) -> submission_folder.Plan:
        most = optional_positive_number("max_pilots", self.max_pilots)

        def files(folder: str, key: str) -> list[RemoteFile]:
            made = [RemoteFile(f"{folder}/{submission_folder.FINISHED_BEFORE}", str(finished).encode())]
            if origin.credentials:
                made += credential_files(folder, picas.settings)
                made.append(RemoteFile(f"{folder}/{submission_folder.SENT}", self.picas_conn_id.encode()))
            return made

        return submission_folder.Plan(
            base_key=submission_key(context),
            files=files,
            commands=lambda folder, key: (),
            folder=remote_folder,
            copied=lambda key, aside: earlier_submission.copy(origin, key, aside, most),
        )


def latest(picas: PicasHook, batch: str) -> Submission | None:
    """The last pilots submitted for a batch; None if none are known."""
    for pilots in picas.do(batch_pilots.history(picas.pool, batch)):
        if submission := Submission.parse(pilots):
            return submission
    return None


def describe(origin: earlier_submission.Origin, ssh_conn_id: str) -> list[tuple[str, str]]:
    """What would be submitted, for people: pairs of a title and a string."""
    command, files = origin.config.get("command"), origin.config.get("files")
    command = command if isinstance(command, str | None) else " ".join(map(str, command))
    parts = [
        ("The same pilots as", origin.key),
        ("By connection", ssh_conn_id),
        *(("Call", call) for call in origin.commands[:5]),
        ("Command", command),
        ("Files", sample(files) if files else None),
    ]
    return [(what, one_line(text, 1_000)) for what, text in parts if text]
