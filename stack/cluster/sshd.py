"""The login nodes' sshd: its configuration, and its accounts.

The nss_wrapper library is between sshd and the system's accounts: sshd sees one user, with the site's shared home and
bash as shell, and, for root, the account to which sshd drops privileges. It uses neither the person's own home nor the
system's /etc/passwd.
"""

from __future__ import annotations

import os
from pathlib import Path

from stack.cluster import packages

PRIVILEGE_SEPARATION = Path("/run/sshd")
"""Where Debian's sshd, started by root, locks itself in; services make it at boot, and containers have none."""


def sshd_config(
    *,
    folder: Path,
    user: str,
    host: str,
    port: int,
    environment: dict[str, str],
    max_startups: int,
    max_sessions: int,
    sftp: str | None,
) -> str:
    """The text of sshd_config for one login node; ``environment`` is what every session gets at once.

    ``sftp`` is the command of the SFTP subsystem; None: there is none.
    """
    sets = " ".join(f'"{name}={value}"' for name, value in environment.items())
    return f"""\
ListenAddress {host}:{port}
HostKey "{folder}/ssh/host_key"
PidFile none
AuthorizedKeysFile "{folder}/ssh/authorized_keys"
AllowUsers {user}
PermitRootLogin prohibit-password
AuthenticationMethods publickey
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
UseDNS no
PrintMotd no
PrintLastLog no
X11Forwarding no
PermitUserRC no
MaxStartups {max_startups}
MaxSessions {max_sessions}
SetEnv {sets}
{f"Subsystem sftp {sftp}" if sftp else ""}
"""


def passwd(*, user: str, home: Path) -> str:
    """The passwd file that sshd sees."""
    return f"""\
{user}:x:{os.getuid()}:{os.getgid()}::{home}:/bin/bash
sshd:x:65534:65534::{PRIVILEGE_SEPARATION}:/usr/sbin/nologin
"""


def wrapper(*, site: Path) -> dict[str, str]:
    """The environment with which sshd sees that passwd file."""
    return {
        "LD_PRELOAD": f"{site}/prefix/lib/{packages.libraries().name}/libnss_wrapper.so",
        "NSS_WRAPPER_PASSWD": f"{site}/folder/etc/passwd",
        "NSS_WRAPPER_GROUP": f"{site}/folder/etc/group",
    }
