"""The stack in containers, ``docker/compose.yaml``: CouchDB, Slurm, Airflow. Needs a Docker engine.

``python3 -m stack.docker FOLDER`` generates the keys and passwords in that folder and prints the start command.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from stack import paths, processes
from stack.airflow import ADMIN, VIEWER
from stack.airflow_api import AirflowApi
from stack.couchdb import CouchDBAdmin
from stack.processes import StackError

COMPOSE_FILE = paths.PROJECT / "docker" / "compose.yaml"
COUCHDB = ["couchdb"]
CLUSTER = ["accounting", "controller", "n1", "n2", "login1", "login2"]
AIRFLOW = ["airflow"]
START_SECONDS = 1800
"""Time for the first start, which builds the images; later ones take less than a minute."""


def engine_answers() -> bool:
    """True if a Docker engine answers and Docker's compose plugin, version 2 or newer, is installed."""
    try:
        return all(
            subprocess.run(["docker", *command], capture_output=True, timeout=20, check=False).returncode == 0
            for command in (["info"], ["compose", "version"])
        )
    except (OSError, subprocess.TimeoutExpired):
        return False


class DockerStack:
    """The services of ``docker/compose.yaml``, in a separate compose project for each folder.

    Attributes, as in the native parts:

    - ``couchdb``: its ``url``, ``admin`` and ``password``; login and compute nodes reach it under the same URL
    - ``logins``: host and port of each login node; they share the host key and the home
    - ``user``: the account on the cluster; ``home``: its home, at the same path on the cluster and here
    - ``private_key``: path of the key that opens it; ``host_key``: the login nodes' public key, ``ssh-ed25519 AAAA…``
    - ``nodes``: names of the compute nodes
    - ``airflow_url``, ``airflow_passwords`` and ``airflow_api``, the REST API as admin

    Airflow in its container has two connections in its environment, ``picas_default`` to ``database`` and ``spider``.
    ``couchdb_login`` is who the first of them logs in as: name and password, the server's admin when not given.
    """

    user = "researcher"
    nodes = ["n1", "n2"]

    def __init__(self, folder: Path, *, database: str = "picas", couchdb_login: tuple[str, str] | None = None) -> None:
        self.folder = folder.resolve()
        self.project = f"picas-{hashlib.sha256(str(self.folder).encode()).hexdigest()[:12]}"
        couchdb, *logins, airflow = processes.free_ports(4)
        self.couchdb = CouchDBAdmin(f"http://127.0.0.1:{couchdb}", "admin", secrets.token_urlsafe(18))
        self.couchdb_login = couchdb_login or (self.couchdb.admin, self.couchdb.password)
        self.database = database
        self.logins = [("127.0.0.1", port) for port in logins]
        self.home = self.folder / "home"
        self.private_key = self.folder / "ssh" / "id_ed25519"
        self.host_key = ""
        self.airflow_url = f"http://127.0.0.1:{airflow}"
        self.airflow_passwords = {user: secrets.token_urlsafe(12) for user in (ADMIN, VIEWER)}
        self.airflow_api = AirflowApi(self.airflow_url, ADMIN, self.airflow_passwords[ADMIN])

    @property
    def environment_file(self) -> Path:
        """The variables of the compose file: the folder and the ports, no secrets."""
        return self.folder / "compose.env"

    def command(self, *arguments: str) -> list[str]:
        """``docker compose`` for this stack with these arguments."""
        project = ["--project-name", self.project, "--file", str(COMPOSE_FILE)]
        return ["docker", "compose", *project, "--env-file", str(self.environment_file), *arguments]

    def prepare(self) -> None:
        """Create the folder again, with new keys and passwords. ``start`` calls this if needed."""
        home, ssh, secret = self.home, self.private_key.parent, self.folder / "secrets"
        for old in (home, ssh, secret):
            shutil.rmtree(old, ignore_errors=True)
        for new in (home, ssh, secret):
            new.mkdir(parents=True)
            new.chmod(0o755 if new == home else 0o700)
        for key, comment in ((ssh / "host_key", "minispider"), (self.private_key, self.user)):
            _make_key(key, comment)
        self.host_key = " ".join((ssh / "host_key.pub").read_text().split()[:2])
        files: dict[str, str | bytes] = {
            "couchdb_password": self.couchdb.password,
            "munge_key": os.urandom(1024),
            "host_key": (ssh / "host_key").read_text(),
            "authorized_keys": self.private_key.with_suffix(".pub").read_text(),
            "airflow_connections": self._connections(),
            "airflow_passwords": json.dumps(self.airflow_passwords),
        }
        for name, content in files.items():
            # The folder is the owner's only; the files are mounted one by one, and read by users of the images' own.
            (secret / name).write_bytes(content.encode() if isinstance(content, str) else content)
            (secret / name).chmod(0o644)
        ports = [self.couchdb.url, *(str(port) for _, port in self.logins), self.airflow_url]
        names = ["COUCHDB", "LOGIN1", "LOGIN2", "AIRFLOW"]
        lines = [f"PICAS_{name}_PORT={port.rpartition(':')[2]}" for name, port in zip(names, ports, strict=True)]
        self.environment_file.write_text("\n".join([f"PICAS_STACK='{self.folder}'", *lines, ""]))

    def start(self, services: Iterable[str] = (*COUCHDB, *CLUSTER, *AIRFLOW)) -> None:
        """Build the images if need be, start these services and those they depend on, and wait until all are healthy.

        What an earlier stack in this folder left behind is removed first. May be called again for more services.
        Raises StackError, with nothing left running, when a service does not become healthy.
        """
        if not self.host_key:
            self.stop()
            self.prepare()
        try:
            self._compose("up", "--detach", "--wait", *services)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Remove all containers, with their networks and volumes. The folder stays, with home and logs."""
        if not self.environment_file.exists():
            return
        for arguments in (["logs", "--no-color", "--timestamps"], ["down", "--volumes", "--timeout", "5"]):
            with suppress(StackError):  # to end as much as can be ended; the log has what Docker said
                self._compose(*arguments)

    def run(self, *argv: str, service: str = "login1", timeout: float = 30) -> subprocess.CompletedProcess[str]:
        """Run a command in the home, as after a login; the output is text, the exit code not checked."""
        login = ["exec", "-T", "--user", self.user, "--workdir", str(self.home), service]
        words = [*login, "bash", "-c", 'source /etc/profile >/dev/null && exec "$@"', "bash", *argv]
        return subprocess.run(self.command(*words), capture_output=True, text=True, timeout=timeout, check=False)

    def __enter__(self) -> DockerStack:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _compose(self, *arguments: str) -> None:
        log = processes.log_path(self.folder, "docker")
        log.parent.mkdir(exist_ok=True)
        with log.open("ab") as output:
            command = self.command(*arguments)
            try:
                ended = subprocess.run(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=START_SECONDS, check=False
                )
            except subprocess.TimeoutExpired as error:
                raise StackError(f"`{arguments[0]}` of Docker took over {START_SECONDS} s. {_end_of(log)}") from error
            except OSError as error:
                raise StackError(f"Docker cannot be run: {error}.") from error
        if ended.returncode:
            raise StackError(f"`docker compose {arguments[0]}` failed with code {ended.returncode}. {_end_of(log)}")

    def _connections(self) -> str:
        """Airflow's connections as lines of an environment. Inside, the services go by their names."""
        login, password = self.couchdb_login
        connections = {
            "PICAS_DEFAULT": {
                "conn_type": "picas",
                "host": "http://couchdb",
                "port": 5984,
                "schema": self.database,
                "login": login,
                "password": password,
            },
            "SPIDER": {
                "conn_type": "ssh",
                "host": "spider",
                "login": self.user,
                "extra": {"private_key": self.private_key.read_text(), "host_key": self.host_key},
            },
        }
        return "".join(f"AIRFLOW_CONN_{name}={json.dumps(connection)}\n" for name, connection in connections.items())


def _end_of(log: Path) -> str:
    return f"The end of {log}, where the containers' own logs follow:\n{processes.tail(log)}"


def _make_key(key: Path, comment: str) -> None:
    """Create an SSH key pair. Raises StackError if there is no ssh-keygen."""
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(key)]
    try:
        subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise StackError(
            "ssh-keygen, which creates the cluster's keys, was not found: install openssh-client."
        ) from error


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1:
        print("usage: python3 -m stack.docker FOLDER", file=sys.stderr)
        return 2
    stack = DockerStack(Path(arguments[0]))
    stack.prepare()
    print(f"{' '.join(stack.command('up', '--wait'))}\n")
    print(f"Airflow  {stack.airflow_url}  admin / {stack.airflow_passwords[ADMIN]}")
    print(f"CouchDB  {stack.couchdb.url}  {stack.couchdb.admin} / {stack.couchdb.password}")
    for host, port in stack.logins:
        print(f"login    ssh -i {stack.private_key} -p {port} {stack.user}@{host}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
