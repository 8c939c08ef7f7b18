"""Login profiles and sites that could change the output of Slurm's commands, or the meaning of our shell code."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.hooks.slurm import SlurmHook
from airflow_provider_picas.operators.pilots import PicasCancelPilotsOperator, PicasSubmitPilotsOperator
from airflow_provider_picas.slurm import jobs as slurm_jobs
from airflow_provider_picas.slurm import sbatch_record
from airflow_provider_picas.slurm.remote import Output, RemoteFile, Send
from airflow_provider_picas.submissions import stop
from airflow_provider_picas.submissions.submission import Submission
from stack import processes
from stack.cluster import Cluster
from tests.integration.tasks import context

pytestmark = pytest.mark.usefixtures("picas_default", "spider")

LIMIT = 180  # seconds to wait for anything
HELD = "#!/bin/bash\n#SBATCH --hold\nsleep 600\n"


@pytest.fixture
def task_id(remote: SlurmHook) -> Iterator[str]:
    """A name of this test's own; its jobs are cancelled at the end."""
    name = f"t{secrets.token_hex(4)}"
    yield name
    remote.run(f"scancel $(squeue -h -o '%F %j' | awk '$2 ~ /{name}/ {{ print $1 }}')")


@contextmanager
def profile(remote: SlurmHook, text: str) -> Iterator[None]:
    """Shell text at the end of the login profile."""
    file = remote.run('echo "$HOME/.bash_profile"').stdout.strip()
    before = remote.run(f"cat {file}").stdout
    remote.perform(Send([RemoteFile(file, f"{before}\n{text}\n".encode())]))
    try:
        yield
    finally:
        remote.perform(Send([RemoteFile(file, before.encode())]))


def submit(script: Any, task_id: str, **arguments: Any) -> dict[str, Any]:
    operator = PicasSubmitPilotsOperator(task_id=task_id, script=str(script), ssh_conn_id="spider", **arguments)
    output = operator.execute(context(task_id))
    assert output is not None
    return output


def cancel(pilots: dict[str, Any]) -> None:
    PicasHook("picas_default").deploy_views()
    PicasCancelPilotsOperator(task_id="cancel", pilots=pilots).execute(context("cancel"))  # type: ignore[arg-type]


@pytest.fixture
def held(tmp_path: Any) -> str:
    """A script whose job does not start."""
    (tmp_path / "held.sh").write_text(HELD)
    return str(tmp_path / "held.sh")


@pytest.fixture
def quick(tmp_path: Any) -> str:
    """A script whose job ends at once."""
    (tmp_path / "quick.sh").write_text("#!/bin/bash\n")
    return str(tmp_path / "quick.sh")


def jobs(remote: SlurmHook, pilots: dict[str, Any]) -> list[str]:
    """Pilots that wait or run."""
    return remote.run(f"squeue --noheader --array --name={pilots['submission']} --format=%i").stdout.split()


VARIABLES = """
export SQUEUE_PARTITION=other SQUEUE_STATES=RUNNING SQUEUE_USERS=nobody SACCT_FORMAT=JobID SCANCEL_STATE=RUNNING
export SBATCH_ARRAY_INX=0-2 SBATCH_EXPORT=NONE SLURM_TIME_FORMAT=relative SLURM_BITSTR_LEN=1
"""
SHELL = """
shopt -s expand_aliases
alias ls='ls -l' grep='grep -n' cat='cat -n'
export CDPATH=$HOME
sort() { command sort -r "$@"; }
export -f sort
set -euo pipefail
"""


ONE_CLUSTER = """
export SLURM_CLUSTERS=$(scontrol show config | sed -n 's/^ClusterName *= *//p') SBATCH_CLUSTERS=elsewhere
"""


@pytest.mark.parametrize("text", [VARIABLES, SHELL, ONE_CLUSTER], ids=["variables", "shell code", "one cluster"])
def test_the_login_profile_does_not_change_a_submission(held: str, remote: SlurmHook, task_id: str, text: str) -> None:
    remote.run("mkdir -p pilots")
    with profile(remote, text):
        made = submit(held, task_id, remote_folder="pilots", env={"OURS": "1"})
        again = submit(held, task_id, remote_folder="pilots", env={"OURS": "1"})
    assert again["job_ids"] == made["job_ids"], "submitted twice"
    assert jobs(remote, made) == made["job_ids"], "no array was asked for"
    with profile(remote, text):
        cancel(made)
    processes.wait_for(lambda: not jobs(remote, made), what="The end of the pilots", seconds=LIMIT)


