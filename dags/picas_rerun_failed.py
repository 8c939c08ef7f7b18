"""Run failed tokens again, with the same pilots as before.

Give the DAG id and run id of the run that failed, or the name of its batch; with neither, the run asks you to choose
one of the batches with errors. It shows what would be done, and continues when you approve it (tab *Required Actions*
of the run). The pilots are those of the earlier run: same command or script, files, setup, options, environment and
cluster. To use others, enter a command or a script. The run then waits until the tokens have finished, and fails if
some are in error again; tokens that were not selected may remain in error.

To run all downstream tasks of the push again as well, clear the push task of the earlier run with its downstream tasks
instead.
"""

from airflow.sdk import Param, dag, task

from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.operators import rerun
from airflow_provider_picas.operators.pilots import PicasResubmitPilotsOperator, PicasSubmitPilotsOperator
from airflow_provider_picas.operators.tokens import PicasCollectTokensOperator, PicasResetTokensOperator
from airflow_provider_picas.sensors.tokens import PicasTokenStateSensor

OPTIONAL_TEXT = {"type": ["null", "string"]}

PARAMS = {
    "dag_id": Param(
        None, **OPTIONAL_TEXT, title="DAG id", description="DAG of the run whose failed tokens should run again."
    ),
    "run_id": Param(None, **OPTIONAL_TEXT, title="Run id", description="As the run's page shows it."),
    "batch": Param(
        None,
        **OPTIONAL_TEXT,
        title="Batch",
        description="Instead of a run: the name of its batch, as the push task logs it. If you give neither, you are asked.",
    ),
    "whole_pool": Param(
        False, type="boolean", title="Whole pool", description="Without a batch: all tokens of the pool."
    ),
    "dry_run": Param(
        True,
        type="boolean",
        title="Ask me first",
        description="Show what would be done, and wait for your approval.",
    ),
    "states": Param(
        ["error"],
        type="array",
        items={"type": "string", "enum": ["error", "locked", "done"]},
        examples=["error", "locked", "done"],
        title="States",
        description="With locked tokens, set the age of the lock, so that only tokens of dead pilots are reset.",
    ),
    "error_pattern": Param(
        None,
        **OPTIONAL_TEXT,
        title="Error pattern",
        description="Only tokens whose errors match this regular expression.",
    ),
    "keys": Param(
        None,
        type=["null", "array"],
        items={"type": "string"},
        title="Keys",
        description="Only these tokens, one per line.",
    ),
    "older_than": Param(
        None,
        type=["null", "integer"],
        minimum=0,
        title="Age of the lock",
        description="Only tokens locked at least this number of seconds ago.",
    ),
    "max_scrubs": Param(
        None,
        type=["null", "integer"],
        minimum=0,
        title="Most attempts",
        description="Skip tokens that were released this number of times or more.",
    ),
    "keep_logs": Param(
        True,
        type="boolean",
        title="Keep logs",
        description="Also keep the logs of PiCaS client pilots. Tokens with a log above 1 MB are skipped.",
    ),
    "same_pilots": Param(
        True,
        type="boolean",
        section="Pilots",
        title="Same pilots as before",
        description="Unless a command or a script is given. If off, no pilots are submitted.",
    ),
    "command": Param(
        None,
        **OPTIONAL_TEXT,
        section="Pilots",
        title="Command",
        description="Submit new pilots that run this command for each token.",
    ),
    "script": Param(
        None,
        **OPTIONAL_TEXT,
        section="Pilots",
        title="Script",
        description="Submit new pilots with this PiCaS pilot script.",
    ),
    "pilots": Param(
        None,
        type=["null", "integer"],
        minimum=1,
        section="Pilots",
        title="Pilots",
        description="Maximum number. Default: as many as before, but no more than there are tokens; 1 for a new command.",
    ),
    "sbatch": Param(
        {},
        type="object",
        section="Pilots",
        title="sbatch options",
        description='For a new command or script, such as {"time": "01:00:00"}.',
    ),
    "picas_conn_id": Param("picas_default", type="string", section="Where", title="Connection to the pool"),
    "database": Param(
        None, **OPTIONAL_TEXT, section="Where", title="Pool", description="If not the connection's database."
    ),
    "profile": Param(
        None,
        **OPTIONAL_TEXT,
        section="Where",
        title="Profile",
        description="The shape of the pool, if not the connection's: the name of a profile, or JSON.",
    ),
    "ssh_conn_id": Param("spider", type="string", section="Where", title="Connection to a login node"),
}

