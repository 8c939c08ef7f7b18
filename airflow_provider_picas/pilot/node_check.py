#!/usr/bin/env python3
"""Checks that a node has what a pilot needs: scratch space, a correct clock, and a connection to the database.

    python3 node_check.py check.json

``airflow-picas check`` runs it on a cluster: Python 3.6 or newer, standard library only. It gets the database server's
URL and no credentials. It prints one JSON object, and writes it to the file ``result`` if ``check.json`` names one.
"""

import http.client
import json
import os
import platform
import shutil
import signal
import socket
import ssl
import sys
import tempfile
import time
from email.utils import parsedate_to_datetime
from typing import Any, Dict
from urllib.parse import urlsplit

SCRATCH_BYTES = 1_000_000  # written as a test
TIME_LIMIT = 50  # seconds until SIGALRM ends this program, even if it hangs


def main(path: str) -> None:
    """Run the checks and report."""
    signal.alarm(TIME_LIMIT)
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    found = {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "scratch": scratch(),
        "database": database(config),
        "time": time.time(),
    }
    text = json.dumps(found)
    if config.get("result"):
        with open(config["result"] + ".new", "w", encoding="utf-8") as file:
            file.write(text)
        os.rename(config["result"] + ".new", config["result"])
    print(text)


def scratch() -> Dict[str, Any]:
    """Check that the folder in which commands run is writable."""
    folder = os.environ.get("TMPDIR") or "/tmp"
    try:
        with tempfile.NamedTemporaryFile(prefix="picas-check-", dir=folder) as file:
            file.write(b"x" * SCRATCH_BYTES)
            file.flush()
            os.fsync(file.fileno())
        noexec = bool(os.statvfs(folder).f_flag & os.ST_NOEXEC)
        return {"folder": folder, "free": shutil.disk_usage(folder).free, "noexec": noexec, "error": None}
    except OSError as error:
        return {"folder": folder, "error": str(error)}


def database(config: Dict[str, Any]) -> Dict[str, Any]:
    """Check that the database server answers, connecting as pilots do, and how far its clock is ahead."""
    parts = urlsplit(config["url"])
    host, timeout = parts.hostname or "", config["timeout"]
    try:
        connection = http.client.HTTPConnection(host, parts.port or 80, timeout=timeout)
        if parts.scheme == "https":
            context = ssl.create_default_context(cafile=config.get("ca_file"))
            if not config["tls_verify"]:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            connection = http.client.HTTPSConnection(host, parts.port or 443, timeout=timeout, context=context)
        begin = time.time()
        connection.request("GET", parts.path.rstrip("/") + "/", headers={"Accept": "application/json"})
        response = connection.getresponse()
        answer, date, ahead = response.read(100_000), response.getheader("Date"), None
        if date:
            ahead = parsedate_to_datetime(date).timestamp() - (begin + time.time()) / 2
        return {"status": response.status, "json": is_json_object(answer), "ahead": ahead, "error": None}
    except (OSError, ValueError, TypeError, http.client.HTTPException) as error:
        return {"error": "%s: %s" % (type(error).__name__, error)}


def is_json_object(answer: bytes) -> bool:
    """True if a response may be CouchDB's, and not a login page or a proxy's."""
    try:
        return isinstance(json.loads(answer.decode("utf-8")), dict)
    except (ValueError, RecursionError):
        return False


if __name__ == "__main__":
    main(sys.argv[1])