def test_jobs_of_other_people_with_our_names_are_not_ours(held: str, remote: SlurmHook, task_id: str) -> None:
    """A held one would keep our credentials for ever, make a submission look alive, and be cancelled with ours."""
    made = submit(held, task_id)
    foreign = remote.run(
        f"sbatch --uid=nobody --gid=nogroup --parsable --hold --chdir=/ --job-name={made['submission']} --wrap true"
    ).stdout.strip()
    if not foreign:
        pytest.skip("the account cannot submit jobs as another user")
    try:
        look = remote.do(slurm_jobs.query(made["submission"], made["folder"], int(time.time())))
        assert set(look.jobs) == set(made["job_ids"])
        cancel(made)
        assert jobs(remote, made) == [foreign]
        watched = Submission(key=made["submission"], folder=made["folder"], since=0, ssh_conn_id="spider")
        assert remote.do(stop.remove_credentials(watched, wait=LIMIT)), "another user's job keeps the credentials"
        again = submit(held, task_id)
        assert again["job_ids"] != made["job_ids"], "another user's job makes the submission look alive"
    finally:
        remote.run(f"scancel {foreign}")


REFUSES = """#!/bin/bash
for word; do case $word in --starttime=uts*) since=${word#--starttime=uts};; esac; done
[ "$since" -ge LIMIT ] || { echo "sacct: error: Problem with slurmdbd query: Time range too wide" >&2; exit 1; }
exec SACCT "$@"
"""


def test_an_old_submission_that_sacct_refuses_hides_no_other(quick: str, remote: SlurmHook, task_id: str) -> None:
    """As with slurmdbd's MaxQueryTimeRange, which does not hold for the administrator whose account the tests have."""
    made = [submit(quick, f"{task_id}{number}") for number in range(3)]
    now = int(time.time())
    old = [now - 10 * 86_400, now - 5 * 86_400, now - 6 * 86_400]
    since = [now - 60, old[0], now - 61, old[1], now - 62, old[2]]
    keys = [made[0], made[0], made[1], made[1], made[2], made[2]]
    steps = [
        slurm_jobs.JobsQuery("", key=one["submission"] + ".old" * (at in old), folder=one["folder"], since=at)
        for one, at in zip(keys, since, strict=True)
    ]
    real = remote.run("command -v sacct").stdout.strip()
    folder = remote.run("mktemp -d").stdout.strip()
    program = REFUSES.replace("LIMIT", str(now - 86_400)).replace("SACCT", real)
    remote.perform(Send([RemoteFile(f"{folder}/sacct", program.encode(), 0o755)]))

    def accounted() -> bool:
        return all(
            "COMPLETED" in remote.run(f"sacct -X -n --jobs={one['job_ids'][0]} --format=State").stdout for one in made
        )

    processes.wait_for(accounted, what="The jobs in sacct", seconds=LIMIT)
    with profile(remote, f"PATH={folder}:$PATH"), SlurmHook("spider") as slurm:
        outputs: list[Output] = []

        def rows_are_there() -> bool:
            """What sacct shows may lag behind, also after it has shown a job by its id."""
            outputs[:] = slurm_jobs.split_output(slurm.perform(slurm_jobs.combine(steps)), steps)
            return all(
                f"A|{one['job_ids'][0]}|COMPLETED|" in output.stdout
                for output, one in zip(outputs[::2], made, strict=True)
            )

        processes.wait_for(rows_are_there, what="sacct's rows of the new submissions", seconds=LIMIT)
    looks = [slurm_jobs.parse(output.stdout.splitlines()) for output in outputs]
    assert [bool(look.sacct_error) for look in looks] == [False, True] * 3
    assert "Time range too wide" in str(looks[1].sacct_error)


def zone_that_changes(at: int) -> str:
    """A time zone one hour east of Greenwich whose summer time ends at this time, in seconds since 1970."""
    local = time.gmtime(at + 2 * 3_600)
    year_day = local.tm_yday - 1
    return f"STD-1DST-2,{(year_day + 180) % 365},{year_day}/{time.strftime('%H:%M:%S', local)}"