LEFT = "{{ ti.xcom_pull(task_ids='which_pilots', key='errors_left') or 0 }}"


@task(multiple_outputs=True)
def form(params=None):
    """The values in the form, with their types: a template would convert them to strings."""
    return dict(params)


@task(multiple_outputs=True)
def plan(preview, pilots, params=None):
    """What would be done, for the person who confirms it."""
    return rerun.plan(preview, pilots, params)


@task.branch
def which_pilots(reset, how, params=None, ti=None):
    """The next task. Stores for the wait the number of tokens that remain in error because they were not selected."""
    hook = PicasHook(params["picas_conn_id"], database=reset["database"], profile=params["profile"])
    left = hook.count(reset["batch"]).error
    ti.xcom_push("errors_left", left)
    return {"new": "pilots", "same": "same_pilots"}.get(how, "submitted")


@task(trigger_rule="none_failed_min_one_success")
def submitted(ti=None):
    """The pilots to watch, if any were submitted."""
    return ti.xcom_pull(task_ids="same_pilots") or ti.xcom_pull(task_ids="pilots")


@dag(schedule=None, catchup=False, params=PARAMS, tags=["picas"], doc_md=__doc__)
def picas_rerun_failed():
    asked = form()
    picas = {name: asked[name] for name in ("picas_conn_id", "database", "profile")}
    choose = rerun.PicasChooseBatchOperator(
        task_id="choose",
        batch=asked["batch"],
        of_dag=asked["dag_id"],
        of_run=asked["run_id"],
        whole_pool=asked["whole_pool"],
        ask=asked["dry_run"],
        **picas,
    )
    batch = {"batch": choose.output["batch"], "whole_pool": asked["whole_pool"]}
    chosen = {
        name: asked[name] for name in ("states", "keys", "error_pattern", "older_than", "max_scrubs", "keep_logs")
    }
    preview = PicasResetTokensOperator(task_id="preview", dry_run=True, **batch, **chosen, **picas)
    planned = plan(preview.output, choose.output["pilots"])
    confirm = rerun.PicasConfirmOperator(
        task_id="confirm",
        subject="Run these tokens again?",
        body="{{ ti.xcom_pull(task_ids='plan')['text'] }}",
        ask=asked["dry_run"],
    )
    reset = PicasResetTokensOperator(task_id="reset", reason="by {{ run_id }}", **batch, **chosen, **picas)
    now = which_pilots(reset.output, planned["how"])
    same = PicasResubmitPilotsOperator(
        task_id="same_pilots",
        batch=choose.output["batch"],
        pilots=choose.output["pilots"],
        max_pilots="{{ params.pilots or ti.xcom_pull(task_ids='reset')['reset'] }}",
        **picas,
    )
    new = PicasSubmitPilotsOperator(
        task_id="pilots",
        batch=choose.output["batch"],
        command=asked["command"],
        script=asked["script"],
        pilots="{{ params.pilots or 1 }}",
        sbatch=asked["sbatch"],
        ssh_conn_id=asked["ssh_conn_id"],
        **picas,
    )
    pilots = submitted()
    wait = PicasTokenStateSensor(
        task_id="wait",
        batch=choose.output["batch"],
        pilots=pilots,
        max_errors=LEFT,
        deferrable=True,
        **picas,
    )
    collect = PicasCollectTokensOperator(
        task_id="collect", states="error", fields=[], max_errors=LEFT, trigger_rule="none_skipped", **batch, **picas
    )
    planned >> confirm >> reset
    now >> [same, new, pilots]
    [same, new] >> pilots >> wait >> collect


picas_rerun_failed()
