"""Sends the program that checks a node of the cluster (``pilot/node_check.py``), and evaluates its report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_provider_picas.checks.finding import Finding, failed, ok, warned
from airflow_provider_picas.couchdb.errors import CouchDBError
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.pilot import node_check
from airflow_provider_picas.slurm.credentials import CA_FILE
from airflow_provider_picas.slurm.remote import RemoteFile
from airflow_provider_picas.submissions.deaths import SKEW
from airflow_provider_picas.tokens.text import one_line

PROGRAM = "node_check.py"
CONFIG = "check.json"
RESULT = "result.json"
TIMEOUT = 15.0  # seconds for the database to answer a node
_LEAST_SCRATCH = 100_000_000  # bytes


@dataclass(frozen=True)
class Probe:
    """The input of a node's check, without credentials. ``url`` None: the connection to the pool cannot be read."""

    url: str | None
    tls_verify: bool = True
    ca: bytes | None = None  #: the certificates in the connection's ``ca_file``

    @classmethod
    def of(cls, hook: PicasHook) -> Probe:
        """A probe that connects to the database as the hook does."""
        try:
            settings = hook.settings
        except CouchDBError:
            return cls(None)
        try:
            ca = Path(settings.verify).read_bytes() if isinstance(settings.verify, str) else None
        except OSError:
            ca = None  # the hook's own error reports this
        return cls(settings.url, settings.verify is not False, ca)

    def files(self, folder: str, *, to_file: bool = False) -> list[RemoteFile]:
        """The files that a node needs in a folder. ``to_file``: also write the report to the file ``RESULT`` there."""
        config = {
            "url": self.url or "http://127.0.0.1:9",
            "tls_verify": self.tls_verify,
            "ca_file": f"{folder}/{CA_FILE}" if self.ca else None,
            "timeout": TIMEOUT,
            "result": f"{folder}/{RESULT}" if to_file else None,
        }
        files = [
            RemoteFile(f"{folder}/{PROGRAM}", Path(node_check.__file__).read_bytes()),
            RemoteFile(f"{folder}/{CONFIG}", json.dumps(config).encode()),
        ]
        if self.ca:
            files.append(RemoteFile(f"{folder}/{CA_FILE}", self.ca))
        return files

    def reaches(self, report: Mapping[str, Any]) -> str | None:
        """Why a node cannot reach the database; None if it can."""
        found = report.get("database")
        if not isinstance(found, Mapping):
            return "its report cannot be read"
        if found.get("error"):
            return one_line(str(found["error"]), 300)
        if not found.get("json"):
            return f"the server that answers is not CouchDB (HTTP {one_line(str(found.get('status')))})"
        return None


def read_report(text: str) -> Mapping[str, Any] | None:
    """The report of a node; None for anything else."""
    for line in reversed(text.splitlines()):
        try:
            report = json.loads(line)
        except ValueError:
            continue
        if isinstance(report, dict):
            return report
    return None


def clock(what: str, report: Mapping[str, Any]) -> Iterator[Finding]:
    """Check the node's clock, if the node has reached the database."""
    database = report.get("database")
    ahead = database.get("ahead") if isinstance(database, Mapping) else None
    if isinstance(ahead, int | float):
        yield clock_finding(f"{what}, clock", -ahead)


def clock_finding(what: str, off: float) -> Finding:
    """The finding for a clock that is ``off`` seconds ahead of the database's, whose dates have whole seconds."""
    if abs(off) <= SKEW:
        return ok(what, f"It is within {max(1, round(abs(off)))} s of the database's.")
    return warned(
        what,
        f"It is {abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} the database's, so dead pilots may be"
        " detected late, or live ones taken for dead. Ask for the clock to be synchronised (NTP).",
    )


def scratch(what: str, report: Mapping[str, Any]) -> Iterator[Finding]:
    """Check that commands have a folder to run in."""
    found = report.get("scratch")
    if not isinstance(found, Mapping):
        return
    folder, free = one_line(str(found.get("folder"))), found.get("free")
    if found.get("error"):
        yield failed(
            what,
            f"The scratch folder {folder} cannot be written ({one_line(str(found['error']))}). Set TMPDIR in the setup.",
        )
    elif found.get("noexec"):
        yield warned(
            what, f"Programs cannot be run from the scratch folder {folder} (noexec), which includes those in `files`."
        )
    elif isinstance(free, int) and free < _LEAST_SCRATCH:
        yield warned(what, f"The scratch folder {folder} has {free / 1e6:.0f} MB free. Set TMPDIR in the setup.")
    else:
        yield ok(what, f"The scratch folder {folder} can be written.")
