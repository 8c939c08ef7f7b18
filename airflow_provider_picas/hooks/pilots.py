"""``PilotsHook``: runs operations on submissions from a task, with a connection to CouchDB and one to the cluster."""

from __future__ import annotations

from pathlib import Path

from airflow_provider_picas.couchdb.settings import Settings
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.hooks.slurm import SlurmHook
from airflow_provider_picas.sansio import drive
from airflow_provider_picas.slurm import credentials, submission_folder
from airflow_provider_picas.slurm.remote import RemoteFile
from airflow_provider_picas.submissions.submission import Operation, Result, performer


class PilotsHook:
    """Runs operations of ``submissions``. The end of the ``with`` block closes the connection to the cluster."""

    def __init__(self, picas: PicasHook, ssh_conn_id: str) -> None:
        self._picas = picas
        self._slurm = SlurmHook(ssh_conn_id)

    def __enter__(self) -> PilotsHook:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._slurm.close()

    def do(self, operation: Operation[Result]) -> Result:
        """Run an operation: its steps go to CouchDB and to the cluster."""
        return drive(operation, performer(self._picas.send, self._slurm.perform))


def credential_files(folder: str, settings: Settings) -> list[RemoteFile]:
    """The connection's credentials as files for pilots, in the submission's folder. Raises OSError for a missing CA file."""
    place = f"{folder}/{submission_folder.CREDENTIALS}"
    config = credentials.picasconfig(settings.url, settings.database, settings.login, settings.password)
    files = [RemoteFile(f"{place}/{credentials.FILE}", config)]
    if isinstance(settings.verify, str):
        files.append(RemoteFile(f"{place}/{credentials.CA_FILE}", Path(settings.verify).read_bytes()))
    return files
