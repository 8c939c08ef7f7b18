"""The browser of the tests and the screenshots: the system's Chromium, else Debian's, unpacked below ``.stack/`` without root."""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path

from stack import debian, paths
from stack.processes import StackError

FOLDER = paths.HOME / "browser"
WANTED = ("chromium", "chromium-common", "fontconfig-config", "fonts-dejavu-core", "libnss3")
SYSTEM_LIBRARIES = ("libc6", "libc-", "libpam-", "libperl", "libgcc", "libstdc++")


def program() -> Path:
    """Chromium's program. Raises StackError where it is not installed."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return Path(found)
    if (unpacked := FOLDER / "chromium").exists():
        return unpacked
    raise StackError("Chromium, which the page's tests need, is not installed: run `make install`.")


def install() -> None:
    """Unpack Debian's Chromium, its libraries and a font, unless the system has a Chromium. Raises StackError."""
    FOLDER.parent.mkdir(parents=True, exist_ok=True)
    with FOLDER.with_name("browser.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            program()
        except StackError:
            unpack()


def unpack() -> None:
    """Unpack Debian's Chromium into ``FOLDER``."""
    if not shutil.which("apt-get"):
        raise StackError("Chromium was not found, and neither was apt-get to fetch Debian's. Install Chromium.")
    new = FOLDER.with_name("browser.new")
    shutil.rmtree(new, ignore_errors=True)
    for package in debian.download(WANTED, new / "apt", without=SYSTEM_LIBRARIES):
        debian.call(["dpkg-deb", "-x", str(package), str(new)])
    shutil.rmtree(new / "apt")
    _write_start(new)
    shutil.rmtree(FOLDER, ignore_errors=True)
    new.rename(FOLDER)


def _write_start(root: Path) -> None:
    """A program that starts the browser with its own libraries and font."""
    triplet = next((root / "usr/lib").glob("*/libnss3.so")).parent.name
    libraries = f"{FOLDER}/usr/lib/{triplet}"
    fonts = root / "fonts.conf"
    fonts.write_text(
        '<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd"><fontconfig>'
        f"<dir>{FOLDER}/usr/share/fonts</dir><cachedir>{FOLDER}/fonts</cachedir></fontconfig>\n"
    )
    start = root / "chromium"
    start.write_text(
        f'#!/bin/sh\nexport LD_LIBRARY_PATH="{libraries}:{libraries}/nss" FONTCONFIG_FILE="{FOLDER}/fonts.conf"\n'
        f'exec "{FOLDER}/usr/lib/chromium/chromium" "$@"\n'
    )
    start.chmod(0o755)
