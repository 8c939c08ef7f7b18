#!/usr/bin/env python3
# ruff: noqa: UP  (this file keeps to the syntax of Python 3.6)
"""A pilot: claims tokens from a PiCaS pool (CouchDB), runs a command for each, and writes the results back.

    python3 picas_pilot.py pilot.json

It stands alone on a cluster's node: Python 3.6 or newer, standard library only. ``docs/pilot.md`` of
airflow-provider-picas says what it promises to the command and how it speaks with the database.

Threads: the main one watches (signals, lease, wall-clock); ``Claimer`` fetches tokens, one slot a token runs them, ``Reporter``
writes results, ``Lease`` says that this pilot lives. They meet in ``Pilot``, under its one lock.
"""

import ast
import base64
import collections
import ctypes
import errno
import hashlib
import http.client
import json
import os
import random
import re
import select
import shlex
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import uuid
from email.utils import parsedate_to_datetime
from typing import Any, Callable, Deque, Dict, Iterable, List, NamedTuple, Optional, Sequence, Set, Tuple, Union
from urllib.parse import quote, urlencode, urlsplit

Doc = Dict[str, Any]

# What the pilot exits with. Those of sysexits.h where there is one.
EX_OK = 0
EX_UNAVAILABLE = 69  # the database did not answer for as long as ``outage`` says
EX_IOERR = 74  # the scratch folder cannot be written
EX_TEMPFAIL = 75  # results could not be sent; they are in the submission's folder
EX_NOPERM = 77  # the database refuses the credentials, or its certificate does not verify
EX_CONFIG = 78  # pilot.json, picasconfig.py, the database or its views are not as they must be

EXIT_BAD_OUTPUT = 65  # exit code of a token whose command ended with 0 and left no valid JSON in its output file
EXIT_TIME_LIMIT = 124  # exit code of a token that exceeded its time limit, as of timeout(1)

DESIGN = "_design/airflow-picas-1/_view/"
MONITOR = "_design/Monitor/_view/"

WORK_A_CLAIM = 2.0  # seconds of work that one claim aims at
GATHER = 0.25  # seconds for which results of short tokens are gathered into one request
SHORT = 0.5  # seconds below which a token is short
STALE = 10.0  # seconds after which a claimed token that has not been started is given back
STOP_WITHIN = 9.0  # seconds from a signal to the end
BULK_BYTES = 16000000  # bytes of JSON in one request, roughly
MAX_ATTEMPTS = 10  # earlier attempts that a token keeps, and their logs
FIELD_BYTES = 64 * 1024
FIELDS_BYTES = 512 * 1024
PROGRESS_BYTES = 4096
JOB_ID_FIELDS = ("slurm_job_id", "dirac_job_id", "wms_job_id", "cream_job_id", "pbs_job_id")


class Failed(Exception):
    """The pilot cannot work; the message says why, ``code`` is what it exits with."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Unreachable(Exception):
    """No useful answer: no connection, a server error, or credentials refused for the time being. Try again later."""


def log(message: str) -> None:
    """One line in the job's log."""
    line = message.encode("utf-8", "backslashreplace").decode("utf-8").replace("\n", "\n    ")
    try:
        print(time.strftime("%Y-%m-%dT%H:%M:%S%z"), line, flush=True)
    except (OSError, ValueError):
        pass  # a full disk below the job's log must not end the pilot


def number(value: Any, default: float = 0) -> float:
    """A JSON value as a number, or the default for what is none."""
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else default


# --- configuration ---------------------------------------------------------------------------------------------------


