"""Slurm's accounting: slurmdbd and the MariaDB below it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from stack import paths
from stack.cluster import packages
from stack.processes import StackError

TEMPLATE = paths.CLUSTER_PREFIX / "database"
"""A MariaDB data folder with nothing but the system's tables, copied by every cluster."""

SYSTEM_TABLES = ["mysql_system_tables.sql", "mysql_performance_tables.sql", "mysql_system_tables_data.sql"]


def make_template() -> None:
    """Fill ``TEMPLATE``, if not done yet. (Debian's mariadb-install-db cannot run outside of /usr.)"""
    if TEMPLATE.exists():
        return
    new = TEMPLATE.with_name("database.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    tables = [(packages.USR / "share/mysql" / name).read_text(encoding="utf-8") for name in SYSTEM_TABLES]
    statements = "CREATE DATABASE mysql;\nUSE mysql;\n" + "\n".join(tables)
    command = [*mariadbd(new), "--bootstrap", "--skip-log-error"]
    ended = subprocess.run(command, input=statements, text=True, capture_output=True, check=False)
    if ended.returncode:
        raise StackError(
            f"MariaDB could not create its system tables, code {ended.returncode}:\n{ended.stderr[-2000:]}"
        )
    new.rename(TEMPLATE)


def mariadbd(data: Path) -> list[str]:
    """The command line of the server on this data folder. Anyone who can reach its socket is its root user."""
    return [
        str(packages.SBIN / "mariadbd"),
        "--no-defaults",
        f"--basedir={packages.USR}",
        f"--datadir={data}",
        f"--lc-messages-dir={packages.USR / 'share/mysql'}",
        "--skip-networking",
        "--skip-grant-tables",
        "--skip-log-bin",
        "--innodb-buffer-pool-size=64M",
        "--innodb-log-file-size=16M",
        "--innodb-lock-wait-timeout=900",  # slurmdbd refuses lower values
        "--innodb-flush-log-at-trx-commit=0",
        *(["--user=root"] if os.getuid() == 0 else []),
    ]


def slurmdbd_conf(*, site: Path, plugins: Path, user: str, port: int) -> str:
    """The text of slurmdbd.conf; ``site`` is the short name of the cluster's folder."""
    return f"""\
AuthType=auth/munge
AuthInfo=socket={site}/munge.sock
CommunicationParameters=NoInAddrAny
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser={user}
PidFile={site}/folder/run/slurmdbd.pid
PluginDir={plugins}
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
DebugLevel=info
"""
