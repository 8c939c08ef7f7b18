"""The nodes of a real CouchDB cluster on this machine: freeze, kill, restart and cut them off.

All it gets are the nodes' URLs, with an admin's login in them. Each node's process is found by the port on which it listens
(``/proc/net/tcp``), so the nodes must run here and belong to this user, or this user must be root. A node is restarted with the
command line, environment and folder that its process had.

A node is cut off with distributed Erlang's own means: a small ``erl`` connects to the nodes with the cluster's cookie, gives each
pair another cookie, and breaks the connections. HTTP stays reachable on both sides. It needs no root and no change of their
configuration. It needs the cookie (``-setcookie`` of the process, else ``.erlang.cookie`` in its home), the ``erlexec`` and
``start_clean.boot`` of the nodes' release, or ``erl`` on PATH, and Erlang's port mapper, as the nodes use it.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import itertools
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

URLS = "PICAS_TEST_COUCHDB_CLUSTER"
"""Environment variable: the URLs of three nodes, each with an admin's login, separated by spaces or commas."""

STARTS = 60.0  # seconds that a node may take to start, or to be joined with the others
LISTENS = "0A"  # the state of a listening socket in /proc/net/tcp


class NotHere(Exception):
    """A node cannot be hurt: its process is not one of this machine, or not this user's."""


def urls_from_environment() -> list[str]:
    """The URLs that the environment names; none if it names no cluster."""
    return [url.rstrip("/") for url in re.split(r"[\s,]+", os.environ.get(URLS, "")) if url]


def cluster_or_skip() -> CouchDBNodes:
    """The cluster that the environment names. Skips the test, with the reason, where there is none or it cannot be hurt."""
    urls = urls_from_environment()
    if len(urls) != 3:
        pytest.skip(f"{URLS} does not name three CouchDB nodes")
    try:
        return CouchDBNodes(urls)
    except NotHere as error:
        pytest.skip(str(error))


