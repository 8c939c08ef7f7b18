"""Debian's Docker engine, compose and buildx, unpacked below ``.stack/engine``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from stack import debian, paths
from stack.processes import StackError

PREFIX = paths.HOME / "engine"
CONFIG = PREFIX / "config"
PLUGINS = CONFIG / "cli-plugins"
CLIENT = PREFIX / "bin"
"""Has the Docker client and nothing else, for a PATH."""
DEBOOTSTRAP = PREFIX / "usr" / "share" / "debootstrap"
KEYRING = PREFIX / "usr" / "share" / "keyrings" / "debian-archive-keyring.gpg"
WANTED = [
    "containerd",
    "debian-archive-keyring",
    "debootstrap",
    "docker.io",
    "iproute2",
    "iptables",  # the engine redirects a container's DNS with it, in the network of the container
    "nftables",
    "runc",
    "tini",  # the engine's own init
    "wget",  # of debootstrap
]
FROM_THE_NEXT_DEBIAN = ["docker-buildx", "docker-compose"]
"""Debian 12 has neither buildx nor version 2 of compose."""

DEBIAN, NEXT_DEBIAN = "bookworm", "trixie"
SYSTEM_LIBRARIES = ("libc6", "libc-", "libpam-", "libperl", "libgcc", "libstdc++")
RECIPE = 1
"""Raised whenever this module unpacks differently."""


def mirror() -> str:
    """The address from which this machine gets the packages of Debian 12. Raises StackError if there is none."""
    listed = debian.call(["apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)"])
    for line in listed.splitlines():
        codename, _, address = line.partition(" ")
        if codename == DEBIAN:
            return address
    raise StackError(f"apt-get has no source of Debian 12 ({DEBIAN}) on this machine.")


def unpack() -> None:
    """Unpack everything, unless it is there already. Raises StackError."""
    stamp = PREFIX / "recipe.json"
    recipe = json.dumps([RECIPE, WANTED, FROM_THE_NEXT_DEBIAN])
    if stamp.is_file() and stamp.read_text() == recipe:
        return
    for part in ("usr", "etc", "bin", "config", "apt", "next"):
        shutil.rmtree(PREFIX / part, ignore_errors=True)
    PREFIX.mkdir(parents=True, exist_ok=True)
    for package in debian.download(WANTED, PREFIX / "apt", without=SYSTEM_LIBRARIES):
        _extract(package, PREFIX)
    _unpack_plugins()
    (PREFIX / "usr" / "sbin" / "iptables").symlink_to("iptables-nft")
    CLIENT.mkdir()
    (CLIENT / "docker").symlink_to("../usr/bin/docker")
    for folder in ("apt", "next"):
        shutil.rmtree(PREFIX / folder)
    stamp.write_text(recipe)


def _unpack_plugins() -> None:
    """Unpack compose and buildx. The keys that sign the next Debian are in Debian 12's package of keys."""
    following = PREFIX / "next"
    following.mkdir()
    sources = following / "sources.list"
    sources.write_text(f"deb [signed-by={KEYRING}] {mirror()} {NEXT_DEBIAN} main\n")
    for package in debian.download(FROM_THE_NEXT_DEBIAN, following / "apt", without=("lib", "zlib"), sources=sources):
        _extract(package, following)
    PLUGINS.mkdir(parents=True)
    for plugin in following.glob("usr/libexec/docker/cli-plugins/docker-*"):
        shutil.copy2(plugin, PLUGINS / plugin.name)


def _extract(package: Path, target: Path) -> None:
    """Unpack into ``target``, of which ``lib`` and ``sbin`` are in ``usr``, as on a Debian system."""
    content = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE)
    rename = r"s,^\./\(lib\|sbin\|bin\)\(/\|$\),./usr/\1\2,"
    debian.call(
        ["tar", "--extract", "--no-same-owner", "--transform", rename, "--directory", str(target)],
        stdin=content.stdout,
    )
    if content.wait():
        raise StackError(f"{package} cannot be unpacked.")


def call(argv: list[str]) -> str:
    """The output of one of the programs. Raises StackError with the end of its error output."""
    return debian.call(argv, env=environment())


def environment() -> dict[str, str]:
    """What the programs need to find each other and their libraries. The containers do not see it."""
    usr = PREFIX / "usr"
    libraries = next(usr.glob("lib/*/libnftables.so.1")).parent
    return {
        "PATH": os.pathsep.join([str(usr / "bin"), str(usr / "sbin"), os.environ.get("PATH", "")]),
        "LD_LIBRARY_PATH": str(libraries),
        "XTABLES_LIBDIR": str(libraries / "xtables"),
        "DEBOOTSTRAP_DIR": str(DEBOOTSTRAP),
    }
