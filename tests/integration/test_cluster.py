"""The stack's own cluster: it behaves like a site, faults can be injected, and it leaves nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import paramiko
import psutil
import pytest

from stack import paths, processes
from stack.cluster import Cluster, install

LIMIT = 60  # seconds to wait for anything


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    install()
    # A dead node is noticed after about 11 s with this MessageTimeout, else after 26 s.
    with Cluster(tmp_path_factory.mktemp("site") / "cluster", settings={"MessageTimeout": "3"}) as cluster:
        yield cluster


def connect(cluster: Cluster, index: int = 0) -> paramiko.SSHClient:
    host, port = cluster.logins[index]
    client = paramiko.SSHClient()
    kind, _, key = cluster.host_key.partition(" ")
    entry = paramiko.hostkeys.HostKeyEntry.from_line(f"[{host}]:{port} {kind} {key}")
    assert entry is not None
    assert entry.key is not None
    client.get_host_keys().add(f"[{host}]:{port}", kind, entry.key)
    client.connect(
        host,
        port,
        username=cluster.user,
        key_filename=str(cluster.private_key),
        allow_agent=False,
        look_for_keys=False,
    )
    return client


def remote(client: paramiko.SSHClient, command: str, stdin: str = "") -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    sent, out, err = client.exec_command(command, timeout=LIMIT)
    sent.write(stdin)
    sent.channel.shutdown_write()
    said, complained = out.read().decode(), err.read().decode()
    return out.channel.recv_exit_status(), said, complained


def until(probe: Callable[[], object], what: str) -> None:
    processes.wait_for(probe, what=what, seconds=LIMIT)


def submit(cluster: Cluster, *argv: str) -> str:
    ended = cluster.run("sbatch", "--parsable", *argv)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def state(cluster: Cluster, job: str) -> str:
    return cluster.run("squeue", "--noheader", "--states=all", "--jobs", job, "--format=%T").stdout.strip()


def left_of(*names: Path | str) -> list[str]:
    """Processes that are called, or were started, with one of these names in their words."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and processes.alive(int(entry.name)):
            try:
                words = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue
            if any(str(name).encode() in words for name in names):
                found.append(f"{entry.name} {words[:80]!r}")
    return found


def test_only_the_login_profile_knows_slurm(site: Cluster) -> None:
    with connect(site) as client:
        assert remote(client, "command -v sbatch || command -v squeue")[0] == 1
        assert remote(client, 'echo "$SLURM_CONF$TMPDIR"')[1].strip() == ""
        code, said, complained = remote(client, "bash -lc 'sbatch --version'")
        banner, _, version = said.strip().rpartition("\n")
        assert (code, complained) == (0, "")
        assert "Welcome" in banner
        assert version.startswith("slurm")


def test_both_login_nodes_share_key_and_home(site: Cluster) -> None:
    with connect(site, 0) as first, connect(site, 1) as second:
        with first.open_sftp() as sftp, sftp.open("from-first", "w") as file:
            file.write("hello")
        assert remote(second, "pwd; cat ~/from-first") == (0, f"{site.home}\nhello", "")
        assert remote(second, "bash -lc 'pwd' | tail -n 1")[1].strip() == str(site.home)


def test_an_array_runs_to_its_end_with_scratch_on_the_nodes(site: Cluster) -> None:
    script = '#!/bin/bash\n#SBATCH --array=0-3\n#SBATCH --output=scratch-%a\ntouch "$TMPDIR/file" && echo "$TMPDIR"\n'
    with connect(site) as client:
        code, said, complained = remote(client, "bash -lc 'sbatch --parsable' | tail -n 1", script)
        assert code == 0, complained
        job = said.strip()

        def completed() -> bool:
            command = f"bash -lc 'sacct -X -n -P -S now-1hour -o JobID,State -j {job}' | tail -n 4"
            rows = remote(client, command)[1].split()
            return rows == [f"{job}_{index}|COMPLETED" for index in range(4)]

        until(completed, f"Array {job} in sacct")
    folders = [Path((site.home / f"scratch-{index}").read_text().strip()) for index in range(4)]
    assert len(set(folders)) == 4
    until(lambda: not any(folder.exists() for folder in folders), "The epilog")


def test_a_job_without_its_submitters_environment_gets_that_of_a_login(site: Cluster) -> None:
    job = submit(
        site, "--export=NONE", "--output=none.out", "--wrap", 'echo "$HOME"; command -v squeue; echo $PICAS_VENV'
    )
    until(lambda: state(site, job) == "COMPLETED", f"Job {job}")
    home, squeue, venv = (site.home / "none.out").read_text().split()
    assert (home, Path(squeue).name, venv) == (str(site.home), "squeue", str(paths.PICAS_VENV))