def until(condition: Callable[[], object], what: str, seconds: float = STARTS) -> None:
    """Wait for something to become true. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError, ValueError, KeyError):
            if condition():
                return
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} took more than {seconds:g} s.")
        time.sleep(0.1)


class CouchDBNode:
    """One node: its URL, its process, and what is needed to start it again."""

    def __init__(self, url: str) -> None:
        """Raises NotHere."""
        parts = urllib.parse.urlsplit(url)
        self.url = url
        self.address = f"{parts.scheme}://{parts.hostname}:{parts.port}"
        login = f"{urllib.parse.unquote(parts.username or '')}:{urllib.parse.unquote(parts.password or '')}"
        self._login = "Basic " + base64.b64encode(login.encode()).decode()
        self._port = parts.port or 5984
        self._child: subprocess.Popen[bytes] | None = None
        self.frozen = False
        self.pid = self._find()
        proc = Path(f"/proc/{self.pid}")
        try:
            self._argv = (proc / "cmdline").read_bytes().split(b"\0")[:-1]
            self.environment = _environment((proc / "environ").read_bytes())
            self._folder = os.readlink(proc / "cwd")
            self._log = os.readlink(proc / "fd" / "1")
        except OSError as error:
            raise NotHere(f"The process {self.pid} of {self.address} cannot be read: {error}.") from None
        self.name = self._option("-name") or self._option("-sname") or ""

    def _find(self) -> int:
        inodes = _listening(self._port)
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and any(os.readlink(fd) in inodes for fd in (entry / "fd").iterdir()):
                    return int(entry.name)
        raise NotHere(f"No process of this machine that this user may see listens for {self.address}.")

    def _option(self, name: str) -> str | None:
        words = [word.decode() for word in self._argv]
        return words[words.index(name) + 1] if name in words[:-1] else None

    @property
    def short_name(self) -> bool:
        """Whether its name has no domain."""
        return self._option("-name") is None

    @property
    def cookie(self) -> str:
        """The cluster's secret. Raises NotHere."""
        given = self._option("-setcookie")
        if given:
            return given
        try:
            return (Path(self.environment.get("HOME", "/")) / ".erlang.cookie").read_text().strip()
        except OSError as error:
            raise NotHere(f"The Erlang cookie of {self.address} is not known: {error}.") from None

    def request(self, method: str, path: str, body: Any = None, timeout: float = 10) -> tuple[int, Any]:
        """Status and JSON of one request as admin, straight to this node. Raises OSError if it does not answer."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": self._login, "Content-Type": "application/json"}
        request = urllib.request.Request(self.address + path, data, headers, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=timeout) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def is_up(self) -> bool:
        """Whether it answers."""
        try:
            return self.request("GET", "/_up", timeout=5)[0] == 200
        except (OSError, ValueError):
            return False

    def freeze(self) -> None:
        """SIGSTOP: connections are taken, nothing is answered."""
        self.frozen = True
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self.frozen = False
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.end(signal.SIGKILL)

    def end(self, what: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal that ends it, and wait until it is gone."""
        if not self._lives():
            return
        os.kill(self.pid, what)
        if self.frozen:
            self.thaw()
        if self._child is not None:
            self._child.wait(STARTS)
        until(lambda: not self._lives(), f"The end of {self.address}")
        until(lambda: not _listening(self._port), f"The end of what listens for {self.address}")

    def _lives(self) -> bool:
        try:
            text = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:
            return False
        return text.rpartition(")")[2].split()[0] != "Z"

    def start(self) -> None:
        """Start it as it was, and wait until it answers."""
        if self._lives():
            return
        log: Any = open(self._log, "ab") if os.path.isfile(self._log) else subprocess.DEVNULL  # noqa: SIM115
        self._child = subprocess.Popen(
            self._argv, env=self.environment, cwd=self._folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        if log is not subprocess.DEVNULL:
            log.close()
        self.pid = self._child.pid
        until(self.is_up, f"The start of {self.address}")


class CouchDBNodes:
    """All nodes of a cluster, for one process at a time: others wait here, since they would fail by its faults.

    Use it as a context manager: in the end all nodes are up and joined again.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        """Raises NotHere if one of them cannot be hurt."""
        name = re.sub(r"\W+", "-", urllib.parse.urlsplit(urls[0]).netloc.rpartition("@")[2])
        self._lock = open(Path(tempfile.gettempdir(), f"picas-test-{os.getuid()}-{name}.lock"), "w")  # noqa: SIM115
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            self.nodes = [CouchDBNode(url) for url in urls]
            self._cookie = self.nodes[0].cookie
        except NotHere:
            self._lock.close()
            raise
        self._cut: set[str] = set()

    def __enter__(self) -> CouchDBNodes:
        self.mend()
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self.mend()

    def __getitem__(self, place: int) -> CouchDBNode:
        return self.nodes[place]

    def mend(self) -> None:
        """Undo all faults, and wait until every node is up and sees the others."""
        for node in self.nodes:
            if node.frozen:
                node.thaw()
            node.start()
        self._cut.clear()
        self._join()

    def cut(self, node: CouchDBNode) -> None:
        """Break the connections between a node and the others, and keep them broken until ``heal``, also over restarts."""
        self._cut.add(node.name)
        self._separate()

    def heal(self) -> None:
        """Let all nodes connect again, and wait until those that are up see each other."""
        self._cut.clear()
        self._join()

    def restart(self, node: CouchDBNode) -> None:
        """Start a node that was killed. It is joined with the others unless one is cut off."""
        node.start()
        if self._cut:
            self._separate()
        else:
            self._join()

    def joined(self) -> dict[str, set[str]]:
        """To which others each node is connected, by name; without the nodes that do not answer."""
        up = self._up()
        said = self._call([(node, "erlang, nodes, []") for node in up])
        return {node.name: set(re.findall(r"[^\s,'\[\]]+", line)) for node, line in zip(up, said, strict=True)}

    def _up(self) -> list[CouchDBNode]:
        return [node for node in self.nodes if not node.frozen and node.is_up()]

    def _separate(self) -> None:
        """Every pair of which one is cut off gets a cookie that only one of the two knows."""
        calls = []
        for node, other in itertools.permutations(self.nodes, 2):
            if {node.name, other.name} & self._cut and node in self._up():
                calls.append((node, f"erlang, set_cookie, ['{other.name}', 'cut_{secrets.token_hex(8)}']"))
                calls.append((node, f"erlang, disconnect_node, ['{other.name}']"))
        self._call(calls)

        def separated() -> bool:
            joined = self.joined().items()
            return not any(
                other in self._cut if name not in self._cut else other for name, all_ in joined for other in all_
            )

        until(separated, f"Cutting off {self._cut}")

    def _join(self) -> None:
        up = self._up()
        pairs = [(node, other) for node in up for other in self.nodes if other is not node]
        calls = [(node, f"erlang, set_cookie, ['{other.name}', '{self._cookie}']") for node, other in pairs]
        calls += [(node, f"net_kernel, connect_node, ['{other.name}']") for node, other in pairs if other in up]
        self._call(calls)
        names = {node.name for node in up}
        until(lambda: all(names <= {name, *others} for name, others in self.joined().items()), "Joining the nodes")

    def _call(self, calls: Sequence[tuple[CouchDBNode, str]]) -> list[str]:
        """Run functions on nodes, in this order, from a hidden node that is there only for a moment; what each returned."""
        each = [f"Say(rpc:call('{node.name}', {call}, 10000))," for node, call in calls]
        text = f'Say = fun(Term) -> io:format("~0p~n", [Term]) end, {" ".join(each)} halt(0).'
        node = self.nodes[0]
        host = node.name.rpartition("@")[2]
        name = ["-sname" if node.short_name else "-name", f"faults_{secrets.token_hex(4)}@{host}"]
        with tempfile.TemporaryDirectory() as home:
            cookie = os.open(Path(home, ".erlang.cookie"), os.O_WRONLY | os.O_CREAT, 0o400)
            with open(cookie, "w") as file:  # on the command line others could read it
                file.write(self._cookie)
            program, environment = _erl(node)
            argv = [*program, *name, "-hidden", "-connect_all", "false", "-noinput", "-eval", text]
            done = subprocess.run(
                argv, env={**environment, "HOME": home}, cwd=home, capture_output=True, text=True, timeout=120
            )
        if done.returncode or "badrpc" in done.stdout:
            raise RuntimeError(f"erl ended with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.stdout.splitlines()


def _erl(node: CouchDBNode) -> tuple[list[str], dict[str, str]]:
    """How to start an ``erl`` beside a node: its release's own, else the one on PATH. Raises NotHere."""
    environment = dict(node.environment)
    root, binaries = (environment.get(key, "") for key in ("ROOTDIR", "BINDIR"))
    boots = sorted(Path(root, "releases").glob("**/start_clean.boot")) if root else []
    if boots and os.access(os.path.join(binaries, "erlexec"), os.X_OK):
        environment.update(PROGNAME="erl", EMU="beam")
        return [os.path.join(binaries, "erlexec"), "-boot", str(boots[0].with_suffix(""))], environment
    for key in ("ROOTDIR", "BINDIR", "EMU", "PROGNAME"):
        environment.pop(key, None)
    found = shutil.which("erl")
    if not found:
        raise NotHere(f"There is neither an erl on PATH nor one in the release of {node.address}.")
    return [found], {**environment, "PATH": os.environ.get("PATH", "")}


def _environment(text: bytes) -> dict[str, str]:
    pairs = (os.fsdecode(item).partition("=") for item in text.split(b"\0") if b"=" in item)
    return {name: value for name, _, value in pairs}


def _listening(port: int) -> set[str]:
    """What ``/proc/<pid>/fd`` links to for the sockets that listen on a port here."""
    found = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == LISTENS and int(words[1].rpartition(":")[2], 16) == port:
                    found.add(f"socket:[{words[9]}]")
    return found
