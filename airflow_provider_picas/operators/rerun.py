"""The steps of the DAG ``picas_rerun_failed`` that ask a person: which batch, and whether to continue."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, AirflowSkipException, Context
from airflow.providers.standard.operators.hitl import ApprovalOperator, HITLOperator
from airflow.sdk.definitions.param import ParamsDict

from airflow_provider_picas import links
from airflow_provider_picas.couchdb import batch_pilots
from airflow_provider_picas.hooks.failures import FailedTokens
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.hooks.slurm import SlurmHook
from airflow_provider_picas.operators.pilots import resubmit
from airflow_provider_picas.parameters import flag
from airflow_provider_picas.slurm import earlier_submission
from airflow_provider_picas.slurm.remote import RemoteError
from airflow_provider_picas.submissions.submission import Submission
from airflow_provider_picas.tokens.batch import Batch
from airflow_provider_picas.tokens.ids import batch_id
from airflow_provider_picas.tokens.states import State
from airflow_provider_picas.tokens.text import number_of, one_line, sample

MOST_OFFERED = 20  # batches that a person can choose from
_CAUSES = 5
_FAILED = 1_000  # failed tokens read to find causes


class PicasChooseBatchOperator(HITLOperator):
    """Find the batch of a DAG run, or use the named one; with neither, ask a person to choose a batch that has errors.

    :param batch: name of the batch.
    :param of_dag: id of a DAG that pushed a batch; with ``of_run``.
    :param of_run: id of the run.
    :param whole_pool: if none of these is given, use the whole pool.
    :param ask: ask a person if none of these is given.
    :param picas_conn_id: a connection of type ``picas``.
    :param database: another database than the connection's.
    :param profile: the shape of the pool, if it is not the connection's: the name of a profile, or an object.

    Pushes ``batch`` to XCom, which is empty for the whole pool, and ``pilots``: the output of the task that submitted
    its pilots, empty if it is not known. They are not None, since Airflow treats None as a missing XCom.
    """

    template_fields: Sequence[str] = (
        *HITLOperator.template_fields, "batch", "of_dag", "of_run", "whole_pool", "ask", "picas_conn_id", "database",
        "profile",
    )  # fmt: skip

    def __init__(
        self,
        *,
        batch: str | None = None,
        of_dag: str | None = None,
        of_run: str | None = None,
        whole_pool: bool | str = False,
        ask: bool | str = True,
        picas_conn_id: str = PicasHook.default_conn_name,
        database: str | None = None,
        profile: str | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(subject="Which batch's failed tokens should run again?", options=["-"], **kwargs)
        self.params = ParamsDict()  # those of the DAG are not fields of the question
        self.batch = batch
        self.of_dag = of_dag
        self.of_run = of_run
        self.whole_pool = whole_pool
        self.ask = ask
        self.picas_conn_id = picas_conn_id
        self.database = database
        self.profile = profile

    def execute(self, context: Context) -> None:
        if bool(self.of_dag) != bool(self.of_run):
            raise AirflowFailException("Give both the DAG id and the run id, or neither.")
        if self.of_dag and self.of_run:
            self._answer(context, *self._of_run(context, self.of_dag, self.of_run))
        elif self.batch:
            self._answer(context, Batch(batch_id(self.batch), self.database or None))
        elif flag("whole_pool", self.whole_pool):
            context["ti"].xcom_push("batch", "")
            context["ti"].xcom_push("pilots", {})
        elif not flag("ask", self.ask):
            raise AirflowFailException("`batch` is empty. Give the DAG id and run id of a run, or the name of a batch.")
        else:
            self.options, self.body = self._offer()
            super().execute(context)  # waits for the answer

    def execute_complete(self, context: Context, event: dict[str, Any]) -> None:
        answer = super().execute_complete(context, event)
        self._answer(context, Batch(batch_id(answer["chosen_options"][0]), self.database or None))

    def validate_chosen_options(self, chosen_options: list[str]) -> None:
        """Skip this check: Airflow has compared the answer with the offered options, and this new object has none."""
        if len(chosen_options) != 1:
            raise ValueError("Choose one batch.")

    def _offer(self) -> tuple[list[str], str]:
        """The batches with errors, the latest first."""
        hook = self._hook()
        failed = {
            batch: counts for batch, counts in hook.batches().items() if counts.error and batch == batch_id(batch)
        }
        if not failed:
            raise AirflowSkipException(f"No batch in {hook.settings.place} has failed tokens.")
        known = [batch for batch in hook.do(batch_pilots.batches(hook.pool)) if batch in failed]
        offered = list(dict.fromkeys([*known, *failed]))[:MOST_OFFERED]
        lines = [f"- {failed[batch].error:,} of {failed[batch].total:,} failed: {code(batch)}" for batch in offered]
        more = (
            [f"- {len(failed) - len(offered):,} more; enter their names in the form."]
            if len(failed) > len(offered)
            else []
        )
        return offered, "\n".join([*lines, *more])

    def _of_run(self, context: Context, dag_id: str, run_id: str) -> tuple[Batch, Mapping[str, Any] | None]:
        """The batch that a run pushed, and the output of the one task of it that submitted pilots."""
        pushed: list[Batch] = []
        pilots: list[dict[str, Any]] = []
        for output in outputs_of_run(context["ti"], dag_id, run_id):
            if output.get("submission"):
                pilots.append(dict(output))
            elif "done_before" in output and output.get("batch"):
                pushed.append(Batch(str(output["batch"]), output.get("database"), output.get("tokens")))
        if self.batch:
            pushed = [batch for batch in pushed if batch.id == batch_id(self.batch)]
        failed = [batch for batch in pushed if len(pushed) == 1 or self._hook(batch).count(batch.id).error]
        if len(failed) == 1:
            return failed[0], pilots[0] if len(pilots) == 1 and len(pushed) == 1 else None
        where = f"run {run_id!r:.300} of DAG {dag_id!r:.300}"
        if not pushed:
            raise AirflowFailException(
                f"No task of {where} pushed tokens, or Airflow has deleted their XComs. Specify the batch."
            )
        if not failed:
            raise AirflowSkipException(f"No batch of {where} has failed tokens.")
        raise AirflowFailException(
            f"{len(failed)} batches of {where} have failed tokens: {sample([b.id for b in failed])}. Also specify one of them."
        )

    def _answer(self, context: Context, batch: Batch, pilots: Mapping[str, Any] | None = None) -> None:
        hook = self._hook(batch)
        if not pilots:
            pilots = next(iter(hook.do(batch_pilots.history(hook.pool, batch.id))), None)
        known = pilots["submission"] if pilots else "not known"
        self.log.info("Batch: %s. Pilots: %s.", batch.id, known)
        context["ti"].xcom_push("batch", batch.as_dict())
        context["ti"].xcom_push("pilots", dict(pilots or {}))

    def _hook(self, batch: Batch | None = None) -> PicasHook:
        database = self.database or (batch.database if batch else None)
        return PicasHook(self.picas_conn_id, database=database, profile=self.profile)


class PicasConfirmOperator(ApprovalOperator):
    """Ask a person for approval. If it is rejected, all downstream tasks are skipped.

    :param ask: False: approve without asking, and log the question.
    """

    template_fields: Sequence[str] = (*ApprovalOperator.template_fields, "ask")

    def __init__(self, *, ask: bool | str = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.params = ParamsDict()  # those of the DAG are not fields of the question
        self.ask = ask

    def execute(self, context: Context) -> Any:
        if not flag("ask", self.ask):
            self.log.info("%s\n%s", self.subject, self.body)
            return None
        return super().execute(context)


def outputs_of_run(ti: Any, dag_id: str, run_id: str) -> Iterator[Mapping[str, Any]]:
    """The outputs of the provider's tasks in a DAG run."""
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance  # heavy, and not needed to parse a DAG

    states: Any = RuntimeTaskInstance.get_task_states(dag_id=dag_id, run_ids=[run_id])
    if run_id not in states:
        raise AirflowFailException(
            f"Airflow has no run {run_id!r:.300} of a DAG {dag_id!r:.300}. Copy both from the run's page."
        )
    for name in states[run_id]:
        mapped = re.fullmatch(r"(.+)_([0-9]+)", name)  # how Airflow names an instance of a mapped task here
        for task_id, index in ((name, -1), *([(mapped[1], int(mapped[2]))] if mapped else [])):
            where = {"dag_id": dag_id, "run_id": run_id, "task_ids": task_id, "map_indexes": index}
            if not ti.xcom_pull(key=links.POOL_KEY, **where):
                continue  # not our task: its output may be large, or foreign
            output = ti.xcom_pull(**where)
            if isinstance(output, Mapping):
                yield output