def test_the_hour_of_the_change_of_clocks(quick: str, remote: SlurmHook, task_id: str) -> None:
    made = submit(quick, task_id)
    now = int(time.time())
    since = now - 60
    with profile(remote, f"export TZ={zone_that_changes(now - 180)}"), SlurmHook("spider") as slurm:
        zones = slurm.run(f"date -d @{now - 200} +%Z; date -d @{now} +%Z").stdout.split()
        assert zones == ["DST", "STD"]

        def accounted() -> bool:
            look = slurm.do(slurm_jobs.query(made["submission"], made["folder"], since))
            assert look.sacct_error is None
            job = look.jobs.get(made["job_ids"][0])
            return job is not None and abs(job.ended - now) < 10 * LIMIT

        processes.wait_for(accounted, what="The end of the job by sacct", seconds=LIMIT)


def test_a_script_that_makes_sbatch_wait_for_its_job(remote: SlurmHook, task_id: str, tmp_path: Any) -> None:
    """Sbatch then ends with the exit code of the job."""
    (tmp_path / "waits.sh").write_text("#!/bin/bash\n#SBATCH --wait\nexit 3\n")
    made = submit(tmp_path / "waits.sh", task_id)
    said = remote.run(f"cat {made['folder']}/started.0/out {made['folder']}/started.0/code").stdout.split()
    assert said == [*made["job_ids"], "3"]


def test_an_answer_that_comes_late_does_not_change_a_settled_call(remote: SlurmHook, task_id: str) -> None:
    folder = remote.run("mktemp -d").stdout.strip()
    script = sbatch_record.submit_script(folder, folder, {}, None)
    late = "sh -c 'touch ../up; until [ -e ../go ]; do sleep 0.05; done; exit 1'"
    files = {sbatch_record.SUBMIT_SCRIPT: script, "command.0": late.replace("../", f"{folder}/")}
    remote.perform(Send([RemoteFile(f"{folder}/{name}", text.encode()) for name, text in files.items()]))
    started = f"setsid -f sh -c 'bash -p ./{sbatch_record.SUBMIT_SCRIPT}; touch over' </dev/null >/dev/null 2>&1"
    remote.run(f"cd {folder}; {started}")
    processes.wait_for(lambda: remote.run(f"[ -e {folder}/up ]").code == 0, what="The call", seconds=LIMIT)
    record = remote.do(sbatch_record.read(folder))
    assert remote.do(sbatch_record.record_ids(folder, record, {0: "4711"}))
    remote.run(f"touch {folder}/go")
    processes.wait_for(lambda: remote.run(f"[ -e {folder}/over ]").code == 0, what="Its end", seconds=LIMIT)
    assert remote.do(sbatch_record.read(folder)).calls[0].code == 0
    assert remote.do(sbatch_record.read(folder)).job_ids == ("4711",)


def test_a_partition_that_is_closed_for_now_is_tried_again(held: str, remote: SlurmHook, task_id: str) -> None:
    partition = remote.run("sinfo --noheader --format=%R | head -n 1").stdout.strip()
    if remote.run(f"scontrol update PartitionName={partition} State=DRAIN").code != 0:
        pytest.skip("the account cannot close a partition")
    try:
        with pytest.raises(AirflowException, match="Required partition not available") as failure:
            submit(held, task_id)
        assert not isinstance(failure.value, AirflowFailException), "Airflow would not retry"
    finally:
        remote.run(f"scontrol update PartitionName={partition} State=UP")
    assert jobs(remote, made := submit(held, task_id)) == made["job_ids"]
    with pytest.raises(AirflowFailException):
        submit(held, f"{task_id}b", sbatch={"partition": "nowhere"})


@pytest.mark.parametrize("clusters", ["all", "minispider,wice"])
def test_a_profile_that_submits_to_several_clusters_is_refused(
    held: str, remote: SlurmHook, task_id: str, clusters: str
) -> None:
    with (
        profile(remote, f"export SLURM_CLUSTERS={clusters}"),
        pytest.raises(AirflowFailException, match=f"SLURM_CLUSTERS to several clusters .{clusters}"),
    ):
        submit(held, task_id)
    assert not remote.run(f"squeue --noheader --format=%j | grep {task_id}").stdout


