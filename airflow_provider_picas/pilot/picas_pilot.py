#!/usr/bin/env python3
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
    max_claim: int = 50  # tokens claimed in one request, at most
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
    env = {name: value for name, value in base.items() if name not in _HIDDEN and not name.startswith("PICAS_FIELD_")}
    hidden = os.path.realpath(credentials)
    paths = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path and os.path.realpath(path) != hidden]
    env.pop("PYTHONPATH", None)
    if paths:
        env["PYTHONPATH"] = os.pathsep.join(paths)
    fields = {}  # type: Dict[str, List[Any]]
    for name in sorted(doc):
        if re.match(r"[A-Za-z0-9][A-Za-z0-9_]*$", name) and name != "input":
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


_HIDDEN = {"PICAS_HOST_URL", "PICAS_USERNAME", "PICAS_PASSWORD", "PICAS_INPUT", "PICAS_OMITTED"}


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


# --- running a command -------------------------------------------------------------------------------------------------


class Tail:
    """The last bytes of a stream."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._chunks = collections.deque()  # type: Deque[bytes]
        self._kept = 0
        self.total = 0

    def add(self, data: bytes) -> None:
        """Take the next bytes."""
        self.total += len(data)
        self._chunks.append(data)
        self._kept += len(data)
        while self._chunks and self._kept - len(self._chunks[0]) >= self._most:
            self._kept -= len(self._chunks.popleft())

    def value(self) -> bytes:
        """What is kept, with a first line that says how much is not."""
        data = b"".join(self._chunks)
        if self.total <= self._most:
            return data
        data = data[len(data) - self._most :]
        return "[{:,} bytes left out]\n".format(self.total - len(data)).encode("ascii") + data if data else b""


class Run:
    """One attempt: a command with a folder, a session and an environment of its own."""

    def __init__(self, token: Token, folder: str, files: str, config: Config, credentials: str) -> None:
        self.token = token
        self.folder = folder
        self.started = time.monotonic()
        self._files = files
        self._config = config
        self._paths = {
            "PICAS_TOKEN_FILE": os.path.join(folder, "token.json"),
            "PICAS_OUTPUT_FILE": os.path.join(folder, "output.json"),
            "PICAS_PROGRESS_FILE": os.path.join(folder, "progress.json"),
        }
        self._own = dict(self._paths, PICAS_TOKEN_ID=token.id, PICAS_ATTEMPT=str(token.attempt))
        self._credentials = credentials
        self._stop = None  # type: Optional[Tuple[str, float]]  # why, and the seconds until SIGKILL

    def prepare(self) -> None:
        """Make the folder: the token as JSON, and links to the submission's files. Raises OSError."""
        os.mkdir(self.folder, 0o700)
        with open(self._paths["PICAS_TOKEN_FILE"], "w") as file:
            json.dump(self.token.doc, file)
        for name in self._config.files:
            os.symlink(os.path.join(self._files, name), os.path.join(self.folder, name))

    def stop(self, why: str, grace: float) -> None:
        """End the command: SIGTERM now, SIGKILL after ``grace`` seconds. From any thread; the first reason stands."""
        if self._stop is None or grace < self._stop[1]:
            self._stop = (self._stop[0] if self._stop else why, grace)

    @property
    def stopped(self) -> Optional[str]:
        """Why it is being stopped, or None."""
        return self._stop[0] if self._stop else None

    def progress(self) -> Any:
        """What the command says of its progress, or None."""
        return read_json(self._paths["PICAS_PROGRESS_FILE"], PROGRESS_BYTES)[0]

    def execute(self) -> Ended:
        """Run the command to its end, and end all that it leaves behind. Raises OSError if no process can be made."""
        self.started = time.monotonic()
        try:
            process = self._start()
        except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
            code = 126 if isinstance(error, PermissionError) else 127
            return Ended("exit", code, 0.0, err="{}\n".format(error).encode("utf-8", "replace"))
        except OSError as error:
            if error.errno != errno.ENOEXEC:
                raise
            return Ended("exit", 126, 0.0, err="{}\n".format(error).encode("utf-8", "replace"))
        out, err = Tail(self._config.log_bytes), Tail(self._config.log_bytes)
        how = self._watch(process, {process.stdout.fileno(): out, process.stderr.fileno(): err})  # type: ignore
        code = process.wait()
        process.stdout.close()  # type: ignore
        process.stderr.close()  # type: ignore
        seconds = time.monotonic() - self.started
        output, has_output, fault = read_json(self._paths["PICAS_OUTPUT_FILE"], self._config.output_bytes)
        code = 128 - code if code < 0 else code
        return Ended(how, code, seconds, out.value(), err.value(), output, has_output, fault)

    def _start(self) -> "subprocess.Popen[bytes]":
        command = self._config.command
        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else command
        if not isinstance(command, str) and "/" in argv[0] and not os.path.isabs(argv[0]):
            argv = [os.path.join(self.folder, argv[0])] + argv[1:]
        doc, base = self.token.doc, dict(os.environ)
        try:
            return self._popen(argv, command_environment(doc, base, self._own, self._credentials))
        except OSError as error:
            if error.errno != errno.E2BIG:
                raise
            # The job's environment leaves no room for the fields.
            own = dict(self._own, PICAS_OMITTED="ALL")
            return self._popen(argv, command_environment({}, base, own, self._credentials))

    def _popen(self, argv: List[str], env: Dict[str, str]) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            argv,
            cwd=self.folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def _watch(self, process: "subprocess.Popen[bytes]", tails: Dict[int, Tail]) -> str:
        """Read what the command prints until it has ended; returns how. Its zombie is left, so that its pid stays its own."""
        limit = number(self.token.doc.get("time_limit"), self._config.time_limit or 0)
        deadline = self.started + limit if limit > 0 else None
        how, kill_at = "exit", None  # type: str, Optional[float]
        poll, open_pipes, nap = select.poll(), set(tails), 0.0005
        for descriptor in tails:
            os.set_blocking(descriptor, False)
            poll.register(descriptor, select.POLLIN)
        while True:
            if open_pipes:
                for descriptor, _ in poll.poll(100):
                    if not _read_available(descriptor, tails[descriptor]):
                        poll.unregister(descriptor)
                        open_pipes.discard(descriptor)
                        nap = 0.0005
            else:
                time.sleep(nap)
                nap = min(nap * 2, 0.05)
            if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                break
            now = time.monotonic()
            if self._stop is not None:
                how = self._stop[0]
                kill_at = self._terminate(process.pid, kill_at, now, self._stop[1])
            elif deadline is not None and now > deadline:
                how = "time limit"
                kill_at = self._terminate(process.pid, kill_at, now, self._config.kill_after)
        signal_group(process.pid, signal.SIGKILL)
        end_orphans(self._paths["PICAS_TOKEN_FILE"])
        for descriptor in open_pipes:
            _read_available(descriptor, tails[descriptor])
        return how

    @staticmethod
    def _terminate(pid: int, kill_at: Optional[float], now: float, grace: float) -> float:
        if kill_at is None and grace > 0:
            signal_group(pid, signal.SIGTERM)
        kill_at = now + grace if kill_at is None else min(kill_at, now + grace)
        if now >= kill_at:
            signal_group(pid, signal.SIGKILL)
        return kill_at


