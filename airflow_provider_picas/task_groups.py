"""A whole run in one call: push tokens, submit pilots, wait, collect, stop the pilots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from airflow.providers.common.compat.sdk import TaskGroup, TriggerRule, task_group

from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.operators.pilots import PicasCancelPilotsOperator, PicasSubmitPilotsOperator
from airflow_provider_picas.operators.tokens import PicasCollectTokensOperator, PicasPushTokensOperator
from airflow_provider_picas.options import PilotOptions, PilotStage, PilotWatch, Scaling, WaitPolicy
from airflow_provider_picas.sensors.tokens import PicasTokenStateSensor

_PUSH_SHOWN_AS = "{{ task.batch_label }}"
_SHOWN_AS = "{{ (task.batch or {}).get('label') or (task.batch or {}).get('batch') or 'nothing pushed' }}"
"""What the grid shows for each mapped run. It must always render to a string, since an error fails the task."""


@task_group(group_id="picas_run")
def picas_run(
    *,
    inputs: Any = None,
    tokens: Any = None,
    key: Any = None,
    batch: str | None = None,
    on_existing: str = "reset",
    command: str | Sequence[str] | None = None,
    setup: str | None = None,
    files: Sequence[str] = (),
    pilot: PilotOptions | Mapping[str, Any] | None = None,
    script: str | None = None,
    scaling: Scaling | None = None,
    pilots: int | str | None = None,
    sbatch: Mapping[str, Any] | None = None,
    stages: Mapping[str, PilotStage] | None = None,
    env: Mapping[str, str] | None = None,
    policy: WaitPolicy | None = None,
    max_errors: float | str | None = None,
    watch: PilotWatch | None = None,
    fields: str | Sequence[str] = ("output",),
    path: str | None = None,
    attachments: str | None = None,
    ssh_conn_id: str = "ssh_default",
    picas_conn_id: str = PicasHook.default_conn_name,
    database: str | None = None,
    profile: str | Mapping[str, Any] | None = None,
) -> Any:
    """Tasks ``push``, ``pilots``, ``wait``, ``collect`` and ``stop``; returns the output of ``collect``.

    The parameters may be templates or outputs of tasks where the operators' may, or be mapped:
    ``picas_run.partial(command="./count.sh").expand(inputs=[["a", "b"], ["c"]])`` creates two runs side by side. The
    grid labels each with the name of its batch (``batch``), or else its first inputs. To set any other parameter of an
    operator, write the tasks yourself.

    The waits, ``wait`` and each stage's ``ready``, are always deferred, whatever ``[operators] default_deferrable`` is: they
    occupy no worker, and need a running triggerer. For a wait that is not deferred, use ``PicasTokenStateSensor`` with
    ``deferrable=False``.

    ``collect`` also runs when the wait has failed: it logs why tokens are in error, and then fails too. ``stop`` is a
    teardown: it cancels the pilots that remain, also when the run is marked failed.

    :param inputs: the inputs to push. See ``PicasPushTokensOperator`` for these, ``tokens``, ``key``, ``batch`` and
        ``on_existing``.
    :param tokens: the fields of each token, instead of ``inputs``.
    :param key: a field of the token or of its input, or a function, that gives a token its key.
    :param batch: the name of the batch.
    :param on_existing: what to do with tokens that exist already.
    :param command: what the pilots run for each token. See ``PicasSubmitPilotsOperator`` for this, ``setup``, ``files``,
        ``pilot``, ``script``, ``scaling``, ``pilots``, ``sbatch`` and ``env``.
    :param setup: shell code that each job runs once before the pilot.
    :param files: files to send to the cluster.
    :param pilot: options of the pilot.
    :param script: a batch script that starts a pilot of the PiCaS client, instead of ``command``.
    :param scaling: how many pilots to submit.
    :param pilots: the number of pilots, instead of ``scaling``.
    :param sbatch: options of sbatch.
    :param env: environment variables of the pilots' jobs.
    :param stages: the pilots of each further stage, which run the tokens that earlier stages have made
        (``docs/howto/stages.md``): ``{"imaging": PilotStage(command="./image.sh", sbatch={"time": "04:00:00"})}``. Each stage
        has a task group of its name, with the tasks ``ready`` (waits until there are enough tokens for pilots), ``pilots``,
        ``wait``, ``collect`` and ``stop``. The output is then that of the last stage's ``collect``.
    :param policy: when the wait succeeds or fails. See ``PicasTokenStateSensor`` for this, ``max_errors`` and ``watch``.
    :param max_errors: how many tokens may fail, instead of ``policy``.
    :param watch: how the wait watches the pilots.
    :param fields: the fields to collect. See ``PicasCollectTokensOperator`` for these, ``path`` and ``attachments``.
    :param path: a file for the results.
    :param attachments: a folder for the tokens' attachments.
    :param ssh_conn_id: a connection of type ``ssh`` to the cluster.
    :param picas_conn_id: a connection of type ``picas``.
    :param database: another database than the connection's.
    :param profile: another shape of the pool than the connection's: the name of a profile, or an object.
    """
    names = _names(stages or {})
    if taken := {"push", "pilots", "wait", "collect", "stop"} & set(names):
        raise ValueError(f"A stage of picas_run cannot have the name of one of its tasks: {', '.join(sorted(taken))}.")
    picas: dict[str, Any] = {"picas_conn_id": picas_conn_id, "database": database, "profile": profile}
    what = {"inputs": inputs, "tokens": tokens, "key": key, "batch": batch, "on_existing": on_existing}
    push = PicasPushTokensOperator(task_id="push", map_index_template=_PUSH_SHOWN_AS, **what, **picas)
    picas["map_index_template"] = _SHOWN_AS
    pushed: Any = push.output
    runs: dict[str, Any] = {"command": command, "setup": setup, "files": files, "script": script}
    runs |= {"pilot": pilot, "sbatch": sbatch, "env": env}
    submit = PicasSubmitPilotsOperator(
        task_id="pilots",
        batch=pushed,
        stages=names,
        ssh_conn_id=ssh_conn_id,
        **runs,
        **_given(scaling=scaling, pilots=pilots),
        **picas,
    )
    push >> submit
    results = {"fields": fields, "path": path, "attachments": attachments}
    wait_for = _given(policy=policy, max_errors=max_errors, watch=watch)
    collected = _wait_and_collect(pushed, pushed, submit.output, wait_for, results, picas)
    for name in names:
        with TaskGroup(group_id=name):
            collected = _run_stage(pushed, stages or {}, name, results, picas, ssh_conn_id)
    return collected


def _run_stage(
    pushed: Any,
    stages: Mapping[str, PilotStage],
    name: str,
    results: dict[str, Any],
    picas: dict[str, Any],
    ssh_conn_id: str,
) -> Any:
    """The tasks of a stage; returns the output of ``collect``."""
    stage = stages[name]
    chain: dict[str, Any] = {"batch": pushed, "stages": _names(stages), "stage": name}
    groups = {
        other: {"of": made.group_of, "at_least": made.at_least}
        for other, made in stages.items()
        if made.group_of is not None
    }
    ready = PicasTokenStateSensor(
        task_id="ready",
        ready=stage.least_work,
        groups=groups,
        pilots=False,
        deferrable=True,
        **chain,
        **picas,
    )
    submit = PicasSubmitPilotsOperator(
        task_id="pilots",
        command=stage.command,
        setup=stage.setup,
        files=stage.files,
        pilot=stage.pilot,
        script=stage.script,
        sbatch=stage.sbatch,
        env=stage.env,
        scaling=stage.scaling,
        ssh_conn_id=ssh_conn_id,
        **chain,
        **picas,
    )
    ready >> submit
    watch = {"watch": stage.watch} if stage.watch else {"resubmit": stage.waves}
    wait_for = {**chain, "groups": groups, "least_work": stage.least_work, "max_errors": stage.max_errors, **watch}
    wait_for |= {"outlets": list(stage.outlets)} if stage.outlets else {}
    return _wait_and_collect(wait_for.pop("batch"), ready.output, submit.output, wait_for, results, picas)


def _wait_and_collect(
    pushed: Any, batch: Any, submitted: Any, wait_for: dict[str, Any], results: dict[str, Any], picas: dict[str, Any]
) -> Any:
    """The tasks after the submission of pilots; returns the output of ``collect``. ``batch``: what it collects."""
    wait = PicasTokenStateSensor(task_id="wait", batch=pushed, pilots=submitted, deferrable=True, **wait_for, **picas)
    collect = PicasCollectTokensOperator(
        task_id="collect",
        batch=batch,
        max_errors=wait.max_errors,
        trigger_rule=TriggerRule.NONE_SKIPPED,
        **results,
        **picas,
    )
    stop = PicasCancelPilotsOperator(task_id="stop", pilots=submitted, batch=batch, **picas).as_teardown()
    wait >> collect >> stop
    return collect.output


def _names(stages: Mapping[str, PilotStage]) -> list[str] | dict[str, str]:
    """The names of the stages, with the batch of each if any is given."""
    if not any(stage.batch for stage in stages.values()):
        return list(stages)
    return {name: stage.batch or "" for name, stage in stages.items()}


def _given(**arguments: Any) -> dict[str, Any]:
    """Those that are not None: the operator raises for an object and one of its arguments together."""
    return {name: value for name, value in arguments.items() if value is not None}
