"""Run a script of your own for each of some files on a cluster: ``checksum.sh`` computes their checksums.

Needs a connection ``picas_default`` to a pool that the pilots may write to, and a connection ``spider`` to a login
node. The script needs neither PiCaS nor Airflow: it finds the token's input in ``PICAS_INPUT``, and writes the result,
as JSON, to ``PICAS_OUTPUT_FILE``.
"""

from airflow.sdk import Param, dag, task

from airflow_provider_picas.task_groups import picas_run

FILES = ["/etc/os-release", "/etc/passwd", "/etc/group"]


@task
def files(params=None):
    """The inputs: paths on the cluster."""
    return list(params["files"])


@dag(
    schedule=None,
    catchup=False,
    params={"files": Param(FILES, type="array", items={"type": "string"}, description="Files on the cluster")},
    tags=["picas", "example"],
    doc_md=__doc__,
)
def picas_own_script():
    picas_run(
        inputs=files(),
        command="./checksum.sh",
        files=["checksum.sh"],  # beside this file; each pilot gets a copy
        pilots=2,
        fields=["input", "output.bytes", "output.sha256"],
        sbatch={"time": "00:10:00", "cpus-per-task": 1},
        ssh_conn_id="spider",
    )


picas_own_script()