class Config(NamedTuple):
    """What ``pilot.json`` may say: it holds no secret. Times are seconds. The same table, in words, is in docs/pilot.md."""

    command: Union[str, List[str]]  # text for /bin/sh -c, or a list of arguments
    submission: str  # key of the submission
    database: Optional[str] = None  # None: what picasconfig.py names
    batch: Optional[str] = None  # None: the whole pool
    classes: Optional[List[str]] = None  # resource classes "<cores>/<gpu>/<time>"; None: any
    credentials: Optional[str] = None  # folder of picasconfig.py; None: "credentials" beside pilot.json; "existing": PYTHONPATH
    tls_verify: bool = True
    ca_file: Optional[str] = None
    files: List[str] = []  # names of files beside pilot.json that the command finds in its folder
    lease: float = 120  # for so long the pilot is believed to live after it was last heard
    slots: int = 1  # tokens that run at the same time
    max_retries: int = 0  # how often a failed token is run again; a token's own max_retries wins
    max_scrubs: int = 3  # how often a token is given back because its pilot fell silent, before it is an error
    time_limit: Optional[float] = None  # for one token; a token's own time_limit wins
    kill_after: float = 10  # between SIGTERM and SIGKILL
    no_retry_exit_codes: List[int] = []
    stop_exit_codes: List[int] = []  # the token is given back, and the pilot stops
    wait_for_work: float = 0  # how long to wait for tokens when none are left
    log_bytes: int = 1000000  # of stdout and of stderr, each, that are kept: the last ones
    output_bytes: int = 1000000  # largest JSON that a command may leave as output
    max_claim: int = 20  # tokens claimed in one request, at most
    outage: float = 900  # how long the pilot waits for a database that does not answer
    margin: float = 30  # what must be left of the wall-clock after a token is expected to end


def _is_number(least: float, whole: bool = False) -> Callable[[Any], bool]:
    kinds = (int,) if whole else (int, float)
    return lambda value: isinstance(value, kinds) and not isinstance(value, bool) and least <= value < float("inf")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and "\0" not in value


def _list_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(check(item) for item in value)


_CHECKS = {
    "command": (lambda v: _is_text(v) or (bool(v) and _list_of(_is_text)(v)), "a text or a list of texts"),
    "submission": (_is_text, "a text"),
    "database": (_is_text, "a text"),
    "batch": (_is_text, "a text"),
    "classes": (lambda v: bool(v) and _list_of(_is_text)(v), "a list of texts"),
    "credentials": (_is_text, "a folder, or 'existing'"),
    "tls_verify": (lambda v: isinstance(v, bool), "true or false"),
    "ca_file": (_is_text, "a file"),
    "files": (_list_of(lambda v: _is_text(v) and "/" not in v and v not in (".", "..")), "a list of file names"),
    "lease": (_is_number(2), "a number of seconds, at least 2"),
    "slots": (_is_number(1, whole=True), "a whole number, at least 1"),
    "max_retries": (lambda v: _is_number(0, whole=True)(v) and v < MAX_ATTEMPTS, "a whole number from 0 to 9"),
    "max_scrubs": (lambda v: _is_number(0, whole=True)(v) and v < MAX_ATTEMPTS, "a whole number from 0 to 9"),
    "time_limit": (_is_number(0.001), "a number of seconds above 0"),
    "kill_after": (_is_number(0), "a number of seconds"),
    "no_retry_exit_codes": (_list_of(_is_number(0, whole=True)), "a list of whole numbers"),
    "stop_exit_codes": (_list_of(_is_number(0, whole=True)), "a list of whole numbers"),
    "wait_for_work": (_is_number(0), "a number of seconds"),
    "log_bytes": (_is_number(0, whole=True), "a number of bytes"),
    "output_bytes": (_is_number(0, whole=True), "a number of bytes"),
    "max_claim": (_is_number(1, whole=True), "a whole number, at least 1"),
    "outage": (_is_number(0), "a number of seconds"),
    "margin": (_is_number(0), "a number of seconds"),
}  # type: Dict[str, Tuple[Callable[[Any], bool], str]]


