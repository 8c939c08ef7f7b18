"""The configuration of a Slurm in one folder, and the scripts that a site runs around each job."""

from __future__ import annotations

from pathlib import Path

from stack.cluster import packages

NAME = "minispider"


def slurm_conf(
    *,
    site: Path,
    plugins: Path,
    user: str,
    nodes: dict[str, int],
    cpus: int,
    controller_port: int,
    accounting_port: int,
    settings: dict[str, str],
) -> str:
    """The text of slurm.conf. ``nodes`` maps the nodes' names to their ports; ``site`` is the cluster's short folder;
    ``settings`` replace or add values.

    Timeouts are short, so that faults appear within seconds, and jobs start as soon as they are submitted.
    """
    folder = site / "folder"
    lines = [
        f"NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory=8000"
        for name, port in nodes.items()
    ]
    text = f"""\
ClusterName={NAME}
SlurmctldHost=localhost(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={site}/munge.sock,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPort={controller_port}
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmdLogFile={folder}/log/%n.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
PluginDir={plugins}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
TaskProlog={folder}/etc/task_prolog
Epilog={folder}/etc/epilog
JobAcctGatherType=jobacct_gather/linux
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=1
SlurmctldTimeout=10
SlurmdTimeout=5
KillWait=5
UnkillableStepTimeout=30
MinJobAge=300
MessageTimeout=10
TCPTimeout=2
BatchStartTimeout=10
GetEnvTimeout=10
MaxArraySize=10001
MaxJobCount=20000
JobRequeue=1
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1,bf_interval=1
MailProg=/bin/true
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={accounting_port}
AccountingStoragePass={site}/munge.sock
AccountingStoreFlags=job_comment,job_script
JobCompType=jobcomp/none
SlurmctldDebug=info
SlurmdDebug=info
SlurmctldSyslogDebug=quiet
SlurmdSyslogDebug=quiet
LogTimeFormat=iso8601_ms
{chr(10).join(lines)}
PartitionName=normal Nodes={",".join(nodes)} Default=YES DefaultTime=60 MaxTime=INFINITE State=UP
"""
    kept = [line for line in text.splitlines() if line.partition("=")[0] not in settings]
    return "\n".join([*(f"{name}={value}" for name, value in settings.items()), *kept, ""])


def loopback(*, site: Path) -> dict[str, str]:
    """The environment that keeps Slurm's daemons on loopback.

    With ``CommunicationParameters=NoInAddrAny,NoCtldInAddrAny`` they listen on the address of the host's name only.
    nss_wrapper makes that name ``localhost``.
    """
    return {
        "LD_PRELOAD": f"{site}/prefix/lib/{packages.libraries().name}/libnss_wrapper.so",
        "NSS_WRAPPER_HOSTNAME": "localhost",
    }


CGROUP_CONF = "CgroupPlugin=cgroup/v1\n"
"""Where nothing or cgroup2 is mounted, slurmd dies of the default."""


def task_prolog(*, site: Path, login: dict[str, str]) -> str:
    """The script that Slurm runs before each task of a job, and whose ``export`` lines it takes into the job.

    It gives the job its scratch folder, and with ``--export=NONE`` the environment of a ``login``: there a rootless
    slurmd gives none, and root's gives that of ``su -``, which knows the person's home, not the site's.
    """
    exports = "\n".join(f"export {name}={value}" for name, value in login.items())
    return f"""\
#!/bin/sh
scratch={site}/scratch/$SLURMD_NODENAME/$SLURM_JOB_ID
mkdir -p "$scratch" && echo "export TMPDIR=$scratch"
[ -z "$SLURM_GET_USER_ENV" ] && [ -n "$HOME" ] || cat <<'EXPORTS'
{exports}
EXPORTS
"""


def epilog(*, site: Path) -> str:
    """The script that slurmd runs on each node when a job has ended there: it removes the scratch folder."""
    return f"""\
#!/bin/sh
rm -rf "{site}/scratch/${{SLURMD_NODENAME:?}}/${{SLURM_JOB_ID:?}}"
"""
