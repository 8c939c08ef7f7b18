"""Operators on the pilots of a Slurm cluster."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, BaseOperator, Context

from airflow_provider_picas.couchdb.errors import CouchDBError
from airflow_provider_picas.couchdb.settings import Settings
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.hooks.slurm import SlurmHook
from airflow_provider_picas.operators.instance import submission_key
from airflow_provider_picas.slurm import credentials, sbatch, submission
from airflow_provider_picas.slurm.remote import RemoteError, RemoteFile, quote
from airflow_provider_picas.slurm.submission import SubmissionRefusedError
from airflow_provider_picas.tokens.batch import Batch

SCRIPT_FILE = "pilot.sh"
"""Name of the script in the submission's folder."""


class PicasSubmitPilotsOperator(BaseOperator):
    """Submit pilots to a Slurm cluster over SSH. A retry finds what an earlier try has submitted, and submits nothing.

    ``script`` is an unmodified PiCaS pilot script. Such pilots take any token of the pool, whatever the batch: the views of
    the PiCaS client know no batches.

    :param script: an sbatch script. A relative path is looked up beside the DAG file. It is sent byte for byte; only a file
        whose name ends in ``.j2`` is rendered. It finds ``picasconfig.py`` by PYTHONPATH.
    :param pilots: how many, as a job array. None: what the script's own ``#SBATCH --array`` says, or one job.
    :param sbatch: options of sbatch by their long names, such as ``{"time": "00:30:00", "cpus-per-task": 1}``. They are given on
        the command line; what is left out stays the script's.
    :param env: variables in sbatch's environment, which Slurm hands to the job. No secrets: Slurm keeps environments.
    :param batch: the push operator's output: its database is the pool of the pilots.
    :param workdir: folder on the cluster where sbatch runs, absolute or below the home. Default: the submission's own folder.
    :param remote_folder: folder on the cluster for submissions, absolute or below the home. It must exist. Default:
        ``picas-pilots`` in the home, which is made.
    :param dry_run: submit nothing; log the script and the command.
    :param ssh_conn_id: a connection of type ``ssh`` to a login node.
    :param picas_conn_id: a connection of type ``picas``; its credentials go to the cluster as a file that only the user can read.
    :param database: another database than the batch's or the connection's.

    Returns ``{"ssh_conn_id", "submission", "folder", "job_ids", "submitted"}``: the submission's key is also the jobs' name.
    """

    template_fields: Sequence[str] = (
        "script", "pilots", "sbatch", "env", "batch", "workdir", "remote_folder", "dry_run", "ssh_conn_id", "picas_conn_id",
        "database",
    )  # fmt: skip
    ui_color = "#e6dcf2"

    def __init__(
        self,
        *,
        script: str,
        pilots: int | str | None = None,
        sbatch: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        batch: str | Mapping[str, Any] | None = None,
        workdir: str | None = None,
        remote_folder: str | None = None,
        dry_run: bool | str = False,
        ssh_conn_id: str = "ssh_default",
        picas_conn_id: str = PicasHook.default_conn_name,
        database: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.script = script
        self.pilots = pilots
        self.sbatch = sbatch
        self.env = env
        self.batch = batch
        self.workdir = workdir
        self.remote_folder = remote_folder
        self.dry_run = dry_run  # type: ignore[method-assign, assignment]  # Airflow's method of that name is never called on a task
        self.ssh_conn_id = ssh_conn_id
        self.picas_conn_id = picas_conn_id
        self.database = database

    def execute(self, context: Context) -> dict[str, Any] | None:
        script = self._read_script(context)
        plan = self._plan(context, script)
        if str(self.dry_run).lower() in ("true", "1", "yes"):
            self._show(plan, script)
            return None
        self._tell_about(script)
        try:
            with SlurmHook(self.ssh_conn_id) as slurm:
                done = slurm.submit(plan)
        except SubmissionRefusedError as error:
            raise AirflowFailException(str(error)) from None
        except RemoteError as error:
            raise AirflowException(str(error)) from None
        jobs = ", ".join(done.job_ids)
        if done.adopted:
            self.log.info("Submission %s stands already: job %s. Nothing was submitted.", done.key, jobs)
        else:
            self.log.info("Submitted job %s as %s; its files are in %s.", jobs, done.key, done.folder)
        return {
            "ssh_conn_id": self.ssh_conn_id,
            "submission": done.key,
            "folder": done.folder,
            "job_ids": list(done.job_ids),
            "submitted": datetime.fromtimestamp(done.submitted, UTC).isoformat(),
        }

    def _plan(self, context: Context, script: bytes) -> submission.Plan:
        settings = self._settings()
        config = credentials.picasconfig(settings.url, settings.database, settings.login, settings.password)
        options, pilots = self.sbatch or {}, self._pilots()

        def commands(folder: str, key: str) -> list[list[str]]:
            return [
                sbatch.command_line(submission.job_name(key, 0), options, pilots, f"{folder}/{SCRIPT_FILE}", script)
            ]

        def files(folder: str, key: str) -> list[RemoteFile]:
            return [
                RemoteFile(f"{folder}/{SCRIPT_FILE}", script, 0o700),
                RemoteFile(f"{folder}/{submission.CREDENTIALS}/{credentials.FILE}", config),
            ]

        try:
            commands("", "")  # a bad option is found before anything is sent
        except sbatch.OptionError as error:
            raise AirflowFailException(str(error)) from None
        return submission.Plan(
            base_key=submission_key(context),
            files=files,
            commands=commands,
            folder=self.remote_folder,
            workdir=self.workdir,
            environment=self._environment(),
        )

    def _settings(self) -> Settings:
        try:
            batch = Batch.parse(self.batch)
            settings = PicasHook(
                self.picas_conn_id, database=self.database or (batch.database if batch else None)
            ).settings
            _ = settings.database_path  # raises when no database is named
        except (ValueError, CouchDBError) as error:
            raise AirflowFailException(str(error)) from None
        return settings

    def _pilots(self) -> int | None:
        if self.pilots is None or self.pilots == "":
            return None
        try:
            return int(self.pilots)  # a template renders to text
        except (TypeError, ValueError):
            raise AirflowFailException(f"`pilots` is {self.pilots!r:.80}; it takes a whole number from 1.") from None

    def _environment(self) -> dict[str, str]:
        environment = {str(name): str(value) for name, value in (self.env or {}).items()}
        for name, value in environment.items():
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or "\0" in value:
                raise AirflowFailException(f"{name!r:.80} in `env` is no name of a variable, or its value holds a NUL.")
        return environment

    def _read_script(self, context: Context) -> bytes:
        path = Path(self.script)
        if not path.is_absolute():
            path = Path(self.dag.folder) / path
        try:
            content = path.read_bytes()
        except OSError as error:
            raise AirflowFailException(
                f"The script {self.script!r} cannot be read at {path} ({error.strerror})."
                " Relative paths start beside the DAG file."
            ) from None
        if path.suffix == ".j2":
            content = self.render_template(content.decode(), context).encode()
        try:
            sbatch.check_script(content, str(path))
        except sbatch.OptionError as error:
            raise AirflowFailException(str(error)) from None
        return content

    def _tell_about(self, script: bytes) -> None:
        batch = Batch.parse(self.batch)
        if batch:
            self.log.info(
                "The pilots of %s are PiCaS client pilots: they take any token of the pool, not only those of batch %s.",
                self.script, batch.id,
            )  # fmt: skip
        export = {**sbatch.directives(script)}.get("export")
        if export and not export.upper().startswith("ALL"):
            self.log.warning(
                "The script says #SBATCH --export=%s, so PYTHONPATH does not reach it, and it will not find picasconfig.py."
                " Use --export=ALL, or leave it out.", export,
            )  # fmt: skip

    def _show(self, plan: submission.Plan, script: bytes) -> None:
        key, folder = f"{plan.base_key}.<n>", f"<remote folder>/{plan.base_key}.<n>"
        self.log.info("Dry run, nothing is submitted. The script:\n%s", script.decode("utf-8", "replace"))
        for command in plan.commands(folder, key):
            self.log.info("The command, in %s:\n%s", plan.workdir or folder, quote(*command))