@pytest.mark.parametrize("directive", ["--clusters=minispider", "-M minispider", "hetjob"])
def test_a_script_for_another_cluster_or_of_several_jobs_is_refused(
    remote: SlurmHook, task_id: str, tmp_path: Any, directive: str
) -> None:
    """Slurm's commands would not find its jobs by the id that sbatch prints."""
    (tmp_path / "there.sh").write_text(f"#!/bin/bash\n#SBATCH --hold\n#SBATCH {directive}\n#SBATCH --hold\nsleep 600\n")
    with pytest.raises(AirflowFailException, match="has the #SBATCH option"):
        submit(tmp_path / "there.sh", task_id)
    assert not remote.run(f"squeue --noheader --format=%j | grep {task_id}").stdout


@pytest.fixture
def wice(cluster: Any, tmp_path: Any) -> Iterator[str]:
    """The name of another cluster with the accounting of the first one, as sites have that share their login nodes."""
    if not isinstance(cluster, Cluster):
        pytest.skip("needs the files of the cluster")
    conf = (cluster.folder / "etc" / "slurm.conf").read_text()
    shared = dict(re.findall(r"^(AuthInfo|AccountingStoragePort|AccountingStoragePass)=(.*)$", conf, re.MULTILINE))
    with Cluster(tmp_path / "wice", nodes=1, settings={"ClusterName": "wice", **shared}):
        yield "wice"


def test_jobs_on_the_profiles_cluster_are_found_and_cancelled(
    held: str, quick: str, remote: SlurmHook, task_id: str, wice: str
) -> None:
    """What is submitted there is found, by squeue and by sacct, and cancelled there."""
    with profile(remote, f"export SLURM_CLUSTERS={wice}"), SlurmHook("spider") as slurm:
        ends = submit(quick, f"{task_id}ends")

        def accounted() -> bool:
            """Only sacct knows when a job has ended."""
            look = slurm.do(slurm_jobs.query(ends["submission"], ends["folder"], int(time.time()) - 60))
            return bool(look.jobs[ends["job_ids"][0]].ended)

        processes.wait_for(accounted, what="The end of the job by sacct", seconds=LIMIT)
        made = submit(held, task_id)
        assert submit(held, task_id)["job_ids"] == made["job_ids"], "submitted twice"
        there = f"squeue --noheader --clusters={wice} --name={made['submission']} --format=%i"
        assert slurm.run(there).stdout.split() == made["job_ids"]
        cancel(made)
        processes.wait_for(lambda: not slurm.run(there).stdout.split(), what="The end of the pilots", seconds=LIMIT)
    assert not jobs(remote, made), "on the first cluster"


WRAPPER = """#!/bin/bash
exec SBATCH --clusters=CLUSTER "$@"
"""


def test_jobs_that_the_site_sends_to_another_cluster_are_cancelled(
    held: str, remote: SlurmHook, task_id: str, wice: str
) -> None:
    """They could not be found again. A wrapper that names the cluster of the login node changes nothing."""
    here = remote.run("scontrol show config | sed -n 's/^ClusterName *= *//p'").stdout.strip()
    real = remote.run("command -v sbatch").stdout.strip()
    folder = remote.run("mktemp -d").stdout.strip()

    def wrap(name: str) -> None:
        program = WRAPPER.replace("SBATCH", real).replace("CLUSTER", name)
        remote.perform(Send([RemoteFile(f"{folder}/sbatch", program.encode(), 0o755)]))

    with profile(remote, f"PATH={folder}:$PATH"):
        wrap(wice)
        for _ in range(2):  # a clear of the failed task finds no job that stands
            with pytest.raises(AirflowFailException, match=f"to the cluster {wice}, .* was cancelled"):
                submit(held, task_id)
        assert not remote.run(f"squeue --noheader --clusters={wice} --format=%i").stdout
        assert not remote.run(f"ls picas-pilots/*{task_id}*/credentials").stdout, "credentials are left"
        wrap(here)
        made = submit(held, task_id)
    assert jobs(remote, made) == made["job_ids"]