def _read_available(descriptor: int, tail: Tail) -> bool:
    """Read what is there, at most a few pipes full; False at the end of the stream."""
    for _ in range(16):
        try:
            data = os.read(descriptor, 65536)
        except BlockingIOError:
            return True
        if not data:
            return False
        tail.add(data)
    return True


def signal_group(pid: int, what: int) -> None:
    """Send a signal to a command and all that stayed in its process group."""
    try:
        os.killpg(pid, what)
    except (ProcessLookupError, PermissionError):
        pass


def become_subreaper() -> None:
    """Make this process the parent of what its commands leave behind, so that it is found. Linux alone knows how."""
    try:
        ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    except (OSError, AttributeError):
        log("This system has no child subreaper: processes that leave their command's session may stay until the job ends.")


def children() -> Set[int]:
    """Pids of this process's children."""
    found = set()  # type: Set[int]
    try:
        for task in os.listdir("/proc/self/task"):
            with open("/proc/self/task/{}/children".format(task)) as file:
                found.update(int(pid) for pid in file.read().split())
    except (OSError, ValueError):
        pass  # a thread that ended meanwhile, or a kernel that does not tell
    return found


def end_orphans(mark: str) -> None:
    """Kill processes that left their command's session, known by the path of their token's file in their environment."""
    wanted = b"PICAS_TOKEN_FILE=" + os.fsencode(mark)
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        orphans = [pid for pid in children() if _is_orphan(pid, wanted)]
        if not orphans:
            return
        for pid in orphans:
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError, PermissionError):
                pass


def _is_orphan(pid: int, mark: bytes) -> bool:
    # The command itself is a zombie by now, whose environment is empty.
    try:
        with open("/proc/{}/environ".format(pid), "rb") as file:
            return mark in file.read().split(b"\0")
    except OSError:
        return False


def remove_tree(path: str) -> None:
    """Remove a scratch folder, also when its owner made parts of it read-only."""
    shutil.rmtree(path, ignore_errors=True)
    if not os.path.lexists(path):
        return
    for folder, _, _ in os.walk(path):  # from the top down: a folder is made readable before it is listed
        try:
            os.chmod(folder, 0o700)
            for name in os.listdir(folder):
                inner = os.path.join(folder, name)
                if os.path.isdir(inner) and not os.path.islink(inner):
                    os.chmod(inner, 0o700)
        except OSError:
            continue
    shutil.rmtree(path, ignore_errors=True)
    if os.path.lexists(path):
        log("The scratch folder {} cannot be removed.".format(path))


# --- claiming ------------------------------------------------------------------------------------------------------------


class Identity(NamedTuple):
    """Who this pilot is."""

    pilot: str
    hostname: str
    job: Optional[str]  # as the PiCaS client writes it: ARRAYJOB_TASK in an array

    @classmethod
    def here(cls, environ: Dict[str, str]) -> "Identity":
        """The identity of a new pilot in this process. A requeued job is another pilot."""
        job = environ.get("SLURM_JOB_ID")
        if environ.get("SLURM_ARRAY_JOB_ID") and environ.get("SLURM_ARRAY_TASK_ID"):
            job = "{}_{}".format(environ["SLURM_ARRAY_JOB_ID"], environ["SLURM_ARRAY_TASK_ID"])
        hostname = socket.gethostname()
        name = re.sub(r"[^A-Za-z0-9._-]", "-", "{}-{}".format(job or os.getpid(), hostname.split(".")[0]))
        return cls("{}-{}".format(name[:80], uuid.uuid4().hex[:8]), hostname, job)


