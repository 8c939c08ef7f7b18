"""Debian's Slurm, munge, OpenSSH and MariaDB, unpacked below one folder: no root needed, the system is not touched."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
from collections import defaultdict
from pathlib import Path

from stack import debian, paths
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
        raise StackError(f"Slurm was not found below {usr}: install it with stack.cluster.install().")
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
                "Slurm is installed from Debian's packages, but apt-get was not found. Use Debian 12, or Docker."
            )
        work = prefix.with_name("cluster.new")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        try:
            for package in debian.download(WANTED, work / "apt", without=SYSTEM_LIBRARIES):
                debian.call(["dpkg-deb", "-x", str(package), str(work)])
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
        debian.call([str(patchelf), "--force-rpath", "--set-rpath", rpath, *map(str, files)])


def _is_elf(file: Path) -> bool:
    with file.open("rb") as content:
        return content.read(4) == b"\x7fELF"
