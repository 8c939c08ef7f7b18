"""Count the words of Python's standard library on a cluster: one token per file, pilots of the PiCaS client.

Needs a connection ``picas_default`` to a pool that the pilots may write to, a connection ``spider`` to a login node,
and the PiCaS client in ``~/picas-venv`` on the cluster, where ``spider_pilot.sh`` looks for it.
"""

from airflow.sdk import Param, dag, task

from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.operators.pilots import PicasSubmitPilotsOperator
from airflow_provider_picas.operators.tokens import PicasPushTokensOperator
from airflow_provider_picas.sensors.tokens import PicasTokenStateSensor

LIST_FILES = """
import pathlib, sysconfig
library = pathlib.Path(sysconfig.get_path("stdlib"))
others = {"test", "tests", "idle_test", "site-packages", "dist-packages"}
for file in sorted(library.rglob("*.py")):
    if not others.intersection(file.relative_to(library).parts):
        print(file)
"""


@task
def list_files(params=None):
    """The paths of the files to count, on the cluster."""
    from airflow.providers.ssh.hooks.ssh import SSHHook

    with SSHHook("spider").get_conn() as ssh:
        stdin, stdout, stderr = ssh.exec_command("~/picas-venv/bin/python3 -")
        stdin.write(LIST_FILES)
        stdin.channel.shutdown_write()
        files = stdout.read().decode().splitlines()
        if stdout.channel.recv_exit_status() != 0:
            raise RuntimeError(f"The files could not be listed on the cluster: {stderr.read().decode()}")
    return files[: params["limit"]]


@task
def report(batch):
    """Add up the results that the pilots wrote into the tokens."""
    hook = PicasHook("picas_default")
    counted = [
        {"file": token["input"], "lines": token["output"]["lines"], "words": token["output"]["words"]}
        for token in hook.tokens("done", batch["batch"])
    ]
    if len(counted) != batch["tokens"]:
        raise RuntimeError(f"{batch['tokens']} files were requested, but {len(counted)} were counted.")
    longest = sorted(counted, key=lambda row: row["words"], reverse=True)[:5]
    totals = {name: sum(row[name] for row in counted) for name in ("lines", "words")}
    for row in longest:
        print(f"{row['words']:9,} words {row['lines']:7,} lines  {row['file']}")
    print(f"{totals['words']:9,} words {totals['lines']:7,} lines  in {len(counted):,} files")
    return {"files": len(counted), **totals, "longest": longest}


@dag(
    schedule=None,
    catchup=False,
    params={"limit": Param(None, type=["null", "integer"], minimum=1, description="Maximum number of files to count")},
    tags=["picas", "example"],
    doc_md=__doc__,
)
def picas_word_count():
    push = PicasPushTokensOperator(task_id="push", picas_conn_id="picas_default", inputs=list_files())
    pilots = PicasSubmitPilotsOperator(
        task_id="pilots",
        ssh_conn_id="spider",
        batch=push.output,
        script="spider_pilot.sh",
        pilots=4,
        sbatch={"time": "00:30:00", "cpus-per-task": 1},
    )
    wait = PicasTokenStateSensor(task_id="wait", batch=push.output, deferrable=True)
    push >> pilots >> wait >> report(push.output)


picas_word_count()