class Claims:
    """Finds tokens in state todo and claims them. Used by one thread."""

    HEADS_LAST = 1.0  # seconds for which the best priorities are taken as known

    def __init__(self, database: Database, config: Config, me: Identity, clock: Clock, cluster: bool) -> None:
        self._database = database
        self._config = config
        self._me = me
        self._clock = clock
        self._cluster = cluster
        self._heads = []  # type: List[Tuple[float, str]]
        self._heads_at = None  # type: Optional[float]
        self._own_views = True
        self.in_flight = []  # type: List[Token]  # a claim has been sent and its answer has not been read
        self.seen = 0  # candidates that the last take found, whether or not they could be claimed
        self.unfit = 0  # of those: tokens that would not fit into the wall-clock

    def take(self, wanted: int, fits: Callable[[Doc], bool], alone: bool) -> List[Token]:
        """Claim at most ``wanted`` tokens.

        ``alone``: the pilot has no unstarted tokens, so it may claim one whose pilot died before. Such a token may kill
        this pilot too; it is claimed by itself, so that others do not suffer. Raises Unreachable; then ``in_flight`` holds
        those that may have been claimed.
        """
        docs = [doc for doc in self._find(wanted) if is_todo(doc)]
        self.seen = len(docs)
        fitting = [doc for doc in docs if fits(doc)]
        self.unfit = len(docs) - len(fitting)
        suspects = [doc for doc in fitting if attempts_by_kind(doc)["reaped"]]
        clean = [doc for doc in fitting if not attempts_by_kind(doc)["reaped"]][:wanted]
        return self._claim(clean or (suspects[:1] if alone else []))

    def _find(self, wanted: int) -> List[Doc]:
        if self._own_views:
            try:
                known = self._heads_at is not None and time.monotonic() - self._heads_at < self.HEADS_LAST
                found = self._find_by_priority(wanted) if known and self._heads else []
                if not found:
                    self._refresh_heads()
                    found = self._find_by_priority(wanted)
                return found
            except Failed as error:
                log("{} Tokens are taken from Monitor/todo instead, by priority only among those seen.".format(error))
                self._own_views = False
        return self._find_in_monitor(wanted)

    def _refresh_heads(self) -> None:
        """The best priority (negated) of each class."""
        batch, view = self._config.batch or "", DESIGN + "todo"
        heads = []  # type: List[Tuple[float, str]]
        if self._config.classes is None:
            start = [batch]  # type: List[Any]
            while len(heads) < 50:
                rows = self._database.rows(view, reduce=False, startkey=start, endkey=[batch, {}], limit=1)
                if not rows:
                    break
                _, name, priority, _ = rows[0]["key"]
                heads.append((priority, name))
                start = [batch, name, {}]
        else:
            for name in self._config.classes:
                rows = self._database.rows(view, reduce=False, startkey=[batch, name], endkey=[batch, name, {}], limit=1)
                if rows:
                    heads.append((rows[0]["key"][2], name))
        random.shuffle(heads)
        self._heads, self._heads_at = sorted(heads, key=lambda head: head[0]), time.monotonic()

    def _find_by_priority(self, wanted: int) -> List[Doc]:
        """Start at a random number within the best priority, and wrap around: pilots seldom meet."""
        batch, found = self._config.batch or "", []  # type: str, List[Doc]
        for priority, name in self._heads:
            head = [batch, name, priority]
            start = head + [random.randrange(2 ** 31)]
            limit = max(wanted, 5) - len(found)
            rows = self._documents(startkey=start, endkey=head + [{}], limit=limit)
            if len(rows) < limit:
                rows += self._documents(startkey=head, endkey=start, inclusive_end=False, limit=limit - len(rows))
            found += rows
            if len(found) >= wanted:
                break
        return found

    def _documents(self, **query: Any) -> List[Doc]:
        rows = self._database.rows(DESIGN + "todo", reduce=False, include_docs=True, **query)
        return [row["doc"] for row in rows if row.get("doc")]

    def _find_in_monitor(self, wanted: int) -> List[Doc]:
        """For a pool that has PiCaS's own views alone: a random choice of the first rows."""
        rows = self._database.rows(MONITOR + "todo", limit=max(100, 2 * wanted), **batch_range(self._config.batch))
        chosen = random.sample([row["id"] for row in rows], min(len(rows), max(2 * wanted, 10)))
        docs = [doc for doc in self._database.read(chosen).values() if doc] if chosen else []
        classes = self._config.classes
        docs = [doc for doc in docs if classes is None or class_name(doc) in classes]
        return sorted(docs, key=lambda doc: -number(doc.get("priority")))

    def _claim(self, docs: List[Doc]) -> List[Token]:
        if not docs:
            return []
        lock = int(self._clock.now())
        tokens = []
        for doc in docs:
            new = dict(doc, lock=lock, hostname=self._me.hostname, pilot=self._me.pilot)
            new["claim"] = "{}-{}".format(uuid.uuid4().hex[:16], lock)
            if self._me.job:
                new["slurm_job_id"] = self._me.job
            tokens.append(Token(new))
        self.in_flight = tokens
        status, rows = self._database.bulk([token.doc for token in tokens])
        if status != 201:
            # 202: not written by a quorum, so no claim. 4xx: unknown. Both are given back.
            raise Unreachable("{} answers {} to a claim".format(self._database.place, status))
        self.in_flight = []
        mine = [token for token in tokens if rows.get(token.id, {}).get("rev")]
        for token in mine:
            token.doc["_rev"] = rows[token.id]["rev"]
        return [token for token in mine if self._stands(token)] if self._cluster else mine

    def _stands(self, token: Token) -> bool:
        """In a cluster two nodes may both accept a claim: one revision wins, everywhere the same; the other is removed."""
        path = quote(token.id, safe="")
        status, doc = self._database.request("GET", path, query={"conflicts": True})
        if status != 200 or doc.get("claim") != token.claim:
            return False
        for revision in doc.get("_conflicts", []):
            self._database.request("DELETE", "{}?rev={}".format(path, quote(revision)))
        return True


def batch_range(batch: Optional[str]) -> Dict[str, str]:
    """Limits of a batch's ids in a view that is sorted by id."""
    return {} if batch is None else {"startkey": batch + ":", "endkey": batch + ":\ufff0"}


# --- giving back what dead pilots hold ---------------------------------------------------------------------------------