def parse_config(text: str) -> Config:
    """The configuration in a ``pilot.json``. Raises Failed, naming the key that is wrong."""
    try:
        values = json.loads(text)
    except ValueError as error:
        raise Failed("pilot.json is no JSON: {}.".format(error), EX_CONFIG)
    if not isinstance(values, dict):
        raise Failed("pilot.json must hold one JSON object.", EX_CONFIG)
    defaults = Config(command="", submission="")._asdict()
    for name, value in values.items():
        if name not in _CHECKS:
            raise Failed("pilot.json has a key that this pilot does not know: {!r}.".format(name), EX_CONFIG)
        check, wanted = _CHECKS[name]
        if not (value is None and defaults[name] is None) and not check(value):
            raise Failed("pilot.json: {!r} must be {}, not {!r:.100}.".format(name, wanted, value), EX_CONFIG)
    for name in ("command", "submission"):
        if name not in values:
            raise Failed("pilot.json lacks {!r}.".format(name), EX_CONFIG)
    return Config(**values)


class Access(NamedTuple):
    """How to reach the database. Its password is never logged nor handed to a command."""

    url: str
    database: str
    username: str
    password: str
    folder: str  # where picasconfig.py is


def read_access(folder: str, config: Config) -> Access:
    """The credentials in ``picasconfig.py``, read as literals: nothing in the file is executed. Raises Failed."""
    if config.credentials == "existing":
        places = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    else:
        places = [os.path.join(folder, os.path.expanduser(config.credentials or "credentials"))]
    for place in places:
        path = os.path.join(place, "picasconfig.py")
        if os.path.isfile(path):
            break
    else:
        where = "on PYTHONPATH" if config.credentials == "existing" else "in {}".format(places[0])
        raise Failed("There is no picasconfig.py {}.".format(where), EX_CONFIG)
    try:
        with open(path, encoding="utf-8") as file:
            values = parse_picasconfig(file.read())
        if os.stat(path).st_mode & 0o077:
            log("Others may read {}, which holds a password: chmod 600 it.".format(path))
    except (OSError, ValueError) as error:
        raise Failed("{} cannot be read: {}.".format(path, error), EX_CONFIG)
    database = config.database or values.get("PICAS_DATABASE", "")
    for name, value in (("PICAS_HOST_URL", values.get("PICAS_HOST_URL")), ("PICAS_DATABASE", database)):
        if not value:
            raise Failed("{} does not set {} to a text.".format(path, name), EX_CONFIG)
    names = ("PICAS_HOST_URL", "PICAS_USERNAME", "PICAS_PASSWORD")
    url, username, password = (values.get(name, "") for name in names)
    return Access(url, database, username, password, place)


def parse_picasconfig(text: str) -> Dict[str, str]:
    """The assignments of text literals to ``PICAS_…`` names. Raises ValueError (SyntaxError becomes one)."""
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise ValueError("line {} is no Python".format(error.lineno))  # the text itself may hold the password
    values = {}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name) and target.id.startswith("PICAS_"):
                    try:
                        value = ast.literal_eval(node.value)
                    except ValueError:
                        raise ValueError("{} is no plain text between quotes".format(target.id))
                    if isinstance(value, str):
                        values[target.id] = value
    return values


# --- the database ----------------------------------------------------------------------------------------------------


class Clock:
    """The database's clock, from the ``Date`` of its answers. A node's own may be wrong. Also: when it was last heard."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()
        self._heard = False
        self.last_answer = time.monotonic()

    def hear(self, date: Optional[str]) -> None:
        """Take the ``Date`` of a useful answer."""
        now = time.monotonic()
        self.last_answer = now
        try:
            seen = parsedate_to_datetime(date or "").timestamp() + 0.5 - now  # the header has whole seconds
        except (TypeError, ValueError, IndexError):
            return
        if not self._heard or abs(seen - self._offset) > 1.5:
            self._offset, self._heard = seen, True

    def now(self) -> float:
        """Seconds since 1970 by the database's clock."""
        return time.monotonic() + self._offset

    def silence(self) -> float:
        """Seconds since the last useful answer."""
        return time.monotonic() - self.last_answer


