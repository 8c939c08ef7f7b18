"""A whole site: munge, MariaDB, slurmdbd, slurmctld, a slurmd for each compute node, an sshd for each login node."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from stack import paths, processes
from stack.cluster import accounting, packages, pids, slurm, sshd
from stack.processes import StackError

LOGIN_HOSTS = ["127.0.0.1", "127.0.0.2"]
EXTERNAL_SFTP = "lib/openssh/sftp-server"
"""The program that most distributions name as SFTP subsystem: it is started by the account's shell."""
OURS = "cluster.txt"
"""A file in the folder that says that its content is a cluster's, and may be wiped."""


def install() -> None:
    """Unpack Slurm and the rest below ``paths.CLUSTER_PREFIX``, if not done yet. Raises StackError."""
    packages.unpack()
    accounting.make_template()


class Cluster:
    """One cluster in ``folder``. Every start creates a new one, without jobs, with an empty home and new keys.

    - ``logins``: host and port of each login node; they share the host key and the home
    - ``user``: the account on the cluster, with the name of the user who runs it
    - ``private_key``: path of the key that opens it; ``host_key``: the login nodes' public key, ``ssh-ed25519 AAAA…``
    - ``home``: the user's home on the cluster, not the person's own
    - ``nodes``: names of the compute nodes, each with ``cpus`` CPUs
    - ``settings``: other values in slurm.conf, such as ``{"MessageTimeout": "3"}``
    """

    def __init__(self, folder: Path, *, nodes: int = 2, cpus: int = 4, settings: dict[str, str] | None = None) -> None:
        self.folder = folder.resolve()
        self.nodes = [f"n{number}" for number in range(1, nodes + 1)]
        self.cpus = cpus
        self.settings = settings or {}
        self.user = pwd.getpwuid(os.getuid()).pw_name
        self.home = self.folder / "home"
        self.private_key = self.folder / "ssh" / "id_ed25519"
        self.host_key = ""
        self.logins: list[tuple[str, int]] = []
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    # ---- all of it

    def start(self) -> None:
        """Start everything, or nothing: raises StackError with the end of the log of the part that failed."""
        self.clean_up()
        try:
            self._lay_out()
            self._start_munged()
            self._start_mariadbd()
            self.start_accounting()
            for index in range(len(self.logins)):
                self.start_sshd(index)
            self.start_controller()
            for node in self.nodes:
                self._start_slurmd(node)
            for node in self.nodes:
                self._wait_until_up(node)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the jobs and the daemons. Keeps the folder, with home and logs."""
        if "slurmctld" in self._daemons and self._daemons["slurmctld"].poll() is None:
            self.continue_controller()
            self._cancel_jobs()
        processes.end([daemon.pid for daemon in self._daemons.values()], seconds=3)
        for daemon in self._daemons.values():
            daemon.wait()
        self._daemons.clear()
        self.clean_up()

    def clean_up(self) -> None:
        """End all remaining processes of the cluster in this folder, including other sessions', and remove its sockets."""
        with suppress(FileNotFoundError):  # of several sessions that clean up after a killed one, another was quicker
            pids.kill(self._leftovers)
            link = self.folder / "site"
            if link.is_symlink() and (link / "folder").resolve() == self.folder:
                shutil.rmtree(link.readlink(), ignore_errors=True)
                link.unlink()

    def __enter__(self) -> Cluster:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # ---- inspection

    def run(self, *argv: str, timeout: float = 30) -> subprocess.CompletedProcess[str]:
        """Run one of Slurm's commands in the home, as after a login; the output is text, the exit code not checked."""
        program, *arguments = argv
        return subprocess.run(
            [str(packages.BIN / program), *arguments],
            cwd=self.home,
            env=self._login_environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    # ---- faults, and their ends

    def kill_node(self, name: str) -> None:
        """Simulate a power failure: kill slurmd, its slurmstepds and all processes of their jobs at once."""
        self._kill(f"slurmd-{name}")
        pids.kill(lambda: self._jobs(name))

    def kill_slurmd(self, name: str) -> None:
        """Send SIGKILL to slurmd only; the node's jobs continue."""
        self._kill(f"slurmd-{name}")

    def start_node(self, name: str) -> None:
        """Start slurmd (again), and wait until the controller believes that the node is up."""
        self._start_slurmd(name)
        self._wait_until_up(name)

    def stop_controller(self) -> None:
        """Let slurmctld hang (SIGSTOP)."""
        self._daemons["slurmctld"].send_signal(signal.SIGSTOP)

    def continue_controller(self) -> None:
        self._daemons["slurmctld"].send_signal(signal.SIGCONT)

    def kill_controller(self) -> None:
        self._kill("slurmctld")

    def start_controller(self) -> None:
        controller = self._start("slurmctld", "-D")
        self._wait("slurmctld", lambda: self.run("scontrol", "ping").returncode == 0 and controller.poll() is None)

    def restart_controller(self) -> None:
        """Kill slurmctld with SIGKILL, and start it again."""
        self.kill_controller()
        self.start_controller()

    def stop_sshd(self, index: int) -> None:
        """Take a login node away: no new connections, and the old ones end, but not the commands they started."""
        self._kill(f"login{index}")
        pids.kill(lambda: self._sshds(f"login{index}.log"))

    def start_sshd(
        self, index: int, *, max_startups: int = 200, max_sessions: int = 200, sftp: str | None = "internal-sftp"
    ) -> None:
        """Start the sshd of a login node. It drops connections while ``max_startups`` others have not logged in.

        ``max_sessions``: of one connection. ``sftp``: command of the SFTP subsystem, such as ``EXTERNAL_SFTP``; None:
        none.
        """
        host, port = self.logins[index]
        config, mark = self.folder / "etc" / f"sshd_config{index}", {processes.MARK: str(self.folder)}
        text = sshd.sshd_config(
            folder=self.folder,
            user=self.user,
            host=host,
            port=port,
            environment=mark,
            max_startups=max_startups,
            max_sessions=max_sessions,
            sftp=f"{self._site}/prefix/{EXTERNAL_SFTP}" if sftp == EXTERNAL_SFTP else sftp,
        )
        self._write(config, text)
        self._start("sshd", "-D", "-e", "-f", str(config), name=f"login{index}", env=sshd.wrapper(site=self._site))
        self._wait(f"login{index}", lambda: processes.answers(host, port))

    def freeze_sessions(self, index: int) -> list[int]:
        """Let the sshd processes of a login node's open connections hang (SIGSTOP); new ones are served. Their ids."""
        sessions = self._sshds(f"login{index}.log") - {self._daemons[f"login{index}"].pid}
        for pid in sessions:
            os.kill(pid, signal.SIGSTOP)
        return sorted(sessions)

    def stop_accounting(self) -> None:
        """Stop slurmdbd; the controller continues without it."""
        self._kill("slurmdbd")

    def start_accounting(self) -> None:
        self._start("slurmdbd", "-D", env={"MYSQL_UNIX_PORT": f"{self._site}/mysql.sock"})
        self._wait("slurmdbd", lambda: processes.answers("127.0.0.1", self._accounting_port))

    # ---- how

    def _leftovers(self) -> list[int]:
        marked = pids.with_environment(**{processes.MARK: str(self.folder)})
        return [*self._jobs(*self._spools()), *self._sshds("login"), *marked]

    def _sshds(self, login: str) -> set[int]:
        """The sshd processes of a login node: the listener, and those of each connection, also of dead listeners."""
        return pids.writing_to(self.folder, f"log/{login}", "sshd")

    def _jobs(self, *nodes: str) -> list[int]:
        """The slurmstepds and jobs' processes on these compute nodes, those that could report to Slurm first."""
        steps: set[int] = set()
        others: set[int] = set()
        for node in nodes:
            steps |= pids.writing_to(self.folder, f"log/{node}.log", "slurmstepd")
            if (self.folder / "site").is_symlink():
                others |= pids.with_environment(SLURM_CONF=self._slurm_conf, SLURMD_NODENAME=node)
        return [*steps, *((pids.descendants(steps) | others) - steps)]

    def _spools(self) -> list[str]:
        """Names of the nodes of the cluster that was here last, which may have had more of them."""
        spool = self.folder / "spool"
        return [entry.name for entry in spool.iterdir()] if spool.is_dir() else self.nodes

    @property
    def _slurm_conf(self) -> str:
        """SLURM_CONF as daemons and jobs have it; they are known by it."""
        return f"{self._site}/folder/etc/slurm.conf"

    @property
    def _site(self) -> Path:
        """A short folder for sockets and scratch, with links to this one and to the packages.

        A socket's path is limited to 107 bytes, and slurm.conf cannot hold blanks; a project's folder may have both.
        """
        return (self.folder / "site").readlink()

    def _login_environment(self) -> dict[str, str]:
        system = ["/usr/local/bin", "/usr/bin", "/bin"]
        python = f"{sys.base_prefix}/bin"  # for jobs, where the system has no Python of its own
        return {
            "HOME": str(self.home),
            "USER": self.user,
            "LOGNAME": self.user,
            "SHELL": "/bin/bash",
            "SLURM_CONF": self._slurm_conf,
            "PATH": ":".join([f"{self._site}/prefix/bin", *system, *([] if python in system else [python])]),
            "PICAS_VENV": str(paths.PICAS_VENV),
            processes.MARK: str(self.folder),
        }

    def _lay_out(self) -> None:
        """Write all files that the daemons read."""
        if self.folder.exists() and any(self.folder.iterdir()) and not (self.folder / OURS).exists():
            raise StackError(f"{self.folder} is neither empty nor an earlier cluster's; choose another folder.")
        shutil.rmtree(self.folder, ignore_errors=True)
        for part in ("etc", "home", "log", "run", "ssh", "state", *(f"spool/{node}" for node in self.nodes)):
            (self.folder / part).mkdir(parents=True)
        (self.folder / OURS).write_text("This folder belongs to stack.cluster, which wipes it.\n")
        temporary = tempfile.gettempdir()
        site = Path(tempfile.mkdtemp(prefix="picas-", dir=temporary if len(temporary) < 60 else "/tmp"))
        (self.folder / "site").symlink_to(site)
        (site / "folder").symlink_to(self.folder)
        (site / "prefix").symlink_to(packages.USR)
        (site / "scratch").mkdir()
        shutil.copytree(accounting.TEMPLATE, self.folder / "db")
        plugins = site / "prefix/lib" / packages.libraries().name / "slurm-wlm"
        ports = processes.free_ports(2 + len(self.nodes) + len(LOGIN_HOSTS))
        self._accounting_port = ports.pop()
        etc = self.folder / "etc"
        self._write(etc / "munge.key", os.urandom(1024), mode=0o600)
        self._write(etc / "cgroup.conf", slurm.CGROUP_CONF)
        conf = slurm.slurm_conf(
            site=site,
            plugins=plugins,
            user=self.user,
            nodes={node: ports.pop() for node in self.nodes},
            cpus=self.cpus,
            controller_port=ports.pop(),
            accounting_port=self._accounting_port,
            settings=self.settings,
        )
        self._write(etc / "slurm.conf", conf)
        conf = accounting.slurmdbd_conf(site=site, plugins=plugins, user=self.user, port=self._accounting_port)
        self._write(etc / "slurmdbd.conf", conf, mode=0o600)
        self._write(etc / "task_prolog", slurm.task_prolog(site=site, login=self._login_environment()), mode=0o755)
        self._write(etc / "epilog", slurm.epilog(site=site), mode=0o755)
        self._write(self.home / ".bash_profile", self._profile())
        self._write(etc / "passwd", sshd.passwd(user=self.user, home=self.home))
        self._write(etc / "group", f"{self.user}:x:{os.getgid()}:\n")
        self.logins = [(host, ports.pop()) for host in LOGIN_HOSTS]
        self._make_keys()

    def _profile(self) -> str:
        """The login profile: the only place where a session learns of Slurm, as on most sites."""
        environment = self._login_environment()
        exports = "\n".join(f"export {name}='{environment[name]}'" for name in ("SLURM_CONF", "PATH", "PICAS_VENV"))
        return f"""\
cat <<'BANNER'
*******************************************************************
   Welcome to {slurm.NAME}. This is a login node: no computing here.
*******************************************************************
BANNER
{exports}
"""

    def _make_keys(self) -> None:
        ssh = self.folder / "ssh"
        for key, comment in ((ssh / "host_key", slurm.NAME), (self.private_key, self.user)):
            argv = [str(packages.BIN / "ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(key)]
            subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
        shutil.copy(self.private_key.with_suffix(".pub"), ssh / "authorized_keys")
        self.host_key = " ".join((ssh / "host_key.pub").read_text().split()[:2])
        if os.getuid() == 0:
            sshd.PRIVILEGE_SEPARATION.mkdir(mode=0o755, exist_ok=True)

    def _write(self, path: Path, content: str | bytes, mode: int = 0o644) -> None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        path.chmod(mode)

    def _start(
        self, program: str, *arguments: str, name: str = "", env: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        name = name or program
        own = slurm.loopback(site=self._site) if program.startswith("slurm") else {}
        daemon = processes.start(
            [str(packages.SBIN / program), *arguments],
            folder=self.folder,
            name=name,
            env={"SLURM_CONF": self._slurm_conf, **own, **(env or {})},
            cwd=self.folder,
        )
        self._daemons[name] = daemon
        return daemon

    def _wait(self, name: str, probe: Callable[[], object], seconds: float = 30) -> None:
        log = processes.log_path(self.folder, name)
        processes.wait_for(probe, what=f"The cluster's {name}", seconds=seconds, process=self._daemons[name], log=log)

    def _start_munged(self) -> None:
        socket, etc, run = self._site / "munge.sock", self.folder / "etc", self.folder / "run"
        files = [
            f"--socket={socket}",
            f"--key-file={etc}/munge.key",
            f"--seed-file={run}/munge.seed",
            f"--pid-file={run}/munged.pid",
        ]
        # --force: neither our private socket folder nor a group-writable project folder is to munged's taste
        self._start("munged", "--foreground", "--force", "--origin=127.0.0.1", *files)
        self._wait("munged", socket.exists)

    def _start_mariadbd(self) -> None:
        socket = self._site / "mysql.sock"
        argv = accounting.mariadbd(self.folder / "db")[1:]
        self._start("mariadbd", *argv, f"--socket={socket}", f"--pid-file={self.folder}/run/mariadbd.pid")
        self._wait("mariadbd", socket.exists)

    def _start_slurmd(self, node: str) -> None:
        self._start("slurmd", "-D", "-N", node, "-d", str(packages.SBIN / "slurmstepd"), name=f"slurmd-{node}")

    def _wait_until_up(self, node: str) -> None:
        def up() -> bool:
            state = self.run("sinfo", "-h", "-n", node, "-o", "%T").stdout.strip()
            return state in ("idle", "mixed", "allocated", "completing")

        self._wait(f"slurmd-{node}", up)

    def _kill(self, name: str) -> None:
        daemon = self._daemons.pop(name)
        daemon.kill()
        daemon.wait()

    def _cancel_jobs(self) -> None:
        """Cancel all jobs through Slurm and wait a moment; remaining processes are killed later."""
        try:
            self.run("scancel", "--full", "--signal=KILL", "--user", self.user, timeout=5)
            self.run("scancel", "--user", self.user, timeout=5)
            deadline = time.monotonic() + 2
            while self.run("squeue", "-h", timeout=5).stdout.strip() and time.monotonic() < deadline:
                time.sleep(0.1)
        except subprocess.TimeoutExpired:
            return  # do not wait for a controller that does not answer
