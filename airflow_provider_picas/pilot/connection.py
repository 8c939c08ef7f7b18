"""Connections to CouchDB, with limits on the size and the duration of responses."""

import http.client
import io
import os
import re
import socket
import ssl
import time
from typing import Any, Tuple
from urllib.parse import quote, urlsplit

from airflow_provider_picas.lifecycle.exit_codes import EX_CONFIG, Failed
from airflow_provider_picas.lifecycle.pilot_config import Config
from airflow_provider_picas.pilot.errors import TOO_MUCH, LargeAnswer

LARGEST_RESPONSE = 64_000_000  # largest response that is read, in bytes
SLOWEST_RESPONSE = 10  # a response may take this many times the timeout, which applies to each piece of it


def _tls(config: Config) -> ssl.SSLContext:
    """The TLS context for the server's certificate. Raises Failed if a file of certificates cannot be read."""
    try:
        context = ssl.create_default_context(cafile=os.path.expanduser(config.ca_file) if config.ca_file else None)
    except OSError as error:
        raise Failed(f"ca_file {config.ca_file} is not a file of certificates: {error}.", EX_CONFIG) from None
    if not config.tls_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class _Bounded(io.RawIOBase):
    """The data of one response. Raises LargeAnswer and socket.timeout beyond the limits of size and time."""

    def __init__(self, raw: Any, place: str, most: int, seconds: float) -> None:
        super().__init__()
        self._raw = raw
        self._place = place
        self._most = self._left = most
        self._seconds = seconds
        self._until = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> Any:
        if time.monotonic() > self._until:
            raise socket.timeout(f"the response was not complete after {self._seconds:.0f} s")
        count = self._raw.readinto(buffer)
        self._left -= count or 0
        if self._left < 0:
            raise LargeAnswer(f"A response from {self._place} has more than {self._most:,} bytes", 200, TOO_MUCH)
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """A response with limits, which also apply to its headers."""

    limits: Tuple[str, int, float] = ("", 0, 0.0)

    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_Bounded(self.fp.detach(), *self.limits))


def read_url(url: str) -> Tuple[str, str, int, str]:
    """Scheme, host, port and path of ``PICAS_HOST_URL``. Raises Failed, without the URL: a password may be in it."""
    try:
        parts = urlsplit(url)
        ports = {"http": 80, "https": 443}
        port = (parts.port or ports[parts.scheme]) if parts.scheme in ports else 0
        host = parts.hostname or ""
    except ValueError:
        port, host = 0, ""
    if not port or not re.match(r"[^\x00-\x20\x7f]+\Z", host):
        raise Failed(
            "PICAS_HOST_URL must be http(s)://host:port, with a port up to 65535. Set login and password separately.",
            EX_CONFIG,
        )
    return parts.scheme, host, port, quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=-._~")