class Database:
    """One keep-alive connection to one CouchDB database; a thread has its own."""

    def __init__(self, access: Access, config: Config, clock: Clock, timeout: float = 60) -> None:
        parts = urlsplit(access.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Failed("PICAS_HOST_URL must be http(s)://host:port.", EX_CONFIG)
        self.place = "{}://{}:{}/{}".format(
            parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}[parts.scheme], access.database
        )
        self._prefix = parts.path.rstrip("/") + "/" + quote(access.database, safe="")
        if parts.scheme == "https":
            context = ssl.create_default_context(cafile=os.path.expanduser(config.ca_file) if config.ca_file else None)
            if not config.tls_verify:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            self._connection = http.client.HTTPSConnection(
                parts.hostname, parts.port, timeout=timeout, context=context
            )  # type: http.client.HTTPConnection
        else:
            self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)
        self._headers = {"Accept": "application/json", "Content-Type": "application/json", "User-Agent": "picas-pilot"}
        if access.username:
            login = "{}:{}".format(access.username, access.password).encode("utf-8")
            self._headers["Authorization"] = "Basic " + base64.b64encode(login).decode("ascii")
        self._clock = clock

    def request(self, method: str, path: str, body: Any = None, query: Optional[Dict[str, Any]] = None) -> Tuple[int, Any]:
        """Status and JSON of one request; values of ``query`` are sent as JSON.

        Raises Unreachable when the answer is of no use: then a write may have been carried out or not.
        """
        url = self._prefix + ("/" + path if path else "")
        if query:
            url += "?" + urlencode({name: json.dumps(value) for name, value in query.items()})
        data = None if body is None else json.dumps(body, allow_nan=False, separators=(",", ":")).encode("ascii")
        reused = self._connection.sock is not None
        try:
            status, date, answer = self._send(method, url, data)
        except (ConnectionError, http.client.HTTPException) as error:
            if not reused or method != "GET":
                raise Unreachable(self._describe(error))
            try:  # a server closes idle connections
                status, date, answer = self._send(method, url, data)
            except (OSError, http.client.HTTPException) as again:
                raise Unreachable(self._describe(again))
        except OSError as error:
            raise Unreachable(self._describe(error))
        except ValueError as error:  # ssl.CertificateError is one in Python 3.6
            raise Failed("The certificate of {} does not verify: {}.".format(self.place, error), EX_NOPERM)
        return self._read(status, date, answer)

    def _send(self, method: str, url: str, data: Optional[bytes]) -> Tuple[int, Optional[str], bytes]:
        try:
            self._connection.request(method, url, data, self._headers)
            response = self._connection.getresponse()
            return response.status, response.getheader("Date"), response.read()
        except BaseException as error:
            self._connection.close()
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise ValueError(str(error))
            raise

    def _describe(self, error: Exception) -> str:
        return "{} does not answer ({}: {})".format(self.place, type(error).__name__, error)

    def _read(self, status: int, date: Optional[str], answer: bytes) -> Tuple[int, Any]:
        try:
            data = json.loads(answer.decode("utf-8"))
        except ValueError:
            if status == 413:  # a proxy's own page
                return status, {}
            raise Unreachable("{} answers HTTP {} without JSON".format(self.place, status))
        said = "{} {}: {}".format(status, data.get("error"), data.get("reason")) if isinstance(data, dict) else status
        gone = status == 404 and isinstance(data, dict) and data.get("reason") in ("Database does not exist.", "no_db_file")
        if status >= 500 or status in (401, 403, 408, 429) or gone:
            raise Unreachable("{} answers {}".format(self.place, said))
        self._clock.hear(date)
        return status, data

    def get(self, document: str) -> Optional[Doc]:
        """A document by its quoted path, or None."""
        status, doc = self.request("GET", document)
        return doc if status == 200 else None

    def read(self, ids: Sequence[str]) -> Dict[str, Optional[Doc]]:
        """Documents by id; None for what is missing or deleted."""
        status, answer = self.request("POST", "_all_docs", {"keys": list(ids)}, {"include_docs": True})
        if status != 200:
            raise Unreachable("{} answers {} to _all_docs".format(self.place, status))
        return {row["key"]: row.get("doc") for row in answer["rows"]}

    def revisions(self, ids: Sequence[str]) -> Dict[str, Optional[str]]:
        """Current revisions by id; None for what is missing or deleted."""
        status, answer = self.request("POST", "_all_docs", {"keys": list(ids)})
        if status != 200:
            raise Unreachable("{} answers {} to _all_docs".format(self.place, status))
        alive = {row["key"]: row["value"] for row in answer["rows"] if row.get("value")}
        return {name: None if alive.get(name, {"deleted": True}).get("deleted") else alive[name]["rev"] for name in ids}

    def bulk(self, docs: Sequence[Doc]) -> Tuple[int, Dict[str, Doc]]:
        """``_bulk_docs``: the status, and the row of each document. 4xx: none of the rows is known."""
        status, rows = self.request("POST", "_bulk_docs", {"docs": list(docs)})
        return status, {row["id"]: row for row in rows if "id" in row} if status in (201, 202) else {}

    def put_local(self, name: str, doc: Doc) -> None:
        """Write a ``_local`` document, whatever is there."""
        path = "_local/" + quote(name, safe="")
        status, _ = self.request("PUT", path, doc)
        if status == 409:  # CouchDB overwrites, others want the revision
            status, _ = self.request("PUT", path, dict(doc, _rev=(self.get(path) or {}).get("_rev")))
        if status not in (201, 202):
            raise Unreachable("{} answers {} to a write of {}".format(self.place, status, path))

    def rows(self, view: str, **query: Any) -> List[Doc]:
        """Rows of a view, not reduced. Raises Failed if there is no such view."""
        status, answer = self.request("GET", view, query=query)
        if status != 200:
            raise Failed("{} has no view {}: deploy the design documents.".format(self.place, view), EX_CONFIG)
        return list(answer["rows"])