class Reaper:
    """Finds locked tokens whose pilots are dead. Used by one thread."""

    MOST = 500  # tokens looked at in one round

    def __init__(self, database: Database, config: Config, me: Identity, clock: Clock) -> None:
        self._database = database
        self._config = config
        self._me = me
        self._clock = clock
        self._alive_until = {}  # type: Dict[str, float]

    def reap(self) -> Tuple[int, bool]:
        """Give back the tokens of dead pilots. How many, and whether living pilots hold tokens. Raises Unreachable."""
        docs = [doc for doc in self._locked() if held_by_pilot(doc) and doc["pilot"] != self._me.pilot]
        # The tokens are read before the leases: a pilot that claims renews first, so an expired lease covers them.
        causes = {}  # type: Dict[str, Optional[str]]
        for pilot in {doc["pilot"] for doc in docs}:
            oldest = min(number(doc.get("lock")) for doc in docs if doc["pilot"] == pilot)
            causes[pilot] = self._death(pilot, oldest)
        changes = []
        for doc in docs:
            cause = causes[doc["pilot"]]
            if cause:
                change = reap(doc, cause, self._config.max_scrubs, int(self._clock.now()))
                change.doc = doc
                changes.append(change)
        if not changes:
            return 0, bool(docs)
        _, rows = self._database.bulk([change.apply(change.doc) for change in changes if change.doc])
        reaped = [change for change in changes if rows.get(change.token, {}).get("rev")]
        for change in reaped:
            log("Reaped {}: {}.".format(change.token, change.attempt["reason"] if change.attempt else change.error))
        return len(reaped), len(reaped) < len(docs)

    def _locked(self) -> List[Doc]:
        query = {"include_docs": True, "limit": self.MOST}
        if self._config.batch is not None:
            try:
                key = [self._config.batch, "locked"]
                rows = self._database.rows(DESIGN + "counts", reduce=False, key=key, **query)
                return [row["doc"] for row in rows if row.get("doc")]
            except Failed:
                pass
        rows = self._database.rows(MONITOR + "locked", **dict(query, **batch_range(self._config.batch)))
        return [row["doc"] for row in rows if row.get("doc")]

    def _death(self, pilot: str, lock: float) -> Optional[str]:
        """Why a pilot counts as dead, or None. A lease is read again only when it would have expired."""
        now = self._clock.now()
        if now <= self._alive_until.get(pilot, 0):
            return None
        lease = self._database.get("_local/" + quote(lease_name(pilot), safe=""))
        if lease is None:
            # A pilot writes its lease before it claims: somebody has removed it.
            return "pilot {} has no lease".format(pilot) if now > lock + 2 * self._config.lease else None
        where = "pilot {} (job {} on {})".format(pilot, lease.get("job"), lease.get("hostname"))
        if lease.get("ended"):
            return where + " has ended"
        until = number(lease.get("renewed")) + number(lease.get("lease"), self._config.lease) + 1
        if now > until:
            return where + " was not heard for {:.0f} s".format(now - number(lease.get("renewed")))
        self._alive_until[pilot] = until
        return None


def lease_name(pilot: str) -> str:
    """Name of a pilot's ``_local`` document."""
    return "picas-pilot-" + pilot


# --- what could not be sent ----------------------------------------------------------------------------------------------


