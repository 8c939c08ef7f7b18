"""dockerd as root, with a socket, a data folder and a network of its own, and its complete removal.

It runs in a mount namespace of its own, so that its mounts end with it, however it ends.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stack import processes
from stack.engine import network, packages
from stack.processes import StackError

RUN = Path("/run/picas-engine")
SOCKET = RUN / "docker.sock"
LOCK = RUN.with_suffix(".lock")
DATA = packages.PREFIX / "data"
CGROUP = "picas-engine"
CGROUPS = Path("/sys/fs/cgroup")
PRIVATE = [Path("/run/containerd"), Path("/run/docker"), Path("/run/runc")]
"""The programs use these folders, however they are configured: they see empty ones of their own."""
START_SECONDS = 60
STOP_SECONDS = 30
CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}


def objection() -> str | None:
    """Why no engine can be made on this machine; None if one can."""
    if os.geteuid() != 0:
        return "making one needs root"
    status = Path("/proc/self/status").read_text()
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    missing = [name for name, bit in CAPABILITIES.items() if not effective >> bit & 1]
    if missing:
        return f"making one needs {' and '.join(missing)}, which root in this container does not have"
    release = Path("/etc/os-release").read_text()
    if f"VERSION_CODENAME={packages.DEBIAN}" not in release or not shutil.which("apt-get"):
        return "making one needs Debian 12"
    return None


def environment() -> dict[str, str]:
    """What a command needs to use the engine; no more of it than the Docker client is on its PATH."""
    return {
        "DOCKER_HOST": f"unix://{SOCKET}",
        "DOCKER_CONFIG": str(packages.CONFIG),
        "PATH": os.pathsep.join([str(packages.CLIENT), os.environ.get("PATH", "")]),
    }


@contextmanager
def engine() -> Iterator[None]:
    """The engine, from its start to its removal. One at a time on a machine: raises StackError while another one runs."""
    with LOCK.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StackError(f"Another engine of this kind runs on this machine (its lock is {LOCK}).") from None
        packages.unpack()
        remove()  # the remains of one that was killed
        try:
            _start()
            yield
        finally:
            remove()
            LOCK.unlink()


def _start() -> None:
    RUN.mkdir()
    (RUN / "ip_forward").write_text(network.FORWARDING.read_text())
    (RUN / "daemon.json").write_text("{}")  # instead of this machine's, if it has one
    for folder in PRIVATE:
        if not folder.exists():
            (RUN / f"made-{folder.name}").touch()
            folder.mkdir()
    pool = network.create()
    first = next(pool.subnets(new_prefix=network.FIRST_SUBNET))
    usr = packages.PREFIX / "usr"
    arguments = {
        "bridge": network.BRIDGE,
        "fixed-cidr": first,
        "cgroup-parent": CGROUP,
        "config-file": RUN / "daemon.json",
        "data-root": DATA,
        "default-address-pool": f"base={pool},size={network.FIRST_SUBNET}",
        "exec-root": RUN / "exec",
        "host": f"unix://{SOCKET}",
        "init-path": usr / "bin" / "tini-static",
        "ip-forward": "false",
        "ip-masq": "false",
        "iptables": "false",
        "pidfile": RUN / "pid",
        "shutdown-timeout": 5,
        "userland-proxy-path": usr / "sbin" / "docker-proxy",
    }
    dockerd = ["dockerd", *(f"--{name}={value}" for name, value in arguments.items())]
    mounts = [f"mount -t tmpfs picas-engine {folder}" for folder in PRIVATE]
    private = " && ".join([*mounts, 'exec "$@"'])
    daemon = processes.start(
        ["unshare", "--mount", "sh", "-c", private, "sh", *dockerd],
        folder=RUN,
        name="dockerd",
        env=packages.environment(),
    )
    processes.wait_for(
        lambda: docker("info", check=False).returncode == 0,
        what="The Docker engine",
        seconds=START_SECONDS,
        process=daemon,
        log=processes.log_path(RUN, "dockerd"),
    )


def docker(*arguments: str, check: bool = True, **options: object) -> subprocess.CompletedProcess[bytes]:
    """Run the Docker client. Raises StackError with what it said, unless ``check`` is False."""
    ended = subprocess.run(
        ["docker", *arguments],
        env={**os.environ, **environment()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        **options,  # type: ignore[call-overload]
    )
    if check and ended.returncode:
        said = "\n".join(ended.stdout.decode(errors="replace").splitlines()[-25:])
        raise StackError(f"`docker {arguments[0]}` failed with code {ended.returncode}:\n{said}")
    return ended  # type: ignore[no-any-return]


def remove() -> None:
    """End dockerd and its containers, and remove their networks and everything in ``RUN``. The images stay in ``DATA``."""
    if not RUN.exists():
        return
    daemons = processes.marked(RUN)
    if daemons:
        processes.end(_leaders(daemons), seconds=STOP_SECONDS)  # dockerd then ends its containers and containerd
    for _ in range(2):
        processes.end([*processes.marked(RUN), *_contained()], seconds=3)
    for group in _groups():
        group.rmdir()
    network.remove(_content(RUN / "ip_forward"))
    for folder in PRIVATE:
        if (RUN / f"made-{folder.name}").exists() and folder.exists():
            folder.rmdir()
    shutil.rmtree(RUN)


def _leaders(pids: list[int]) -> list[int]:
    """Those of these processes that lead a session: dockerd."""
    return [pid for pid in pids if processes.session_id(pid) == pid]


def _groups() -> list[Path]:
    """The cgroups of the engine's containers, the innermost ones first."""
    tops = CGROUPS.rglob(CGROUP)  # below the group of the process that started dockerd
    found = [Path(folder) for top in list(tops) for folder, _, _ in os.walk(top, topdown=False)]
    return [group for group in found if group.is_dir()]


def _contained() -> list[int]:
    """Pids of the processes in the engine's containers."""
    return [int(pid) for group in _groups() for pid in (group / "cgroup.procs").read_text().split()]


def _content(path: Path) -> str | None:
    return path.read_text() if path.exists() else None
