"""Faults for tests: a proxy that hurts some requests, a relay, silent hosts, certificates, full disks, login profiles."""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import enum
import http.client
import ipaddress
import itertools
import os
import socket
import ssl
import subprocess
import threading
import time
import urllib.parse
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import pytest

from stack.cluster import Cluster

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


class Fault(enum.Enum):
    """What happens to a request, but for statuses, which the proxy answers itself."""

    DROP = "the connection breaks before the server has seen the request"
    LOSE = "the server has done it, and the connection breaks before its answer"
    CUT = "the connection breaks in the middle of the server's answer"
    BOMB = "the answer is a gigabyte of blanks, compressed"
    ENDLESS = "the answer never ends"
    TRICKLE = "the answer comes a byte at a time, 20 a second, and never ends"
    LATE = "the request reaches the server when `let_go` is set, whether or not the client still waits"
    HOLD = "the server has done it, and its answer comes when `let_go` is set"


class Serving:
    """Base of servers that run in a thread for the time of a ``with``."""

    _server: Any

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class Proxy(Serving):
    """An HTTP proxy in front of a server, on a port of its own. Without faults it passes everything on.

    ``requests`` are those that came, as ``"<method> <path and query>"``; ``headers`` theirs, with names in small letters;
    ``connections`` is the number of those that clients made. ``rewrite`` makes of a request and the server's answer, status and
    content, the one that the client gets. ``meanwhile`` is called when an answer was lost, before anybody
    knows of it. Of a request with a body of more than ``largest`` bytes the server never hears, as with nginx's
    ``client_max_body_size``. ``ahead``: seconds that are added to the Date of every answer.
    ``date``: stands in the Date of every answer.
    ``spread``: requests that hold one of these texts go to another server, as with a load balancer.
    ``minority``: writes are told to be on too few nodes of a cluster (202), as on those that are cut off from most others.
    """

    def __init__(self, url: str, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.connections = 0
        self.meanwhile: Callable[[], object] = lambda: None
        self.rewrite: Callable[[str, int, bytes], tuple[int, bytes]] = lambda request, status, content: (
            status,
            content,
        )
        self.largest: int | None = None
        self.ahead = 0.0
        self.date: str | None = None
        self.minority = False
        self.spread: dict[str, str] = {}
        self.let_go = threading.Event()
        self.held = 0  # requests that LATE or HOLD has kept back so far
        self._faults: list[tuple[Fault | int, Callable[[str], bool]]] = []
        self._lock = threading.Lock()
        self._broken_after: int | None = None
        self._server = _Server(self, url)
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self._server.server_port}"

    def hurt(self, *faults: Fault | int, on: str = "") -> None:
        """Do this to the coming requests that hold ``on``, one fault each. A number is the status of an error."""
        with self._lock:
            self._faults += [(fault, lambda request: on in request) for fault in faults]

    def moved(self, date: str) -> str:
        """What stands in an answer instead of the server's Date."""
        return _moved(date, self.ahead) if self.date is None else self.date

    def redirect(self, url: str) -> None:
        """Pass new requests on to another server; those under way stay with the old one."""
        self._server.upstream = urllib.parse.urlsplit(url)

    def upstream_of(self, request: str) -> urllib.parse.SplitResult:
        """The server to which a request goes."""
        others = [url for text, url in self.spread.items() if text in request]
        return urllib.parse.urlsplit(others[0]) if others else self._server.upstream

    def hold(self) -> None:
        """Keep a request back until ``let_go`` is set."""
        with self._lock:
            self.held += 1
        self.let_go.wait(120)

    def break_after(self, requests: int | None) -> None:
        """Drop every connection after so many more requests; None: no longer."""
        with self._lock:
            self._broken_after = None if requests is None else len(self.requests) + requests

    def fault_of(self, request: str) -> Fault | int | None:
        """Note a request, and say what is to happen to it."""
        with self._lock:
            self.requests.append(request)
            if self._broken_after is not None and len(self.requests) > self._broken_after:
                return Fault.DROP
            for place, (fault, matches) in enumerate(self._faults):
                if matches(request):
                    del self._faults[place]
                    return fault
            return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, proxy: Proxy, url: str) -> None:
        self.proxy = proxy
        self.upstream = urllib.parse.urlsplit(url)
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        self.server.proxy.connections += 1
        super().setup()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def relay(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        proxy = self.server.proxy
        upstream = proxy.upstream_of(f"{self.command} {self.path}")
        proxy.headers.append({name.lower(): value for name, value in self.headers.items()})
        fault = proxy.fault_of(f"{self.command} {self.path}")
        if proxy.largest is not None and len(body) > proxy.largest:
            page = b"<html><head><title>413 Request Entity Too Large</title></head></html>"
            return self.answer(413, [("Content-Type", "text/html")], page)
        if fault is Fault.DROP:
            return self.break_off()
        if fault in (Fault.BOMB, Fault.ENDLESS, Fault.TRICKLE):
            return self.flood(fault)
        if isinstance(fault, int):
            text = b'{"error":"injected","reason":"by the proxy"}'
            return self.answer(fault, [("Content-Type", "application/json")], text)
        if fault is Fault.LATE:
            proxy.hold()
        connection = http.client.HTTPConnection(str(upstream.hostname), upstream.port, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        try:
            connection.request(self.command, self.path, body or None, headers)
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException):
            return self.break_off()  # the server is away, and so are we
        finally:
            connection.close()
        if fault is Fault.LOSE:
            proxy.meanwhile()
            return self.break_off()
        if fault is Fault.HOLD:
            proxy.hold()
        kept = [(name, value) for name, value in response.getheaders() if name.lower() not in _HOP_BY_HOP]
        if proxy.ahead or proxy.date is not None:
            kept = [(name, proxy.moved(value) if name.lower() == "date" else value) for name, value in kept]
        status = 202 if proxy.minority and response.status == 201 else response.status
        status, content = proxy.rewrite(f"{self.command} {self.path}", status, content)
        with contextlib.suppress(OSError):  # the client may have given up
            self.answer(status, kept, content, cut=fault is Fault.CUT)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = relay

    def answer(self, status: int, headers: list[tuple[str, str]], content: bytes, *, cut: bool = False) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self.break_off()

    def flood(self, fault: Fault | int | None) -> None:
        """An answer that no client should read to its end. It goes on until the client closes the connection."""
        self.send_response_only(200)
        self.send_header("Content-Type", "application/json")
        if fault is Fault.BOMB:
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        packer, blanks = zlib.compressobj(wbits=31), b" " * 1_000_000
        with contextlib.suppress(OSError):
            for _ in range(1_000) if fault is Fault.BOMB else itertools.repeat(None):
                if fault is Fault.TRICKLE:
                    time.sleep(0.05)
                    self.wfile.write(b" ")
                else:
                    self.wfile.write(packer.compress(blanks) if fault is Fault.BOMB else blanks)
            self.wfile.write(packer.flush())
        self.close_connection = True

    def break_off(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.flush()
            socket.socket.shutdown(self.connection, socket.SHUT_RDWR)  # of TLS, too: with no farewell


def _moved(date: str, seconds: float) -> str:
    """An HTTP date, so many seconds later."""
    return email.utils.formatdate(email.utils.parsedate_to_datetime(date).timestamp() + seconds, usegmt=True)


class Relay:
    """Passes TCP connections on, from a port of its own to the targets (host, port) in turn. ``connections``: how many came."""

    def __init__(self, *targets: tuple[str, int]) -> None:
        self.connections = 0
        self._ends: list[socket.socket] = []
        self._targets = itertools.cycle(targets)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections. Those that are there stay."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(
                socket.SHUT_RDWR
            )  # wakes the thread that waits in accept, which keeps the port open
        self._listener.close()

    def cut(self) -> None:
        """Take no more connections, and end those that are there."""
        self.close()
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve(self, client: socket.socket, server: socket.socket) -> None:
        """What becomes of one connection; both ends are closed when it returns."""
        back = threading.Thread(target=self._pump, args=(server, client), daemon=True)
        back.start()
        self._pump(client, server)
        back.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._connect, args=(client, next(self._targets)), daemon=True).start()

    def _connect(self, client: socket.socket, target: tuple[str, int]) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(target) as server:
            self._ends += [client, server]
            self.serve(client, server)

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def silent_host(*, accepts: bool) -> Iterator[str]:
    """The URL of a host that takes connections and says nothing, or (``accepts`` false) does not even take them."""
    with socket.socket() as listener, contextlib.ExitStack() as waiting:
        listener.bind(("127.0.0.1", 0))
        listener.listen(50 if accepts else 0)
        if not accepts:  # a full queue: the kernel drops what comes then
            for _ in range(3):
                other = waiting.enter_context(socket.socket())
                other.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    other.connect(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextlib.contextmanager
def html_site(status: int = 200) -> Iterator[str]:
    """The URL of a site that answers everything with a page, as a login portal does."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = b"<!DOCTYPE html>\n<html><head><title>Please sign in</title></head></html>"
            self.send_response(status)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_PUT = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A file system of this size, such as ``64k``, in place of a folder, which is made if needed."""
    if os.getuid() != 0:
        pytest.skip("only root may mount a file system")
    made = not folder.exists()
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(command, check=False, timeout=60).returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True, timeout=60)
        if made:
            folder.rmdir()


@contextlib.contextmanager
def profile(site: Cluster, text: str) -> Iterator[None]:
    """Shell text at the end of the login profile."""
    file = site.home / ".bash_profile"
    before = file.read_text()
    file.write_text(f"{before}\n{text}\n")
    try:
        yield
    finally:
        file.write_text(before)


def self_signed(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's TLS context with a certificate for 127.0.0.1 that is its own authority, and the file of that certificate."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    ca_file, key_file = folder / "ca.pem", folder / "key.pem"
    ca_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ca_file, key_file)
    return context, ca_file