class Outbox:
    """Files in the submission's folder: ``unsent/`` for the next pilot or the wait to send, ``refused/`` as a record."""

    def __init__(self, folder: str, place: str) -> None:
        self._folder = folder
        self._place = place

    def keep(self, change: Change, kind: str = "unsent") -> None:
        """Write a change to a file of its own. Raises OSError."""
        folder = os.path.join(self._folder, kind)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        name = quote(change.token, safe="")
        if len(name) > 150:
            name = name[:100] + hashlib.sha256(change.token.encode("utf-8")).hexdigest()
        path = os.path.join(folder, "{}-{}.json".format(name, quote(change.claim, safe="")))
        descriptor, temporary = tempfile.mkstemp(prefix=".", dir=folder)
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump({"format": 1, "database": self._place, "change": change.to_json()}, file)
                file.flush()
                os.fsync(descriptor)
            os.rename(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise

    def send(self, database: Database) -> int:
        """Send what earlier pilots could not; returns how many tokens were written. Raises Unreachable."""
        folder = os.path.join(self._folder, "unsent")
        sent = 0
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
            path = os.path.join(folder, name)
            if name.startswith(".") or not name.endswith(".json"):
                continue
            try:
                with open(path) as file:
                    content = json.load(file)
                change = Change.from_json(content["change"])
                if content["database"] != self._place:
                    continue
            except FileNotFoundError:
                continue  # another pilot sent it
            except (OSError, ValueError, KeyError, TypeError) as error:
                log("{} holds no result: {}.".format(path, error))
                continue
            verdict = self._send_one(database, change)
            log("Kept result of {} from an earlier pilot: {}.".format(change.token, verdict))
            try:
                if verdict == "refused":
                    os.makedirs(os.path.join(self._folder, "refused"), mode=0o700, exist_ok=True)
                    os.rename(path, os.path.join(self._folder, "refused", name))
                else:
                    os.unlink(path)
            except FileNotFoundError:
                pass
            sent += verdict == "landed"
        return sent

    @staticmethod
    def _send_one(database: Database, change: Change) -> str:
        for _ in range(10):
            doc = database.read([change.token])[change.token]
            verdict = change.verdict(doc)
            if verdict != "apply" or doc is None:
                return verdict
            status, rows = database.bulk([change.apply(doc)])
            if rows.get(change.token, {}).get("rev"):
                return "landed"
            if not rows and not change.shrink():
                return "refused"
        return "refused"


# --- threads -------------------------------------------------------------------------------------------------------------


class Reporter(threading.Thread):
    """Writes changes into tokens, several in one request when they come fast. Never drops one."""

    def __init__(self, database: Database, outbox: Outbox, settled: Callable[[Change, str], None]) -> None:
        super().__init__(name="reporter", daemon=True)
        self._database = database
        self._outbox = outbox
        self._settled = settled
        self._changed = threading.Condition()
        self._queue = collections.deque()  # type: Deque[Change]
        self._sending = {}  # type: Dict[str, Change]
        self._closed = False
        self.gather = 0.0  # seconds

    def put(self, change: Change, doc: Optional[Doc] = None) -> None:
        """Write this change; ``doc`` is the latest known revision of its token."""
        change.doc = doc
        with self._changed:
            self._queue.append(change)
            self._changed.notify_all()

    def pending(self) -> int:
        """Changes that are not known to be written."""
        with self._changed:
            return len(self._queue) + len(self._sending)

    def close(self, deadline: float) -> List[Change]:
        """Stop when all is written, or at ``deadline`` (monotonic). What is not known to be written by then."""
        with self._changed:
            self.gather = 0.0
            while self._queue or self._sending:
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(min(left, 1.0))
            self._closed = True
            self._changed.notify_all()
            return list(self._sending.values()) + list(self._queue)

    def run(self) -> None:
        """Write until closed."""
        while not self._closed:
            with self._changed:
                while not self._queue and not self._closed:
                    self._changed.wait(1.0)
            if self.gather:
                time.sleep(self.gather)
            with self._changed:
                size = 0
                while self._queue and len(self._sending) < 100 and size < BULK_BYTES:
                    change = self._queue.popleft()
                    size += sum(len(item["data"]) for item in change.attachments.values())
                    # Changes of one token are written one after the other; its key is its claim.
                    self._sending[change.claim] = change
            try:
                self._send()
            except Exception:  # a fault of this program must not lose results: they stay, and are tried again
                log("The reporter failed:\n" + traceback.format_exc())
                time.sleep(5)

    def _send(self) -> None:
        backoff, alone = Backoff(), False
        while self._sending and not self._closed:
            # One at a time after a whole request was refused: the fault is in one of them.
            changes = list(self._sending.values())[: 1 if alone else None]
            try:
                self._read_missing(changes)
                changes = [change for change in changes if change.claim in self._sending]
                if not changes:
                    continue
                status, rows = self._database.bulk([change.apply(change.doc) for change in changes if change.doc])
            except Unreachable as error:
                if backoff.tries == 0:
                    log("{}; {} results wait.".format(error, len(self._sending)))
                self._sleep(backoff.pause())
                continue
            if backoff.tries:
                log("The database answers again.")
                backoff = Backoff()
            if not rows:
                if not alone:
                    alone = True
                elif not changes[0].shrink():
                    self._settle(changes[0], "refused")
                else:
                    log("The database refuses the result of {} ({}): sent with less.".format(changes[0].token, status))
                for change in changes:
                    change.doc = None  # some may have been written
                continue
            for change in changes:
                row = rows.get(change.token, {})
                if row.get("rev"):
                    self._settle(change, "landed")
                elif row.get("error") == "forbidden":
                    log("The database forbids the result of {}: {}.".format(change.token, row.get("reason")))
                    self._settle(change, "refused")
                else:
                    change.doc = None

    def _read_missing(self, changes: List[Change]) -> None:
        """Read tokens again after a conflict, and settle those that show the change already or belong to others now."""
        missing = [change for change in changes if change.doc is None]
        docs = self._database.read([change.token for change in missing]) if missing else {}
        for change in missing:
            doc = docs.get(change.token)
            verdict = change.verdict(doc)
            if verdict == "apply":
                change.doc = doc
            else:
                self._settle(change, verdict)

    def _settle(self, change: Change, verdict: str) -> None:
        if verdict == "refused" and change.kind != "released":
            try:
                self._outbox.keep(change, "refused")
            except OSError as error:
                log("The refused result of {} cannot be kept: {}.".format(change.token, error))
        self._settled(change, verdict)
        with self._changed:
            del self._sending[change.claim]
            self._changed.notify_all()

    def _sleep(self, seconds: float) -> None:
        with self._changed:
            if not self._closed:
                self._changed.wait_for(lambda: self._closed, seconds)


class Lease(threading.Thread):
    """Renews the pilot's lease by the database's clock, sees the drain flag, and tokens that were taken away."""

    def __init__(self, database: Database, config: Config, me: Identity, clock: Clock, pilot: "Pilot") -> None:
        super().__init__(name="lease", daemon=True)
        self._database = database
        self._config = config
        self._me = me
        self._clock = clock
        self._pilot = pilot
        self._renewed_at = None  # type: Optional[float]
        self._ended = threading.Event()

    def valid(self) -> bool:
        """Whether others must still believe that this pilot lives, with some room."""
        room = min(5.0, 0.15 * self._config.lease)
        return self._renewed_at is not None and time.monotonic() - self._renewed_at < self._config.lease - room

    def renew(self, ended: bool = False) -> None:
        """Write the lease. Raises Unreachable."""
        started = time.monotonic()
        lease = {
            "pilot": self._me.pilot,
            "submission": self._config.submission,
            "job": self._me.job,
            "hostname": self._me.hostname,
            "renewed": int(self._clock.now()),
            "lease": self._config.lease,
            "ended": ended,
        }
        lease.update(self._pilot.activity())
        self._database.put_local(lease_name(self._me.pilot), lease)
        self._renewed_at = started

    def run(self) -> None:
        """Renew every third of a lease, more often while the database does not answer."""
        backoff = Backoff(0.5, self._config.lease / 10)
        pause = self._config.lease / 3 * random.uniform(0.5, 1)  # pilots that start together spread out
        while not self._ended.wait(pause):
            try:
                self.renew()
                self._look()
                backoff = Backoff(0.5, self._config.lease / 10)
                pause = self._config.lease / 3
            except Unreachable as error:
                if backoff.tries == 0:
                    log("The lease cannot be renewed: {}.".format(error))
                pause = backoff.pause()
            except Exception:
                log("The lease's thread failed:\n" + traceback.format_exc())
                pause = backoff.pause()

    def _look(self) -> None:
        flag = self._database.get("_local/" + quote("picas-submission-" + self._config.submission, safe=""))
        if flag and flag.get("drain"):
            self._pilot.stop(DRAIN, "its submission is drained")
        tokens = {token.id: token for token in self._pilot.held()}
        if not tokens:
            return
        changed = [name for name, rev in self._database.revisions(list(tokens)).items() if rev != tokens[name].doc["_rev"]]
        for name, doc in (self._database.read(changed) if changed else {}).items():
            token = tokens[name]
            if not doc or doc.get("claim") != token.claim or doc.get("lock") != token.doc["lock"]:
                self._pilot.lose(token, "was deleted" if not doc else "was given to another or reset")

    def end(self) -> None:
        """Stop renewing."""
        self._ended.set()


class WallClock(threading.Thread):
    """Learns from Slurm when the job ends, now and then: the limit may be changed while it runs."""

    EVERY = 300  # seconds

    def __init__(self, clock: Clock, environ: Dict[str, str]) -> None:
        super().__init__(name="wall-clock", daemon=True)
        self._clock = clock
        self._job = environ.get("SLURM_JOB_ID")
        self._end = None  # type: Optional[float]
        given = environ.get("SLURM_JOB_END_TIME", "")
        if given.isdigit():
            self._end = float(given)
        self.asked = threading.Event()  # set when Slurm has answered once, or there is none

    def remaining(self) -> Optional[float]:
        """Seconds until the job ends, by the database's clock; None if unknown or without limit."""
        return None if self._end is None else self._end - self._clock.now()

    def run(self) -> None:
        """Ask until the pilot ends."""
        while self._job:
            end = self._ask()
            if end is not None:
                self._end = end
            elif not self.asked.is_set():
                log("Slurm does not say when this job ends." if self._end is None else "Slurm did not answer.")
            self.asked.set()
            time.sleep(self.EVERY)
        self.asked.set()

    def _ask(self) -> Optional[float]:
        commands = (["scontrol", "show", "job", str(self._job)], ["squeue", "-h", "-j", str(self._job), "-o", "EndTime=%e"])
        for command in commands:
            try:
                answer = subprocess.check_output(command, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, timeout=20)
            except (OSError, subprocess.SubprocessError):
                continue
            end = parse_end_time(answer.decode("utf-8", "replace"))
            if end is not None:
                return end
        return None


def parse_end_time(text: str) -> Optional[float]:
    """``EndTime=`` of scontrol's answer, in seconds since 1970; None if there is none ("Unknown", "N/A")."""
    found = re.search(r"\bEndTime=(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)", text)
    return time.mktime(time.strptime(found.group(1), "%Y-%m-%dT%H:%M:%S")) if found else None


# --- the pilot -----------------------------------------------------------------------------------------------------------

GO, DRAIN, STOP = 0, 1, 2  # claim and run; finish what runs; kill what runs


class Pilot:
    """Holds the parts together: which tokens are held, which run, and when to stop."""

    def __init__(self, folder: str, config: Config) -> None:
        self._folder = folder
        self._config = config
        self._access = read_access(folder, config)
        self._clock = Clock()
        self._me = Identity.here(dict(os.environ))
        self._wall_clock = WallClock(self._clock, dict(os.environ))
        self._lease = Lease(self._connect(max(1.0, min(30.0, config.lease / 4))), config, self._me, self._clock, self)
        database = self._connect()
        self._outbox = Outbox(folder, database.place)
        self._reporter = Reporter(database, self._outbox, self._settled)
        self._database = self._connect()  # the claimer's
        self._changed = threading.Condition()
        self._ready = collections.deque()  # type: Deque[Token]  # claimed, not started
        self._runs = {}  # type: Dict[str, Run]  # by claim
        self._level = GO
        self._stopping = threading.Event()  # set when what runs is to be killed
        self._why = ""
        self._code = EX_OK
        self._signal = None  # type: Optional[int]
        self._durations = collections.deque(maxlen=50)  # type: Deque[float]
        self._mean = None  # type: Optional[float]
        self._counts = collections.Counter()  # type: Dict[str, int]
        self._attempts = 0
        self._scratch = ""

    def _connect(self, timeout: float = 60) -> Database:
        return Database(self._access, self._config, self._clock, timeout)

    # -- the main thread

    def run(self) -> int:
        """Work until there is nothing left to do; returns what to exit with. Raises Failed before any token is claimed."""
        for name in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):
            signal.signal(name, self._on_signal)
        become_subreaper()
        claims = self._open_pool()
        if claims is None:
            return self._code
        self._make_scratch()
        try:
            self._check_command()
            log("Pilot {} of submission {} works on {}.".format(self._me.pilot, self._config.submission, self._what()))
            claimer = threading.Thread(target=self._claim_until_done, args=(claims,), name="claimer", daemon=True)
            slots = [
                threading.Thread(target=self._run_tokens, name="slot-{}".format(slot), daemon=True)
                for slot in range(self._config.slots)
            ]
            for thread in [self._lease, self._reporter, claimer] + slots:
                thread.start()
            self._watch()
            self._finish(claimer, claims)
        finally:
            remove_tree(self._scratch)
        return self._code

    def _what(self) -> str:
        return "{}, {}".format(self._outbox_place(), "batch " + self._config.batch if self._config.batch else "all batches")

    def _outbox_place(self) -> str:
        return self._database.place

    def _open_pool(self) -> Optional[Claims]:
        """Wait for the database, learn what it is, and register. None if told to stop meanwhile. Raises Failed."""
        backoff = Backoff()
        self._wall_clock.start()
        while not self._signal:
            try:
                status, info = self._database.request("GET", "")
                if status != 200:
                    raise Unreachable("{} answers {}".format(self._database.place, status))
                self._lease.renew()
                cluster = number((info.get("cluster") or {}).get("n"), 1) > 1
                self._outbox.send(self._database)
                return Claims(self._database, self._config, self._me, self._clock, cluster)
            except Unreachable as error:
                if re.search(" answers 40[134] ", str(error)):
                    code = EX_CONFIG if " answers 404 " in str(error) else EX_NOPERM
                    raise Failed("{}. Check the credentials in {}.".format(error, self._access.folder), code)
                if backoff.tries == 0:
                    log("{}; waiting.".format(error))
                if self._clock.silence() > self._config.outage:
                    raise Failed("{}, for {:.0f} s.".format(error, self._config.outage), EX_UNAVAILABLE)
            self._sleep_unless_signalled(backoff.pause())
        return None

    def _sleep_unless_signalled(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self._signal and time.monotonic() < deadline:
            time.sleep(0.1)

    def _make_scratch(self) -> None:
        try:
            self._scratch = tempfile.mkdtemp(prefix="picas-")
            files = os.path.join(self._scratch, "files")
            os.mkdir(files)
            for name in self._config.files:
                shutil.copy(os.path.join(self._folder, name), files)  # once a node, not once a token
        except (OSError, shutil.Error) as error:
            remove_tree(self._scratch)
            raise Failed("The scratch folder below {} cannot be made: {}.".format(tempfile.gettempdir(), error), EX_IOERR)

    def _check_command(self) -> None:
        """Say once, not once a token, that the command cannot be run. Raises Failed; the code is the shell's."""
        command = self._config.command
        word = command[0] if isinstance(command, list) else ""
        if isinstance(command, str):
            first = re.match(r"\s*([A-Za-z0-9._/+-]+)(\s|$)", command)
            word = first.group(1) if first else ""  # anything else is for the shell to judge
        if not word:
            return
        files = os.path.join(self._scratch, "files")
        finds = ["/bin/sh", "-c", 'command -v "$1" >/dev/null', "sh", word]
        path = os.path.join(files, word)
        if "/" in word and not os.path.exists(path):
            raise Failed("The command {} does not exist: list it in files, or give its full path.".format(word), 127)
        if "/" in word and not (os.access(path, os.X_OK) and os.path.isfile(path)):
            raise Failed("The command {} is not executable: chmod +x it.".format(word), 126)
        if "/" not in word and subprocess.call(finds, cwd=files, stdin=subprocess.DEVNULL):
            raise Failed("There is no command {} here. Load its module in the setup, or give its path.".format(word), 127)

    def _on_signal(self, signum: int, _frame: Any) -> None:
        self._signal = self._signal or signum

    def _watch(self) -> None:
        """Until no more is to be started and nothing runs."""
        while True:
            self._stopping.wait(0.1) if not self._stopping.is_set() else time.sleep(0.1)
            if self._signal:
                self.stop(STOP, "told to by " + signal.Signals(self._signal).name)
            remaining = self._wall_clock.remaining()
            if remaining is not None and remaining < STOP_WITHIN:
                self.stop(STOP, "the job's wall-clock ends")
            if self._clock.silence() > max(self._config.outage, self._config.lease):
                self.stop(STOP, "the database has not answered for {:.0f} s".format(self._clock.silence()), EX_UNAVAILABLE)
            self._release_stale()
            with self._changed:
                runs = list(self._runs.values())
            if runs and not self._lease.valid():
                if not runs[0].stopped:
                    log("The lease is lost: the database was not reached for {:g} s. Work stops.".format(self._config.lease))
                for run in runs:
                    run.stop("the pilot lost its lease", 0)
            if self._level == STOP:
                for run in runs:
                    run.stop(self._why, 3)
            if self._level != GO and not runs:
                return

    def _release_stale(self) -> None:
        """Give back what was claimed and waits behind longer work, or can no longer be started."""
        with self._changed:
            go = self._level == GO and self._lease.valid()
            stale = [token for token in self._ready if not go or time.monotonic() - token.taken > STALE]
            for token in stale:
                self._ready.remove(token)
        for token in stale:
            if not token.lost:
                self._reporter.put(release(token), token.doc)

    def _finish(self, claimer: threading.Thread, claims: Claims) -> None:
        deadline = time.monotonic() + self._config.outage
        if self._level == STOP:
            deadline = time.monotonic() + max(1.0, STOP_WITHIN - 4.5)  # commands had up to 4 s to end
        remaining = self._wall_clock.remaining()
        if remaining is not None:
            deadline = min(deadline, time.monotonic() + max(2.0, remaining - 2))
        claimer.join(max(0.0, min(5.0, deadline - time.monotonic() - 1)))
        if claimer.is_alive():
            for token in list(claims.in_flight):
                self._reporter.put(release(token), token.doc)
        self._release_stale()
        unsent = self._reporter.close(deadline)
        for change in unsent:
            try:
                self._outbox.keep(change)
            except OSError as error:
                log("The result of {} is lost: it could neither be sent nor kept in a file: {}.".format(change.token, error))
        self._lease.end()
        if unsent:
            log("{} results could not be sent; they are in {}/unsent.".format(len(unsent), self._folder))
            self._code = self._code if self._code > EX_OK and self._code != EX_UNAVAILABLE else EX_TEMPFAIL
        else:
            try:
                self._lease.renew(ended=True)
            except Unreachable as error:
                log("The end of this pilot could not be told: {}.".format(error))
        log("Ended: {}. {}".format(self._why, self._summary()))

    def _summary(self) -> str:
        names = ("done", "failed", "retried", "given back", "released", "refused", "lost")
        counts = ", ".join("{} {}".format(self._counts[name], name) for name in names if self._counts[name])
        return "Tokens: {}.".format(counts or "none")

    # -- from any thread

    def stop(self, level: int, why: str, code: int = EX_OK) -> None:
        """Drain or stop; a stop goes before a drain, else the first reason stands."""
        with self._changed:
            if level <= self._level:
                return
            log("{}: {}.".format("Stops" if level == STOP else "Takes no more tokens", why))
            self._level, self._why, self._code = level, why, self._code or code
            if level == STOP:
                self._stopping.set()
            self._changed.notify_all()

    def held(self) -> List[Token]:
        """Tokens that are claimed and not yet given to the reporter."""
        with self._changed:
            return list(self._ready) + [run.token for run in self._runs.values()]

    def lose(self, token: Token, how: str) -> None:
        """Stop work on a token that somebody else has taken: its result would be refused."""
        with self._changed:
            run = self._runs.get(token.claim)
            if token not in self._ready and run is None:
                return
            token.lost = True
            if token in self._ready:
                self._ready.remove(token)
            elif run is not None:
                run.stop("lost", 0)
            self._counts["lost"] += 1
        log("Token {} {}: work on it stops.".format(token.id, how))

    def activity(self) -> Doc:
        """What the pilot does, for its lease."""
        with self._changed:
            runs = list(self._runs.values())
            state = ("idle" if not runs else "working", "draining", "stopping")[self._level]
            activity = {"state": state, "waiting": len(self._ready)}  # type: Doc
            activity["counts"] = {name.replace(" ", "_"): count for name, count in self._counts.items() if count}
        running = {}
        for run in runs:
            running[run.token.id] = {"seconds": int(time.monotonic() - run.started)}
            progress = run.progress()
            if progress is not None:
                running[run.token.id]["progress"] = progress
        activity["running"] = running
        return activity

    def _settled(self, change: Change, verdict: str) -> None:
        """Called by the reporter for each change that is written, or refused."""
        with self._changed:
            if verdict == "landed":
                self._counts[change.kind] += 1
            elif change.kind != "released":
                self._counts["refused"] += 1
                log("The result of {} is refused: it was taken away, or changed by somebody else.".format(change.token))
            self._changed.notify_all()

    # -- the claimer's thread

    def _claim_until_done(self, claims: Claims) -> None:
        try:
            self._wall_clock.asked.wait(5)
            self._claim_tokens(claims, Reaper(self._database, self._config, self._me, self._clock))
        except Failed as error:
            log(str(error))
            self.stop(DRAIN, "it cannot claim", error.code)
        except Exception:
            log("The claimer failed:\n" + traceback.format_exc())
            self.stop(DRAIN, "of a fault in the pilot", 70)

    def _claim_tokens(self, claims: Claims, reaper: Reaper) -> None:
        backoff = Backoff()
        idle_since = None  # type: Optional[float]
        next_reap, living = 0.0, False
        while self._level == GO:
            wanted, alone = self._wanted()
            if not wanted or not self._lease.valid():
                self._wait(0.5)
                continue
            try:
                tokens = claims.take(wanted, self._fits, alone)
                if tokens:
                    self._take(tokens)
                    idle_since, backoff = None, Backoff()
                    continue
                if claims.seen > claims.unfit:  # others were quicker, or what is left must be claimed alone
                    self._wait(random.uniform(0.01, 0.1))
                    continue
                busy = self._busy()
                if claims.unfit and not busy:
                    self.stop(DRAIN, "no token fits into the rest of its wall-clock")
                    return
                now = time.monotonic()
                if busy or idle_since is None:
                    idle_since, next_reap = now, next_reap if busy else now
                if now >= next_reap:
                    found = self._outbox.send(self._database)
                    reaped, living = reaper.reap()
                    if found or reaped:
                        continue
                    next_reap = now + min(5.0, self._config.lease / 3, 5.0 if busy else 0.3 + now - idle_since)
                idle = now - idle_since
                if not busy and idle >= self._config.wait_for_work and not (living and idle <= self._config.lease + 3):
                    self.stop(DRAIN, "nothing is left to do")
                    return
                self._wait(random.uniform(0.5, 1) * min(3.0, 0.2 + idle, self._config.lease / 6))
                backoff = Backoff()
            except Unreachable as error:
                for token in claims.in_flight:  # whether they were claimed is unknown
                    self._reporter.put(release(token), token.doc)
                claims.in_flight = []
                if backoff.tries == 0:
                    log("{}; waiting to claim.".format(error))
                self._wait(backoff.pause(), whole=True)

    def _wanted(self) -> Tuple[int, bool]:
        """How many tokens to claim now, and whether the pilot has no unstarted ones: short tokens are fetched ahead."""
        with self._changed:
            ready = len(self._ready)
            free = self._config.slots - len(self._runs) - ready
            if self._mean is None or self._mean > WORK_A_CLAIM:
                return max(0, free), not ready
            target = int(WORK_A_CLAIM * self._config.slots / max(self._mean, 0.001))
            target = max(1, min(self._config.max_claim * self._config.slots, target))
            if target <= self._config.slots:
                return max(0, free), not ready
            return (target - ready if ready <= target // 3 else 0), not ready

    def _fits(self, doc: Doc) -> bool:
        """Whether a token is expected to end before the job does."""
        remaining = self._wall_clock.remaining()
        if remaining is None:
            return True
        estimate = number(doc.get("time")) * 60
        if estimate <= 0 and self._durations:
            with self._changed:
                seen = sorted(self._durations)
            estimate = seen[int(0.9 * (len(seen) - 1))]
        return estimate + self._config.margin < remaining

    def _take(self, tokens: List[Token]) -> None:
        with self._changed:
            self._ready.extend(tokens)
            self._changed.notify_all()

    def _busy(self) -> bool:
        with self._changed:
            return bool(self._runs or self._ready) or self._reporter.pending() > 0

    def _wait(self, seconds: float, whole: bool = False) -> None:
        """Until something changes, or all of the time unless the pilot is to stop."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while self._level == GO:
                left = deadline - time.monotonic()
                if left <= 0 or (self._changed.wait(left) and not whole):
                    return

    # -- a slot's thread

    def _run_tokens(self) -> None:
        while True:
            with self._changed:
                while not self._ready and self._level == GO:
                    self._changed.wait(1.0)
                if self._level != GO:
                    return
                token = self._ready.popleft()
                self._attempts += 1
                folder = os.path.join(self._scratch, str(self._attempts))
                run = Run(token, folder, os.path.join(self._scratch, "files"), self._config, self._access.folder)
                self._runs[token.claim] = run
            change = None
            try:
                change = self._attempt(run)
            except Exception:
                log("Running {} failed:\n{}".format(token.id, traceback.format_exc()))
                self.stop(DRAIN, "of a fault in the pilot", 70)
                change = release(token)
            finally:
                if change is not None:
                    self._reporter.put(change, token.doc)
                with self._changed:
                    del self._runs[token.claim]
                    self._changed.notify_all()
                remove_tree(folder)

    def _attempt(self, run: Run) -> Optional[Change]:
        token = run.token
        if not self._lease.valid() or self._level == STOP:
            return release(token)
        try:
            run.prepare()
            ended = run.execute()
        except OSError as error:
            # The node's fault, not the token's: others may do better.
            self.stop(DRAIN, "the scratch folder {} is of no use: {}".format(run.folder, error), EX_IOERR)
            return release(token)
        if token.lost:
            return None
        if ended.how == "exit" and ended.code in (137, 143):
            # Slurm signals pilot and command together: was it meant for both?
            self._stopping.wait(1.0)
            if self._signal or self._stopping.is_set():
                ended = ended._replace(how="told to stop")
        change = conclude(token, ended, self._config, int(self._clock.now()))
        self._learn(ended, change)
        return change

    def _learn(self, ended: Ended, change: Change) -> None:
        with self._changed:
            if ended.how == "exit":
                self._durations.append(ended.seconds)
                self._mean = ended.seconds if self._mean is None else 0.7 * self._mean + 0.3 * ended.seconds
                self._reporter.gather = GATHER if self._mean < SHORT else 0.0
        if change.kind != "done" or ended.seconds >= 1:
            message = change.error["message"] if change.error else (change.attempt or {}).get("error", "")
            log("{} {} after {:.1f} s. {}".format(change.token, change.kind, ended.seconds, message))
        if change.kind != "done" and ended.code in self._config.stop_exit_codes and ended.how == "exit":
            self.stop(DRAIN, "exit code {} of {}".format(ended.code, change.token), ended.code)


def main(arguments: Sequence[str]) -> int:
    """Run a pilot with the configuration in the named file."""
    if len(arguments) != 1:
        log("Usage: picas_pilot.py pilot.json")
        return 64
    try:
        path = os.path.abspath(arguments[0])
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read()
        except (OSError, ValueError) as error:
            raise Failed("{} cannot be read: {}.".format(path, error), EX_CONFIG)
        return Pilot(os.path.dirname(path), parse_config(text)).run()
    except Failed as error:
        log("The pilot cannot work: {}".format(error))
        return error.code


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # threads may hang in a request: nothing waits for them
