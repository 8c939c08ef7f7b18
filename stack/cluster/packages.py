"""Debian's Slurm, munge, OpenSSH and MariaDB, unpacked below one folder: no root needed, the system is not touched."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

from stack import paths
from stack.processes import StackError

WANTED = [
    "libnss-wrapper",  # gives the site's sshd a passwd file of its own
    "mariadb-server-core",
    "munge",
    "openssh-client",
    "openssh-server",
    "openssh-sftp-server",
    "patchelf",
    "slurm-client",
    "slurm-wlm-basic-plugins",
    "slurm-wlm-mysql-plugin",
    "slurmctld",
    "slurmd",
    "slurmdbd",
]
SYSTEM_LIBRARIES = ("libc6", "libc-", "libpam-", "libperl")
"""How the names of the libraries begin that stay the system's own: C's must fit its loader, PAM's are not used."""

RECIPE = 1
"""Raised whenever this module unpacks differently, so that an older unpacking is done again."""

USR = paths.CLUSTER_PREFIX / "usr"
BIN = USR / "bin"
SBIN = USR / "sbin"


def libraries(usr: Path = USR) -> Path:
    """The folder of the unpacked shared libraries, ``usr/lib/<triplet>``."""
    found = [path.parent.parent for path in usr.glob("lib/*/slurm-wlm/auth_munge.so")]
    if not found:
        raise StackError(f"There is no Slurm below {usr}: install it with stack.cluster.install().")
    return found[0]


def unpacked() -> bool:
    """True if the packages are unpacked as this module would unpack them on this system."""
    try:
        return _stamp().read_text() == _recipe()
    except OSError:
        return False


def unpack() -> None:
    """Download the packages and their dependencies, and unpack them into ``paths.CLUSTER_PREFIX``, if not done yet.

    Raises StackError if there is no apt-get, or if a download or an unpacking fails.
    """
    prefix = paths.CLUSTER_PREFIX
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with prefix.with_name("cluster.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if unpacked():
            return
        if not shutil.which("apt-get"):
            raise StackError(
                "Slurm comes from Debian's packages, and there is no apt-get here. Use Debian 12, or Docker."
            )
        work = prefix.with_name("cluster.new")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        try:
            for package in _download(work / "apt"):
                _call(["dpkg-deb", "-x", str(package), str(work)])
            _lay_out(work)
            _set_library_paths(work / "usr")
            shutil.rmtree(work / "apt")
            (work / _stamp().name).write_text(_recipe())
            shutil.rmtree(prefix, ignore_errors=True)
            work.rename(prefix)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _stamp() -> Path:
    return paths.CLUSTER_PREFIX / "recipe.json"


def _recipe() -> str:
    """The inputs that an unpacking depends on."""
    system = platform.freedesktop_os_release()
    about = {
        "recipe": RECIPE,
        "packages": WANTED,
        "system": [system.get("ID"), system.get("VERSION_ID"), os.uname().machine],
    }
    return json.dumps(about, indent=1)


def _call(argv: list[str], cwd: Path | None = None) -> str:
    """The output of the command. Raises StackError with the end of its error output."""
    ended = subprocess.run(
        argv, cwd=cwd, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}, check=False
    )
    if ended.returncode:
        said = "\n".join((ended.stderr or ended.stdout).splitlines()[-15:])
        raise StackError(f"Installing the cluster: {argv[0]} failed with code {ended.returncode}. It said:\n{said}")
    return ended.stdout


def _download(apt: Path) -> list[Path]:
    """Fetch the packages and all libraries they need, with package lists and a cache of our own.

    For apt, nothing is installed, so that the result does not depend on the packages of this machine.
    """
    for folder in ("lists/partial", "cache/archives/partial", "debs"):
        (apt / folder).mkdir(parents=True)
    (apt / "status").touch()
    options = {
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
        "APT::Sandbox::User": "root",  # root's apt-get would drop to a user that may not write here
        "Debug::NoLocking": "1",
        "Dir::Cache": str(apt / "cache"),
        "Dir::State::lists": str(apt / "lists"),
        "Dir::State::status": str(apt / "status"),
    }
    apt_get = ["apt-get", "-q", *(word for key, value in options.items() for word in ("-o", f"{key}={value}"))]
    _call([*apt_get, "update"])
    plan = _call([*apt_get, "--simulate", "--no-install-recommends", "install", *WANTED])
    closure = {line.split()[1] for line in plan.splitlines() if line.startswith("Inst ")}
    needed = [name for name in sorted(closure) if name in WANTED or _is_library(name)]
    _call([*apt_get, "download", *needed], cwd=apt / "debs")
    return sorted((apt / "debs").glob("*.deb"))


def _is_library(package: str) -> bool:
    return (
        package.startswith(("lib", "zlib"))
        and not package.startswith(SYSTEM_LIBRARIES)
        and not package.endswith(("-perl", "-common"))
    )


def _lay_out(root: Path) -> None:
    """Do what the packages' installation scripts would."""
    if (root / "lib").is_dir():  # the system's /lib is a link to /usr/lib
        shutil.copytree(root / "lib", root / "usr/lib", symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(root / "lib")
    for daemon in (root / "usr/sbin").glob("*-wlm"):
        daemon.with_name(daemon.name.removesuffix("-wlm")).symlink_to(daemon.name)
    for program in (root / "usr").rglob("*"):
        if not program.is_symlink() and program.stat().st_mode & 0o6000:
            program.chmod(0o755)  # no set-uid programs in a project's folder
    for folder in ("usr/share/man", "usr/share/doc", "etc", "var"):
        shutil.rmtree(root / folder, ignore_errors=True)


def _set_library_paths(usr: Path) -> None:
    """Let every program and library find the unpacked libraries relative to its own path, so that the folder can be
    moved.

    LD_LIBRARY_PATH would also work, but it leaks into the jobs.
    """
    folders = defaultdict(list)
    for file in usr.rglob("*"):
        if file.is_file() and not file.is_symlink() and _is_elf(file):
            folders[file.parent].append(file)
    library = libraries(usr)
    patchelf = usr.parent / "apt/patchelf"  # a copy: patchelf cannot rewrite itself while it runs
    shutil.copy2(usr / "bin/patchelf", patchelf)
    for folder, files in folders.items():
        targets = (library, library / "slurm-wlm")
        rpath = ":".join(f"$ORIGIN/{os.path.relpath(target, folder)}" for target in targets)
        _call([str(patchelf), "--force-rpath", "--set-rpath", rpath, *map(str, files)])


def _is_elf(file: Path) -> bool:
    with file.open("rb") as content:
        return content.read(4) == b"\x7fELF"