class Backoff:
    """Growing pauses with jitter."""

    def __init__(self, first: float = 0.2, longest: float = 15.0) -> None:
        self._first, self._longest = first, longest
        self.tries = 0

    def pause(self) -> float:
        """Seconds to wait before the next try."""
        self.tries += 1
        return min(self._longest, self._first * 2.0 ** min(self.tries - 1, 20)) * random.uniform(0.5, 1.5)


# --- tokens: pure functions of a document ------------------------------------------------------------------------------


def is_todo(doc: Optional[Doc]) -> bool:
    """Whether a document is a token that nobody holds, as the views ask."""
    return bool(doc) and doc.get("type") == "token" and _zero(doc.get("lock")) and _zero(doc.get("done"))  # type: ignore


def _zero(value: Any) -> bool:
    return value == 0 or (isinstance(value, str) and value.strip() in ("", "0"))


def class_name(doc: Doc) -> str:
    """The resource class, as the view ``todo`` has it; for pools that lack that view."""

    def part(value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            return ""
        if isinstance(value, float) and value == int(value):
            value = int(value)
        return str(value).replace("/", "")

    return "/".join(part(doc.get(field)) for field in ("cores", "gpu", "time"))


def attempts_by_kind(doc: Doc) -> Dict[str, int]:
    """Earlier attempts since the token was last reset by a person or a push: how many "failed", "reaped", "given back".

    The kind is what stands before the colon in an attempt's ``reason``. What is unknown counts as reaped.
    """
    counts = collections.Counter()  # type: Dict[str, int]
    attempts = doc.get("attempts")
    for attempt in reversed(attempts if isinstance(attempts, list) else []):
        kind = str(attempt.get("reason", "")).split(":")[0] if isinstance(attempt, dict) else ""
        if kind in ("pushed again", "reset"):
            break
        counts[kind if kind in ("failed", "given back") else "reaped"] += 1
    return counts


def attempt_number(doc: Doc) -> int:
    """The number of the token's next attempt, from 1: above all that it has a record or a log of."""
    attempts = doc.get("attempts")
    logs = [int(name.split("-")[1].split(".")[0]) for name in doc.get("_attachments") or {} if _LOG.match(name)]
    return max([len(attempts) if isinstance(attempts, list) else 0] + logs) + 1


_LOG = re.compile(r"attempt-[0-9]{1,9}\.(out|err)$")


def held_by_pilot(doc: Doc) -> bool:
    """Whether a locked token is held by a pilot of this kind: the claim carries the time of its lock.

    A token that was reset by hand and locked by a PiCaS client may still carry the fields ``pilot`` and ``claim``.
    """
    return bool(doc.get("pilot")) and str(doc.get("claim")).rpartition("-")[2] == str(doc.get("lock"))


class Token:
    """A token that this pilot has claimed. ``doc`` carries the revision of the claim: the fence."""

    def __init__(self, doc: Doc) -> None:
        self.doc = doc
        self.id = doc["_id"]  # type: str
        self.claim = doc["claim"]  # type: str
        self.attempt = attempt_number(doc)
        self.taken = time.monotonic()
        self.lost = False


class Change:
    """What is to be written into a token that was claimed, as data: it can be applied to a later revision, or kept in a file."""

    def __init__(self, kind: str, token: str, claim: str, lock: Any, **parts: Any) -> None:
        self.kind = kind  # done, failed (final), retried, given back, scrubbed, released (was never started)
        self.token = token
        self.claim = claim
        self.lock = lock
        self.set = parts.pop("set")  # type: Doc
        self.unset = list(parts.pop("unset", ()))  # type: List[str]
        self.error = parts.pop("error", None)  # type: Optional[Doc]  # appended to the token's list
        self.attempt = parts.pop("attempt", None)  # type: Optional[Doc]  # appended; scrub_count grows by 1
        self.number = parts.pop("number", 0)  # type: int  # of the attempt: logs of much earlier ones are dropped
        self.attachments = parts.pop("attachments", {})  # type: Dict[str, Doc]
        self.doc = None  # type: Optional[Doc]  # latest known revision of the token

    def apply(self, doc: Doc) -> Doc:
        """The token with this change."""
        new = {name: value for name, value in doc.items() if name not in self.unset}
        new.update(self.set)
        if self.error is not None:
            errors = doc.get("error")
            new["error"] = (errors if isinstance(errors, list) else [])[-19:] + [self.error]
        if self.attempt is not None:
            attempts = doc.get("attempts")
            new["attempts"] = (attempts if isinstance(attempts, list) else [])[1 - MAX_ATTEMPTS :] + [self.attempt]
            new["scrub_count"] = int(number(doc.get("scrub_count"))) + 1
            if "error" in new:
                new["error"] = []  # the last one is in the attempt
        stubs = {name: stub for name, stub in (doc.get("_attachments") or {}).items() if not self._outdated(name)}
        stubs.update(self.attachments)
        if stubs or "_attachments" in doc:
            new["_attachments"] = stubs
        return new

    def _outdated(self, name: str) -> bool:
        return bool(_LOG.match(name)) and int(name.split("-")[1].split(".")[0]) <= self.number - 1 - MAX_ATTEMPTS

    def verdict(self, doc: Optional[Doc]) -> str:
        """What the current document says of this change: it "landed" already, may be applied ("apply"), or is "refused"."""
        if not doc:
            return "refused"
        attempts = doc.get("attempts")
        if self.attempt is not None and isinstance(attempts, list) and self.attempt in attempts:
            return "landed"
        if doc.get("claim") != self.claim:
            # Given back already, by this change or by somebody who reaped it: either is what is wanted.
            return "landed" if self.set.get("lock") == 0 and is_todo(doc) and "claim" not in doc else "refused"
        if self.set.get("done") and doc.get("done") == self.set["done"] and doc.get("lock") == self.set.get("lock", self.lock):
            return "landed"
        return "apply" if doc.get("lock") == self.lock and _zero(doc.get("done")) else "refused"

    def shrink(self) -> bool:
        """Make a change smaller that the database refuses as it is; False if nothing is left to leave out."""
        if self.attachments:
            self.attachments = {}
            return True
        if "output" in self.set:
            del self.set["output"]
            self.set["exit_code"] = EXIT_BAD_OUTPUT
            self.error = {"time": self.set.get("done"), "message": "The database refuses the token with its output."}
            return True
        return False

    def to_json(self) -> Doc:
        """The change as JSON, for a file."""
        return {name: value for name, value in vars(self).items() if name != "doc"}

    @classmethod
    def from_json(cls, values: Doc) -> "Change":
        """The change in a file. Raises ValueError, KeyError or TypeError if it holds none."""
        if not all(isinstance(values.get(name), str) for name in ("kind", "token", "claim")):
            raise ValueError("no change of a token")
        return cls(**values)


def release(token: Token) -> Change:
    """Give back a token that was never started: this does not count as an attempt."""
    back = {"lock": 0, "done": 0, "hostname": ""}
    return Change("released", token.id, token.claim, token.doc["lock"], set=back, unset=("pilot", "claim") + JOB_ID_FIELDS)


def scrub(doc: Doc, kind: str, reason: str, now: int, **known: Any) -> Change:
    """Give back a token that was started; ``known`` are further fields of the attempt."""
    attempt = {name: doc[name] for name in ("lock", "hostname", "pilot", "claim") + JOB_ID_FIELDS if doc.get(name)}
    attempt.update(known, done=now, reason=reason)
    back = {"lock": 0, "done": 0, "hostname": "", "exit_code": ""}
    unset = ("pilot", "claim") + JOB_ID_FIELDS
    return Change(kind, doc["_id"], doc["claim"], doc["lock"], set=back, unset=unset, attempt=attempt)


def reap(doc: Doc, cause: str, max_scrubs: int, now: int) -> Change:
    """Give back the token of a dead pilot, or put it in error when that has happened too often."""
    deaths = attempts_by_kind(doc)["reaped"]
    if deaths < max_scrubs:
        return scrub(doc, "scrubbed", "reaped: " + cause, now, error=cause)
    message = "Given up: {} of its pilots died or fell silent, the last one because {}.".format(deaths + 1, cause)
    final = {"lock": 99, "done": 99, "exit_code": ""}  # as the PiCaS client's Task.error()
    error = {"time": now, "message": message}
    return Change("failed", doc["_id"], doc["claim"], doc["lock"], set=final, unset=("pilot", "claim"), error=error)


class Ended(NamedTuple):
    """How a command ended. ``how``: "exit", "time limit", or why the pilot stopped it."""

    how: str
    code: int
    seconds: float
    out: bytes = b""
    err: bytes = b""
    output: Any = None
    has_output: bool = False
    fault: Optional[str] = None  # why the output file is of no use


def conclude(token: Token, ended: Ended, config: Config, now: int) -> Change:
    """What to write into a token whose command has ended."""
    doc = token.doc
    common = {"attachments": _logs(token.attempt, ended), "number": token.attempt}
    spent = {"seconds": round(ended.seconds, 3)}
    if ended.how not in ("exit", "time limit"):
        change = scrub(doc, "given back", "given back: " + ended.how, now, error=ended.how, **spent)
        return _with(change, **common)
    code, message = ended.code, None  # type: int, Optional[str]
    if ended.how == "time limit":
        code, message = EXIT_TIME_LIMIT, "stopped at its time limit after {:.1f} s".format(ended.seconds)
    elif code == 0 and ended.fault:
        code, message = EXIT_BAD_OUTPUT, ended.fault
    elif code != 0:
        last = ended.err.decode("utf-8", "replace").strip().rpartition("\n")[2][-300:]
        message = "exit code {}{}".format(code, ": " + last if last else "")
    if code in config.stop_exit_codes and attempts_by_kind(doc)["given back"] < max(1, config.max_scrubs):
        reason = "given back: exit code {} stops the pilot".format(code)
        return _with(scrub(doc, "given back", reason, now, exit_code=code, error=message, **spent), **common)
    retries = min(int(number(doc.get("max_retries"), config.max_retries)), MAX_ATTEMPTS - 1)
    if code != 0 and code not in config.no_retry_exit_codes and attempts_by_kind(doc)["failed"] < retries:
        reason = "failed: {}".format(message)
        return _with(scrub(doc, "retried", reason, now, exit_code=code, error=message, **spent), **common)
    final = dict(spent, done=now, exit_code=code)  # type: Doc
    if ended.has_output:
        final["output"] = ended.output
    error = {"time": now, "message": message} if message else None
    kind = "failed" if code else "done"
    return Change(kind, token.id, token.claim, doc["lock"], set=final, unset=("pilot",), error=error, **common)


def _with(change: Change, attachments: Dict[str, Doc], number: int) -> Change:
    change.attachments, change.number = attachments, number
    return change


def _logs(attempt: int, ended: Ended) -> Dict[str, Doc]:
    return {
        "attempt-{}.{}".format(attempt, name): {
            "content_type": "text/plain",
            "data": base64.b64encode(data).decode("ascii"),
        }
        for name, data in (("out", ended.out), ("err", ended.err))
        if data
    }


def command_environment(doc: Doc, base: Dict[str, str], own: Dict[str, str], credentials: str) -> Dict[str, str]:
    """The environment of the command: the job's, without credentials, and the token's scalar fields.

    A value that does not fit is left out and named in ``PICAS_OMITTED``; it is in the token's file.
    """
    env = {name: value for name, value in base.items() if not name.startswith("PICAS_")}
    hidden = os.path.realpath(credentials)
    paths = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path and os.path.realpath(path) != hidden]
    env.pop("PYTHONPATH", None)
    if paths:
        env["PYTHONPATH"] = os.pathsep.join(paths)
    fields = {}  # type: Dict[str, List[Any]]
    for name in sorted(doc):
        if re.match(r"[A-Za-z0-9][A-Za-z0-9_]*$", name) and name not in ("input", "claim"):
            fields.setdefault("PICAS_FIELD_" + name.upper(), []).append(doc[name])
    # Names that differ in case alone are ambiguous: neither is set.
    wanted = [(name, values[0]) for name, values in sorted(fields.items()) if len(values) == 1]
    if isinstance(doc.get("input"), (dict, list)):
        wanted.insert(0, ("PICAS_INPUT", json.dumps(doc["input"], separators=(",", ":"))))
    else:
        wanted.insert(0, ("PICAS_INPUT", doc.get("input")))
    left, omitted = FIELDS_BYTES, []
    for name, value in wanted:
        if isinstance(value, (dict, list)) or value is None:
            continue
        text = value if isinstance(value, str) else json.dumps(value)
        size = len(text.encode("utf-8", "surrogatepass"))
        if "\0" in text or size > FIELD_BYTES or size > left or not _encodable(text):
            omitted.append(name)
        else:
            env[name] = text
            left -= size
    if omitted:
        env["PICAS_OMITTED"] = " ".join(omitted)[:FIELD_BYTES]
    env.update(own)
    return env


def _encodable(text: str) -> bool:
    try:
        os.fsencode(text)
        return True
    except UnicodeEncodeError:
        return False


def read_json(path: str, most: int) -> Tuple[Any, bool, Optional[str]]:
    """What a command wrote: the value, whether there is one, and what is wrong with it. A missing or empty file is none."""
    name = os.path.basename(path)
    try:
        # A command may leave a pipe or a device there, which must not hang the pilot.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return None, False, None
    except OSError as error:
        return None, False, "{} cannot be read: {}".format(name, error.strerror)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None, False, "{} is no regular file".format(name)
        data = file.read(most + 1)
    if len(data) > most:
        return None, False, "{} has more than {:,} bytes: store large results elsewhere".format(name, most)
    if not data.strip():
        return None, False, None
    try:
        value = json.loads(data.decode("utf-8"))
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")  # NaN and lone surrogates are no JSON
        return value, True, None
    except (ValueError, RecursionError) as error:
        return None, False, "{} is no JSON: {:.200}".format(name, str(error))
