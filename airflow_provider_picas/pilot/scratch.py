"""The pilot's scratch folder on the node."""

import fcntl
import os
import shutil
from contextlib import suppress

from airflow_provider_picas.pilot.guard import processes_of
from airflow_provider_picas.pilot.log import log


def remove_tree(path: str) -> None:
    """Remove a scratch folder or a part of it, even if its owner made parts read-only."""
    with suppress(OSError):
        if os.path.islink(path) or not os.path.isdir(path):
            os.unlink(path)
    shutil.rmtree(path, ignore_errors=True)
    if not os.path.lexists(path):
        return
    with suppress(OSError):
        os.chmod(path, 0o700)
    for folder, inner, _ in os.walk(path):
        for name in inner:  # before os.walk lists them
            with suppress(OSError):
                if not os.path.islink(os.path.join(folder, name)):
                    os.chmod(os.path.join(folder, name), 0o700)
    shutil.rmtree(path, ignore_errors=True)
    if os.path.lexists(path):
        log(f"The scratch folder {path} cannot be removed.")


LOCK = "pilot.lock"  # file in a scratch folder, locked while its pilot lives; it contains the id of the node's boot
MOST_STALE = 50  # scratch folders of dead pilots that one pilot removes


def lock_scratch(scratch: str) -> None:
    """Lock a new scratch folder until this process ends. Raises OSError."""
    path = os.path.join(scratch, LOCK)
    # Lock it before it has its name, so that nobody finds it unlocked. The file stays open to keep the lock.
    descriptor = os.open(path + ".new", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    os.write(descriptor, _boot().encode("ascii"))
    with suppress(OSError):  # a file system without locks: then no other pilot removes the folder
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(path + ".new", path)


def _boot() -> str:
    """An id that is unique to this node and boot."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


def remove_stale_scratch(base: str) -> None:
    """Remove scratch folders of pilots that were killed on this node, unless a command uses them."""
    removed = 0
    try:
        for entry in os.scandir(base):
            if entry.name.startswith("picas-") and entry.is_dir(follow_symlinks=False) and removed < MOST_STALE:
                removed += entry.stat(follow_symlinks=False).st_uid == os.getuid() and _remove_if_stale(entry.path)
    except OSError as error:
        log(f"Scratch folders of earlier pilots below {base} cannot be found: {error}.")
    if removed:
        log(f"Removed {removed} scratch folders of pilots that were killed on this node.")


def _remove_if_stale(scratch: str) -> bool:
    path = os.path.join(scratch, LOCK)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False  # not a pilot's folder, or it cannot be locked
    try:
        boot = _boot()
        if not boot or os.read(descriptor, 100) != boot.encode("ascii"):
            return False  # on a shared file system: another node's folder, whose locks may not be visible here
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if processes_of(scratch, inside=True):
            return False
        for name in os.listdir(scratch):
            if name != LOCK:  # remove it last, so that the rest is found if this pilot is killed meanwhile
                remove_tree(os.path.join(scratch, name))
        remove_tree(scratch)
        return True
    except OSError:
        return False  # its pilot is alive
    finally:
        os.close(descriptor)