def test_a_stopped_login_node_drops_its_connections_alone(site: Cluster) -> None:
    with connect(site, 0) as first, connect(site, 1) as second:
        transport = first.get_transport()
        assert transport is not None
        site.stop_sshd(0)
        until(lambda: not transport.is_active(), "The end of the connection")
        with pytest.raises(paramiko.ssh_exception.NoValidConnectionsError):
            connect(site, 0)
        assert remote(second, "true")[0] == 0
        site.start_sshd(0)
        connect(site, 0).close()


def test_a_hung_controller_goes_on(site: Cluster) -> None:
    site.stop_controller()
    ended = site.run("squeue")
    site.continue_controller()
    assert ended.returncode != 0
    assert site.run("squeue").returncode == 0


def test_a_restarted_controller_knows_its_nodes(site: Cluster) -> None:
    site.restart_controller()
    until(lambda: site.run("sinfo", "-h", "-o", "%T").stdout.split() == ["idle"], "Both nodes")


def test_accounting_goes_and_comes_back(site: Cluster) -> None:
    site.stop_accounting()
    assert site.run("sacct").returncode != 0
    site.start_accounting()
    assert site.run("sacct").returncode == 0


def test_a_killed_node_fails_its_job_or_requeues_it(site: Cluster) -> None:
    child = "31415926"
    fails = submit(site, "--no-requeue", "--nodelist=n2", "--wrap", f"setsid sleep {child} & wait")
    returns = submit(site, "--requeue", "--exclude=n1", "--wrap", "sleep 300")
    until(lambda: {state(site, fails), state(site, returns)} == {"RUNNING"}, "The jobs")
    until(lambda: left_of(child), "The job's child")
    site.kill_node("n2")
    assert [line for line in left_of(child) if "sleep" in line] == []
    until(lambda: state(site, fails) == "NODE_FAIL", f"Job {fails}")
    until(lambda: state(site, returns) == "PENDING", f"Job {returns}")
    site.start_node("n2")
    until(lambda: state(site, returns) == "RUNNING", f"Job {returns}, again")
    site.run("scancel", returns)


def test_two_clusters_at_once_and_nothing_left_of_the_second(site: Cluster, tmp_path: Path) -> None:
    with Cluster(tmp_path / "second", nodes=1) as second:
        job = submit(second, "--wrap", "setsid sleep 300 & sleep 300")
        until(lambda: state(second, job) == "RUNNING", f"Job {job}")
        assert site.run("sinfo", "-h", "-o", "%D").stdout.strip() == "2"
        assert second.run("sinfo", "-h", "-o", "%D").stdout.strip() == "1"
        client = connect(second)
        client.exec_command("sleep 300")
        sockets = (second.folder / "site").readlink()
        assert left_of(second.folder, sockets)
    client.close()
    assert left_of(second.folder, sockets) == []
    assert not sockets.exists()
    assert not any(processes.answers(host, port) for host, port in second.logins)
    assert site.run("sinfo").returncode == 0


def test_leftovers_of_a_killed_owner_are_ended_by_the_next_start(tmp_path: Path) -> None:
    folder = tmp_path / "cluster"
    owner = (
        "import os, signal, sys, time; from pathlib import Path; from stack.cluster import Cluster\n"
        "cluster = Cluster(Path(sys.argv[1])); cluster.start()\n"
        "cluster.run('sbatch', '--wrap', 'touch runs; sleep 300')\n"
        "while not (cluster.home / 'runs').exists(): time.sleep(0.1)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", owner, str(folder)], cwd=paths.PROJECT, check=False)
    assert ended.returncode == -signal.SIGKILL
    sockets = (folder / "site").readlink()
    assert left_of(sockets)
    with Cluster(folder) as cluster:
        assert left_of(sockets) == []
        assert not sockets.exists()
        assert cluster.run("squeue", "-h").stdout == ""


def test_a_start_that_fails_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "cluster", settings={"SelectType": "select/nonsense"})
    with pytest.raises(processes.StackError, match=r"slurmctld ended(?s:.*)select/nonsense"):
        cluster.start()
    assert left_of(cluster.folder) == []


def test_a_folder_with_other_content_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(processes.StackError, match="choose another folder"):
        Cluster(tmp_path).start()
    assert (tmp_path / "thesis.txt").exists()


def test_slurm_listens_on_loopback_only(site: Cluster) -> None:
    listening = {
        (process.name(), socket.laddr.ip)
        for process in psutil.process_iter()
        if f"SLURM_CONF={site._slurm_conf}" in _environment(process)
        for socket in process.net_connections("inet")
        if socket.status == psutil.CONN_LISTEN
    }
    assert {name for name, _ in listening} == {"slurmctld", "slurmd", "slurmdbd"}
    assert {address for _, address in listening} == {"127.0.0.1"}


def _environment(process: psutil.Process) -> list[str]:
    try:
        return [f"{name}={value}" for name, value in process.environ().items()]
    except psutil.Error:
        return []