def plan(preview: Mapping[str, Any], pilots: Mapping[str, Any] | None, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Describe what a rerun would do, for the person who confirms it: ``{"tokens", "how", "text"}``.

    ``how`` says which pilots are submitted: ``new``, ``same`` or ``none``. The folder of the earlier pilots is read, so
    that a submission that cannot be repeated fails before anything is changed.
    """
    hook = PicasHook(asked["picas_conn_id"], database=preview["database"], profile=asked.get("profile"))
    number = preview["reset"]
    if not number:
        raise AirflowSkipException(
            "No tokens were selected, so there is nothing to do. The log of `preview` shows why they were skipped."
        )
    where = f"batch {code(preview['batch'])}" if preview["batch"] else "the pool"
    lines = [f"**{number_of(number, 'token')}** of {where} in {code(hook.settings.database)} would run again."]
    failed = FailedTokens(hook)
    failed.add(islice(hook.tokens(State.ERROR, preview["batch"]), _FAILED))
    groups = failed.summary(_CAUSES)
    lines += ["", "**Errors:**" if groups else ""]
    lines += [f"- {group['tokens']:,}: {code(group['cause'])}" for group in groups]
    try:
        how, described = _pilots(preview["batch"], pilots, asked)
    except ValueError as error:
        raise AirflowFailException(str(error)) from None
    except RemoteError as error:
        raise AirflowException(str(error)) from None
    return {"tokens": number, "how": how, "text": "\n".join([*lines, "", *described])}


def _pilots(batch: str | None, pilots: Mapping[str, Any] | None, asked: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Which pilots are submitted, and the lines that describe them."""
    if given := asked["command"] or asked["script"]:
        what = "command" if asked["command"] else "script"
        number, where = asked["pilots"] or 1, code(asked["ssh_conn_id"])
        return "new", [f"**Pilots:** {number} new, through connection {where}, with the {what} {code(given)}"]
    submission = Submission.parse(pilots or None) if batch and asked["same_pilots"] else None
    if submission is None or batch is None:
        text = "**Pilots:** none are submitted. The tokens wait for running pilots, or for pilots that you submit."
        return "none", [text]
    with SlurmHook(submission.ssh_conn_id) as slurm:
        origin = slurm.do(earlier_submission.read(submission.key, submission.folder, submission.calls, batch))
    most = (
        f"at most {asked['pilots']:,} for each sbatch call"
        if asked["pilots"]
        else "for each sbatch call no more than there are tokens"
    )
    described = [f"- {what}: {code(text)}" for what, text in resubmit.describe(origin, submission.ssh_conn_id)]
    return "same", [f"**Pilots:** the same as before, {most}.", "", *described]


def code(text: str) -> str:
    """Foreign text as code in Markdown, on one line."""
    clean = one_line(text, 1_000)
    fence = "`" * (1 + max(map(len, re.findall("`+", clean)), default=0))
    return f"{fence} {clean} {fence}"
