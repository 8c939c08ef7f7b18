"""The jobs of a submission: their files, batch scripts and options."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from airflow_provider_picas.lifecycle.exit_codes import Failed
from airflow_provider_picas.lifecycle.pilot_config import parse_config
from airflow_provider_picas.pilot import archive
from airflow_provider_picas.slurm import credentials, earlier_submission, pilot_job, submission_folder
from airflow_provider_picas.slurm.arrays import Array
from airflow_provider_picas.slurm.earlier_submission import SCRIPT_FILE
from airflow_provider_picas.slurm.remote import RemoteFile


class PilotJob:
    """Base of the kinds of jobs: a script, and the files that go with it."""

    def __init__(self, secrets: Mapping[str, bytes], conn_id: str) -> None:
        self.secrets = secrets
        self._conn_id = conn_id  #: source of the secrets: a wait with another connection does not renew them

    def script_name(self, number: int) -> str:
        """Name of the batch script of the n-th sbatch call."""
        return SCRIPT_FILE

    def script(self, folder: str, number: int) -> bytes:
        """The batch script of the n-th sbatch call."""
        raise NotImplementedError

    def options(self, given: Mapping[str, Any], folder: str) -> Mapping[str, Any]:
        """The sbatch options, with those that this kind of job adds."""
        return given

    def all_files(self, folder: str, key: str, wanted: Sequence[Array]) -> list[RemoteFile]:
        """The files to send."""
        secrets = f"{folder}/{submission_folder.CREDENTIALS}"
        files = [RemoteFile(f"{secrets}/{name}", content) for name, content in self.secrets.items()]
        return [*files, RemoteFile(f"{folder}/{submission_folder.SENT}", self._conn_id.encode())] if files else []


class ScriptJob(PilotJob):
    """The author's own script."""

    def __init__(self, secrets: Mapping[str, bytes], conn_id: str, script: bytes) -> None:
        super().__init__(secrets, conn_id)
        self._script = script

    def script(self, folder: str, number: int) -> bytes:
        return self._script

    def all_files(self, folder: str, key: str, wanted: Sequence[Array]) -> list[RemoteFile]:
        return [*super().all_files(folder, key, wanted), RemoteFile(f"{folder}/{SCRIPT_FILE}", self._script, 0o700)]


class CommandJob(PilotJob):
    """Our own pilot. Each sbatch call has its own configuration: these differ in the resource class."""

    def __init__(
        self,
        secrets: Mapping[str, bytes],
        conn_id: str,
        setup: str | None,
        options: Mapping[str, Any],
        files: Mapping[str, bytes],
        executable: set[str],
    ) -> None:
        super().__init__(secrets, conn_id)
        self._setup = setup
        self._options = options
        self._files = files
        self._executable = executable

    def check(self) -> None:
        """Raises ValueError for unknown or invalid options of the pilot."""
        try:
            parse_config(self._config("", "key", None).decode())
        except Failed as error:
            raise ValueError(f"`pilot`: {error}") from None
        taken = {SCRIPT_FILE, pilot_job.CONFIG_FILE, archive.FILE, submission_folder.CREDENTIALS, "submit.sh"}
        if clash := taken & set(self._files):
            raise ValueError(
                f"`files` contains {', '.join(sorted(clash))}, a name that is reserved for the submission. Rename it."
            )

    def _config(self, folder: str, key: str, array: Array | None) -> bytes:
        if "submission" in self._options:
            raise ValueError("`pilot` cannot set `submission`: the operator sets it.")
        config = {**self._options, "submission": key}
        if array and array.classes:
            config["classes"] = list(array.classes)
        if credentials.CA_FILE in self.secrets:
            config["ca_file"] = f"{folder}/{submission_folder.CREDENTIALS}/{credentials.CA_FILE}"
        try:
            return json.dumps(config, indent=1).encode()
        except TypeError as error:
            raise ValueError(f"`pilot` has a value that is not JSON-serializable: {error}.") from None

    def script_name(self, number: int) -> str:
        return earlier_submission.script_name(number)

    def script(self, folder: str, number: int) -> bytes:
        return pilot_job.batch_script(folder, earlier_submission.config_name(number), self._setup)

    def options(self, given: Mapping[str, Any], folder: str) -> Mapping[str, Any]:
        names = {str(name).replace("_", "-") for name in given}
        defaults = {"signal": pilot_job.WARNING, "output": f"{folder}/{pilot_job.LOG_FILE}"}
        return {**{name: value for name, value in defaults.items() if name not in names}, **given}

    def all_files(self, folder: str, key: str, wanted: Sequence[Array]) -> list[RemoteFile]:
        own = [RemoteFile(f"{folder}/{archive.FILE}", archive.build(), 0o600)]
        for number, array in enumerate(wanted):
            own.append(RemoteFile(f"{folder}/{self.script_name(number)}", self.script(folder, number), 0o700))
            own.append(
                RemoteFile(f"{folder}/{earlier_submission.config_name(number)}", self._config(folder, key, array))
            )
        for name, content in self._files.items():
            own.append(RemoteFile(f"{folder}/{name}", content, 0o700 if name in self._executable else 0o600))
        return [*super().all_files(folder, key, wanted), *own]
