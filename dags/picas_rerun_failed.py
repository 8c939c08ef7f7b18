"""Run failed tokens again: choose them in the trigger form, look at what would be done, then give them back.

With the name of a script, or a command, pilots are submitted for them. The run waits until the tokens have finished, and
fails if some are in error again; those that were not chosen may stay so. Needs a connection to the pool, and one to a login
node if pilots are submitted.
"""

from airflow.sdk import Param, dag, task

from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.operators.pilots import PicasSubmitPilotsOperator
from airflow_provider_picas.operators.tokens import PicasCollectTokensOperator, PicasResetTokensOperator
from airflow_provider_picas.sensors.tokens import PicasTokenStateSensor

OPTIONAL_TEXT = {"type": ["null", "string"]}

PARAMS = {
    "batch": Param(None, **OPTIONAL_TEXT, title="Batch", description="Its name, as the push task logs it."),
    "whole_pool": Param(
        False, type="boolean", title="Whole pool", description="Without a batch: all tokens of the pool."
    ),
    "states": Param(
        ["error"],
        type="array",
        items={"type": "string", "enum": ["error", "locked", "done"]},
        examples=["error", "locked", "done"],
        title="States",
        description="Of locked tokens give back only those whose pilots are dead: set the age of the lock.",
    ),
    "error_pattern": Param(None, **OPTIONAL_TEXT, title="Error pattern", description="A regular expression."),
    "keys": Param(
        None,
        type=["null", "array"],
        items={"type": "string"},
        title="Keys",
        description="Only these tokens, a line each.",
    ),
    "older_than": Param(
        None, type=["null", "integer"], minimum=0, title="Age of the lock", description="So many seconds, or older."
    ),
    "max_scrubs": Param(
        None,
        type=["null", "integer"],
        minimum=0,
        title="Most attempts",
        description="Leave tokens given back so often.",
    ),
    "keep_logs": Param(
        True,
        type="boolean",
        title="Keep logs",
        description="Also those of pilots of the PiCaS client. Tokens with one above 1 MB are left.",
    ),
    "dry_run": Param(
        True, type="boolean", title="Dry run", description="Change nothing; the log says what would be done."
    ),
    "command": Param(
        None, **OPTIONAL_TEXT, section="Pilots", title="Command", description="What a pilot runs for a token."
    ),
    "script": Param(
        None, **OPTIONAL_TEXT, section="Pilots", title="Script", description="Instead: a PiCaS pilot script."
    ),
    "pilots": Param(1, type="integer", minimum=1, section="Pilots", title="Pilots", description="How many."),
    "sbatch": Param(
        {}, type="object", section="Pilots", title="Options of sbatch", description='As {"time": "01:00:00"}.'
    ),
    "picas_conn_id": Param("picas_default", type="string", section="Where", title="Connection to the pool"),
    "database": Param(
        None, **OPTIONAL_TEXT, section="Where", title="Pool", description="If not the connection's database."
    ),
    "ssh_conn_id": Param("spider", type="string", section="Where", title="Connection to a login node"),
}

LEFT = "{{ ti.xcom_pull(task_ids='errors_left') or 0 }}"


@task(multiple_outputs=True)
def form(params=None):
    """What was filled in, as it is: a template would make texts of it."""
    return dict(params)


@task
def errors_left(reset, params=None):
    """How many tokens stay in error because they were not chosen."""
    return PicasHook(params["picas_conn_id"], database=reset["database"]).count(reset["batch"]).error


@task.branch
def what_now(reset, params=None):
    """Nothing after a dry run, or when nothing was reset; pilots if they were asked for."""
    if params["dry_run"] or not reset["reset"]:
        return None
    return "pilots" if params["command"] or params["script"] else "wait"


@dag(schedule=None, catchup=False, params=PARAMS, tags=["picas"], doc_md=__doc__)
def picas_rerun_failed():
    asked = form()
    pool = {name: asked[name] for name in ("picas_conn_id", "database")}
    batch = {name: asked[name] for name in ("batch", "whole_pool")}
    chosen = {
        name: asked[name]
        for name in ("states", "keys", "error_pattern", "older_than", "max_scrubs", "keep_logs", "dry_run")
    }
    reset = PicasResetTokensOperator(task_id="reset", reason="by {{ run_id }}", **batch, **chosen, **pool)
    pilots = PicasSubmitPilotsOperator(
        task_id="pilots",
        batch=asked["batch"],
        command=asked["command"],
        script=asked["script"],
        pilots=asked["pilots"],
        sbatch=asked["sbatch"],
        ssh_conn_id=asked["ssh_conn_id"],
        **pool,
    )
    wait = PicasTokenStateSensor(
        task_id="wait",
        batch=asked["batch"],
        pilots=pilots.output,
        max_errors=LEFT,
        deferrable=True,
        trigger_rule="none_failed_min_one_success",
        **pool,
    )
    collect = PicasCollectTokensOperator(
        task_id="collect", states="error", fields=[], max_errors=LEFT, trigger_rule="none_skipped", **batch, **pool
    )
    now = what_now(reset.output)
    errors_left(reset.output) >> now
    now >> pilots >> wait >> collect
    now >> wait


picas_rerun_failed()
