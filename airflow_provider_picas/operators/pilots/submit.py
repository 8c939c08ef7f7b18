"""The operator that submits pilots."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn, cast

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, BaseOperator, Context
from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger

from airflow_provider_picas import assets
from airflow_provider_picas.couchdb import batch_pilots, chains, needed_views, new_tokens
from airflow_provider_picas.couchdb.errors import CouchDBError
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.hooks.slurm import SlurmHook
from airflow_provider_picas.links import PicasMonitoringLink, PicasPoolLink, push_links, push_page
from airflow_provider_picas.operators.instance import submission_key, submission_keys
from airflow_provider_picas.operators.pilots.jobs import CommandJob, PilotJob, ScriptJob
from airflow_provider_picas.options import PilotOptions, Scaling, TakesOptions, read_rendered, unpacks_options
from airflow_provider_picas.parameters import (
    as_number,
    flag,
    number_above_zero,
    optional_positive_number,
    positive_number,
)
from airflow_provider_picas.slurm import arrays, client_config, credentials, sbatch, submission_folder, sweep
from airflow_provider_picas.slurm.arrays import Array
from airflow_provider_picas.slurm.remote import RemoteError, RemoteFile, quote
from airflow_provider_picas.slurm.sbatch import OptionError
from airflow_provider_picas.slurm.submission_folder import SubmissionRefusedError
from airflow_provider_picas.tokens import views
from airflow_provider_picas.tokens.batch import Batch
from airflow_provider_picas.tokens.chain import Chain
from airflow_provider_picas.tokens.text import sample

MAX_FILE_BYTES = 100_000_000  # of all files together: larger data belong on the cluster's own storage


ROOM_EVERY = 60.0  # seconds between two checks of whether the limits leave room for a pilot of a stage


class _NoRoomError(Exception):
    """The limits leave no room for a pilot."""


class PicasSubmitPilotsOperator(TakesOptions, BaseOperator):
    """Submit pilots to a Slurm cluster over SSH. A retry finds the submission of an earlier try and does not submit
    again.

    Give either ``command``, which our own pilot runs for each token, or ``script``, an unmodified PiCaS pilot script.
    The pilots of a script claim any token of the pool, of any batch: the views of the PiCaS client do not have batches.

    :param command: the command that a pilot runs for each token: a string for a shell, or a list of arguments. The
        token is in the variables ``PICAS_INPUT``, ``PICAS_TOKEN_ID``, ``PICAS_FIELD_<NAME>`` and the file
        ``PICAS_TOKEN_FILE``; see docs/reference/pilot.md.
    :param setup: shell code that the job runs once before the pilot, such as ``module load Python``.
    :param files: files that the command finds in its folder; relative paths are looked up beside the DAG file.
    :param pilot: options of our pilot: a ``PilotOptions``, which is checked when the DAG is parsed, or a dict such as
        ``{"lease": 120, "slots": 2, "max_retries": 1}``; see docs/reference/pilot.md.
    :param script: an sbatch script. A relative path is looked up beside the DAG file. It is sent byte for byte; only a
        file whose name ends in ``.j2`` is rendered. It finds ``picasconfig.py`` on PYTHONPATH.
    :param scaling: the next six arguments, as one ``Scaling``.
    :param pilots: number of pilots, submitted as a job array. ``"auto"`` computes it from the waiting tokens. None: the
        array of the script's own ``#SBATCH --array``, or one job. With ``resource_classes``, the number for each class.
    :param tokens_per_pilot: with ``"auto"``: the number of waiting tokens for each pilot.
    :param max_pilots: limit on the pending and running pilots of this package for this user of the cluster. If it leaves
        no room for a pilot, none is submitted; for a ``stage`` whose tokens wait, the task is deferred until there is room.
    :param max_queued: limit on the pending ones among them.
    :param max_running: limit on the pilots that run at the same time, divided over the arrays, with at least one for
        each.
    :param resource_classes: submit one array for each resource class of the waiting tokens (their fields ``cores``,
        ``gpu`` and ``time``). Its pilots claim only tokens of this class. A mapping adds sbatch options to a class
        (``"4//60"``).
    :param sbatch: options of sbatch by their long names, such as ``{"time": "00:30:00", "cpus-per-task": 1}``. They are
        passed on the command line; for all others, the script's ``#SBATCH`` lines apply. Without a ``comment``, jobs
        get one with DAG, task and run: ``squeue --me --format="%.10i %.2t %.10M %j %k"`` shows it. ``clusters`` is
        refused, here and in a script: for another cluster, use an SSH connection to one of its login nodes.
    :param env: variables in sbatch's environment, which Slurm passes to the job. Put no secrets here: Slurm stores
        environments. Variables that set options of sbatch, such as ``SBATCH_CLUSTERS``, are refused.
    :param batch: the push operator's output. Its database is the pool of the pilots, and our own pilots claim only its
        tokens.
    :param stages: names of the stages whose tokens the batch's tokens make, in order (``docs/howto/stages.md``): commands may
        make tokens for these, and pilots make those of others that died. A mapping names the batch of each stage.
    :param stage: submit pilots for this stage. Default: for the batch itself. If no token of it waits, nothing is submitted.
    :param workdir: folder on the cluster where sbatch runs, absolute or below the home. Default: the submission's own
        folder.
    :param remote_folder: folder on the cluster for submissions, absolute or below the home. It must exist. Default:
        ``picas-pilots`` in the home, which is created.
    :param keep_days: days to keep the folder of a submission after its jobs have ended and its last change. A task that
        submits removes older folders from the remote folder, also those of other tasks, but none with unsent results.
    :param credentials: ``"send"``: the connection's credentials are sent to the cluster as a file that only the user
        can read. ``"client"``: they are written to the PiCaS client's own file, ``~/.config/picas/conf.yml``, with the
        password encrypted, for scripts that read it with ``PicasConfig(load=True)``. It stays there, and a file for another
        pool or account is not replaced. ``"existing"``: the pilots find your own ``picasconfig.py`` on PYTHONPATH, which
        ``setup`` or ``env`` may set, or the PiCaS client's ``~/.config/picas/conf.yml``.
    :param dry_run: do not submit; log the script and the command.
    :param ssh_conn_id: a connection of type ``ssh`` to a login node.
    :param picas_conn_id: a connection of type ``picas``.
    :param database: another database than the batch's or the connection's.
    :param profile: the shape of the pool, if it is not the connection's: the name of a profile, or an object.

    Returns ``{"ssh_conn_id", "submission", "folder", "job_ids", "submitted"}``: the submission's key is also the name of
    its jobs. It begins with DAG, task and run.
    If there are no tokens to run, or a limit leaves no room for pilots, nothing is submitted and ``submission`` is None.
    """

    template_fields: Sequence[str] = (
        "command", "setup", "files", "pilot", "script", "pilots", "tokens_per_pilot", "max_pilots", "max_queued", "max_running",
        "resource_classes", "sbatch", "env", "batch", "stages", "stage", "workdir", "remote_folder", "keep_days",
        "credentials", "dry_run", "ssh_conn_id", "picas_conn_id", "database", "profile",
    )  # fmt: skip
    operator_extra_links = (PicasPoolLink(), PicasMonitoringLink())
    ui_color = "#e6dcf2"

    @unpacks_options
    def __init__(
        self,
        *,
        command: str | Sequence[str] | None = None,
        setup: str | None = None,
        files: Sequence[str] = (),
        pilot: PilotOptions | Mapping[str, Any] | None = None,
        script: str | None = None,
        scaling: Scaling | None = None,
        pilots: int | str | None = None,
        tokens_per_pilot: float | str = 10,
        max_pilots: int | str | None = None,
        max_queued: int | str | None = None,
        max_running: int | str | None = None,
        resource_classes: bool | Mapping[str, Mapping[str, Any]] = False,
        sbatch: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        batch: str | Mapping[str, Any] | None = None,
        stages: Sequence[str] | Mapping[str, str] = (),
        stage: str | None = None,
        workdir: str | None = None,
        remote_folder: str | None = None,
        keep_days: float | str = sweep.KEEP_DAYS,
        credentials: str = "send",
        dry_run: bool | str = False,
        ssh_conn_id: str = "ssh_default",
        picas_conn_id: str = PicasHook.default_conn_name,
        database: str | None = None,
        profile: str | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.command = command
        self.setup = setup
        self.files = files
        self.pilot = cast("Mapping[str, Any] | None", pilot)  # unpacked
        self.script = script
        self.pilots = pilots
        self.tokens_per_pilot = tokens_per_pilot
        self.max_pilots = max_pilots
        self.max_queued = max_queued
        self.max_running = max_running
        self.resource_classes = resource_classes
        self.sbatch = sbatch
        self.env = env
        self.batch = batch
        self.stages = stages
        self.stage = stage
        self.workdir = workdir
        self.remote_folder = remote_folder
        self.keep_days = keep_days
        self.credentials = credentials
        # Airflow's method of this name is never called on a task.
        self.dry_run = dry_run  # type: ignore[method-assign, assignment]
        self.ssh_conn_id = ssh_conn_id
        self.picas_conn_id = picas_conn_id
        self.database = database
        self.profile = profile

    def execute(self, context: Context) -> dict[str, Any] | None:
        try:
            self._check()
            batch = self._batch_of_pilots()
            database = self.database or (batch.database if batch else None)
            picas = PicasHook(self.picas_conn_id, database=database, profile=self.profile)
            job = self._job(context, picas, batch)
            push_links(context, picas.settings)
            push_page(context, self.picas_conn_id, picas.settings, batch.id if batch else None, role="pilots")
            with SlurmHook(self.ssh_conn_id) as slurm:
                if flag("dry_run", self.dry_run):
                    self._show(self._plan(context, job, self._arrays(picas, slurm, batch), 0), job)
                    return None
                found = (slurm.adopt(key, self.remote_folder) for key in submission_keys(context))
                done = next((existing for existing in found if existing), None)
                if done is None and (wanted := self._arrays(picas, slurm, batch)):
                    self._check_views(picas)
                    self._write_client_config(picas, slurm)
                    done = slurm.submit(self._plan(context, job, wanted, self._finished(picas, batch)))
                    self._sweep(slurm, done)
        except _NoRoomError:
            self._wait_for_room()
        except SubmissionRefusedError as error:
            raise (AirflowException if error.for_now else AirflowFailException)(str(error)) from None
        except (OptionError, ValueError) as error:
            raise AirflowFailException(str(error)) from None
        except (RemoteError, CouchDBError) as error:
            raise AirflowException(str(error)) from None
        assets.hold_back(self)  # no event if a later task emits one for this asset when the tokens are done
        output = self._report(done)
        if done is not None and batch is not None:
            self._record(picas, batch, output)
        return output

    def _wait_for_room(self) -> NoReturn:
        """Free the slot, and check again a minute later: the tokens of a stage need pilots, and its wait submits only
        those of this task again."""
        self.log.info(
            "The limits leave no room for a pilot of stage %s. Checking again in %.0f s.", self.stage, ROOM_EVERY
        )
        self.defer(trigger=TimeDeltaTrigger(timedelta(seconds=ROOM_EVERY)), method_name="execute_again")
        raise AssertionError("defer raises")

    def execute_again(self, context: Context, event: Any = None) -> dict[str, Any] | None:
        """Check again whether there is room for pilots."""
        return self.execute(context)

    def _write_client_config(self, picas: PicasHook, slurm: SlurmHook) -> None:
        """Write the client's own file of credentials, if that is wanted. Raises ValueError if it is another pool's."""
        settings = picas.settings
        if self.credentials == "client" and slurm.do(
            client_config.write(settings.url, settings.database, settings.login, settings.password)
        ):
            self.log.info("Wrote the PiCaS client's credentials to ~/%s on the cluster.", client_config.FOLDER)

    def _check_views(self, picas: PicasHook) -> None:
        """Raises ValueError if our own pilots would find no tokens. The pilots of a script use views of their own."""
        if (chain := self._chain()) is not None:
            if picas.do(new_tokens.deploy(picas.pool)) == "refused":
                self.log.warning("%s lacks the view for stages. %s", picas.settings.place, needed_views.NO_STAGES)
            picas.do(chains.note(picas.pool, chain))
        if (
            self.command is None
            or "database" in (self.pilot or {})
            or picas.do(needed_views.ready_for_our_pilots(picas.pool))
        ):
            return
        profile = picas.settings.profile
        where = f"{views.MONITOR!r} or {views.PROVIDER!r}" if profile.is_default else repr(profile.design)
        raise ValueError(
            f"Nothing was submitted. {picas.settings.place} has no view 'todo' in design document {where}, so the pilots would"
            " find no tokens. Ask an admin of the database to run"
            f" {needed_views.command(self.picas_conn_id, picas.database, profile=self.profile)} once."
        )

    def _record(self, picas: PicasHook, batch: Batch, output: Mapping[str, Any]) -> None:
        """Record the pilots of the batch, so that a wait for the batch finds them."""
        try:
            picas.do(batch_pilots.note(picas.pool, batch.id, output))
        except CouchDBError as error:
            self.log.warning(
                "The pilots of batch %s could not be recorded. Pass this task's output to the wait as `pilots`, so that it"
                " notices dead pilots and removes their credentials. %s", batch.id, error,
            )  # fmt: skip

    def _sweep(self, slurm: SlurmHook, done: submission_folder.SubmitResult) -> None:
        """Remove old submissions. A failure does not fail the task: the next one tries again."""
        try:
            removed = slurm.do(sweep.sweep(str(PurePosixPath(done.folder).parent), float(self.keep_days)))
        except RemoteError as error:
            self.log.info("Old submissions were not removed: %s", error)
            return
        if removed:
            self.log.info("Old submissions were removed from the cluster: %s.", sample(removed))

    def _report(self, done: submission_folder.SubmitResult | None) -> dict[str, Any]:
        if done is None:
            self.log.info("Nothing was submitted: there are no tokens to run, or a limit leaves no room for pilots.")
            return output_of(self.ssh_conn_id, None)
        jobs = ", ".join(done.job_ids)
        if done.adopted:
            self.log.info("Submission %s already exists: job %s. Nothing was submitted.", done.key, jobs)
        else:
            self.log.info("Submitted job %s as %s; its files are in %s.", jobs, done.key, done.folder)
        return output_of(self.ssh_conn_id, done)

    def _check(self) -> None:
        if (self.command is None) == (self.script is None):
            raise ValueError(
                "Give either `command`, which the provider's pilot runs, or `script`, for a PiCaS client pilot."
            )
        if self.credentials not in ("send", "client", "existing"):
            raise ValueError(f"`credentials` is {self.credentials!r:.80}; it takes 'send', 'client' or 'existing'.")
        if not as_number(self.keep_days) >= 1:
            raise ValueError(f"`keep_days` is {self.keep_days!r:.80}; it takes a number of days from 1.")
        ours = [name for name in ("setup", "files", "pilot", "resource_classes") if getattr(self, name)]
        if self.script is not None and ours:
            raise ValueError(
                f"{', '.join(map(repr, ours))} can only be used with `command`: a `script` does this itself."
            )

    def _chain(self) -> Chain | None:
        batch = Batch.parse(self.batch)
        if batch is None and self.stages:
            raise ValueError("`stages` needs a `batch`: the one that the chain begins with.")
        return Chain.parse(batch.id, self.stages, self.stage, batch.tokens) if batch else None

    def _batch_of_pilots(self) -> Batch | None:
        """The batch whose tokens the pilots claim: the stage's."""
        batch, chain = Batch.parse(self.batch), self._chain()
        if batch is None or chain is None or chain.stage is None:
            return batch
        return Batch(chain.own[0], batch.database)

    # -- what is sent -------------------------------------------------------------------------------------------------

    def _job(self, context: Context, picas: PicasHook, batch: Batch | None) -> PilotJob:
        settings = picas.settings
        _ = settings.database_path  # raises when no database is named
        secrets: dict[str, bytes] = {}
        if self.credentials == "send":
            config = (settings.url, settings.database, settings.login, settings.password)
            secrets[credentials.FILE] = credentials.picasconfig(*config)
        if self.script is not None:
            script = self._read(self.script, context, "The script")
            sbatch.check_script(script, self.script)
            self._log_about(script, batch)
            return ScriptJob(secrets, self.picas_conn_id, script)
        files = {Path(name.removesuffix(".j2")).name: self._read(name, context, "The file") for name in self.files}
        if sum(map(len, files.values())) > MAX_FILE_BYTES:
            raise ValueError(
                f"`files` has more than {MAX_FILE_BYTES:,} bytes in total. Put large data on the cluster's own storage."
            )
        executable = {Path(name).name for name in self.files if _is_executable(self._path(name))}
        options: dict[str, Any] = {
            "command": self.command if isinstance(self.command, str) else list(self.command or ()),
            "database": settings.database,
            "batch": batch.id if batch else None,
            "files": sorted(files),
            **({"stages": chain.by_stage} if (chain := self._chain()) else {}),
            **({} if settings.profile.is_default else {"profile": settings.profile.to_json()}),
            **read_rendered(self.pilot or {}),
        }
        if self.credentials != "send":
            options["credentials"] = "existing"
        if settings.verify is False:
            options["tls_verify"] = False
        elif isinstance(settings.verify, str):
            secrets[credentials.CA_FILE] = self._read(settings.verify, context, "The CA file")
        job = CommandJob(secrets, self.picas_conn_id, self.setup, options, files, executable)
        job.check()
        return job

    def _read(self, name: str, context: Context, what: str) -> bytes:
        path = self._path(name)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ValueError(
                f"{what} {name!r:.200} cannot be read at {path} ({error.strerror})."
                " Relative paths are resolved from the DAG file's folder."
            ) from None
        return self.render_template(content.decode(), context).encode() if path.suffix == ".j2" else content

    def _path(self, name: str) -> Path:
        path = Path(name)
        return path if path.is_absolute() else Path(self.dag.folder) / path

    def _environment(self) -> dict[str, str]:
        environment = {str(name): str(value) for name, value in (self.env or {}).items()}
        for name, value in environment.items():
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or "\0" in value:
                raise ValueError(f"{name!r:.80} in `env` is not a variable name, or its value contains a NUL.")
        sbatch.check_environment(environment)
        return environment

    def _log_about(self, script: bytes, batch: Batch | None) -> None:
        if batch:
            self.log.info(
                "The pilots of %s are PiCaS client pilots: they claim any token of the pool, not only those of batch %s.",
                self.script, batch.id,
            )  # fmt: skip
        export = sbatch.directives(script).get("export")
        if export and not export.upper().startswith("ALL"):
            self.log.warning(
                "The script has #SBATCH --export=%s, so PYTHONPATH is not exported to it, and it will not find picasconfig.py."
                " Use --export=ALL, or remove the option.", export,
            )  # fmt: skip

    # -- how many -----------------------------------------------------------------------------------------------------

    def _arrays(self, picas: PicasHook, slurm: SlurmHook, batch: Batch | None) -> list[Array]:
        """The sbatch calls to make. Empty if there is nothing to run or a limit leaves no room."""
        options = dict(self.sbatch or {})
        if self.stage and not picas.count(batch.id if batch else None).todo:
            return []
        fixed = None if self.pilots in (None, "", "auto") else positive_number("pilots", self.pilots)
        if fixed is None and self.pilots != "auto" and self.command is not None:
            fixed = 1
        # A mapping, true, or what a template rendered either to.
        classes = isinstance(self.resource_classes, Mapping) or flag("resource_classes", self.resource_classes)
        if fixed is None and self.pilots != "auto" and not classes:
            return [Array(None, options)]
        todo: dict[str, int] = {}
        if classes or self.pilots == "auto":
            todo = picas.todo_by_class(batch.id if batch else None)
        wanted = {name: self._wanted(number, fixed) for name, number in todo.items()} if classes else {}
        if not classes:
            wanted = {"": self._wanted(sum(todo.values()), fixed) if self.pilots == "auto" else fixed or 0}
        granted = self._granted(wanted, self._room(slurm))
        if granted and not classes:
            return [Array(number, options) for number in granted.values()]
        made = [array for name, number in granted.items() if (array := self._class_array(name, number, options))]
        if granted and not made:
            raise OptionError(
                "No waiting token requests resources that sbatch accepts. Correct the fields `cores`, `gpu` and `time`."
            )
        return made

    def _granted(self, wanted: Mapping[str, int], room: int | None) -> dict[str, int]:
        """The number of pilots of each class that the limits allow. Raises _NoRoomError if that is none for a stage."""
        granted = arrays.share(wanted, room)
        if sum(granted.values()) < sum(wanted.values()):
            self.log.info("The limits allow %d of the %d pilots.", sum(granted.values()), sum(wanted.values()))
        if self.stage and sum(wanted.values()) and not sum(granted.values()) and not flag("dry_run", self.dry_run):
            raise _NoRoomError
        if granted and (without := [name for name in wanted if wanted[name] and name not in granted]):
            self.log.warning("No pilots are submitted for tokens that request cores/gpu/time %s.", sample(without))
        return granted

    def _class_array(self, name: str, number: int, options: Mapping[str, Any]) -> Array | None:
        extra = self.resource_classes.get(name, {}) if isinstance(self.resource_classes, Mapping) else {}
        try:
            return Array(number, {**arrays.class_options(name, options), **extra}, (name,))
        except OptionError as error:
            self.log.warning("%s No pilots are submitted for them.", error)
            return None

    def _wanted(self, tokens: int, fixed: int | None) -> int:
        if fixed is not None:
            return fixed if tokens else 0
        per_pilot = number_above_zero("tokens_per_pilot", self.tokens_per_pilot)
        return arrays.pilots_for(tokens, per_pilot, optional_positive_number("max_pilots", self.max_pilots))

    def _room(self, slurm: SlurmHook) -> int | None:
        """The number of pilots that the limits allow to add; None without limits."""
        most, queued = (
            optional_positive_number("max_pilots", self.max_pilots),
            optional_positive_number("max_queued", self.max_queued),
        )
        if most is None and queued is None:
            return None
        waiting, running = slurm.count_pilots()
        room = [most - waiting - running] if most is not None else []
        room += [queued - waiting] if queued is not None else []
        return max(0, min(room))

    # -- the submission -----------------------------------------------------------------------------------------------

    def _finished(self, picas: PicasHook, batch: Batch | None) -> int:
        """The number of tokens that have finished, which the pilots' figures exclude; 0 if it is unknown."""
        try:
            return picas.count(batch.id if batch else None).finished
        except CouchDBError as error:
            self.log.warning("The figures will include tokens that finished before this submission: %s", error)
            return 0

    def _plan(self, context: Context, job: PilotJob, wanted: Sequence[Array], finished: int) -> submission_folder.Plan:
        running = arrays.running_limits(wanted, optional_positive_number("max_running", self.max_running))
        ti = context["ti"]
        comment = sbatch.comment(dag=ti.dag_id, task=ti.task_id, run=ti.run_id)

        def commands(folder: str, key: str) -> list[list[str]]:
            return [
                sbatch.command_line(
                    submission_folder.job_name(key, number),
                    job.options(array.options, folder),
                    array.pilots,
                    f"{folder}/{job.script_name(number)}",
                    job.script(folder, number),
                    running[number],
                    comment,
                )
                for number, array in enumerate(wanted)
            ]

        def files(folder: str, key: str) -> list[RemoteFile]:
            before = RemoteFile(f"{folder}/{submission_folder.FINISHED_BEFORE}", str(finished).encode())
            return [*job.all_files(folder, key, wanted), before]

        commands("", "")  # raises for a bad option before anything is sent
        return submission_folder.Plan(
            base_key=submission_key(context),
            files=files,
            commands=commands,
            folder=self.remote_folder,
            workdir=self.workdir,
            environment=self._environment(),
            python_path=self.credentials == "send" and self.script is not None,
        )

    def _show(self, plan: submission_folder.Plan, job: PilotJob) -> None:
        key, folder = f"{plan.base_key}.<n>", f"<remote folder>/{plan.base_key}.<n>"
        commands = plan.commands(folder, key)
        self.log.info("Dry run: nothing is submitted.")
        for number, command in enumerate(commands):
            self.log.info("The script %s:\n%s", number + 1, job.script(folder, number).decode("utf-8", "replace"))
            self.log.info("The command, in %s:\n%s", plan.workdir or folder, quote(*command))


def output_of(ssh_conn_id: str, done: submission_folder.SubmitResult | None) -> dict[str, Any]:
    """The output of a task that submits pilots."""
    return {
        "ssh_conn_id": ssh_conn_id,
        "submission": done.key if done else None,
        "folder": done.folder if done else None,
        "job_ids": list(done.job_ids) if done else [],
        "submitted": datetime.fromtimestamp(done.submitted, UTC).isoformat() if done else None,
    }


def _is_executable(path: Path) -> bool:
    return bool(path.stat().st_mode & 0o100)
