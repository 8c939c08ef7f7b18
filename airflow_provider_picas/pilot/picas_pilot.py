#!/usr/bin/env python3
"""A pilot: claims tokens from a PiCaS pool (CouchDB), runs a command for each, and writes the results back.

    python3 picas_pilot.py pilot.json

It stands alone on a cluster's node: Python 3.6 or newer, standard library only. ``docs/pilot.md`` of
airflow-provider-picas says what it promises to the command and how it speaks with the database.

Threads: the main one (``Pilot``) watches signals, lease and wall-clock; ``Claimer`` fetches tokens, each ``Slot`` runs one
at a time, ``Reporter`` writes results, ``Lease`` says that this pilot lives. They share ``Work``.
A small process beside it, the ``guard``, ends its commands if it is killed.
"""

import ast
import base64
import collections
import ctypes
import errno
import fcntl
import hashlib
import hmac
import http.client
import inspect
import io
import json
import math
import os
import random
import re
import select
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
from contextlib import suppress
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import (
    Any,
    Callable,
    Deque,
    Dict,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
    Union,
)
from urllib.parse import quote, urlencode, urlsplit

Doc = Dict[str, Any]

# What the pilot exits with: those of sysexits.h where there is one.
EX_OK = 0
EX_USAGE = 64
EX_UNAVAILABLE = 69  # the database did not answer for as long as ``outage`` says
EX_SOFTWARE = 70  # a fault in this program
EX_IOERR = 74  # the scratch folder cannot be written, or no process be started
EX_TEMPFAIL = 75  # results could not be sent; they are in the submission's folder
EX_NOPERM = 77  # the database refuses the credentials, or its certificate does not verify
EX_CONFIG = 78  # pilot.json, picasconfig.py, the database or its views are not as they must be

EXIT_BAD_OUTPUT = (
    65  # exit code of a token whose command ended with 0 and left something in its output file that is no JSON
)
EXIT_TIME_LIMIT = 124  # exit code of a token that exceeded its time limit, as of timeout(1)

DESIGN = "_design/airflow-picas-1/_view/"
MONITOR = "_design/Monitor/_view/"

NUMBERS = 2**31 - 1  # the tokens of a class and priority are numbered at random below it, in the view
WORK_A_CLAIM = 2.0  # seconds of work that one claim aims at
GATHER = 0.5  # seconds for which results of short tokens are gathered into one request, while there are more to come
SHORT = 0.5  # seconds below which a token is short
EMPTY_LOOKS, EMPTY_FOR = 5, 15.0  # in a cluster: looks that find nothing, and seconds, until nothing is left
STALE = 10.0  # seconds after which a claimed token that has not been started is given back
STOP_WITHIN = 9.0  # seconds from a signal to the end
TERM_GRACE = 3.0  # seconds of those that commands get between SIGTERM and SIGKILL
CONFIRM = 3.0  # seconds, at most, that a pilot which was frozen past its lease gets to make sure of its tokens
BULK_BYTES = 16_000_000  # of documents and logs in one request, roughly
MAX_ATTEMPTS = 10  # earlier attempts that a token keeps, and their logs
FIELD_BYTES = 64 * 1024  # largest value in the command's environment
FIELDS_BYTES = 512 * 1024  # of all values together
PROGRESS_BYTES = 4096
LARGEST_ANSWER = 64_000_000  # bytes of an answer that are read
SLOWEST_ANSWER = 10  # an answer may take this many times the time-out, which is for each piece of it
FIRST_PAGE = 100  # documents that are asked for while their size is not known
LOG_CHARACTERS = 2000  # of one entry in the log; of a traceback, ten times as many
FIRST_REVISION = 1_000_000_000  # of a lease: ten digits for as long as a pilot may live
LARGEST_NUMBER = 1e300  # what is beyond it overflows: Python's integers have no limit
MOST_NESTED = 500  # lists and objects within each other in a field of a token: Python's JSON fails at about 990
TOO_DEEP = f"is nested more than {MOST_NESTED} deep"
HUGE_INTEGER = re.compile(rb"[0-9]{4301}")  # more digits than Python 3.11 and later read as an integer
TOO_MUCH = "is too large to be read"
TOO_LONG = "holds an integer of more than 4300 digits"
LONG_INTEGER = re.compile(rb"[0-9]{309}")  # digits of the first one that CouchDB 3.5 does not store
TOO_LARGE_NUMBER = "a number beyond 1.8e308, which CouchDB does not store: write it as text"
JOB_ID_FIELDS = ("slurm_job_id", "dirac_job_id", "wms_job_id", "cream_job_id", "pbs_job_id")


SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)  # each tells the pilot to stop


class Failed(Exception):
    """The pilot cannot work; the message says why, ``code`` is what it exits with."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Unreachable(Exception):
    """No useful answer: no connection, a server error, or credentials refused for the time being. Try again later."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Unreadable(Unreachable):
    """An answer that Python cannot read because of what a document holds. ``why``: what it is then said to be."""

    def __init__(self, message: str, status: int, why: str) -> None:
        super().__init__(message, status)
        self.why = why


class LargeAnswer(Unreadable):
    """An answer with more bytes than the pilot reads."""


class Background:
    """Work that may block, such as writing to a file system that hangs, in a thread of its own: nothing else waits for it.

    ``do`` gets the items that wait, and how many were left out before them because more than ``most`` waited.
    """

    def __init__(self, name: str, do: Callable[[List[Any], int], None], most: int = sys.maxsize) -> None:
        self._name = name
        self._do = do
        self._most = most
        self._changed = threading.Condition()
        self._waiting: Deque[Any] = collections.deque()
        self._left_out = 0
        self._busy = False
        self._thread: Optional[threading.Thread] = None

    def add(self, item: Any) -> None:
        """Work on this soon. Never blocks."""
        with self._changed:
            self._waiting.append(item)
            if len(self._waiting) > self._most:
                self._waiting.popleft()
                self._left_out += 1
            if self._thread is None:
                with suppress(RuntimeError):  # no thread can be started now: the next item tries again
                    thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                    thread.start()
                    self._thread = thread
            self._changed.notify_all()

    def flush(self, seconds: float) -> bool:
        """Wait until all is done, at most this long; whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._busy, seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: bool(self._waiting))
                items, left_out = list(self._waiting), self._left_out
                self._waiting.clear()
                self._left_out, self._busy = 0, True
            self._do(items, left_out)


def _write_log(entries: List[str], left_out: int) -> None:
    if left_out:
        entries.insert(0, _entry(f"{left_out} entries are missing here: the log could not be written."))
    with suppress(OSError, ValueError):  # a full disk below the job's log must not end the pilot
        sys.stdout.buffer.write("".join(entries).encode("utf-8", "backslashreplace"))
        sys.stdout.flush()


_LOG = Background("log", _write_log, most=1000)


_GROUP = re.compile(r"::(?=(?:end)?group::)")


def escape(text: str) -> str:
    """Foreign text on one line: control characters, escape sequences and the like are written out.

    So are the commands that fold lines in Airflow's log, which shows the pilots' (``::group::``).
    """
    return _GROUP.sub(": :", "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text))


def _shortened(text: str, most: int) -> str:
    """The beginning and the end of a text that is too long."""
    return text if len(text) <= most else f"{text[: most // 2]} [...] {text[-(most // 2) :]}"


def _entry(message: str, details: str = "") -> str:
    lines = [_shortened(message, LOG_CHARACTERS), *_shortened(details, 10 * LOG_CHARACTERS).splitlines()]
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} " + "\n    ".join(map(escape, lines)) + "\n"


def log(message: str, details: str = "") -> None:
    """One entry in the job's log: a line, and ``details`` such as a traceback in lines of their own.

    What tokens, commands and servers say in it is foreign: it is escaped, and cut where it is too long.
    """
    _LOG.add(_entry(message, details))


def number(value: Any, default: float = 0) -> float:
    """A JSON value as a number that can be calculated with, or the default for what is none."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number and abs(value) < LARGEST_NUMBER else default


def list_or_empty(value: Any) -> List[Any]:
    """A JSON value if it is a list."""
    return value if isinstance(value, list) else []


# --- configuration --------------------------------------------------------------------------------------------------


class Config(NamedTuple):
    """What ``pilot.json`` may say; it holds no secret. Times are seconds. docs/pilot.md has the same table."""

    command: Union[str, List[str]]  # text for /bin/sh -c, or a list of arguments
    submission: str  # key of the submission
    database: Optional[str] = None  # None: what picasconfig.py names
    batch: Optional[str] = None  # None: the whole pool
    classes: Optional[List[str]] = None  # resource classes "<cores>/<gpu>/<time>"; None: any
    credentials: Optional[str] = None  # folder; None: "credentials"; "existing": PYTHONPATH, or the PiCaS client's
    tls_verify: bool = True
    ca_file: Optional[str] = None
    files: List[str] = []  # names of files beside pilot.json that the command finds in its folder
    lease: float = 120  # for so long the pilot is believed to live after it was last heard
    slots: int = 1  # tokens that run at the same time
    max_retries: int = 0  # how often a failed token is run again; a token's own max_retries wins
    max_scrubs: int = 3  # how often a token is given back because its pilot died, before it is an error
    time_limit: Optional[float] = None  # for one token; a token's own time_limit wins
    kill_after: float = 10  # between SIGTERM and SIGKILL at the time limit
    no_retry_exit_codes: List[int] = []
    stop_exit_codes: List[int] = []  # the token is given back, and the pilot stops
    wait_for_work: float = 0  # how long to wait for tokens when none are left
    log_bytes: int = 1_000_000  # of stdout and of stderr, each, that are kept: the last ones
    output_bytes: int = 1_000_000  # largest JSON that a command may leave as output
    max_claim: int = 50  # tokens claimed in one request for one slot, at most
    outage: float = 900  # how long the pilot waits for a database that does not answer
    margin: float = 30  # what must be left of the wall-clock after a token is expected to end


def _at_least(least: float, whole: bool = False) -> Callable[[Any], bool]:
    kinds = (int,) if whole else (int, float)
    return lambda value: isinstance(value, kinds) and not isinstance(value, bool) and least <= value < float("inf")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and "\0" not in value


def _list_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(check(item) for item in value)


def _is_small(value: Any) -> bool:
    return _at_least(0, whole=True)(value) and value < MAX_ATTEMPTS


_TEXT = (_is_text, "a text")
_SECONDS = (_at_least(0), "a number of seconds")
_BYTES = (_at_least(0, whole=True), "a number of bytes")
_COUNT = (_at_least(1, whole=True), "a whole number, at least 1")
_SMALL = (_is_small, "a whole number from 0 to 9")
_CODES = (_list_of(_at_least(0, whole=True)), "a list of whole numbers")

_CHECKS: Dict[str, Tuple[Callable[[Any], bool], str]] = {
    "command": (lambda v: _is_text(v) or (bool(v) and _list_of(_is_text)(v)), "a text or a list of texts"),
    "submission": _TEXT,
    "database": _TEXT,
    "batch": _TEXT,
    "classes": (lambda v: bool(v) and _list_of(_is_text)(v), "a list of texts"),
    "credentials": (_is_text, "a folder, or 'existing'"),
    "tls_verify": (lambda v: isinstance(v, bool), "true or false"),
    "ca_file": (_is_text, "a file"),
    "files": (_list_of(lambda v: _is_text(v) and "/" not in v and v not in (".", "..")), "a list of file names"),
    "lease": (_at_least(2), "a number of seconds, at least 2"),
    "slots": _COUNT,
    "max_retries": _SMALL,
    "max_scrubs": _SMALL,
    "time_limit": (_at_least(0.001), "a number of seconds above 0"),
    "kill_after": _SECONDS,
    "no_retry_exit_codes": _CODES,
    "stop_exit_codes": _CODES,
    "wait_for_work": _SECONDS,
    "log_bytes": _BYTES,
    "output_bytes": _BYTES,
    "max_claim": _COUNT,
    "outage": _SECONDS,
    "margin": _SECONDS,
}


def parse_config(text: str) -> Config:
    """The configuration in a ``pilot.json``. Raises Failed, naming the key that is wrong."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Failed(f"pilot.json is no JSON: {error}.", EX_CONFIG) from None
    if not isinstance(values, dict):
        raise Failed("pilot.json must hold one JSON object.", EX_CONFIG)
    for name in ("command", "submission"):
        if name not in values:
            raise Failed(f"pilot.json lacks {name!r}.", EX_CONFIG)
    defaults = Config(command="", submission="")._asdict()
    for name, value in values.items():
        if name not in _CHECKS:
            raise Failed(f"pilot.json has a key that this pilot does not know: {name!r}.", EX_CONFIG)
        check, wanted = _CHECKS[name]
        if not (value is None and defaults[name] is None) and not check(value):
            raise Failed(f"pilot.json: {name!r} must be {wanted}, not {value!r:.100}.", EX_CONFIG)
    return Config(**values)


class Access(NamedTuple):
    """How to reach the database. The password is never logged nor handed to a command."""

    url: str
    database: str
    username: str
    password: str
    folder: str  # where picasconfig.py is


def read_access(folder: str, config: Config, again: bool = False) -> Access:
    """The credentials in ``picasconfig.py`` or ``conf.yml``; nothing is executed. ``folder`` is pilot.json's. Raises Failed."""
    path = _find_credentials(folder, config)
    try:
        values, secret = read_credentials(path)
        if os.stat(secret).st_mode & 0o077 and not again:
            log(f"Others may read {secret}, which holds a password or the key to one: chmod 600 it.")
    except (OSError, ValueError, RecursionError, MemoryError) as error:  # the last two: of Python's parser
        raise Failed(f"{path} cannot be read: {error}.", EX_CONFIG) from None
    if config.database:
        values["PICAS_DATABASE"] = config.database
    for name in ("PICAS_HOST_URL", "PICAS_DATABASE"):
        if not values.get(name):
            raise Failed(f"{path} does not set {name} to a text.", EX_CONFIG)
    login, password = values.get("PICAS_USERNAME", ""), values.get("PICAS_PASSWORD", "")
    return Access(values["PICAS_HOST_URL"], values["PICAS_DATABASE"], login, password, os.path.dirname(path))


def _find_credentials(folder: str, config: Config) -> str:
    """The file with the credentials; of several the first. Raises Failed."""
    if config.credentials == "existing":
        places = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
        paths = [os.path.join(place, "picasconfig.py") for place in places]
        paths.append(os.path.join(os.path.expanduser(CLIENT_FOLDER), CONF_YML))
        missing = f"no picasconfig.py on PYTHONPATH, and no {paths[-1]}"
    else:
        place = os.path.join(folder, os.path.expanduser(config.credentials or "credentials"))
        paths = [os.path.join(place, name) for name in ("picasconfig.py", CONF_YML)]
        missing = f"no picasconfig.py in {place}, and no {CONF_YML}"
    for path in paths:
        if os.path.isfile(path):
            return path
    raise Failed(f"There is {missing}.", EX_CONFIG)


# --- the PiCaS client's files of credentials (client 1.1.2: picas_config.py, crypto.py) -------------------------------

CLIENT_FOLDER = "~/.config/picas"
CONF_YML = "conf.yml"
KEY_FILE = "key.dat"  # beside it: the Fernet key of its password

_SETTINGS = {
    "host_url": "PICAS_HOST_URL",
    "database": "PICAS_DATABASE",
    "username": "PICAS_USERNAME",
    "encrypted_password": "PICAS_PASSWORD",
}  # names in conf.yml, and in picasconfig.py


class Credentials(NamedTuple):
    """What a file of credentials says. The values' names are those of ``picasconfig.py``."""

    values: Dict[str, str]
    secret: str  # the file that must be kept from others: the one with the password, or with the key to it


def read_credentials(path: str) -> Credentials:
    """Read a ``picasconfig.py`` or ``conf.yml``. Raises OSError; ValueError, without the file's text: it holds a password."""
    with open(path, encoding="utf-8") as file:
        text = file.read()
    if not path.endswith((".yml", ".yaml")):
        return parse_picasconfig(text, path)
    values = {_SETTINGS[name]: value for name, value in parse_conf_yml(text).items() if name in _SETTINGS}
    key_file = _key_file(path)
    if values.get("PICAS_PASSWORD"):
        values["PICAS_PASSWORD"] = _decrypt_with(key_file, values["PICAS_PASSWORD"])
    return Credentials(values, key_file)


def parse_picasconfig(text: str, path: str = "picasconfig.py") -> Credentials:
    """The assignments of text literals to ``PICAS_…`` names. Of code, two kinds of the client's examples are understood:
    settings that PicasConfig reads from ``conf.yml``, and ``decrypt_password`` of a literal. Raises as ``read_credentials``.
    """
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise ValueError(f"line {error.lineno} is no Python") from None
    found = Credentials({}, path)
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        names = [target.id for target in targets if isinstance(target, ast.Name) and target.id.startswith("PICAS_")]
        for name in names:
            try:
                value = ast.literal_eval(node.value)  # type: ignore[attr-defined]
            except ValueError:
                value, key_file = _value_of_code(name, node, tree, path)
                found = found._replace(secret=key_file) if name == "PICAS_PASSWORD" else found
            if isinstance(value, str):
                found.values[name] = value
    return found


def _value_of_code(name: str, node: ast.AST, tree: ast.AST, path: str) -> Tuple[Optional[str], str]:
    """The value that an assignment computes, and the file with the key to the password. Raises as ``read_credentials``."""
    words = _words(node)
    setting = next((word for word in words if word in _SETTINGS), None)
    calls = [part for part in ast.walk(tree) if isinstance(part, ast.Call) and "PicasConfig" in _words(part.func)]
    if setting and calls:
        paths = [word for word in _words(calls[0]) if word.endswith((".yml", ".yaml"))]
        conf = read_credentials(os.path.expanduser((paths or [f"{CLIENT_FOLDER}/{CONF_YML}"])[0]))
        return conf.values.get(_SETTINGS[setting]), conf.secret
    encrypted = next((word for word in words if word.startswith("gAAAA")), None)  # every Fernet token does
    if encrypted and "decrypt_password" in words:
        key_file = _key_file(path)
        return _decrypt_with(key_file, encrypted), key_file
    raise ValueError(f"{name} is no plain text between quotes, nor a setting that PicasConfig reads from {CONF_YML}")


def _words(node: ast.AST) -> List[str]:
    """The names, attributes and text literals in some code."""
    found = []
    for part in ast.walk(node):
        for field in ("id", "attr", "value", "s"):  # "s": Python before 3.8
            word = getattr(part, field, None)
            word = word.decode("ascii", "replace") if isinstance(word, bytes) else word
            if isinstance(word, str):
                found.append(word)
    return found


_CONF_LINE = re.compile(
    r"""([A-Za-z_]+):\s+(?:"((?:[^"\\]|\\["\\abtnvfrxuU])*)"|'((?:[^']|'')*)'|([^\s"'#&*!|>%@`{}\[\],].*?))\s*(?:\s#.*)?$"""
)


def parse_conf_yml(text: str) -> Dict[str, str]:
    """The YAML that the client writes: ``name: text`` on each line. Raises ValueError for all else."""
    values: Dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.lstrip().startswith("#") or line.rstrip() == "---":
            continue
        match = _CONF_LINE.match(line)
        try:
            name, double, single, plain = match.groups() if match else ("", "\\", None, None)
            if double is not None:
                double = ast.literal_eval(f'"{double}"')  # these escapes are also Python's
        except SyntaxError:
            raise ValueError(f"line {number} is not as the PiCaS client writes it, <name>: <text>") from None
        values[name] = double or (single or "").replace("''", "'") or plain or ""
    return values


def _key_file(path: str) -> str:
    """The file with the key to the password in a file: beside it, or where the client keeps it."""
    beside = os.path.join(os.path.dirname(path), KEY_FILE)
    return beside if os.path.isfile(beside) else os.path.join(os.path.expanduser(CLIENT_FOLDER), KEY_FILE)


def _decrypt_with(key_file: str, encrypted: str) -> str:
    """A password that was encrypted with the key in a file. Raises ValueError."""
    try:
        with open(key_file, "rb") as file:
            key = file.read()
    except OSError as error:
        raise ValueError(f"the key to its password, {key_file}, cannot be read ({error.strerror})") from None
    try:
        return decrypt_fernet(encrypted.encode(), key).decode()
    except ValueError:
        raise ValueError(f"its password was not encrypted with the key in {key_file}") from None


def decrypt_fernet(token: bytes, key: bytes) -> bytes:
    """Decrypt a Fernet token (AES-128-CBC, HMAC-SHA256): the nodes' Python has no library for it. Raises ValueError."""
    secret, data = base64.urlsafe_b64decode(key.strip()), base64.urlsafe_b64decode(token)
    body, iv, blocks = data[:-32], data[9:25], data[25:-32]
    if len(secret) != 32 or len(data) < 73 or len(blocks) % 16 or data[0] != 0x80:
        raise ValueError("no Fernet token, or no key of one")
    if not hmac.compare_digest(hmac.new(secret[:16], body, "sha256").digest(), data[-32:]):
        raise ValueError("encrypted with another key")
    decrypt, plain, previous = _aes_decryption(secret[16:]), b"", iv
    for place in range(0, len(blocks), 16):
        block = blocks[place : place + 16]
        plain += bytes(_xor(decrypt(block), previous))
        previous = block
    return plain[: -plain[-1]]


def _aes_decryption(key: bytes) -> Callable[[bytes], bytes]:
    """AES-128 decryption of one block with this key (FIPS 197). Not for keys of others: its duration depends on the key."""
    box = _aes_box()
    inverse = [box.index(value) for value in range(256)]
    schedule, constant = list(key), 1
    while len(schedule) < 176:
        word = schedule[-4:]
        if len(schedule) % 16 == 0:
            word = [box[byte] for byte in word[1:] + word[:1]]
            word[0] ^= constant
            constant = _aes_times(constant, 2)
        schedule += _xor(schedule[-16:], word)

    def decrypt(block: bytes) -> bytes:
        state = _xor(block, schedule[160:])
        for start in range(144, -1, -16):
            state = [inverse[state[(place - 4 * (place % 4)) % 16]] for place in range(16)]
            state = _xor(state, schedule[start:])
            if start:
                state = [
                    _aes_times(state[place], 14)
                    ^ _aes_times(state[place // 4 * 4 + (place + 1) % 4], 11)
                    ^ _aes_times(state[place // 4 * 4 + (place + 2) % 4], 13)
                    ^ _aes_times(state[place // 4 * 4 + (place + 3) % 4], 9)
                    for place in range(16)
                ]
        return bytes(state)

    return decrypt


def _xor(these: Sequence[int], others: Sequence[int]) -> List[int]:
    return [a ^ b for a, b in zip(these, others)]  # noqa: B905 (strict is newer than Python 3.6)


def _aes_times(a: int, b: int) -> int:
    """The product in AES's field of 256 elements."""
    product = 0
    while b:
        product ^= a * (b & 1)
        a, b = (a << 1) ^ 0x11B * (a >> 7), b >> 1
    return product


def _aes_box() -> List[int]:
    """AES's substitution of bytes."""
    powers = [1]
    for _ in range(254):
        powers.append(_aes_times(powers[-1], 3))
    box = [0x63] * 256
    for exponent, value in enumerate(powers):
        inverse = powers[-exponent % 255]
        bits = inverse ^ inverse << 1 ^ inverse << 2 ^ inverse << 3 ^ inverse << 4
        box[value] = (bits ^ bits >> 8) & 0xFF ^ 0x63
    return box


# --- the database ---------------------------------------------------------------------------------------------------


class Quorum:
    """Whether a cluster of CouchDB nodes stores writes on most copies of a document. All threads note what they see.

    It answers 201 then, and 202 while too few nodes can be reached: what is written so may lose against what others write.
    """

    def __init__(self) -> None:
        self._lost_at: Optional[float] = None

    def note(self, stored: bool) -> None:
        """A write was stored on most copies, or on fewer."""
        if stored:
            self._lost_at = None
        elif self._lost_at is None:
            self._lost_at = time.monotonic()

    def lost_for(self) -> float:
        """Seconds since writes have been stored on too few copies; 0 while they are safe."""
        lost_at = self._lost_at
        return 0.0 if lost_at is None else time.monotonic() - lost_at

    def holds(self) -> bool:
        """Whether the last write was stored on most copies. True before the first one."""
        return self._lost_at is None


def parse_date(date: Optional[str]) -> Optional[float]:
    """Seconds since 1970 of an HTTP ``Date``; None if it is missing or not a date."""
    try:
        return parsedate_to_datetime(date or "").timestamp()
    except (TypeError, ValueError, IndexError, OverflowError):
        return None


class Clock:
    """The database's clock, from the ``Date`` of its answers: a node's own may be wrong. And when it last answered.

    ``longest_gap``: seconds without a useful answer after which contact was lost.
    """

    COARSE = 1.0  # seconds by which two dates may contradict each other: servers keep the header for a second

    def __init__(self, longest_gap: float = float("inf")) -> None:
        offset = time.time() - time.monotonic()
        self._offset = (offset, offset)  # of the database's clock from the monotonic one: at least, at most
        self._heard = False
        self._last_answer = time.monotonic()
        self._longest_gap = longest_gap
        self._back_since: Optional[float] = None  # when contact was found, for the first time or again
        self.quorum = Quorum()

    def hear(self, date: Optional[str], sent: Optional[float] = None, received: Optional[float] = None) -> None:
        """Take the ``Date`` of a useful answer. It was made between the monotonic times ``sent`` and ``received``."""
        now = time.monotonic()
        if self._back_since is None or now - self._last_answer > self._longest_gap:
            self._back_since = now
        self._last_answer = now
        seen = parse_date(date)
        if seen is None:
            return
        low = seen - (now if received is None else received)
        high = seen + 1 - (now if sent is None else sent)  # the header has whole seconds
        least, most = self._offset
        if not self._heard or low > most + self.COARSE or high < least - self.COARSE:
            self._offset, self._heard = (low, high), True  # the first date, or the database's clock has stepped
        elif max(low, least) <= min(high, most):
            self._offset = (max(low, least), min(high, most))

    def now(self) -> float:
        """Seconds since 1970 by the database's clock."""
        return self.at(time.monotonic())

    def at(self, moment: float) -> float:
        """What the database's clock shows at a monotonic time."""
        return moment + sum(self._offset) / 2

    def silence(self) -> float:
        """Seconds since the last useful answer."""
        return time.monotonic() - self._last_answer

    def contact(self) -> float:
        """Seconds of contact, since the start or since it was last lost."""
        return 0.0 if self._back_since is None else time.monotonic() - self._back_since


class Login:
    """The login of all connections. When the database refuses it, it is read again: the password may have been changed."""

    def __init__(self, access: Access, read: Optional[Callable[[], Access]] = None) -> None:
        self.access = access
        self._read = read
        self._reading = threading.Lock()
        self._backoff = Backoff(0.5, longest=5.0)
        self._next = 0.0  # when to read again (monotonic)
        self._told = ""

    def headers(self) -> Dict[str, str]:
        """What a request needs to log in."""
        if not self.access.username:
            return {}
        login = f"{self.access.username}:{self.access.password}".encode()
        return {"Authorization": "Basic " + base64.b64encode(login).decode("ascii")}

    def has_changed(self, refused: Access) -> bool:
        """Whether there is another login than the one that was refused. Now and then the file is read to find out."""
        # A file system that hangs holds up one thread only.
        if self.access == refused and self._read and self._reading.acquire(blocking=False):
            try:
                if time.monotonic() >= self._next:
                    self._next = time.monotonic() + self._backoff.pause()
                    self._take(self._read())
            except Failed as error:
                self._tell_once(f"The database refuses the login, and there is no other: {error}")
            finally:
                self._reading.release()
        return self.access != refused

    def _take(self, found: Access) -> None:
        if (found.url, found.database) != (self.access.url, self.access.database):
            # Its password is not for this server.
            self._tell_once(f"The credentials in {found.folder} are for another database by now: they are not used.")
        elif found != self.access:
            self.access, self._backoff, self._told = found, Backoff(0.5, longest=5.0), ""
            log(f"The credentials in {found.folder} have changed: they are used from now on.")

    def _tell_once(self, message: str) -> None:
        if message != self._told:
            log(message)
        self._told = message


def _tls(config: Config) -> ssl.SSLContext:
    """How the server's certificate is verified. Raises Failed for a file of certificates that cannot be read."""
    try:
        context = ssl.create_default_context(cafile=os.path.expanduser(config.ca_file) if config.ca_file else None)
    except OSError as error:
        raise Failed(f"ca_file {config.ca_file} is not a file of certificates: {error}.", EX_CONFIG) from None
    if not config.tls_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def has_path(name: str) -> bool:
    """Whether a URL's path can name a document or an attachment of this name. Dots alone mean folders in a URL, quoted or not."""
    return name not in (".", "..")


def size_of(doc: Doc) -> int:
    """Bytes of a document in a request."""
    return len(json.dumps(doc, separators=(",", ":")))


def portions(docs: Sequence[Doc]) -> Iterator[List[Doc]]:
    """Documents in portions of ``BULK_BYTES``, or of one."""
    some: List[Doc] = []
    total = 0
    for doc in docs:
        size = size_of(doc)
        if some and total + size > BULK_BYTES:
            yield some
            some, total = [], 0
        some.append(doc)
        total += size
    if some:
        yield some


def read_answer(answer: bytes) -> Any:
    """The JSON of an answer. Raises ValueError, also for integers that Python 3.11 would not read: others take minutes."""
    limited = 0 < getattr(sys, "get_int_max_str_digits", int)() <= 4300
    return json.loads(
        answer.decode("utf-8"), parse_int=None if limited or not HUGE_INTEGER.search(answer) else _integer
    )


def _integer(text: str) -> int:
    if len(text) > 4301:
        raise ValueError("an integer with too many digits")
    return int(text)


class _Bounded(io.RawIOBase):
    """What comes over a connection for one answer. Raises LargeAnswer and socket.timeout beyond its limits of size and time."""

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
            raise socket.timeout(f"the answer was not complete after {self._seconds:.0f} s")
        count = self._raw.readinto(buffer)
        self._left -= count or 0
        if self._left < 0:
            raise LargeAnswer(f"An answer of {self._place} has more than {self._most:,} bytes", 200, TOO_MUCH)
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """An answer with limits, which also hold for its headers."""

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
            "PICAS_HOST_URL must be http(s)://host:port, with a port up to 65535. Login and password have names of their own.",
            EX_CONFIG,
        )
    return parts.scheme, host, port, quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=-._~")


_OR_NONE = (dict, type(None))


def _is_object(value: Any, kinds: Mapping[str, Any]) -> bool:
    """Whether a JSON value is an object with fields of these types."""
    return isinstance(value, dict) and all(isinstance(value.get(name), kind) for name, kind in kinds.items())


def _is_document(value: Any) -> bool:
    """Whether a JSON value is a document as CouchDB gives it."""
    kinds = {"_id": str, "_rev": str, "_attachments": _OR_NONE, "_conflicts": (list, type(None))}
    return _is_object(value, kinds) and all(_is_object(file, {}) for file in (value.get("_attachments") or {}).values())


class Database:
    """One keep-alive connection to one CouchDB database; each thread has its own."""

    def __init__(
        self,
        login: Union[Access, Login],
        config: Config,
        clock: Clock,
        timeout: float = 60,
        slowest: float = SLOWEST_ANSWER,
    ) -> None:
        self._login = Login(login) if isinstance(login, Access) else login
        access = self._login.access
        scheme, host, port, path = read_url(access.url)
        self.place = f"{scheme}://{host}:{port}/{access.database}"
        self._prefix = path + "/" + quote(access.database, safe="")
        self._clock = clock
        self.quorum = clock.quorum
        self._left_alone: Set[str] = set()  # ids of documents that cannot be read or written by this pilot
        self._left_out: Dict[
            str, float
        ] = {}  # ids of documents that are passed over, with the others, until when (monotonic)
        self._waited_for: Set[str] = set()  # those of them that may be taken after that
        self._longest = timeout * slowest  # seconds that an answer may take as a whole
        self._page = FIRST_PAGE  # documents that make BULK_BYTES, by the size of the last ones
        self._received = 0  # bytes of the last answer
        self._response: Any = type(
            "Response", (_Response,), {}
        )  # of this connection: it has the limits of the next answer
        self._connection = http.client.HTTPConnection(host, port, timeout=timeout)
        if scheme == "https":
            self._connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=_tls(config))
        self._headers = {"Accept": "application/json", "Content-Type": "application/json", "User-Agent": "picas-pilot"}

    def request(
        self, method: str, path: str, body: Any = None, query: Optional[Doc] = None, largest: int = LARGEST_ANSWER
    ) -> Tuple[int, Any]:
        """Status and JSON of one request; values of ``query`` are sent as JSON. ``largest``: bytes of the answer that are read.

        Raises Unreachable when the answer is of no use: then a write may have been carried out or not. If so because of what a
        document holds, that is Unreadable.
        """
        url = self._prefix + ("/" + path if path else "")
        if query:
            url += "?" + urlencode({name: json.dumps(value) for name, value in query.items()})
        try:
            data = None if body is None else json.dumps(body, allow_nan=False, separators=(",", ":")).encode("ascii")
        except ValueError as error:  # a number of a document that overflowed when it was read
            raise Unreachable(f"A request to {self.place} cannot be written as JSON: {error}", 400) from None
        tries = 3 if method == "GET" or path == "_all_docs" else 1  # what only reads can be asked again at once
        while True:
            sent, access = time.monotonic(), self._login.access
            try:
                response, dated, content = self._send(method, url, data, largest)
                if response.status in (401, 403) and self._login.has_changed(access):
                    continue  # it was not carried out
                return self._useful(response, (response.getheader("Date"), sent, dated), content)
            except LargeAnswer:
                self._connection.close()
                raise
            except (OSError, ValueError, http.client.HTTPException) as error:
                self._connection.close()
                if "CERTIFICATE_VERIFY_FAILED" in str(error) or isinstance(error, ssl.CertificateError):
                    raise Failed(f"The certificate of {self.place} does not verify: {error}.", EX_NOPERM) from None
                tries -= 1
                if not tries or isinstance(error, socket.timeout):
                    message = f"{self.place} does not answer ({type(error).__name__}: {error})"
                    raise Unreachable(message) from None
                time.sleep(random.uniform(0, 0.1))

    def _send(
        self, method: str, url: str, data: Optional[bytes], largest: int
    ) -> Tuple[http.client.HTTPResponse, float, bytes]:
        """The answer to one request, when its headers came (monotonic), and its content."""
        self._response.limits = (self.place, largest, self._longest)
        self._connection.response_class = self._response
        self._connection.request(method, url, data, {**self._headers, **self._login.headers()})
        response = self._connection.getresponse()
        dated, content = time.monotonic(), response.read()
        self._received = len(content)
        return response, dated, content

    def _useful(
        self, response: http.client.HTTPResponse, dated: Tuple[Optional[str], float, float], answer: bytes
    ) -> Tuple[int, Any]:
        status = response.status
        try:
            data = read_answer(answer)
        except ValueError:
            if status == 413:  # a proxy's own page
                return status, {}
            encoding = response.getheader("Content-Encoding")
            if encoding:
                message = f"{self.place} answers HTTP {status} with content encoded as {encoding:.50}, which was not asked for"
                raise Unreachable(message, status) from None
            if HUGE_INTEGER.search(answer):
                self._clock.hear(*dated)
                raise Unreadable(f"{self.place} answers with an integer that is too large", status, TOO_LONG) from None
            raise Unreachable(f"{self.place} answers HTTP {status} without JSON", status) from None
        except RecursionError:
            self._clock.hear(*dated)
            raise Unreadable(f"{self.place} answers with JSON that is nested too deeply", status, TOO_DEEP) from None
        told = data if isinstance(data, dict) else {}
        no_database = status == 404 and told.get("reason") in ("Database does not exist.", "no_db_file")
        if status >= 500 or status in (401, 403, 408, 429) or no_database:
            raise Unreachable(f"{self.place} answers {status} {told.get('error')}: {told.get('reason')}", status)
        self._clock.hear(*dated)
        return status, data

    def close(self) -> None:
        """Close the connection. The next request makes a new one, which may lead to another node."""
        self._connection.close()

    def _check(self, is_so: bool, status: int, path: str) -> None:
        """Raise Unreachable if an answer is not as CouchDB's are."""
        if not is_so:
            raise Unreachable(
                f"{self.place} answers {status} to {path:.200} with JSON of another shape than CouchDB's", status
            )

    def _objects(self, found: Any, status: int, path: str, **kinds: Any) -> List[Doc]:
        """A list of objects with such fields, as a part of an answer. Raises Unreachable for anything else."""
        self._check(isinstance(found, list) and all(_is_object(item, kinds) for item in found), status, path)
        return list(found)

    def _document(self, value: Any, status: int, path: str) -> Doc:
        """A document, as a part of an answer. Raises Unreachable for anything else."""
        self._check(_is_document(value), status, path)
        return dict(value)

    def info(self) -> Doc:
        """What the database says of itself. Raises Failed for what is not a CouchDB."""
        status, info = self.request("GET", "")
        if status != 200 or not _is_object(info, {"db_name": str, "update_seq": (str, int)}):
            raise Failed(f"{self.place} is not a CouchDB database: check PICAS_HOST_URL (HTTP {status}).", EX_CONFIG)
        return dict(info)

    def get(self, path: str) -> Optional[Doc]:
        """The document at a quoted path, or None."""
        status, doc = self.request("GET", path)
        return self._document(doc, status, path) if status == 200 else None

    def leases(self, pilots: Sequence[str]) -> Dict[str, Doc]:
        """The leases of pilots that have one."""
        names = {lease_id(pilot): pilot for pilot in pilots}
        try:
            rows = self._rows_of(list(names), "_local_docs", include_docs=True) if names else []
        except Unreadable:
            half = len(pilots) // 2
            return dict(self.leases(pilots[:half]), **self.leases(pilots[half:])) if half else {}
        return {names[row["key"]]: row["doc"] for row in rows if row.get("doc") and row["key"] in names}

    def _rows_of(self, ids: Sequence[str], path: str = "_all_docs", **query: Any) -> List[Doc]:
        status, answer = self.request("POST", path, {"keys": list(ids)}, query)
        if status != 200:
            raise Unreachable(f"{self.place} answers {status} to {path}", status)
        rows = answer.get("rows") if isinstance(answer, dict) else None
        found = self._objects(rows, status, path, key=str, doc=_OR_NONE, value=_OR_NONE)
        self._check(all(not row.get("doc") or _is_document(row["doc"]) for row in found), status, path)
        return found

    def read(self, ids: Sequence[str], **query: Any) -> Dict[str, Optional[Doc]]:
        """Documents by id; None for what is missing, deleted, or cannot be read."""
        try:
            docs = {row["key"]: row.get("doc") for row in self._rows_of(ids, include_docs=True, **query)}
        except Unreadable as error:
            if len(ids) > 1:  # by halves, until the one is found that is to blame
                half = len(ids) // 2
                return dict(self.read(ids[:half], **query), **self.read(ids[half:], **query))
            self.leave_alone(ids[0], error.why)
            return {ids[0]: None}
        found = {name: docs.get(name) for name in ids}
        return {name: doc if doc and self._is_readable(doc) else None for name, doc in found.items()}

    def _is_readable(self, doc: Doc) -> bool:
        if is_nested_more(doc, MOST_NESTED + 1):
            self.leave_alone(doc["_id"], TOO_DEEP)
            return False
        try:
            json.dumps(doc, allow_nan=False)
        except ValueError:
            self.leave_alone(doc["_id"], "holds a number beyond 1.8e308")
            return False
        return True

    def branches(self, ids: Sequence[str]) -> Dict[str, List[Doc]]:
        """The revisions of documents that are in conflict, the winner first: mostly one, none for what cannot be read.

        In a cluster these are read from most copies, as documents by id are, and unlike the rows of a view.
        """
        docs = self.read(ids, conflicts=True) if ids else {}
        return {name: self._branches_of(doc) for name, doc in docs.items()}

    def _branches_of(self, doc: Optional[Doc]) -> List[Doc]:
        if not doc:
            return []
        conflicts = doc.pop("_conflicts", None)
        if not conflicts:
            return [doc]
        path = quote(doc["_id"], safe="")
        if not has_path(doc["_id"]):
            others = [self._revision(doc["_id"], str(rev)) for rev in conflicts]
            return [doc, *sorted(others, key=revision_rank, reverse=True)]
        status, answer = self.request("GET", path + "?open_revs=all")
        if status != 200:
            raise Unreachable(f"{self.place} answers {status} to a read of {path}", status)
        rows = self._objects(answer, status, path)
        found = [self._document(row["ok"], status, path) for row in rows if "ok" in row]
        found = [doc for doc in found if not doc.get("_deleted")]
        return sorted(found, key=revision_rank, reverse=True)

    def _revision(self, name: str, rev: str, largest: int = LARGEST_ANSWER, **query: Any) -> Doc:
        """A revision of a document whose id has no path of its own. Raises Unreachable."""
        body = {"docs": [{"id": name, "rev": rev}]}
        status, answer = self.request("POST", "_bulk_get", body, query, largest)
        results = answer.get("results") if isinstance(answer, dict) else None
        for result in self._objects(results, status, "_bulk_get", docs=list) if status == 200 else []:
            for found in self._objects(result["docs"], status, "_bulk_get"):
                if "ok" in found:
                    return self._document(found["ok"], status, "_bulk_get")
        raise Unreachable(f"{self.place} answers {status} to a read of revision {rev} of {name}", status or 404)

    def with_attachments(self, doc: Doc) -> Doc:
        """A document with the data of its attachments in it. Raises Unreachable."""
        if not doc.get("_attachments"):
            return doc
        sizes = [number(file.get("length")) for file in doc["_attachments"].values()]
        largest = LARGEST_ANSWER + int(2 * sum(sizes))  # they come in base64
        path = quote(doc["_id"], safe="")
        if has_path(doc["_id"]):
            status, found = self.request("GET", f"{path}?attachments=true&rev={quote(doc['_rev'])}", largest=largest)
            if status != 200:
                raise Unreachable(f"{self.place} answers {status} to a read of {path}", status)
            found = self._document(found, status, path)
        else:
            found = self._revision(doc["_id"], doc["_rev"], largest, attachments=True)
        files = (found.get("_attachments") or {}).values()
        self._check(all(_is_object(file, {"content_type": str, "data": str}) for file in files), 200, path)
        return found

    def delete(self, doc: Doc) -> None:
        """Delete a revision, which must not be the winner: the document would be gone. Raises Unreachable."""
        if has_path(doc["_id"]):
            self.request("DELETE", f"{quote(doc['_id'], safe='')}?rev={quote(doc['_rev'])}")
        else:
            self.bulk([{"_id": doc["_id"], "_rev": doc["_rev"], "_deleted": True}])

    def revisions(self, ids: Sequence[str]) -> Dict[str, Optional[str]]:
        """Current revisions by id."""
        found = {row["key"]: (row.get("value") or {}).get("rev") for row in self._rows_of(ids)}
        return {name: found.get(name) for name in ids}

    def bulk(self, docs: Sequence[Doc]) -> Tuple[int, Dict[str, Doc]]:
        """``_bulk_docs``: the status, and the row of each document; no rows when the request was refused as a whole.

        A row with ``accepted`` was stored on too few copies: see ``Quorum``.
        """
        status, rows = self.request("POST", "_bulk_docs", {"docs": list(docs)})
        found: Dict[str, Doc] = {}
        if status in (201, 202):
            text = (str, type(None))
            found = {row["id"]: row for row in self._objects(rows, status, "_bulk_docs", id=str, rev=text, error=text)}
        if status == 202 and not any(row.get("accepted") for row in found.values()):
            found = {name: dict(row, accepted=True) for name, row in found.items()}  # it does not say which
        written = [not row.get("accepted") for row in found.values() if row.get("rev")]
        if written:
            self.quorum.note(any(written))
        return status, found

    def put_local(self, doc_id: str, doc: Doc) -> None:
        """Write a ``_local`` document, whatever is there. Raises Unreachable also when too few nodes of a cluster have it."""
        path = quote(doc_id)
        status, _ = self.request("PUT", path, doc)
        if status == 409:  # CouchDB overwrites, others want the revision
            there = self.get(path) or {}
            revision = {"_rev": there["_rev"]} if "_rev" in there else {}
            status, _ = self.request("PUT", path, dict({k: v for k, v in doc.items() if k != "_rev"}, **revision))
        if status in (201, 202):
            self.quorum.note(status == 201)
        if status != 201:
            raise Unreachable(f"{self.place} answers {status} to a write of {path}", status)

    def _view(self, view: str, query: Doc, **kinds: Any) -> List[Doc]:
        """The rows of a view. Raises Failed if there is no such view, and Unreachable for other rows than views have."""
        status, answer = self.request("GET", view, query=query)
        if status != 200:
            raise Failed(
                f"{self.place} has no view {view}. An admin creates it by `airflow-picas deploy-views`.", EX_CONFIG
            )
        return self._objects(answer.get("rows") if isinstance(answer, dict) else None, status, view, **kinds)

    def rows(self, view: str, limit: int, **query: Any) -> List[Doc]:
        """The first rows of a view, without those of documents that cannot be read. Raises Failed if there is no such view."""
        left_out = self._passed_over()
        query["limit"] = limit + len(left_out)
        rows = self._view(view, query, id=str, doc=_OR_NONE)
        self._check(all(not row.get("doc") or _is_document(row["doc"]) for row in rows), 200, view)
        return [row for row in rows if row["id"] not in left_out][:limit]

    def sum(self, view: str, **query: Any) -> int:
        """What a view reduces to. Raises Failed if there is no such view."""
        return int(sum(number(row["value"]) for row in self._view(view, query, value=(int, float))))

    def documents(self, view: str, limit: int, **query: Any) -> List[Doc]:
        """The documents of the first rows of a view, as they are now, but for those that cannot be read.

        Fewer than there are if they have more than ``BULK_BYTES`` together, but at least one.
        """
        return self.page(view, limit, **query)[0]

    def page(self, view: str, limit: int, least: int = 1, **query: Any) -> Tuple[List[Doc], Optional[str]]:
        """``documents``, at least ``least`` of them, and the id of the last row if there may be more."""
        limit = max(least, min(limit, self._page))
        while True:
            try:
                rows = self.rows(view, limit, include_docs=True, **query) if not self._passed_over() else None
                break
            except LargeAnswer:
                if limit == least:
                    rows = None
                    break
                limit = self._page = max(least, limit // 8)
            except Unreadable:
                rows = None
                break
        if rows is not None:
            docs = [row["doc"] for row in rows if row.get("doc")]
        else:
            rows = self.rows(view, limit, **query)
            docs = [doc for doc in self.read([row["id"] for row in rows]).values() if doc] if rows else []
        if docs:
            self._page = max(1, BULK_BYTES * len(docs) // max(1, self._received))
        return [doc for doc in docs if self._is_readable(doc)], rows[-1]["id"] if len(rows) == limit else None

    def leave_out(self, name: str, seconds: float, waits: bool = True) -> None:
        """Pass over a document in the rows of views, for so long; ``waits``: there may be work in it after that."""
        self._left_out[name] = time.monotonic() + seconds
        (self._waited_for.add if waits and seconds < float("inf") else self._waited_for.discard)(name)

    def leave_alone(self, name: str, why: str) -> None:
        """Pass over a document in the rows of views for as long as this pilot runs, and say why."""
        if name not in self._left_alone:
            log(f"{name} {why}: it is left alone.")
        self._left_alone.add(name)

    def left_alone(self) -> int:
        """How many documents are passed over for as long as this pilot runs."""
        return len(self._left_alone)

    def left_out(self) -> bool:
        """Whether there are documents that are passed over for some time only, and may be taken after it."""
        return any(name in self._waited_for for name in self._left_out)

    def _passed_over(self) -> Set[str]:
        now = time.monotonic()
        for name in [name for name, until in self._left_out.items() if until <= now]:
            del self._left_out[name]
        return self._left_alone.union(self._left_out)


class Backoff:
    """Growing pauses with jitter."""

    def __init__(self, first: float = 0.2, longest: float = 15.0) -> None:
        self._first, self._longest = first, longest
        self.tries = 0

    def pause(self) -> float:
        """Seconds to wait before the next try."""
        self.tries += 1
        return min(self._longest, self._first * 2.0 ** min(self.tries - 1, 20)) * random.uniform(0.5, 1.5)


# --- the states of a token: the package and the views use this one table ---------------------------------------------


class Condition(NamedTuple):
    """One comparison of a field with zero. ``parsed`` compares ``parseInt(field)`` instead of the field."""

    field: str
    operator: str
    parsed: bool = False

    def holds(self, doc: Mapping[str, Any]) -> bool:
        """Whether it holds for a document, as in JavaScript."""
        value = doc.get(self.field, MISSING)
        return _COMPARISONS[self.operator](parse_int(value) if self.parsed else value)


# The conditions of the PiCaS client's create_views.py (client 1.1.2). At most one state fits.
CONDITIONS: Dict[str, Tuple[Condition, ...]] = {
    "todo": (Condition("lock", "=="), Condition("done", "==")),
    "locked": (Condition("lock", ">"), Condition("done", "==")),
    "done": (Condition("lock", ">"), Condition("done", ">"), Condition("exit_code", "==", parsed=True)),
    "error": (Condition("lock", ">"), Condition("done", ">"), Condition("exit_code", "!=", parsed=True)),
}

MISSING: Any = object()  # JavaScript's undefined: the document has no such field


def state_of(doc: Mapping[str, Any]) -> Optional[str]:
    """The state of a token, or None for one in no state (such as ``lock = 0, done > 0``)."""
    for state, conditions in CONDITIONS.items():
        for condition in conditions:
            if not condition.holds(doc):
                break
        else:
            return state
    return None


def is_todo(doc: Doc) -> bool:
    """Whether a token waits for a pilot, as the view ``todo`` says."""
    return doc.get("type") == "token" and state_of(doc) == "todo"


def is_finished(doc: Doc) -> bool:
    """Whether a token is done or in error."""
    return state_of(doc) in ("done", "error")


def to_number(value: Any) -> float:
    """JavaScript's ``Number(value)`` for a value that came from JSON."""
    if type(value) is int:
        return _float(value)
    if value is MISSING:
        return math.nan
    if value is None:
        return 0.0
    if isinstance(value, (bool, int, float)):
        return _float(value)
    if isinstance(value, str):
        return _string_to_number(value)
    return _string_to_number(to_string(value))


def to_string(value: Any) -> str:
    """JavaScript's ``String(value)`` for a value that came from JSON."""
    if value is MISSING:
        return "undefined"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return _number_to_string(_float(value))
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return ",".join("" if item is None else to_string(item) for item in value)
    return "[object Object]"


def parse_int(value: Any) -> float:
    """JavaScript's ``parseInt(value)``; NaN when there is no leading integer."""
    if type(value) is int and abs(value) < _EXPONENT:
        return _float(value)  # as nearly all are, in every token that is read
    text = to_string(value).strip(_JS_SPACE)
    match = re.match(r"([+-]?)(0[xX])?", text)
    sign, prefix = (match.group(1), match.group(2)) if match else ("", None)
    rest = text[len(sign) + len(prefix or "") :]
    digits = re.match(r"[0-9a-fA-F]+" if prefix else r"[0-9]+", rest)
    if digits is None:
        return math.nan
    # float() of digits, as int() refuses more than 4,300 of them.
    number = _float(int(digits.group(), 16)) if prefix else float(digits.group())
    return -number if sign == "-" else number


_EXPONENT = 10**21  # from here on a number's text has one, and parseInt reads what is before it
_JS_SPACE = "\t\n\v\f\r \u00a0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff" + "".join(map(chr, range(0x2000, 0x200B)))


def equals_zero(value: Any) -> bool:
    # Loosely, as ==: null equals only null and undefined, so not 0, although Number(null) is 0.
    return value is not None and to_number(value) == 0


_COMPARISONS: Dict[str, Callable[[Any], bool]] = {
    "==": equals_zero,
    "!=": lambda value: not equals_zero(value),
    ">": lambda value: to_number(value) > 0,
}


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer beyond the range of a double is Infinity in JavaScript
        return math.inf if value > 0 else -math.inf


def _string_to_number(text: str) -> float:
    text = text.strip(_JS_SPACE)
    if not text:
        return 0.0
    prefixed = re.fullmatch(r"0(?:[xX]([0-9a-fA-F]+)|[oO]([0-7]+)|[bB]([01]+))", text)
    if prefixed:
        hexadecimal, octal, binary = prefixed.groups()
        return _float(int(hexadecimal or octal or binary, 16 if hexadecimal else 8 if octal else 2))
    if re.fullmatch(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?", text):
        return float(text)
    if re.fullmatch(r"[+-]?Infinity", text):
        return -math.inf if text[0] == "-" else math.inf
    return math.nan


def _number_to_string(number: float) -> str:
    """ECMA-262 Number::toString: plain digits from 1e-6 up to 1e21, else an exponent."""
    if math.isnan(number):
        return "NaN"
    if math.isinf(number):
        return "Infinity" if number > 0 else "-Infinity"
    if number == 0:
        return "0"
    sign = "-" if number < 0 else ""
    _, digit_tuple, exponent = Decimal(repr(abs(number))).normalize().as_tuple()
    digits = "".join(map(str, digit_tuple))
    point = len(digits) + int(exponent)
    if len(digits) <= point <= 21:
        return sign + digits + "0" * (point - len(digits))
    if 0 < point <= 21:
        return f"{sign}{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    mantissa = digits[0] + (f".{digits[1:]}" if len(digits) > 1 else "")
    return f"{sign}{mantissa}e{'+' if point > 0 else '-'}{abs(point - 1)}"


# --- tokens: pure functions of a document ---------------------------------------------------------------------------


def class_name(doc: Doc) -> str:
    """The resource class, as the view ``todo`` has it; for pools that lack that view."""

    def part(value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            return ""
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        return str(value).replace("/", "")

    return "/".join(part(doc.get(field)) for field in ("cores", "gpu", "time"))


def attempts_by_kind(doc: Doc) -> Dict[str, int]:
    """Attempts since the token was last reset by a push or a person: how many "failed", were "given back", or "reaped".

    The kind is what stands before the colon in an attempt's ``reason``; any other word says why it was reaped.
    """
    counts: Dict[str, int] = collections.Counter()
    for attempt in reversed(list_or_empty(doc.get("attempts"))):
        known = attempt if isinstance(attempt, dict) else {}
        kind = str(known.get("reason", "")).split(":")[0]
        if kind in ("pushed again", "reset"):
            break
        counts[kind if kind in ("failed", "given back") else "reaped"] += 1
        earlier = known.get("earlier")
        for kind, count in earlier.items() if isinstance(earlier, dict) else ():
            counts[kind] += int(number(count))
    return counts


def add_attempt(doc: Doc, attempt: Doc) -> List[Any]:
    """The token's attempts with one more. Of more than ten the oldest go; the first that stays tells how many of which kind."""
    attempts = [*list_or_empty(doc.get("attempts")), attempt]
    gone, kept = attempts[:-MAX_ATTEMPTS], attempts[-MAX_ATTEMPTS:]
    earlier = attempts_by_kind({"attempts": gone})
    if earlier and isinstance(kept[0], dict):
        kept[0] = dict(kept[0], earlier=dict(earlier))
    return kept


_LOG_NAME = re.compile(r"attempt-([0-9]{1,9})\.(?:out|err)\Z")


def log_number(name: str) -> int:
    """The number of the attempt whose log is attached under this name; 0 for another attachment."""
    match = _LOG_NAME.match(name)
    return int(match.group(1)) if match else 0


def attempt_number(doc: Doc) -> int:
    """The number of the token's next attempt, from 1: above all that it has a record or a log of."""
    logs = [log_number(name) for name in doc.get("_attachments") or {}]
    return max([len(list_or_empty(doc.get("attempts"))), *logs]) + 1


def held_by_pilot(doc: Doc) -> bool:
    """Whether a locked token is held by a pilot of this kind: its claim carries the time of its lock.

    A token that was reset by hand and locked by a PiCaS client may still carry the fields ``pilot`` and ``claim``.
    """
    pilot, claim = doc.get("pilot"), doc.get("claim")
    if not (pilot and isinstance(pilot, str) and isinstance(claim, str) and "lock" in doc):
        return False
    return claim.rpartition("-")[2] == str(doc["lock"])


def lock_of_claim(doc: Mapping[str, Any]) -> Optional[int]:
    """When the pilot of this kind locked the token whose claim it carries; None if it carries none."""
    claim = re.match(r"[0-9a-f]{16}-([0-9]{1,15})\Z", str(doc.get("claim")))
    return int(claim.group(1)) if claim else None


def without_leftovers(doc: Doc) -> Doc:
    """A token that waits, with what it shows of an earlier attempt of a pilot of this kind moved to its attempts.

    PiCaS's own tools, and people who edit documents, reset a token and leave our fields in it.
    """
    lock = lock_of_claim(doc)
    if lock is None:
        return doc
    fields = ("pilot", "claim", "seconds", *JOB_ID_FIELDS)
    attempt = {name: doc[name] for name in fields if doc.get(name)}
    errors = list_or_empty(doc.get("error"))
    if errors:
        attempt["error"] = (errors[-1] if isinstance(errors[-1], str) else json.dumps(errors[-1]))[:2000]
    new = {name: value for name, value in doc.items() if name not in fields}
    if "error" in doc:
        new["error"] = []
    new["attempts"] = add_attempt(doc, dict(attempt, lock=lock, reason="reset: not by this package"))
    return new


class Token:
    """A token that this pilot has claimed. ``doc`` carries the revision of the claim: the fence."""

    def __init__(self, doc: Doc) -> None:
        self.doc = doc
        self.id: str = doc["_id"]
        self.claim: str = doc["claim"]
        self.attempt = attempt_number(doc)
        self.taken = time.monotonic()
        self.lost = False

    def is_claimed_in(self, doc: Doc) -> bool:
        """Whether a document shows this claim, and no other lock: a PiCaS client that takes the token leaves the claim in it."""
        return bool(doc.get("claim") == self.claim and doc.get("lock") == self.doc["lock"])


_CHANGE: Dict[str, Any] = {  # of what types the parts of a change are that was kept in a file
    "kind": str, "token": str, "claim": str, "set": dict, "unset": list, "error": _OR_NONE, "attempt": _OR_NONE, "number": int,
    "attachments": dict,
}  # fmt: skip


class Change:
    """What is to be written into a claimed token, as data: it fits a later revision too, and can be kept in a file."""

    def __init__(
        self,
        kind: str,  # done, failed (for good), retried, given back, scrubbed (reaped), released (never started)
        token: str,
        claim: str,
        lock: Any,
        set: Doc,
        unset: Sequence[str] = (),
        error: Optional[Doc] = None,  # appended to the token's list
        attempt: Optional[Doc] = None,  # appended to the token's list; scrub_count grows by 1
        number: int = 0,  # of the attempt: logs of much earlier ones are dropped
        attachments: Optional[Dict[str, Doc]] = None,
    ) -> None:
        self.kind, self.token, self.claim, self.lock = kind, token, claim, lock
        self.set, self.unset, self.error, self.attempt = set, list(unset), error, attempt
        self.number, self.attachments = number, attachments or {}
        self.doc: Optional[Doc] = None  # latest known revision of the token

    @classmethod
    def of(cls, kind: str, doc: Doc, **parts: Any) -> "Change":
        """A change of a token as this pilot, or a dead one, claimed it."""
        change = cls(kind, doc["_id"], doc["claim"], doc["lock"], **parts)
        change.doc = doc
        return change

    def apply(self) -> Doc:
        """The latest known revision with this change."""
        doc = self.doc or {}
        new = {name: value for name, value in doc.items() if name not in self.unset}
        new.update(self.set)
        if self.error is not None:
            new["error"] = [*list_or_empty(doc.get("error"))[-19:], self.error]
        if self.attempt is not None:
            new["attempts"] = add_attempt(doc, self.attempt)
            new["scrub_count"] = int(number(doc.get("scrub_count"))) + 1
            if "error" in new:
                new["error"] = []  # the last one is in the attempt
        if "_attachments" in doc or self.attachments:
            oldest = self.number - MAX_ATTEMPTS
            kept = {name: stub for name, stub in (doc.get("_attachments") or {}).items() if self._keeps(name, oldest)}
            new["_attachments"] = dict(kept, **self.attachments)
        return new

    @staticmethod
    def _keeps(name: str, oldest: int) -> bool:
        return not 0 < log_number(name) < oldest

    def verdict(self, doc: Optional[Doc]) -> str:
        """What the current document says of this change: it "landed", may be applied ("apply"), or is "refused"."""
        if not doc:
            return "refused"
        if self.attempt is not None and self.attempt in list_or_empty(doc.get("attempts")):
            return "landed"
        if doc.get("claim") != self.claim:
            # Given back already, by this change or by somebody who reaped the token: either is what is wanted.
            given_back = is_todo(doc) and "claim" not in doc and self.set.get("lock") == 0
            return "landed" if given_back else "refused"
        final = dict({"lock": self.lock}, **self.set)
        # A PiCaS client that took the token leaves the claim in it, and may have ended in the same second.
        shown = [name for name in ("lock", "done", "exit_code", "seconds") if name in final]
        if final.get("done") and all(doc.get(name) == final[name] for name in shown):
            return "landed"
        return "apply" if doc.get("lock") == self.lock and equals_zero(doc.get("done")) else "refused"

    def verdict_of(self, branches: Sequence[Doc]) -> str:
        """The verdict of the revisions of a token in conflict, the winner first. "apply": ``doc`` is the one to write to.

        "lost": the result shows in a revision that lost against one without a result, which has to adopt it.
        """
        verdicts = [self.verdict(doc) for doc in branches]
        if "landed" in verdicts:
            if verdicts[0] == "landed" or not self.set.get("done"):
                return "landed"
            return "refused" if is_finished(branches[0]) else "lost"
        if "apply" in verdicts:
            self.doc = branches[verdicts.index("apply")]
            return "apply"
        return "refused"

    def shrink(self) -> bool:
        """Leave out a part of a change that the database refuses as it is; False if there is nothing to leave out."""
        if self.attachments:
            self.attachments = {}
            return True
        if "output" in self.set:
            del self.set["output"]
            self.kind = "failed"
            self.set["exit_code"] = EXIT_BAD_OUTPUT
            self.error = {"time": self.set.get("done"), "message": "The database refuses the token with its output."}
            return True
        return False

    def to_json(self) -> Doc:
        """The change as JSON, for a file."""
        return {name: value for name, value in vars(self).items() if name != "doc"}

    @classmethod
    def from_json(cls, values: Doc) -> "Change":
        """The change in a file. Raises ValueError or TypeError if it holds none."""
        if not isinstance(values, dict) or any(not isinstance(values.get(name), of) for name, of in _CHANGE.items()):
            raise ValueError("no change of a token")
        return cls(**values)


# --- revisions in conflict: pure functions ---------------------------------------------------------------------------


def revision_rank(doc: Doc) -> Tuple[int, str]:
    """How CouchDB ranks revisions that are in conflict. The highest wins, on all nodes the same."""
    generation, _, digest = doc["_rev"].partition("-")
    return int(generation) if re.match("[0-9]{1,18}\\Z", generation) else 0, digest


class Merger(NamedTuple):
    """How a token with revisions in conflict becomes one again.

    Only the winner is written to, and only others are deleted: whoever else does the same meanwhile, the token stays.
    """

    new: Optional[Doc]  # to be written on top of the winner before anything is deleted; None: the winner stays as it is
    source: Optional[Doc]  # the revision whose attachments ``new`` has
    losers: List[Doc]  # to be deleted


def merge(branches: Sequence[Doc], may_run: Callable[[Doc], bool]) -> Optional[Merger]:
    """What to do with revisions in conflict, the winner first; None: wait, since a pilot may run the token under one that lost.

    A result that lost is adopted, the first one if there are several. If the winner has a result, too, that one stays, which
    everybody has seen, and the other is kept as an attempt.
    """
    winner, losers = branches[0], list(branches[1:])
    results = sorted((doc for doc in losers if is_finished(doc)), key=lambda doc: number(doc.get("done")))
    if is_finished(winner):
        kept = winner
    elif results:
        kept = results[0]
    else:
        return None if any(may_run(doc) for doc in losers) else Merger(None, None, losers)
    new = dict(kept)
    if kept is not winner:
        for attempt in list_or_empty(winner.get("attempts")):
            if attempt not in list_or_empty(new.get("attempts")) and not _is_of(attempt, kept):
                new["attempts"] = add_attempt(new, attempt)
        new["scrub_count"] = max(int(number(doc.get("scrub_count"))) for doc in (kept, winner))
    for doc in results:
        if (doc.get("claim"), doc.get("done")) != (kept.get("claim"), kept.get("done")):
            new["attempts"] = add_attempt(new, _other_result(doc))
    if new == winner:
        return Merger(None, None, losers)
    return Merger(dict(new, _rev=winner["_rev"]), None if kept is winner else kept, losers)


def _is_of(attempt: Any, doc: Doc) -> bool:
    return isinstance(attempt, dict) and attempt.get("claim") == doc.get("claim")


def _other_result(doc: Doc) -> Doc:
    fields = ("lock", "hostname", "claim", "done", "exit_code", "seconds", *JOB_ID_FIELDS)
    known = {name: doc[name] for name in fields if name in doc}
    return dict(known, reason="second result: its revision lost against one with a result")


def reason_of_reaping(doc: Doc, claim: str) -> str:
    """Why a token was taken away from the pilot of this claim because that one counted as dead; empty if it was not."""
    attempts = [attempt for attempt in list_or_empty(doc.get("attempts")) if isinstance(attempt, dict)]
    reasons = [str(attempt.get("reason")) for attempt in attempts if attempt.get("claim") == claim]
    return next((reason for reason in reasons if reason.startswith("reaped:")), "")


def given_up_by_slurm(reason: str) -> bool:
    """Whether a token was reaped because Slurm said that the pilot's job has ended or was requeued: see tokens/leases.py."""
    return " has ended: " in reason or reason.endswith(" was requeued")


def release(token: Token) -> Change:
    """Give back a token that was never started: this does not count as an attempt."""
    back = {"lock": 0, "done": 0, "hostname": ""}
    return Change.of("released", token.doc, set=back, unset=("pilot", "claim", *JOB_ID_FIELDS))


def scrub(kind: str, doc: Doc, reason: str, now: int, known: Doc, **parts: Any) -> Change:
    """Give back a token that was started; ``known`` are further fields of the attempt."""
    fields = ("lock", "hostname", "pilot", "claim", *JOB_ID_FIELDS)
    attempt = {name: doc[name] for name in fields if doc.get(name)}
    attempt.update(known, done=now, reason=reason)
    back = {"lock": 0, "done": 0, "hostname": "", "exit_code": ""}
    return Change.of(kind, doc, set=back, unset=("pilot", "claim", *JOB_ID_FIELDS), attempt=attempt, **parts)


def reap(doc: Doc, cause: str, max_scrubs: int, now: int) -> Change:
    """Give back the token of a dead pilot, or put it in error when that has happened too often."""
    deaths = attempts_by_kind(doc)["reaped"]
    if deaths < max_scrubs:
        return scrub("scrubbed", doc, "reaped: " + cause, now, {"error": cause})
    message = f"Given up: {deaths + 1} pilots died or fell silent while they held it; the last time: {cause}."
    final = {"lock": 99, "done": 99, "exit_code": ""}  # as the PiCaS client's Task.error()
    return Change.of("failed", doc, set=final, unset=("pilot",), error={"time": now, "message": message})


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
    doc, kinds = token.doc, attempts_by_kind(token.doc)
    parts: Doc = {"number": token.attempt, "attachments": _logs(token.attempt, ended)}
    known: Doc = {"seconds": round(ended.seconds, 3)}
    if ended.how not in ("exit", "time limit"):
        return scrub("given back", doc, f"given back: {ended.how}", now, dict(known, error=ended.how), **parts)
    code, message = _judge(ended)
    failed = dict(known, exit_code=code, error=message)
    if code in config.stop_exit_codes and kinds["given back"] < max(1, config.max_scrubs):
        return scrub("given back", doc, f"given back: exit code {code} stops the pilot", now, failed, **parts)
    retries = min(number(doc.get("max_retries"), config.max_retries), MAX_ATTEMPTS - 1)
    if code != 0 and code not in config.no_retry_exit_codes and kinds["failed"] < retries:
        return scrub("retried", doc, f"failed: {message}", now, failed, **parts)
    final: Doc = dict(known, done=now, exit_code=code)
    if ended.has_output:
        final["output"] = ended.output
    if message:
        parts["error"] = {"time": now, "message": message}
    return Change.of("failed" if code else "done", doc, set=final, unset=("pilot",), **parts)


def _judge(ended: Ended) -> Tuple[int, str]:
    """The token's exit code, and what was wrong."""
    if ended.how == "time limit":
        return EXIT_TIME_LIMIT, f"stopped at its time limit after {ended.seconds:.1f} s"
    if ended.code == 0:
        return (EXIT_BAD_OUTPUT, ended.fault) if ended.fault else (0, "")
    last = ended.err.decode("utf-8", "replace").strip().rpartition("\n")[2][-300:]
    return ended.code, f"exit code {ended.code}" + (f": {last}" if last else "")


def _logs(attempt: int, ended: Ended) -> Dict[str, Doc]:
    return {
        f"attempt-{attempt}.{name}": {"content_type": "text/plain", "data": base64.b64encode(data).decode("ascii")}
        for name, data in (("out", ended.out), ("err", ended.err))
        if data
    }


# --- what the command sees ------------------------------------------------------------------------------------------

# Never handed on from the job's environment.
_HIDDEN = {"PICAS_HOST_URL", "PICAS_USERNAME", "PICAS_PASSWORD", "PICAS_INPUT", "PICAS_OMITTED"}


def job_environment(base: Dict[str, str], credentials: str) -> Dict[str, str]:
    """The job's environment without credentials; ``credentials`` is the folder that is dropped from PYTHONPATH."""
    env = {name: value for name, value in base.items() if name not in _HIDDEN and not name.startswith("PICAS_FIELD_")}
    hidden = os.path.realpath(credentials)
    paths = [path for path in env.pop("PYTHONPATH", "").split(os.pathsep) if path and os.path.realpath(path) != hidden]
    if paths:
        env["PYTHONPATH"] = os.pathsep.join(paths)
    return env


def token_environment(doc: Doc) -> Dict[str, str]:
    """``PICAS_TOKEN_ID``, ``PICAS_INPUT`` and the scalar fields as ``PICAS_FIELD_<NAME>``.

    What does not fit into an environment is named in ``PICAS_OMITTED``; the token's file has it.
    """
    fields: Dict[str, List[Any]] = collections.defaultdict(list)
    for name in doc:
        if name != "input" and re.match(r"[A-Za-z0-9][A-Za-z0-9_]*\Z", name):
            fields["PICAS_FIELD_" + name.upper()].append(doc[name])
    given = doc.get("input")
    nested = isinstance(given, (dict, list))
    wanted = [
        ("PICAS_TOKEN_ID", doc["_id"]),
        ("PICAS_INPUT", json.dumps(given, separators=(",", ":")) if nested else given),
        # Names that differ in case alone are ambiguous: neither is set.
        *((name, values[0]) for name, values in sorted(fields.items()) if len(values) == 1),
    ]
    env: Dict[str, str] = {}
    omitted, left = [], FIELDS_BYTES
    for name, value in wanted:
        if value is None or isinstance(value, (dict, list)):
            continue
        text = value if isinstance(value, str) else json.dumps(value)
        size = len(text.encode("utf-8", "surrogatepass"))
        if size <= min(FIELD_BYTES, left) and _fits_environment(text):
            env[name] = text
            left -= size
        else:
            omitted.append(name)
    if omitted:
        env["PICAS_OMITTED"] = " ".join(omitted)[:FIELD_BYTES]
    return env


def _fits_environment(text: str) -> bool:
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def read_json(path: str, most: int) -> Tuple[Any, bool, Optional[str]]:
    """What a command wrote: the value, whether there is one, and what is wrong with it. A missing or empty file is none."""
    name = os.path.basename(path)
    try:
        # A command may leave a pipe or a device there, which must not hang the pilot.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return None, False, f"{name} is no regular file"
            with open(descriptor, "rb", closefd=False) as file:
                data = file.read(most + 1)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return None, False, None
    except OSError as error:
        return None, False, f"{name} cannot be read: {error.strerror}"
    if len(data) > most:
        return None, False, f"{name} has more than {most:,} bytes: store large results elsewhere"
    if not data.strip():
        return None, False, None
    try:
        value = json.loads(data.decode("utf-8"))
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")  # NaN and lone surrogates are no JSON
    except (ValueError, RecursionError) as error:
        return None, False, f"{name} is no JSON: {error!s:.200}"
    if is_nested_more(value, MOST_NESTED):
        return None, False, f"{name} is nested more than {MOST_NESTED} deep"
    if LONG_INTEGER.search(data) and holds_large_integer(value):
        return None, False, f"{name} holds {TOO_LARGE_NUMBER}"
    return value, True, None


def holds_large_integer(value: Any) -> bool:
    """Whether a JSON value holds an integer that CouchDB does not store."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, (dict, list, tuple)):
            waiting += item.values() if isinstance(item, dict) else item
        elif isinstance(item, int) and abs(item) > sys.float_info.max:
            return True
    return False


def is_nested_more(value: Any, most: int) -> bool:
    """Whether more than ``most`` lists and objects are within each other."""
    level = [value]
    for _ in range(most + 1):
        level = [item for item in level if isinstance(item, (dict, list, tuple))]
        if not level:
            return False
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return True


# --- running a command ----------------------------------------------------------------------------------------------


class Processes:
    """This process's children: those that it started, and those that its commands left behind."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started: Set[int] = set()
        self._runs: Dict[int, bytes] = {}  # commands of tokens, by pid: what their environment, and no other, holds
        self._before = _children()  # what the job's setup left running, before this program took the place of its shell

    def become_subreaper(self) -> None:
        """Make this process the parent of what its commands leave behind, so that it is found. Best effort."""
        try:
            ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER, Linux alone
        except (OSError, AttributeError):
            log("No child subreaper here: what leaves its command's session may stay until the job ends.")

    def start(self, argv: Sequence[str], mark: bytes = b"", **options: Any) -> "subprocess.Popen[bytes]":
        """Start a process that is left alone until ``ended`` is called; ``mark``: of a token's command. Raises OSError."""
        options = dict({"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}, **options)
        with self._lock:
            process = subprocess.Popen(argv, **options)
            self._started.add(process.pid)
            if mark:
                self._runs[process.pid] = mark
        return process

    def ended(self, process: "subprocess.Popen[bytes]") -> None:
        """To be called before the process is waited for."""
        with self._lock:
            self._started.discard(process.pid)
            self._runs.pop(process.pid, None)
            process.wait()

    def end_orphans(self, run: int) -> None:
        """Kill what the command with this pid has left running, whatever session it is in."""
        self._end(lambda pid: self._is_of(pid, run))

    def end_all(self) -> None:
        """Kill all that commands have left running. To be called when none runs any more."""
        self._end(lambda pid: True)

    def _end(self, chosen: Callable[[int], bool]) -> None:
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            # When one is killed, its children become ours: until none is left.
            orphans = [pid for pid in self._orphans() if chosen(pid)]
            if not orphans:
                return
            for pid in orphans:
                kill_tree(pid)
            time.sleep(0.001)

    def _orphans(self) -> List[int]:
        orphans = []
        with self._lock:
            for pid in _children() - self._started:
                with suppress(ChildProcessError):
                    if os.waitpid(pid, os.WNOHANG)[0]:
                        self._before.discard(pid)
                    elif pid not in self._before:
                        orphans.append(pid)
        return orphans

    def _is_of(self, pid: int, run: int) -> bool:
        """Whether an orphan comes from this command: by its environment or session, else because it can be no other's."""
        with self._lock:
            runs, setup = dict(self._runs), bool(self._before)
        environment = _environment(pid)
        session, started = session_and_start(pid)
        owners = [other for other, mark in runs.items() if mark in environment or other == session]
        if owners:
            return run in owners
        # It has neither. Then it is older than the other commands, or of one that has ended; and no process of the setup can
        # have left it.
        return not setup and all(started < session_and_start(other)[1] for other in runs if other != run)


def _children() -> Set[int]:
    return set(children_of("self"))


def children_of(process: "Union[int, str]") -> "List[int]":
    """Pids of a process's children, as far as the kernel tells."""
    found, folder = [], f"/proc/{process}/task"
    with suppress(OSError):  # it may have ended, or one of its threads
        for task in os.listdir(folder):
            with suppress(OSError, ValueError), open(f"{folder}/{task}/children") as file:
                found += [int(pid) for pid in file.read().split()]
    return found


def kill_tree(process: int) -> None:
    """Kill a process and all below it."""
    pids = [process]
    for pid in pids:
        pids += children_of(pid)
    for pid in pids:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _environment(pid: int) -> List[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []


def session_and_start(pid: int) -> Tuple[int, int]:
    """The session of a process, and when it was started in the kernel's ticks; zeros if it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return int(fields[3]), int(fields[19])
    except (OSError, ValueError, IndexError):
        return 0, 0


def processes_of(scratch: str, inside: bool = False) -> "List[int]":
    """Processes that have it from the pilot with this scratch folder, in their environment, to run a token.

    ``inside``: also others that work in the folder.
    """
    mark, found = b"\0PICAS_TOKEN_FILE=" + os.fsencode(scratch) + b"/", []
    for name in os.listdir("/proc") if os.path.isdir("/proc") else []:
        with suppress(OSError):  # it may have ended, or be another user's
            if name.isdigit():
                with open(f"/proc/{name}/environ", "rb") as file:
                    marked = mark in b"\0" + file.read()
                if marked or (inside and (os.readlink(f"/proc/{name}/cwd") + "/").startswith(scratch + "/")):
                    found.append(int(name))
    return found


def guard(scratch: str) -> None:
    """Wait until the pilot is no more. If it was killed, kill the commands that it leaves, and remove its scratch folder.

    Runs in a process of its own, as a script of this and the functions that it needs.
    """
    if os.read(0, 1):
        return  # the pilot has ended in good order; nothing is read when it died
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        pids = processes_of(scratch)
        if not pids and not processes_of(scratch, inside=True):
            os.execvp("rm", ["rm", "-rf", "--", scratch])
        for pid in pids:
            kill_tree(pid)
        time.sleep(0.02)


def signal_group(pid: int, what: int) -> None:
    """Send a signal to a command and all that stayed in its process group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, what)


class Tail:
    """The last bytes of a stream."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._chunks: Deque[bytes] = collections.deque()
        self._kept = 0
        self._total = 0

    def add(self, data: bytes) -> None:
        """Take the next bytes."""
        self._chunks.append(data)
        self._total += len(data)
        self._kept += len(data)
        while self._chunks and self._kept - len(self._chunks[0]) >= self._most:
            self._kept -= len(self._chunks.popleft())

    def read(self, descriptor: int) -> bool:
        """Take what can be read now, at most a few pipes full; False at the end of the stream."""
        for _ in range(16):
            try:
                data = os.read(descriptor, 65536)
            except BlockingIOError:
                return True
            if not data:
                return False
            self.add(data)
        return True

    def value(self) -> bytes:
        """What is kept, after a line that says how much is not."""
        data = b"".join(self._chunks)
        if self._total <= self._most or not self._most:
            return data
        return f"[{self._total - self._most:,} bytes left out]\n".encode("ascii") + data[-self._most :]


class Run:
    """One attempt: a command with a folder, a session and an environment of its own."""

    def __init__(self, token: Token, folder: str, files: str, config: Config, processes: Processes) -> None:
        self.token = token
        self.folder = folder
        self.started = time.monotonic()
        self._files = files
        self._config = config
        self._processes = processes
        self._token_file = os.path.join(folder, "token.json")
        self._output_file = os.path.join(folder, "output.json")
        self._progress_file = os.path.join(folder, "progress.json")
        self._stop: Optional[Tuple[str, float]] = None  # why, and the seconds until SIGKILL

    def prepare(self) -> None:
        """Make the folder: the token as JSON, and links to the submission's files. Raises OSError."""
        os.mkdir(self.folder, 0o700)
        with open(self._token_file, "w") as file:
            json.dump(self.token.doc, file)
        for name in self._config.files:
            os.symlink(os.path.join(self._files, name), os.path.join(self.folder, name))

    def stop(self, why: str, grace: float) -> None:
        """End the command: SIGTERM now, SIGKILL after ``grace`` seconds. From any thread; the first reason stands."""
        first = self._stop
        self._stop = (why, grace) if first is None else (first[0], min(first[1], grace))

    @property
    def stopped(self) -> Optional[str]:
        """Why it is being stopped, or None."""
        return self._stop[0] if self._stop else None

    def progress(self) -> Any:
        """What the command says of its progress, or None."""
        return read_json(self._progress_file, PROGRESS_BYTES)[0]

    def execute(self, env: Dict[str, str]) -> Ended:
        """Run the command to its end, and end all that it leaves behind. Raises OSError if no process can be made."""
        self.started = time.monotonic()
        try:
            process = self._start(env)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ENOEXEC):
                raise
            code = 127 if error.errno in (errno.ENOENT, errno.ENOTDIR) else 126
            return Ended("exit", code, 0.0, err=f"{error}\n".encode("utf-8", "replace"))
        out, err = Tail(self._config.log_bytes), Tail(self._config.log_bytes)
        with process:
            pipes = (process.stdout, out), (process.stderr, err)
            how = self._watch(process.pid, {pipe.fileno(): tail for pipe, tail in pipes if pipe is not None})
            self._processes.ended(process)
        seconds = time.monotonic() - self.started
        code = process.returncode if process.returncode >= 0 else 128 - process.returncode  # as a shell says it
        result = read_json(self._output_file, self._config.output_bytes)
        return Ended(how, code, seconds, out.value(), err.value(), *result)

    def _start(self, env: Dict[str, str]) -> "subprocess.Popen[bytes]":
        command = self._config.command
        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        own = {
            "PICAS_TOKEN_FILE": self._token_file,
            "PICAS_OUTPUT_FILE": self._output_file,
            "PICAS_PROGRESS_FILE": self._progress_file,
            "PICAS_ATTEMPT": str(self.token.attempt),
        }
        options: Doc = {"cwd": self.folder, "stderr": subprocess.PIPE, "start_new_session": True}
        options["mark"] = b"PICAS_TOKEN_FILE=" + os.fsencode(self._token_file)
        try:
            environment = dict(env, **token_environment(self.token.doc), **own)
            return self._processes.start(argv, env=environment, **options)
        except OSError as error:
            if error.errno != errno.E2BIG:
                raise
            # The job's environment leaves no room for the token's fields.
            own.update(token_environment({"_id": self.token.id}), PICAS_OMITTED="PICAS_INPUT PICAS_FIELD_*")
            return self._processes.start(argv, env=dict(env, **own), **options)

    def _watch(self, pid: int, tails: Dict[int, Tail]) -> str:
        """Read what the command prints until it has ended; returns how. Its zombie is left, so that the pid stays its own."""
        limit = number(self.token.doc.get("time_limit"), self._config.time_limit or 0)
        how, kill_at = "exit", None
        poll, pipes, nap = select.poll(), set(tails), 0.0005
        for descriptor in tails:
            os.set_blocking(descriptor, False)
            poll.register(descriptor, select.POLLIN)
        only_killed = False  # it had no chance to end because of a signal, other than by SIGKILL
        while not _ended(pid):
            if pipes:
                for descriptor, _ in poll.poll(100):
                    if not tails[descriptor].read(descriptor):
                        poll.unregister(descriptor)
                        pipes.discard(descriptor)
            else:  # it has closed them: most end right then
                time.sleep(nap)
                nap = min(nap * 2, 0.05)
            now = time.monotonic()
            if self._stop is None and 0 < limit < now - self.started:
                self.stop("time limit", self._config.kill_after)
            # The pilot may have been frozen since: a command that has ended by itself has a result.
            if self._stop is not None and not _ended(pid):
                only_killed = self._stop[1] == 0 and (kill_at is None or only_killed)
                how, grace = self._stop
                kill_at = self._terminate(pid, kill_at, now, grace)
        if only_killed and _ended(pid) == os.CLD_EXITED:
            how = "exit"  # a moment before the signal
        signal_group(pid, signal.SIGKILL)
        self._processes.end_orphans(pid)
        for descriptor in pipes:
            tails[descriptor].read(descriptor)
        return how

    @staticmethod
    def _terminate(pid: int, kill_at: Optional[float], now: float, grace: float) -> float:
        """SIGTERM the first time, SIGKILL when it is due; returns when that is."""
        if kill_at is None and grace > 0:
            signal_group(pid, signal.SIGTERM)
        kill_at = now + grace if kill_at is None else min(kill_at, now + grace)
        if now >= kill_at:
            signal_group(pid, signal.SIGKILL)
        return kill_at


def _ended(pid: int) -> int:
    """How a child ended: CLD_EXITED or another of waitid's codes; 0 while it runs. Its zombie is left."""
    found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return found.si_code if found else 0


def remove_tree(path: str) -> None:
    """Remove a scratch folder, or what is in one, also when its owner made parts of it read-only."""
    with suppress(OSError):
        if os.path.islink(path) or not os.path.isdir(path):
            os.unlink(path)
    shutil.rmtree(path, ignore_errors=True)
    if not os.path.lexists(path):
        return
    with suppress(OSError):
        os.chmod(path, 0o700)
    for folder, inner, _ in os.walk(path):
        for name in inner:  # before os.walk lists them
            with suppress(OSError):
                if not os.path.islink(os.path.join(folder, name)):
                    os.chmod(os.path.join(folder, name), 0o700)
    shutil.rmtree(path, ignore_errors=True)
    if os.path.lexists(path):
        log(f"The scratch folder {path} cannot be removed.")


LOCK = "pilot.lock"  # file of a scratch folder, locked while its pilot lives; it holds the id of the node's boot
MOST_STALE = 50  # scratch folders of dead pilots that one pilot removes


def lock_scratch(scratch: str) -> None:
    """Lock a new scratch folder until this process ends. Raises OSError."""
    path = os.path.join(scratch, LOCK)
    # Locked before it has its name: nobody finds it without. The file stays open, so that the lock stays.
    descriptor = os.open(path + ".new", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    os.write(descriptor, _boot().encode("ascii"))
    with suppress(OSError):  # a file system without locks: then it is left alone
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(path + ".new", path)


def _boot() -> str:
    """What no other node has, nor this one after a reboot."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


def remove_stale_scratch(base: str) -> None:
    """Remove what pilots that were killed on this node have left in a folder for temporary files, unless a command uses it."""
    removed = 0
    try:
        for entry in os.scandir(base):
            if entry.name.startswith("picas-") and entry.is_dir(follow_symlinks=False) and removed < MOST_STALE:
                removed += entry.stat(follow_symlinks=False).st_uid == os.getuid() and _remove_if_stale(entry.path)
    except OSError as error:
        log(f"Scratch folders of earlier pilots below {base} cannot be found: {error}.")
    if removed:
        log(f"Removed {removed} scratch folders of pilots that were killed on this node.")


def _remove_if_stale(scratch: str) -> bool:
    path = os.path.join(scratch, LOCK)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False  # no pilot's, or one that cannot be locked
    try:
        boot = _boot()
        if not boot or os.read(descriptor, 100) != boot.encode("ascii"):
            return False  # where nodes share the file system: another node's, whose locks may not be seen here
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if processes_of(scratch, inside=True):
            return False
        for name in os.listdir(scratch):
            if name != LOCK:  # it goes last, so that the rest is found if this pilot is killed meanwhile
                remove_tree(os.path.join(scratch, name))
        remove_tree(scratch)
        return True
    except OSError:
        return False  # its pilot lives
    finally:
        os.close(descriptor)


# --- claiming, and giving back what dead pilots hold ----------------------------------------------------------------


class Identity(NamedTuple):
    """Who this pilot is."""

    pilot: str
    hostname: str
    job: Optional[str]  # as the PiCaS client writes it: ARRAYJOB_TASK in an array
    share: Tuple[int, int]  # which of how many in its job array

    @classmethod
    def here(cls) -> "Identity":
        """The identity of a new pilot in this process. A requeued job is another pilot."""
        job = os.environ.get("SLURM_JOB_ID")
        array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
        if array and task:
            job = f"{array}_{task}"
        hostname = socket.gethostname()
        name = re.sub(r"[^A-Za-z0-9._-]", "-", f"{job or os.getpid()}-{hostname.split('.')[0]}")
        count = max(1, _whole(os.environ.get("SLURM_ARRAY_TASK_COUNT"), 1))
        share = (_whole(task, 0) - _whole(os.environ.get("SLURM_ARRAY_TASK_MIN"), 0)) % count, count
        return cls(f"{name[:80]}-{uuid.uuid4().hex[:8]}", hostname, job, share)


def _whole(text: Optional[str], default: int) -> int:
    return int(text) if text and re.match("[0-9]{1,18}\\Z", text) else default


def lease_id(pilot: str) -> str:
    """The id of a pilot's lease."""
    return f"_local/picas-pilot-{pilot}"


LONGEST_LEASE = 7 * 86_400.0  # seconds; more, and pilots without a lease would be waited for as long


class Shown(NamedTuple):
    """What a lease shows: how often it was written, when last by the database's clock, and for how many seconds it holds."""

    renewals: float  # 0: by a pilot that does not count them
    renewed: float
    lease: float

    @classmethod
    def of(cls, doc: Doc, default: float) -> "Shown":
        """What the lease in a document shows; ``default``: the length of one that does not say."""
        lease = min(max(0.0, number(doc.get("lease"), default)), LONGEST_LEASE)
        return cls(number(doc.get("renewals")), number(doc.get("renewed")), lease)

    def is_newer(self, than: "Shown") -> bool:
        """Whether the pilot has written this after the other. By number: clocks step."""
        return self.renewals > than.renewals or (self.renewals == than.renewals and self.renewed != than.renewed)


class Silence:
    """The rule by which pilots count as dead that are not heard any more, for one observer: a pilot, or a wait.

    One reading of a lease proves nothing. A write that was delayed may have set it back, another copy of the database may lack
    it or have an old one, the database's clock may have stepped, or nobody could reach the database. So a pilot is dead only
    when its lease is over, and the observer has read nothing newer for more than a renewal by its own clock, in which it was in
    contact itself. Times are the observer's monotonic ones unless they are said to be the database's.

    ``default``: seconds, the lease of a pilot whose lease was never seen.
    """

    GRACE = 1.0  # seconds on top of a lease: the database's clock has whole seconds

    def __init__(self, default: float) -> None:
        self._longest = default
        self._seen: Dict[str, Tuple[Optional[Shown], float]] = {}  # the newest, and when it was first read

    def note(self, pilot: str, shown: Optional[Shown], answered: float) -> None:
        """What an answer that came at ``answered`` shows of a pilot; None: no lease."""
        newest = self._seen.get(pilot, (None, 0.0))[0]
        if shown is not None:
            self._longest = max(self._longest, shown.lease)
        if pilot not in self._seen or (shown is not None and (newest is None or shown.is_newer(newest))):
            self._seen[pilot] = (shown, answered)

    def missing(self, pilot: str, lock: float, now: float, asked: float, contact: float) -> Optional[float]:
        """Seconds until a pilot that was noted counts as dead: 0 or less when it does, None while its lease holds.

        ``lock``: when its oldest token was locked, and ``now``: when it was ``asked`` for leases, both by the database's
        clock. ``contact``: since when the observer has been in contact.
        """
        newest, first = self._seen[pilot]
        watched = asked - max(first, contact)
        if newest is None:
            # A pilot writes its lease before it claims: somebody has removed it, and it is written again at the next renewal.
            return self._longest - watched if now > lock + 2 * self._longest else None
        # A clock that was set back would keep the dead alive for long, but they have been watched for a whole lease.
        if now <= newest.renewed + newest.lease + self.GRACE and watched <= newest.lease + self.GRACE:
            return None
        return newest.lease / 2 - watched

    def heard(self, pilot: str) -> float:
        """When the newest lease of a pilot was written, by the database's clock."""
        newest = self._seen[pilot][0]
        return 0.0 if newest is None else newest.renewed

    def keep(self, pilots: Sequence[str]) -> None:
        """Forget all others."""
        self._seen = {pilot: self._seen[pilot] for pilot in pilots if pilot in self._seen}


def batch_range(batch: Optional[str]) -> Doc:
    """Limits of a batch's ids in a view that is sorted by id."""
    return {} if batch is None else {"startkey": batch + ":", "endkey": batch + ":\ufff0"}


class Conflicts:
    """Merges revisions of tokens that are in conflict, as nodes of a cluster leave them that did not see each other.

    Used by one thread. ``contact``: as for ``Reaper``; ``held``: the claims of this pilot that it has not ended.
    """

    def __init__(
        self,
        database: Database,
        config: Config,
        me: Identity,
        clock: Clock,
        contact: Callable[[], float],
        held: Callable[[], Set[str]] = set,
    ) -> None:
        self._database = database
        self._config = config
        self._me = me
        self._clock = clock
        self._contact = contact
        self._held = held
        self._silence = Silence(config.lease)

    def settle(self, branches: Sequence[Doc]) -> Optional[Doc]:
        """The token with no revisions in conflict any more. None: later. Raises Unreachable."""
        if len(branches) == 1:
            return branches[0]
        plan = merge(branches, self._may_run)
        if plan is None:
            return None
        winner = branches[0]
        if plan.new is not None:
            new = dict(plan.new)
            if plan.source is not None:
                found = self._database.with_attachments(plan.source).get("_attachments") or {}
                parts = ("content_type", "data")
                new["_attachments"] = {name: {part: file[part] for part in parts} for name, file in found.items()}
                log(
                    f"{winner['_id']}: the result of claim {new.get('claim')} lost against another revision; it is adopted."
                )
            row = self._database.bulk([new])[1].get(winner["_id"], {})
            if not row.get("rev") or row.get("accepted"):
                return None
            winner = dict(new, _rev=row["rev"])
        for doc in plan.losers:
            self._database.delete(doc)
        return winner

    def without(self, ids: Sequence[str]) -> Set[str]:
        """Which of these tokens have no revisions in conflict. Those of the others are merged if that can be done."""
        alone = set()
        for name, branches in self._database.branches(ids).items():
            if len(branches) == 1:
                alone.add(name)
            elif branches:
                self.settle(branches)  # who asks sees what has become of it the next time
        return alone

    def _may_run(self, doc: Doc) -> bool:
        """Whether a pilot may run the token under this revision."""
        if not held_by_pilot(doc):
            return False
        pilot = doc["pilot"]
        if pilot == self._me.pilot:
            return doc["claim"] in self._held()
        asked = time.monotonic()
        lease = self._database.leases([pilot]).get(pilot)
        if lease and lease.get("ended"):
            return False
        answered = time.monotonic()
        self._silence.note(pilot, Shown.of(lease, self._config.lease) if lease else None, answered)
        now, lock = self._clock.at(asked), number(doc.get("lock"))
        missing = self._silence.missing(pilot, lock, now, asked, answered - self._contact())
        return missing is None or missing > 0


Head = Tuple[
    Any, str
]  # what goes first of a class: its priority, negated (None where that is not finite), and the class


class Claims:
    """Finds tokens in state todo and claims them. Used by one thread."""

    HEADS_LAST = 1.0  # seconds for which the best priorities are taken as known
    MOST_CLASSES = 50  # whose best priorities are compared; more are looked at if none of these has a token to take
    LONGEST_CLASS = 2000  # bytes of a class in a URL
    MOST_UNSETTLED = 1000
    LOOKS = 12  # at a claim that is not to be seen, with growing pauses; one look at one that was refused as a conflict
    MOST_REFUSED = 100  # tokens that the database lets the pilot not claim, before it ever claimed one
    NOT_TODO_FOR = 2.0  # seconds for which a view may show as todo what is not, until that is stepped over
    NO_VIEWS = 60.0  # seconds for which a cluster may miss its views: a node that comes back does

    def __init__(
        self,
        database: Database,
        config: Config,
        me: Identity,
        clock: Clock,
        cluster: bool,
        conflicts: Conflicts,
    ) -> None:
        self._database = database
        self._config = config
        self._me = me
        self._clock = clock
        self.cluster = cluster
        self._heads: List[Head] = []
        self._heads_until = 0.0
        self._monitor_from = ""  # the row of Monitor/todo behind which there was a token of the wanted classes
        self._classes_after: Optional[List[Any]] = None  # where those classes begin that are not among the heads
        self._useful = False  # the present take has found a token that it may claim
        self._used_up: Set[str] = set()  # heads of which nothing is left in this pilot's share
        self._conflicts = conflicts
        self._own_views_at = 0.0  # monotonic: when they are asked for again; until then they are missing
        self._no_views_since: Optional[float] = None
        self._told: Set[str] = set()
        self._not_todo: Dict[str, Tuple[str, float]] = {}  # by token that a view shows: its revision, and since when
        self.in_flight: List[Token] = []  # a claim was sent, and whether it was carried out is not known
        self._unsettled: Dict[
            str, Unsettled
        ] = {}  # by token: claims in a cluster of which it is not known whether they stand
        # Of the candidates that the last take found: not claimed because
        self.contested = 0  # others were quicker, or enough were claimed
        self.unfit = 0  # they would not fit into the wall-clock
        self.deferred = 0  # their pilots died, and this one is not alone with them
        self.conflicts = 0  # of all claims: others were quicker
        self._claimed = False  # a claim was written
        self._refusals: Dict[str, int] = collections.Counter()  # by token
        self._refusal = ""  # the last one
        self._most = config.max_claim * config.slots  # tokens that one claim asks for, fewer while pilots collide

    def take(self, wanted: int, fits: Callable[[Doc], bool], deaths: int) -> List[Token]:
        """Claim at most ``wanted`` tokens.

        A token whose pilots have died may kill this one too. It is claimed by itself, so that others do not suffer, and
        only if no more than ``deaths`` pilots died with it. Raises Unreachable; ``in_flight`` then holds those that may
        have been claimed.
        """
        self.contested = self.unfit = self.deferred = 0
        not_todo, self._useful = 0, False
        wanted = min(wanted, self._most) if self._database.quorum.holds() else 1  # which shows whether it does again
        clean: List[Doc] = []
        suspects: List[Doc] = []
        seen: Set[str] = set()
        for docs in self._find(wanted):
            for doc in docs:
                if not is_todo(doc):
                    self._step_over(doc)
                    not_todo += 1
                    continue
                if doc["_id"] in seen or self._is_unsettled(doc["_id"]):
                    continue
                seen.add(doc["_id"])
                died = attempts_by_kind(doc)["reaped"]
                if not fits(doc):
                    self.unfit += 1
                elif not died:
                    clean.append(doc)
                elif died <= deaths:
                    suspects.append(doc)
                else:
                    self.deferred += 1
            self._useful = bool(clean or suspects or not_todo)
            if len(clean) >= wanted:
                break
        chosen = next(portions(clean[:wanted]), []) or suspects[:1]
        tokens = self._claim(chosen)
        self.contested = len(clean) + len(suspects) - len(tokens) + not_todo
        if len(tokens) < 0.5 * len(chosen):
            self._most = max(1, len(chosen) // 2)
        else:
            self._most = min(self._most * 2, self._config.max_claim * self._config.slots)
        return tokens

    def _step_over(self, doc: Doc) -> None:
        """Leave out a token that a view shows as todo although it is not, if that lasts: others may be behind it."""
        name, now = doc["_id"], time.monotonic()
        rev, since = self._not_todo.get(name, ("", now))
        if rev != doc.get("_rev"):
            since = now
        self._not_todo = dict(list(self._not_todo.items())[-1000:])
        self._not_todo[name] = (doc.get("_rev", ""), since)
        if now - since >= self.NOT_TODO_FOR:
            self._database.leave_out(name, 60.0, waits=False)
            self._tell_once(f"A view shows {name} as todo, and it is not: it is left alone.")

    def _find(self, wanted: int) -> Iterator[List[Doc]]:
        """Candidates, best priority first."""
        if time.monotonic() >= self._own_views_at:
            try:
                yield from self._find_by_priority(wanted)
                self._no_views_since = None
                return
            except Failed as error:
                self._tell_once(f"{error} Monitor/todo is used instead: priorities count only among the tokens seen.")
                self._own_views_at = time.monotonic() + (2.0 if self.cluster else 60.0)
        try:
            yield from self._find_in_monitor(wanted)
            self._no_views_since = None
        except Failed as error:
            now = time.monotonic()
            self._no_views_since = self._no_views_since or now
            if self.cluster and now - self._no_views_since < self.NO_VIEWS:
                raise Unreachable(str(error), 404) from None
            raise

    def _tell_once(self, message: str) -> None:
        if message not in self._told:
            log(message)
        self._told.add(message)

    def _find_by_priority(self, wanted: int) -> Iterator[List[Doc]]:
        while True:
            found, fresh, unreadable = False, time.monotonic() >= self._heads_until, self._database.left_alone()
            if fresh:
                self._heads, self._heads_until = self._read_heads(), time.monotonic() + self.HEADS_LAST
                self._used_up.clear()
            while True:
                for head in self._heads:
                    for docs in self._find_at(head, max(wanted, 5)):
                        found = found or bool(docs)
                        yield docs
                if self._useful or self._classes_after is None:
                    break
                self._heads = self._read_heads(self._classes_after)
            if found or (fresh and unreadable == self._database.left_alone()):
                return
            self._heads_until = 0.0  # what was best is gone, or cannot be read

    def _read_heads(self, start: Optional[List[Any]] = None) -> List[Head]:
        """The best priority (negated) of each class, best first; of ``MOST_CLASSES`` from ``start`` on."""
        batch = self._config.batch or ""
        start = start or [batch]
        heads: List[Head] = []
        seen: Set[str] = set()
        self._classes_after = None
        if self._config.classes is None:
            while True:
                rows = self._first(start, [batch, {}])
                if not rows:
                    break
                priority, name = rows[0]["key"][2], rows[0]["key"][1]
                if name in seen:
                    raise Unreachable(f"{self._database.place} answers with rows in another order than a view's", 200)
                seen.add(name)
                if len(quote(json.dumps(name))) > self.LONGEST_CLASS:
                    self._tell_once(
                        f"Tokens of class {name:.100}... are left alone: its name is too long for a request."
                    )
                    start = [batch, name[: self.LONGEST_CLASS // 40] + "\ufff0"]
                    continue
                heads.append((priority, name))
                start = [batch, name, {"\ufff0": None}]
                if len(heads) == self.MOST_CLASSES:
                    self._classes_after = start
                    break
        else:
            for name in self._config.classes:
                rows = self._first([batch, name], [batch, name, {}])
                heads += [(row["key"][2], name) for row in rows]
        random.shuffle(heads)
        for priority, name in heads:
            if number(priority, math.inf) == math.inf:
                self._tell_once(f"A token of class {name!r:.100} has a priority without a finite value: it goes last.")
        return sorted(heads, key=lambda head: number(head[0], math.inf))

    def _first(self, start: List[Any], end: List[Any]) -> List[Doc]:
        rows = self._database.rows(DESIGN + "todo", reduce=False, startkey=start, endkey=end, limit=1)
        for row in rows:
            key = row.get("key")
            if not isinstance(key, list) or len(key) < 3 or not isinstance(key[1], str):
                raise Unreachable(f"{self._database.place} answers with other rows than those of {DESIGN}todo", 200)
        return rows

    def _find_at(self, head: Head, limit: int) -> Iterator[List[Doc]]:
        """First in this pilot's share of the numbers within class and priority, then from a random one on, wrapping around.

        So pilots seldom meet: those of an array have a share each, until it is used up.
        """
        key = [self._config.batch or "", head[1], head[0]]
        place, shares = self._me.share
        if shares > 1 and repr(head) not in self._used_up:
            low, high = (number * NUMBERS // shares for number in (place, place + 1))
            found = self._todo(limit, startkey=[*key, low], endkey=[*key, high], inclusive_end=False)
            if len(found) < limit:
                self._used_up.add(repr(head))
            yield found
        start = [*key, random.randrange(NUMBERS)]
        found = self._todo(limit, startkey=start, endkey=[*key, {}])
        if len(found) < limit:
            found += self._todo(limit - len(found), startkey=key, endkey=start, inclusive_end=False)
        yield found

    def _todo(self, limit: int, **limits: Any) -> List[Doc]:
        return self._database.documents(DESIGN + "todo", reduce=False, limit=limit, **limits)

    def _find_in_monitor(self, wanted: int) -> Iterator[List[Doc]]:
        """For a pool that has PiCaS's own views alone: a random choice of the first rows.

        These views do not know of classes. Where only some are wanted, all rows are read, from where there were some the last
        time: any number of other tokens may be before them.
        """
        limit, classes = max(100, 2 * wanted), self._config.classes
        limits = batch_range(self._config.batch)
        if classes is None:
            rows = self._database.rows(MONITOR + "todo", limit=limit, **limits)
            chosen = random.sample([row["id"] for row in rows], min(len(rows), max(2 * wanted, 10)))
            docs = [doc for doc in self._database.read(chosen).values() if doc] if chosen else []
            yield sorted(docs, key=lambda doc: -number(doc.get("priority")))
            return
        place, wrapped = self._monitor_from, not self._monitor_from
        while True:
            start = {"startkey": place} if place else {}
            docs, last = self._database.page(MONITOR + "todo", limit, least=2, **dict(limits, **start))
            docs = [doc for doc in docs if class_name(doc) in classes]
            if docs:
                self._monitor_from = place
                random.shuffle(docs)
                yield sorted(docs, key=lambda doc: -number(doc.get("priority")))
            if last is None and wrapped:
                self._monitor_from = ""
                return
            if last == place:
                raise Unreachable(f"{self._database.place} answers with rows in another order than a view's", 200)
            place, wrapped, limit = last or "", wrapped or last is None, min(limit * 2, 1000)

    def _claim(self, docs: List[Doc]) -> List[Token]:
        if not docs:
            return []
        lock = int(self._clock.now())
        who: Doc = {"lock": lock, "hostname": self._me.hostname, "pilot": self._me.pilot}
        if self._me.job:
            who["slurm_job_id"] = self._me.job
        # The claim carries the time of the lock: see held_by_pilot.
        self.in_flight = tokens = [
            Token(dict(without_leftovers(doc), **who, claim=f"{uuid.uuid4().hex[:16]}-{lock}")) for doc in docs
        ]
        try:
            status, rows = self._database.bulk([token.doc for token in tokens])
        except Unreachable:
            mine = self._landed(tokens)
            if not self.cluster:
                return mine
            self._doubt(mine)  # it may be stored on too few copies
            return []
        if status == 413:
            self.in_flight = []
            return self._claim_by_halves(docs)
        if not rows:  # refused as a whole, and some may be written all the same: all are given back
            if len(tokens) == 1:
                self._refused(tokens[0].id, f"HTTP {status}", final=False)
            self._most = 1
            raise Unreachable(f"{self._database.place} answers {status} to a claim", status)
        self.in_flight = []
        mine = self._written(tokens, rows)
        if self.cluster and mine:
            return self._standing(mine)
        if status == 202 and not mine:
            raise Unreachable(f"{self._database.place} answers 202 to a claim: too few of its nodes store it", status)
        return mine

    def _claim_by_halves(self, docs: List[Doc]) -> List[Token]:
        """Claim tokens which together are too large for a request, and leave out those that are by themselves."""
        half = len(docs) // 2
        if not half:
            self._database.leave_alone(docs[0]["_id"], "is too large for the database to take a claim of it")
            return []
        mine = self._claim(docs[:half])
        try:
            return mine + self._claim(docs[half:])
        except Unreachable:
            if not mine:
                raise
            return mine  # the next claim tells whether it lasts

    def _landed(self, tokens: List[Token]) -> List[Token]:
        """The claims that were carried out although the answer was lost. The others stay in flight: they may yet be."""
        docs = self._database.read([token.id for token in tokens])
        mine = []
        for token in tokens:
            doc = docs.get(token.id)
            if doc and token.is_claimed_in(doc):
                token.doc["_rev"] = doc["_rev"]
                mine.append(token)
        self.in_flight = [token for token in tokens if token not in mine]
        return mine

    def _written(self, tokens: List[Token], rows: Dict[str, Doc]) -> List[Token]:
        """The claims that were written safely, by the rows of the answer."""
        mine = []
        for token in tokens:
            row = rows.get(token.id, {})
            if row.get("rev"):
                token.doc["_rev"] = row["rev"]
                if row.get("accepted"):
                    self._doubt([token])
                else:
                    mine.append(token)
            elif row.get("error") == "conflict":
                self.conflicts += 1
                if self.cluster:  # one node may have stored it, and then it may win
                    self._doubt([token], beaten=True)
            else:
                error = str(row.get("error"))
                final = error in ("forbidden", "unauthorized")
                self._refused(token.id, f"{error}: {row.get('reason')}", final)
        self._claimed = self._claimed or bool(mine)
        if not self._claimed and len(self._refusals) >= self.MOST_REFUSED:
            raise Failed(self.refusal(), EX_NOPERM)
        return mine

    def _refused(self, name: str, why: str, final: bool) -> None:
        """Leave out a token that the database does not let this pilot claim: for good, or for a while and then try again."""
        self._refusals[name] += 1
        self._refusal = why
        final = final or self._refusals[name] >= 3
        self._database.leave_out(name, float("inf") if final else 20.0)
        if len(self._told) < 100 and why not in self._told:
            self._told.add(why)
            log(f"The database does not let this pilot claim {name} ({why:.500}). It goes on with others.")

    def refusal(self) -> str:
        """Why not a single token could be claimed, if so."""
        if self._claimed or not self._refusals:
            return ""
        return (
            f"{self._database.place} lets this login claim no token ({self._refusal:.500})."
            " Ask who keeps the database for the right to write"
        )

    # In a cluster two nodes may both accept a claim. One of the revisions wins, everywhere the same, once the nodes have told
    # each other. After an answer of 202, a lost one, or a conflict, nothing is written to the token until writes reach most of
    # its copies again, and it was read from them: a claim that lost is deleted then, and one that won is written once more.

    def _doubt(self, tokens: Sequence[Token], beaten: bool = False) -> None:
        for token in tokens:
            if token.id not in self._unsettled or not beaten:
                self._unsettled[token.id] = Unsettled(token, beaten)
        for name in list(self._unsettled)[: -self.MOST_UNSETTLED]:
            del self._unsettled[name]

    def total(self) -> Optional[int]:
        """How many tokens a copy of the database holds, in whatever state; None if the views do not tell."""
        try:
            return self._database.sum(DESIGN + "counts", **self._keys())
        except Failed:
            return None

    def _keys(self) -> Doc:
        batch = self._config.batch
        return {} if batch is None else {"startkey": [batch], "endkey": [batch, {}]}

    def _is_unsettled(self, name: str) -> bool:
        return name in self._unsettled and not self._unsettled[name].beaten

    def unsettled(self) -> bool:
        """Whether there are claims that may yet turn out to stand."""
        return any(not entry.beaten and entry.seen for entry in self._unsettled.values())

    def settle(self) -> List[Token]:
        """Look again at claims of which it is not known whether they stand. Those that do. Raises Unreachable."""
        now = time.monotonic()
        due = [entry for entry in self._unsettled.values() if now >= entry.next_look][:200]
        if not due or not self._database.quorum.holds():
            return []
        branches = self._database.branches([entry.token.id for entry in due])
        won = []
        for entry in due:
            stands = self._stands(entry.token, branches.get(entry.token.id, []), entry)
            entry.looked()
            if stands:
                won.append(entry.token)
            elif stands is False or (not entry.seen and entry.looks >= (1 if entry.beaten else self.LOOKS)):
                self._unsettled.pop(entry.token.id, None)
        return self._claim_again(won)

    def _claim_again(self, tokens: List[Token]) -> List[Token]:
        """Write claims again that won. What is read after that has come from the copies that hold them."""
        if not tokens:
            return []
        rows = self._database.bulk([token.doc for token in tokens])[1]
        safe = []
        for token in tokens:
            row = rows.get(token.id, {})
            if row.get("rev"):
                token.doc["_rev"] = row["rev"]
                if not row.get("accepted"):
                    safe.append(token)
        return self._standing(safe)

    def _standing(self, mine: List[Token]) -> List[Token]:
        """Those of these claims, which were written safely, that stand. Raises Unreachable: they are looked at again then."""
        self._doubt(mine)
        branches = self._database.branches([token.id for token in mine])
        standing = []
        for token in mine:
            stands = self._stands(token, branches.get(token.id, []), self._unsettled[token.id])
            if stands is not None:
                del self._unsettled[token.id]
            if stands:
                standing.append(token)
        return standing

    def _stands(self, token: Token, branches: List[Doc], entry: "Unsettled") -> Optional[bool]:
        """Whether a claim that was not started stands among the revisions of the token; None: not known yet."""
        place = next((place for place, doc in enumerate(branches) if token.is_claimed_in(doc)), None)
        entry.seen = place is not None
        if place is None:
            return None
        if place > 0:
            self._database.delete(branches[place])  # another one won
            return False
        doc = self._conflicts.settle(branches)
        if doc is None:
            entry.beaten = False  # whoever runs it under another revision will have ended one day
            return None
        token.doc["_rev"] = doc["_rev"]
        return token.is_claimed_in(doc) and not is_finished(doc)


class Unsettled:
    """A claim of which it is not known whether it stands, and when to look again."""

    def __init__(self, token: Token, beaten: bool) -> None:
        self.token = token
        self.beaten = beaten  # it was refused as a conflict
        self.seen = not beaten  # among the token's revisions, when last looked at
        self.looks = 0
        self._pause = Backoff(1.0, 60.0)
        self.next_look = time.monotonic() + (1.0 if beaten else 0.0)  # the nodes tell each other within moments

    def looked(self) -> None:
        """It is looked at now."""
        self.looks += 1
        self.next_look = time.monotonic() + (self._pause.pause() if not self.seen else 2.0)


class Reaper:
    """Finds locked tokens whose pilots are dead. Used by one thread."""

    PAGE = 500  # tokens read in one request
    PAGES = 4  # requests in one round; the next round goes on from there

    def __init__(
        self,
        database: Database,
        config: Config,
        me: Identity,
        clock: Clock,
        contact: Callable[[], float],
        conflicts: Optional[Conflicts] = None,
    ) -> None:
        """``contact``: tells since how many seconds this pilot could do what it expects of others."""
        self._database = database
        self._config = config
        self._me = me
        self._clock = clock
        self._contact = contact
        self._conflicts = conflicts or Conflicts(database, config, me, clock, contact)
        self._silence = Silence(config.lease)
        self._read_next: Dict[str, float] = {}  # when the lease of a living pilot is to be read again (monotonic)
        self._met: Set[str] = set()  # pilots that held tokens since the first one was looked at
        self._skip = 0  # locked tokens that were looked at since the first one was
        self._living_then = True  # whether living pilots held tokens when all had been looked at; not known yet
        self._living_since = False  # and among those since

    def reap(self, but: Sequence[str] = ()) -> Tuple[int, bool]:
        """Give back the tokens of dead pilots, but these. How many, and whether living pilots hold others. Raises Unreachable."""
        total = 0
        for _ in range(self.PAGES):
            docs, more = self._locked()
            reaped, living = self._reap_among([doc for doc in docs if doc["_id"] not in but])
            total += reaped
            self._living_since = self._living_since or living
            self._skip += len(docs) - reaped
            if not more:
                self._skip, self._living_then, self._living_since = 0, self._living_since, False
                self._silence.keep(list(self._met))
                self._read_next = {name: at for name, at in self._read_next.items() if name in self._met}
                self._met = set()
                break
        return total, self._living_then or self._living_since

    def _reap_among(self, locked: List[Doc]) -> Tuple[int, bool]:
        docs = [doc for doc in locked if held_by_pilot(doc) and doc["pilot"] != self._me.pilot]
        # The tokens are read before the leases: a pilot renews before it claims, so an expired lease covers them.
        oldest: Dict[str, float] = {}
        for doc in docs:
            oldest[doc["pilot"]] = min(number(doc.get("lock")), oldest.get(doc["pilot"], float("inf")))
        self._met.update(oldest)
        asked = time.monotonic()
        judged = [pilot for pilot in oldest if asked >= self._read_next.get(pilot, 0)]
        leases = self._database.leases(judged)
        causes = {pilot: self._death(pilot, oldest[pilot], leases.get(pilot), asked) for pilot in judged}
        now = int(self._clock.now())
        dead = [(doc, causes.get(doc["pilot"])) for doc in docs]
        alone = self._conflicts.without([doc["_id"] for doc, cause in dead if cause])
        changes = [
            reap(doc, cause, self._config.max_scrubs, now) for doc, cause in dead if cause and doc["_id"] in alone
        ]
        rows = self._write(changes)
        reaped = [change for change in changes if rows.get(change.token, {}).get("rev")]
        for change in reaped:
            why = change.attempt["reason"] if change.attempt else (change.error or {}).get("message")
            log(f"{change.token}: {why}")
        return len(reaped), len(reaped) < len(docs)

    def _write(self, changes: List[Change]) -> Dict[str, Doc]:
        """The rows of what was written. What is too large for a request goes by halves, until what is so by itself is left."""
        if not changes:
            return {}
        half = len(changes) // 2
        docs = [change.apply() for change in changes]
        if not half or sum(map(size_of, docs)) <= BULK_BYTES:
            status, rows = self._database.bulk(docs)
            if status != 413:
                return rows
        if not half:
            self._database.leave_alone(changes[0].token, "is too large to be given back")
            return {}
        return dict(self._write(changes[:half]), **self._write(changes[half:]))

    def _locked(self) -> Tuple[List[Doc], Optional[str]]:
        """A page of locked tokens, and whether there are more."""
        # Where others give tokens back meanwhile, some are passed over until all are looked at again.
        query = {"limit": self.PAGE, "skip": self._skip}
        if self._config.batch is not None:
            with suppress(Failed):  # no such view: see Monitor
                key = [self._config.batch, "locked"]
                return self._database.page(DESIGN + "counts", reduce=False, key=key, **query)
        with suppress(Failed):
            return self._database.page(MONITOR + "locked", **batch_range(self._config.batch), **query)
        return [], None

    def _death(self, pilot: str, lock: float, lease: Optional[Doc], asked: float) -> Optional[str]:
        """Why a pilot counts as dead, or None. ``lock``: of its oldest token; ``asked``: when its lease was, monotonic."""
        answered = time.monotonic()
        known = lease or {}
        who = f"pilot {pilot} (job {known.get('job')} on {known.get('hostname')})"
        if known.get("ended"):
            return f"{who} has ended"
        shown = Shown.of(known, self._config.lease) if lease else None
        self._silence.note(pilot, shown, answered)
        now = self._clock.at(asked)
        missing = self._silence.missing(pilot, lock, now, asked, answered - self._contact())
        if missing is None:
            # Not at each round, but soon enough to have read its last lease long before that is over.
            self._read_next[pilot] = answered + (shown.lease if shown else self._config.lease) / 6
        if missing is None or missing > 0:
            return None
        return (
            f"{who} was not heard for {now - self._silence.heard(pilot):.0f} s"
            if lease
            else f"pilot {pilot} has no lease"
        )


# --- reporting ------------------------------------------------------------------------------------------------------


def _names(folder: str, pattern: str) -> List[str]:
    """What in a folder has such a name, sorted; nothing if it cannot be read."""
    try:
        return sorted(name for name in os.listdir(folder) if re.match(pattern, name, re.DOTALL))
    except OSError:
        return []


def earlier_submissions(folder: str) -> List[str]:
    """The folders of earlier submissions of the same task: they lie beside this one, with another number at the end."""
    base, name = os.path.split(folder)
    key = re.match(r"(.+\.)[0-9]+\Z", name)
    names = _names(base, re.escape(key.group(1)) + r"[0-9]+\Z") if key else []
    return [os.path.join(base, other) for other in names if other != name]


class Outbox:
    """Files in the submission's folder: ``unsent/`` for the next pilot or the wait to send, ``refused/`` as a record."""

    def __init__(self, folder: str, database: str) -> None:
        self._folder = folder
        self._database = database
        self._earlier = earlier_submissions(folder)
        self._told: Set[str] = set()  # what was said of files that stay
        self._records = Background("records", self._record)
        self.left: List[str] = []  # tokens whose results are known, and could not be sent the last time

    def keep(self, change: Change, kind: str = "unsent") -> None:
        """Write a change to a file of its own. Raises OSError."""
        folder = os.path.join(self._folder, kind)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        name = re.sub(r"^\.", "%2E", quote(change.token, safe=""))  # not hidden
        if len(name) > 150:
            name = name[:100] + hashlib.sha256(change.token.encode("utf-8")).hexdigest()
        descriptor, temporary = tempfile.mkstemp(prefix=".", dir=folder)
        try:
            with open(descriptor, "w") as file:
                json.dump({"format": 1, "database": self._database, "change": change.to_json()}, file)
                file.flush()
                os.fsync(descriptor)
            os.rename(temporary, os.path.join(folder, f"{name}-{quote(change.claim, safe='')}.json"))
        except Exception:
            with suppress(OSError):
                os.unlink(temporary)
            raise

    def record(self, change: Change) -> None:
        """Keep a change that was refused, soon. Never blocks, nor fails."""
        if change.kind != "released":  # a token that was never started has no result
            self._records.add(change)

    def flush(self, seconds: float) -> None:
        """Wait until what was refused is kept, at most this long."""
        if not self._records.flush(seconds):
            log(f"Refused results cannot be kept in {self._folder}/refused: writing there takes too long.")

    def _record(self, changes: List[Change], _left_out: int) -> None:
        for change in changes:
            try:
                self.keep(change, "refused")
            except Exception as error:  # of whatever kind: the others must not be lost with it
                log(f"The refused result of {change.token} cannot be kept: {error}.")

    def send(self, database: Database) -> int:
        """Send what earlier pilots could not; returns how many tokens show it now. Raises Unreachable if nobody answers."""
        sent, self.left = 0, []
        for path in self._unsent():
            change = self._read(path)
            if change is None:
                continue
            if not database.quorum.holds():  # what is read may be what one node alone knows
                self.left.append(change.token)
                continue
            try:
                verdict = self._send_one(database, change)
            except Unreachable as error:
                if not error.status:
                    raise
                self.left.append(change.token)  # the others may fare better
                self._tell_once(f"{path} waits: {error}.")
                continue
            what = "release" if change.kind == "released" else "result"
            log(f"A {what} of {change.token} that an earlier pilot could not send: {verdict}.")
            with suppress(OSError):
                if verdict == "refused" and change.kind != "released":
                    self.keep(change, "refused")
                os.unlink(path)
            sent += verdict == "landed"
        return sent

    def _unsent(self) -> Iterator[str]:
        for folder in [self._folder, *self._earlier]:
            unsent = os.path.join(folder, "unsent")
            yield from (
                os.path.join(unsent, name) for name in _names(unsent, r".*\.json\Z")
            )  # temporary ones have no such end

    def _read(self, path: str) -> Optional[Change]:
        """The change in a file; None if it is gone or no result for this database."""
        try:
            with open(path) as file:
                content = json.load(file)
            change = Change.from_json(content["change"])
            return change if content["database"] == self._database else None
        except FileNotFoundError:
            return None  # another pilot sent it
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            self._tell_once(f"{path} holds no result: {error}.")
            return None

    def _tell_once(self, message: str) -> None:
        if message not in self._told:
            log(message)
        self._told.add(message)

    @staticmethod
    def _send_one(database: Database, change: Change) -> str:
        for _ in range(10):
            branches = database.branches([change.token])[change.token]
            verdict = change.verdict_of(branches)
            if verdict == "lost":
                raise Unreachable("its token has revisions in conflict, of which another one shows", 409)
            if verdict != "apply":
                return verdict
            _, rows = database.bulk([change.apply()])
            row = rows.get(change.token, {})
            if row.get("accepted"):
                raise Unreachable(f"{database.place} answers 202: too few of its nodes store it", 202)
            if row.get("rev"):
                return "landed"
            if not rows and not change.shrink():
                break
        return "refused"


class Reporter(threading.Thread):
    """Writes changes into tokens, several in one request when they come fast. Never drops one."""

    def __init__(
        self, database: Database, outbox: Outbox, settled: Callable[[Change, str], None], conflicts: Conflicts
    ) -> None:
        super().__init__(name="reporter", daemon=True)
        self._database = database
        self._conflicts = conflicts
        self._outbox = outbox
        self._settled = settled
        self._changed = threading.Condition()
        self._queue: Deque[Change] = collections.deque()
        self._sending: Dict[str, Change] = {}  # by claim
        self._unsafe: Dict[
            str, Change
        ] = {}  # by claim: stored on too few copies, to be read again when writes are safe
        self._closed = False
        self._more = False
        self.gather = 0.0  # seconds

    def put(self, change: Change, more: bool = False) -> None:
        """Write this change: as soon as may be, or with those that are gathered if ``more`` are to come."""
        with self._changed:
            self._queue.append(change)
            self._more = more
            if not more or len(self._queue) == 1:  # else it gathers
                self._changed.notify_all()

    def pending(self) -> int:
        """Changes that are not known to be written."""
        with self._changed:
            return len(self._queue) + len(self._sending) + len(self._unsafe)

    def claims(self) -> Set[str]:
        """The claims whose changes are not known to be written."""
        with self._changed:
            return {change.claim for change in [*self._queue, *self._sending.values(), *self._unsafe.values()]}

    def close(self) -> List[Change]:
        """Stop. Returns what is not known to be written."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            return [*self._unsafe.values(), *self._sending.values(), *self._queue]

    def run(self) -> None:
        """Write until closed."""
        while not self._closed:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._queue) or self._closed, 1.0 if self._unsafe else None)
                self._changed.wait_for(lambda: not self._more or self._closed, self.gather)
                if self._unsafe and self._database.quorum.holds():
                    self._sending.update(self._unsafe)
                    self._unsafe.clear()
            self._send()

    def _fill(self) -> None:
        size = 0
        with self._changed:
            while self._queue and len(self._sending) < 200 and size < BULK_BYTES and not self._closed:
                change = self._queue.popleft()
                size += sum(len(attachment["data"]) for attachment in change.attachments.values())
                size += size_of(change.doc or {}) + size_of(change.set)
                self._sending[change.claim] = change

    def _send(self) -> None:
        """Until all are written. One at a time after a failure: it may lie in one of them, which the others must not wait for."""
        backoff, alone, fault = Backoff(longest=5.0), False, ""
        self._fill()
        while self._sending and not self._closed:
            before = len(self._sending)
            changes = list(self._sending.values())[: 1 if alone else None]
            try:
                alone = self._send_once(changes, alone)
            except Unreachable as error:
                if backoff.tries == 0:
                    log(f"{error}; {len(self._sending)} results wait.")
                alone = self._put_behind(changes) if error.status else alone
            except Exception:  # a fault of this program must not lose results: they stay, and are tried again
                if traceback.format_exc() != fault:
                    fault = traceback.format_exc()
                    log("The reporter failed:", fault)
                alone = self._put_behind(changes)
            if len(self._sending) < before:
                backoff = Backoff(longest=5.0)
            elif not self._closed:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed, backoff.pause())
            if self._sending:
                self._fill()  # else they are gathered first: several results make one request

    def _put_behind(self, changes: List[Change]) -> bool:
        with self._changed:
            for change in changes:
                if self._sending.pop(change.claim, None):
                    self._sending[change.claim] = change
        return True

    def _send_once(self, changes: List[Change], alone: bool) -> bool:
        """Try to write these; returns whether to go on one by one."""
        for change, verdict in self._judge_again([change for change in changes if change.doc is None]):
            self._settle(change, verdict)
        changes = [change for change in changes if change.claim in self._sending]
        if not changes:
            return alone
        status, rows = self._database.bulk([change.apply() for change in changes])
        if not rows and alone:
            log(f"The database refuses the result of {changes[0].token} ({status}).")
            if not changes[0].shrink():
                self._settle(changes[0], "refused")
        for change in changes:
            row = rows.get(change.token, {})
            if row.get("accepted"):
                self._put_off(change)
            elif row.get("rev"):
                self._settle(change, "landed")
            elif row.get("error") == "forbidden":
                log(f"The database forbids the result of {change.token}: {row.get('reason')}.")
                self._settle(change, "refused")
            else:
                change.doc = None  # a conflict, or it may have been written: read again
        return alone or not rows

    def _judge_again(self, changes: List[Change]) -> List[Tuple[Change, str]]:
        """Read tokens again. Those that show the change already, or belong to others now, with the verdict."""
        found = self._database.branches([change.token for change in changes])
        settled = []
        for change in changes:
            branches = found.get(change.token, [])
            verdict = change.verdict_of(branches)
            if len(branches) > 1 and verdict != "apply" and self._database.quorum.holds():
                doc = self._conflicts.settle(branches)
                verdict = change.verdict_of([doc]) if doc else verdict
            if verdict == "lost" or (verdict == "landed" and not self._database.quorum.holds()):
                self._put_off(change)
            elif verdict != "apply":
                settled.append((change, verdict))
        return settled

    def _put_off(self, change: Change) -> None:
        """Look at the token again when writes reach most of its copies. Until then nothing more is written to it."""
        change.doc = None
        with self._changed:
            if self._sending.pop(change.claim, None):
                self._unsafe[change.claim] = change
                if len(self._unsafe) == 1:
                    log(
                        f"The result of {change.token} is stored on too few of the database's nodes: it is read again later."
                    )

    def _settle(self, change: Change, verdict: str) -> None:
        if verdict == "refused":
            self._outbox.record(change)
        with self._changed:
            self._sending.pop(change.claim, None)
        self._settled(change, verdict)


# --- what the threads share -----------------------------------------------------------------------------------------

GO, DRAIN, STOP = 0, 1, 2  # claim and run; finish what runs; kill what runs


class Work:
    """The tokens that the pilot holds, how long they take, and whether to go on. All threads use it, under its lock."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.changed = threading.Condition()
        self.ready: Deque[Token] = collections.deque()  # claimed, not started
        self.runs: Dict[str, Run] = {}  # by claim
        self.level = GO
        self.why = ""
        self.code = EX_OK
        self.stopping = threading.Event()  # set when what runs is to be killed
        self.counts: Dict[str, int] = collections.Counter()
        self._seconds: Deque[float] = collections.deque(maxlen=50)
        self._mean: Optional[float] = None

    def stop(self, level: int, why: str, code: int = EX_OK) -> None:
        """Drain or stop. A stop goes before a drain, else the first reason stands."""
        with self.changed:
            if level <= self.level:
                return
            log(f"{'Stops' if level == STOP else 'Takes no more tokens'}: {why}.")
            self.level, self.why, self.code = level, why, self.code or code
            if level == STOP:
                self.stopping.set()
            self.changed.notify_all()

    def wait(self, seconds: float, until: Callable[[], bool] = lambda: True) -> None:
        """So long, or until something changes and ``until`` holds, or the pilot is to end."""
        deadline = time.monotonic() + seconds
        with self.changed:
            while self.level == GO:
                left = deadline - time.monotonic()
                if left <= 0 or (self.changed.wait(left) and until()):
                    return

    def pause(self, seconds: float) -> None:
        """So long, unless the pilot is to end."""
        self.wait(seconds, until=lambda: False)

    def add(self, tokens: List[Token]) -> None:
        """Tokens that were claimed."""
        with self.changed:
            self.ready.extend(tokens)
            self.changed.notify_all()

    def next_run(self, make: Callable[[Token], Run]) -> Optional[Run]:
        """The next token, made into a run; None when no more are to be started. Waits."""
        with self.changed:
            while not self.ready and self.level == GO:
                self.changed.wait()
            if self.level != GO:
                return None
            run = make(self.ready.popleft())
            self.runs[run.token.claim] = run
            return run

    def finish(self, run: Run, change: Optional[Change], reporter: Reporter) -> None:
        """A run has ended: from here on its token is the reporter's."""
        with self.changed:
            if change is not None:
                reporter.put(change, more=bool(self.ready))
            del self.runs[run.token.claim]
            self.changed.notify_all()

    def learn(self, seconds: float) -> float:
        """How long a command took; returns the moving mean."""
        with self.changed:
            self._seconds.append(seconds)
            self._mean = seconds if self._mean is None else 0.7 * self._mean + 0.3 * seconds
            return self._mean

    def expected(self) -> float:
        """Seconds that nine of ten tokens needed lately, 0 if none has ended."""
        with self.changed:
            seen = sorted(self._seconds)
        return seen[int(0.9 * (len(seen) - 1))] if seen else 0.0

    def wanted(self) -> int:
        """How many tokens to claim now. Short ones are fetched ahead."""
        slots, now = self._config.slots, time.monotonic()
        with self.changed:
            ready, running = len(self.ready), [now - run.started for run in self.runs.values()]
            mean = self._mean
        free = max(0, slots - len(running) - ready)
        if mean is None or mean > WORK_A_CLAIM or (len(running) >= slots and min(running) > max(1.0, 2 * mean)):
            return free  # the next ones may be as long: none is claimed before it can start
        target = min(self._config.max_claim, int(WORK_A_CLAIM / max(mean, 0.001))) * slots
        return target - ready if ready <= target // 3 else free

    def deaths_allowed(self, pending: int) -> int:
        """How many pilots may have died with a token that is claimed now; ``pending`` results would be lost with this one.

        After one death, which may have been the node's, a token may run beside others; after more, all by itself.
        """
        with self.changed:
            if self.ready or pending or len(self.runs) >= self._config.slots:
                return 0
            return 1 if self.runs else sys.maxsize

    def stale(self, all_of_them: bool) -> List[Token]:
        """Take out the tokens that wait behind longer work, or all that were not started."""
        now = time.monotonic()
        with self.changed:
            stale = [token for token in self.ready if all_of_them or now - token.taken > STALE]
            for token in stale:
                self.ready.remove(token)
        return stale

    def held(self) -> List[Token]:
        """Tokens that are claimed and not yet the reporter's."""
        with self.changed:
            return [*self.ready, *(run.token for run in self.runs.values())]

    def lose(self, token: Token, how: str) -> None:
        """Stop work on a token that somebody else has taken: its result would be refused."""
        with self.changed:
            run = self.runs.get(token.claim)
            if token in self.ready:
                self.ready.remove(token)
            elif run is None:
                return
            else:
                run.stop("lost", 0)
            token.lost = True
            self.counts["lost"] += 1
        log(f"Token {token.id} {how}: work on it stops.")

    def settled(self, change: Change, verdict: str) -> None:
        """Called by the reporter for each change that was written, or refused."""
        with self.changed:
            if verdict == "landed":
                self.counts[change.kind] += 1
            elif change.kind != "released":
                self.counts["refused"] += 1
                log(f"The result of {change.token} is refused: the token was taken away or deleted.")
            self.changed.notify_all()

    def activity(self) -> Doc:
        """What the pilot does, for its lease."""
        with self.changed:
            runs = list(self.runs.values())
            state = ("working" if runs else "idle", "draining", "stopping")[self.level]
            counts = {name.replace(" ", "_"): count for name, count in self.counts.items() if count}
            waiting = len(self.ready)
        running: Dict[str, Doc] = {}
        for run in runs:
            running[run.token.id] = {"seconds": int(time.monotonic() - run.started)}
            progress = run.progress()
            if progress is not None:
                running[run.token.id]["progress"] = progress
        return {"state": state, "running": running, "waiting": waiting, "counts": counts}


# --- threads --------------------------------------------------------------------------------------------------------


class Lease(threading.Thread):
    """Renews the pilot's lease by the database's clock, sees the drain flag, and tokens that were taken away."""

    def __init__(self, database: Database, config: Config, me: Identity, clock: Clock, work: Work) -> None:
        super().__init__(name="lease", daemon=True)
        self._database = database
        self._config = config
        self._me = me
        self._clock = clock
        self._work = work
        self._renewals = 0  # how often that was tried
        self._renewed_at: Optional[float] = None
        self._secured = True  # False after a late renewal, until the tokens are known to be this pilot's still
        self._in_time_since = 0.0  # since when no renewal was late
        self._ended = threading.Event()

    def valid(self) -> bool:
        """Whether others must still believe that this pilot lives, with some room."""
        room = min(5.0, 0.15 * self._config.lease)
        return (
            self._secured
            and self._renewed_at is not None
            and time.monotonic() - self._renewed_at < self._config.lease - room
        )

    def contact(self) -> float:
        """Seconds since which this pilot has renewed its lease in time, as it expects it of others; 0 when it is late itself."""
        now, renewed_at = time.monotonic(), self._renewed_at
        return now - self._in_time_since if renewed_at is not None and self._in_time(now, renewed_at) else 0.0

    def _in_time(self, now: float, renewed_at: float) -> bool:
        return now - renewed_at <= self._config.lease / 2

    def renew(self, ended: bool = False) -> None:
        """Write the lease. Raises Unreachable, also when too few nodes of a cluster have it: others may not see it then."""
        started = time.monotonic()
        self._renewals += 1
        lease = {
            "pilot": self._me.pilot,
            "submission": self._config.submission,
            "job": self._me.job,
            "hostname": self._me.hostname,
            "renewed": int(self._clock.now()),
            "renewals": self._renewals,  # a late write of an older lease shows by it
            "lease": self._config.lease,
            "ended": ended,
            # Nodes of a cluster find out by the revision which of them has the newest lease. It is compared as text, so its
            # length must not change.
            "_rev": f"0-{FIRST_REVISION + self._renewals}",
        }
        self._database.put_local(lease_id(self._me.pilot), dict(lease, **self._work.activity()))
        if self._renewed_at is not None and not self.valid():
            self._secured = False
        if self._renewed_at is None or not self._in_time(started, self._renewed_at):
            self._in_time_since = time.monotonic()
        self._renewed_at = started

    def run(self) -> None:
        """Renew every third of a lease, more often while the database does not answer."""
        third = self._config.lease / 3
        longest = min(5.0, third / 2)  # after an outage it is to be back before others judge it
        backoff, pause = Backoff(0.5, longest), third * random.uniform(0.5, 1)  # those that start together spread out
        while not self._ended.wait(pause):
            try:
                self.renew()
                if not self._secured:
                    self._write_tokens_again()
                self._look()
                self._secured = True
                # A renewal that took too long, as when the pilot was frozen meanwhile, is repeated at once.
                backoff, pause = Backoff(0.5, longest), third if self.valid() else 0.0
            except Unreachable as error:
                if backoff.tries == 0:
                    log(f"The lease cannot be renewed: {error}.")
                pause = backoff.pause()
            except Exception:
                log("The lease's thread failed:", traceback.format_exc())
                pause = backoff.pause()

    def _write_tokens_again(self) -> None:
        """Give the tokens that are still this pilot's a new revision: whoever saw its old lease can reap them no more.

        Raises Unreachable when one of them cannot be written.
        """
        tokens = {token.id: token for token in self._work.held()}
        docs = self._database.read(list(tokens)) if tokens else {}
        mine = [doc for name, doc in docs.items() if doc and tokens[name].is_claimed_in(doc)]
        for some in portions(mine):
            status, rows = self._database.bulk(some)
            for doc in some:
                revision = rows.get(doc["_id"], {}).get("rev")
                if status != 201 or not revision:
                    raise Unreachable(f"{self._database.place} did not take token {doc['_id']} ({status})", status)
                tokens[doc["_id"]].doc["_rev"] = revision
        if mine:
            log(f"The lease was renewed late; {len(mine)} tokens are still this pilot's.")

    def _look(self) -> None:
        flag = self._database.get("_local/" + quote(f"picas-submission-{self._config.submission}", safe=""))
        if flag and flag.get("drain"):
            self._work.stop(DRAIN, "its submission is drained")
        tokens = {token.id: token for token in self._work.held()}
        revisions = self._database.revisions(list(tokens)) if tokens else {}
        changed = [name for name, revision in revisions.items() if revision != tokens[name].doc["_rev"]]
        for name, branches in self._database.branches(changed).items():
            token = tokens[name]
            # In a cluster another revision may show while this pilot's is there: that one's pilot waits.
            doc = next(filter(token.is_claimed_in, branches), branches[0] if branches else None)
            if not doc or not token.is_claimed_in(doc):
                reason = reason_of_reaping(doc or {}, token.claim)
                given = f"was given back ({reason})" if reason else "was given to another or reset"
                self._work.lose(token, given if doc else "was deleted")
                if given_up_by_slurm(reason):  # all that it took would be taken away
                    self._work.stop(STOP, "Slurm has given up this job")

    def end(self, clean: bool) -> None:
        """Stop renewing; ``clean``: nothing is left unsent, so say that the pilot has ended."""
        self._ended.set()
        self.join(2)
        try:
            if clean and not self.is_alive():  # the connection is the thread's
                self.renew(ended=True)
        except Unreachable as error:
            log(f"The end of this pilot could not be told: {error}.")


class WallClock(threading.Thread):
    """Learns from Slurm when the job ends, now and then: the limit may be changed while it runs."""

    EVERY = 300  # seconds

    def __init__(self, clock: Clock, processes: Processes) -> None:
        super().__init__(name="wall-clock", daemon=True)
        self._clock = clock
        self._processes = processes
        self._job = os.environ.get("SLURM_JOB_ID")
        given = os.environ.get("SLURM_JOB_END_TIME", "")
        self._given = float(given) if re.match("[0-9]{1,18}\\Z", given) else None  # seconds since 1970
        self._end: Optional[float] = None  # monotonic
        self.asked = threading.Event()  # set when Slurm has been asked once, or there is none
        self._again = threading.Event()

    def remaining(self) -> Optional[float]:
        """Seconds until the job ends, by the database's clock; None if unknown or without limit."""
        if self._end is not None:
            return self._end - time.monotonic()
        return None if self._given is None else self._given - self._clock.now()

    def ask_again(self) -> None:
        """Ask soon: a job's time stands still while it is suspended."""
        self._again.set()

    def run(self) -> None:
        """Ask until the pilot ends."""
        while self._job:
            self._again.clear()
            # A duration: the cluster's clock may be another than the database's.
            asked = time.monotonic()
            left = self._ask("scontrol", "show", "job", self._job)
            if left is None:
                left = self._ask("squeue", "-h", "-j", self._job, "-o", "TimeLeft=%L")
            if left is not None:
                self._end = asked + left
            elif self.remaining() is None and not self.asked.is_set():
                log("Slurm does not say when this job ends.")
            self.asked.set()
            self._again.wait(self.EVERY)
        self.asked.set()

    @staticmethod
    def _environment() -> Dict[str, str]:
        """Without the variables that change what Slurm's commands answer, such as SQUEUE_PARTITION in a profile."""
        needed = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT")
        changing = re.compile("(SLURM|SQUEUE|SCONTROL)_")
        return {name: value for name, value in os.environ.items() if name in needed or not changing.match(name)}

    def _ask(self, *argv: str) -> Optional[float]:
        try:
            process = self._processes.start(argv, stderr=subprocess.DEVNULL, env=self._environment())
        except OSError:
            return None
        killer = threading.Timer(20, process.kill)  # the controller may hang
        killer.start()
        answer = process.stdout.read() if process.stdout else b""
        killer.cancel()
        self._processes.ended(process)
        return parse_time_left(answer.decode("utf-8", "replace"))


def parse_time_left(text: str) -> Optional[float]:
    """Seconds until the job ends by Slurm's answer: ``TimeLeft=``, or ``TimeLimit=`` less ``RunTime=``. None without a limit."""
    found = {name: _seconds(value) for name, value in re.findall(r"\b(TimeLeft|TimeLimit|RunTime)=(\S+)", text)}
    left, limit, ran = found.get("TimeLeft"), found.get("TimeLimit"), found.get("RunTime")
    return limit - ran if limit is not None and ran is not None else left


def _seconds(text: str) -> Optional[float]:
    """Slurm's ``[days-][hours:]minutes:seconds`` in seconds; None for UNLIMITED and the like."""
    match = re.match(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)$", text)
    if not match:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


class Workplace(NamedTuple):
    """Where commands run on this node."""

    scratch: str  # each attempt has a folder in it
    files: str  # the folder with copies of the submission's files
    environment: Dict[str, str]


class Slot(threading.Thread):
    """Runs tokens, one after the other."""

    def __init__(
        self,
        number: int,
        work: Work,
        reporter: Reporter,
        lease: Lease,
        clock: Clock,
        processes: Processes,
        config: Config,
        place: Workplace,
    ) -> None:
        super().__init__(name=f"slot-{number}", daemon=True)
        self._number = number
        self._work = work
        self._reporter = reporter
        self._lease = lease
        self._clock = clock
        self._processes = processes
        self._config = config
        self._place = place
        self._tokens = 0

    def run(self) -> None:
        """Until no more are to be started."""
        work = self._work
        while True:
            run = work.next_run(self._make)
            if run is None:
                return
            change: Optional[Change] = release(run.token)
            try:
                change = self._attempt(run)
            except Exception:
                log(f"Running {run.token.id} failed:", traceback.format_exc())
                work.stop(DRAIN, "there is a fault in the pilot", EX_SOFTWARE)
            finally:
                work.finish(run, change, self._reporter)
                remove_tree(run.folder)

    def _make(self, token: Token) -> Run:
        self._tokens += 1
        folder = os.path.join(self._place.scratch, f"{self._number}-{self._tokens}")
        return Run(token, folder, self._place.files, self._config, self._processes)

    def _attempt(self, run: Run) -> Optional[Change]:
        """What to write into the token, or None if somebody else has it."""
        work = self._work
        if not self._lease.valid() or work.stopping.is_set():
            return release(run.token)
        try:
            run.prepare()
            ended = run.execute(self._place.environment)
        except OSError as error:
            # The node's fault, not the token's: others may do better.
            work.stop(DRAIN, f"this node cannot run commands in {run.folder}: {error}", EX_IOERR)
            return release(run.token)
        if run.token.lost and ended.how != "exit":
            return None  # else there is a result, which is refused and kept
        if ended.how == "exit" and ended.code in (137, 143):
            # Slurm signals pilot and command together: was it meant for both?
            work.stopping.wait(1.0)
            if work.stopping.is_set():
                ended = ended._replace(how=work.why)
        change = conclude(run.token, ended, self._config, int(self._clock.now()))
        self._tell(ended, change)
        return change

    def _tell(self, ended: Ended, change: Change) -> None:
        if ended.how == "exit":
            self._reporter.gather = GATHER if self._work.learn(ended.seconds) < SHORT else 0.0
            if change.kind != "done" and ended.code in self._config.stop_exit_codes:
                self._work.stop(DRAIN, f"{change.token} ended with exit code {ended.code}", ended.code)
        if change.kind != "done" or ended.seconds >= 1:
            why = (change.error or {}).get("message") or (change.attempt or {}).get("error", "")
            log(f"{change.token} {change.kind} after {ended.seconds:.1f} s" + (f": {why}" if why else ""))


class Claimer(threading.Thread):
    """Keeps the slots in work; reaps when there is none, and says when nothing is left."""

    def __init__(
        self,
        work: Work,
        claims: Claims,
        reaper: Reaper,
        outbox: Outbox,
        reporter: Reporter,
        database: Database,
        lease: Lease,
        clock: Clock,
        wall_clock: WallClock,
        config: Config,
    ) -> None:
        super().__init__(name="claimer", daemon=True)
        self._work = work
        self._claims = claims
        self._reaper = reaper
        self._outbox = outbox
        self._reporter = reporter
        self._database = database
        self._lease = lease
        self._clock = clock
        self._wall_clock = wall_clock
        self._config = config
        self._reap_every = min(5.0, config.lease / 3)  # seconds
        self._nothing_since: Optional[float] = None  # nothing was found since then
        self._idle_since: Optional[float] = None  # nor was there anything else to do
        self._next_reap = time.monotonic() + self._reap_every
        self._living = False  # whether living pilots hold tokens
        self._totals: Deque[Optional[int]] = collections.deque(
            maxlen=EMPTY_LOOKS
        )  # in a cluster, while nothing is found

    def run(self) -> None:
        """Claim until the pilot is to end."""
        work, backoff = self._work, Backoff(longest=5.0)
        self._wall_clock.asked.wait(5)
        while work.level == GO:
            try:
                self._step()
                backoff = Backoff(longest=5.0)
            except Unreachable as error:
                self.release_in_flight()
                if backoff.tries == 0:
                    log(f"{error}; waiting to claim.")
                work.pause(backoff.pause())
            except Failed as error:
                work.stop(DRAIN, str(error), error.code)
            except Exception:
                log("The claimer failed:", traceback.format_exc())
                work.stop(DRAIN, "there is a fault in the pilot", EX_SOFTWARE)
        with suppress(Unreachable, Failed):  # others see from the lease that this pilot has ended
            for token in self._claims.settle():
                self._reporter.put(release(token))

    @property
    def conflicts(self) -> int:
        """Claims that others won."""
        return self._claims.conflicts

    def release_in_flight(self) -> None:
        """Whether these were claimed is unknown: give them back if so."""
        in_flight, self._claims.in_flight = self._claims.in_flight, []
        for token in in_flight:
            self._reporter.put(release(token))

    def _fits(self, doc: Doc) -> bool:
        """Whether a token is expected to end before the job does."""
        remaining = self._wall_clock.remaining()
        if remaining is None:
            return True
        own = number(doc.get("time")) * 60
        return (own if own > 0 else self._work.expected()) + self._config.margin < remaining

    def _step(self) -> None:
        work, claims = self._work, self._claims
        outage = max(self._config.outage, self._config.lease)
        lost_for = self._database.quorum.lost_for()
        if lost_for > outage:
            work.stop(
                DRAIN, f"too few of the database's nodes store what is written, for {lost_for:.0f} s", EX_UNAVAILABLE
            )
            return
        if self._lease.valid() and self._start(claims.settle()):
            return
        wanted = work.wanted()
        if not wanted or not self._lease.valid():
            work.wait(0.5)
            return
        tokens = claims.take(wanted, self._fits, work.deaths_allowed(self._reporter.pending()))
        self.release_in_flight()
        if self._start(tokens):
            return
        if claims.contested:
            work.pause(random.uniform(0.01, 0.1))
        elif claims.deferred or self._database.left_out():
            work.wait(2.0, until=lambda: not self._busy())
        else:
            self._find_nothing(work)

    def _start(self, tokens: List[Token]) -> bool:
        """Hand tokens to the slots; whether there were any."""
        if tokens:
            self._work.add(tokens)
            self._nothing_since = self._idle_since = None
            self._totals.clear()
        return bool(tokens)

    def _is_sure(self, idle: float) -> bool:
        """Whether nothing is left. In a cluster a copy of the database that lags may show none of the tokens that wait.

        So that takes several looks, over new connections, at copies that hold the same number of tokens each time.
        """
        if not self._claims.cluster:
            return True
        self._totals.append(self._claims.total())
        self._database.close()
        return idle >= EMPTY_FOR and len(self._totals) == EMPTY_LOOKS and len(set(self._totals)) == 1

    def _find_nothing(self, work: Work) -> None:
        busy = self._busy()
        refusal = self._claims.refusal()
        if refusal and not busy:
            work.stop(DRAIN, refusal, EX_NOPERM)
            return
        if self._claims.unfit and not busy:
            work.stop(DRAIN, "no token fits into the rest of its wall-clock")
            return
        now, lease = time.monotonic(), self._config.lease
        self._nothing_since = self._nothing_since or now
        if busy:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since, self._next_reap = now, now
        idle = 0.0 if self._idle_since is None else now - self._idle_since
        if now >= self._next_reap:
            # What was not sent goes first: a token whose result is known must not be run again.
            sent = self._outbox.send(self._database)
            reaped, self._living = self._reaper.reap(but=self._outbox.left)
            if sent or reaped:
                return
            self._next_reap = now + (self._reap_every if busy else min(self._reap_every, 0.3 + idle))
        lingers = self._living and min(idle, self._clock.contact()) <= lease + 3
        if not busy and idle >= self._config.wait_for_work and not lingers and self._is_sure(idle):
            left_alone = self._database.left_alone()
            work.stop(
                DRAIN, "nothing is left to do" + (f" but {left_alone} tokens that it cannot take" if left_alone else "")
            )
            return
        # Each look is a request: what others of its slots finish meanwhile is no reason for one, unless that was the last.
        pause = random.uniform(0.5, 1) * min(3.0, 0.2 + now - self._nothing_since, lease / 6)
        work.wait(pause, until=lambda: busy and not self._busy())

    def _busy(self) -> bool:
        """Whether this pilot holds tokens, or has results to send."""
        work = self._work
        with work.changed:
            return bool(work.runs or work.ready or self._reporter.pending() or self._claims.unsettled())


# --- the pilot ------------------------------------------------------------------------------------------------------


class Pilot:
    """Starts the parts, watches, and ends them in good order."""

    def __init__(self, folder: str, config: Config) -> None:
        """``folder`` is the submission's. Raises Failed."""
        self.config = config
        self.clock = Clock(longest_gap=config.lease / 2)
        self.work = Work(config)
        self.processes = Processes()
        self.wall_clock = WallClock(self.clock, self.processes)
        self._folder = folder
        self._me = Identity.here()
        self._access = read_access(folder, config)
        login = Login(self._access, lambda: read_access(folder, config, again=True))
        self._database = Database(login, config, self.clock)  # this thread's, then the claimer's
        self._outbox = Outbox(folder, self._access.database)
        quick = Database(login, config, self.clock, timeout=max(1.0, min(30.0, config.lease / 4)), slowest=2)
        self.lease = Lease(quick, config, self._me, self.clock, self.work)
        database = Database(login, config, self.clock)
        conflicts = Conflicts(database, config, self._me, self.clock, self.lease.contact, self.held_claims)
        self.reporter = Reporter(database, self._outbox, self.work.settled, conflicts)
        self.environment = job_environment(dict(os.environ), self._access.folder)
        self.scratch = self.files = ""
        self._guard: "Optional[subprocess.Popen[bytes]]" = None
        self._signal: Optional[int] = None
        self._watched = time.monotonic()  # when it last looked what has to be stopped
        self._thawed = float("-inf")  # when it went on after it was frozen (monotonic)

    def run(self) -> int:
        """Work until there is nothing left to do; returns what to exit with. Raises Failed before any token is claimed."""
        for name in SIGNALS:
            signal.signal(name, self._on_signal)
        self.processes.become_subreaper()
        self.wall_clock.start()
        info = self._open_pool()
        if info is None:
            return EX_OK
        try:
            self._make_scratch()
            self._start_guard()
            self._check_command()
            what = f"batch {self.config.batch}" if self.config.batch else "all batches"
            log(f"Pilot {self._me.pilot} of submission {self.config.submission} on {self._database.place}, {what}.")
            parts = (self._database, self.config, self._me, self.clock)
            copies = info["cluster"].get("n") if isinstance(info.get("cluster"), dict) else 1
            cluster = number(copies, 1) > 1
            conflicts = Conflicts(*parts, self.lease.contact, self.held_claims)
            claims, reaper = Claims(*parts, cluster, conflicts), Reaper(*parts, self.lease.contact, conflicts)
            claimer = self._claimer(claims, reaper)
            for thread in (self.lease, self.reporter, claimer, *self._slots()):
                thread.start()
            while self.work.level == GO or self.work.runs:
                time.sleep(0.1)
                self._watch()
            return self._finish(claimer)
        finally:
            self.processes.end_all()
            remove_tree(self.scratch)
            self._end_guard()

    def held_claims(self) -> Set[str]:
        """The claims of tokens that wait or run here, and of those whose results are not known to be written."""
        return {token.claim for token in self.work.held()} | self.reporter.claims()

    def _claimer(self, claims: Claims, reaper: Reaper) -> Claimer:
        threads, clocks = (self._outbox, self.reporter, self._database, self.lease), (self.clock, self.wall_clock)
        return Claimer(self.work, claims, reaper, *threads, *clocks, self.config)

    def _slots(self) -> List[Slot]:
        place = Workplace(self.scratch, self.files, self.environment)
        parts = (self.work, self.reporter, self.lease, self.clock, self.processes, self.config, place)
        return [Slot(number, *parts) for number in range(self.config.slots)]

    def _on_signal(self, signum: int, _frame: Any) -> None:
        self._signal = self._signal or signum

    def _open_pool(self) -> Optional[Doc]:
        """Wait for the database and register. What it says of itself, or None if told to stop meanwhile. Raises Failed."""
        backoff, started = Backoff(), time.monotonic()
        while not self._signal:
            try:
                info = self._database.info()
                self.lease.renew()
                with suppress(Unreachable):  # the claimer tries again before it reaps
                    self._outbox.send(self._database)
                return info
            except Unreachable as error:
                if error.status in (401, 403):
                    raise Failed(f"{error}. Check the login in {self._access.folder}.", EX_NOPERM) from None
                if error.status == 404:
                    raise Failed(f"{error} Check the name in {self._access.folder}.", EX_CONFIG) from None
                waited = time.monotonic() - started  # not the silence: reads may be answered while writes are not
                if waited > self.config.outage:
                    raise Failed(f"{error}, for {waited:.0f} s.", EX_UNAVAILABLE) from None
                if backoff.tries == 0:
                    log(f"{error}; waiting.")
            until = time.monotonic() + backoff.pause()
            while not self._signal and time.monotonic() < until:
                time.sleep(0.1)
        return None

    def _make_scratch(self) -> None:
        """A folder on the node, with the submission's files: they are copied once a node, not once a token."""
        base = os.environ.get("TMPDIR") or "/tmp"
        try:
            self.scratch = tempfile.mkdtemp(prefix="picas-", dir=base)
            lock_scratch(self.scratch)
            self.files = os.path.join(self.scratch, "files")
            os.mkdir(self.files)
            for name in self.config.files:
                shutil.copy(os.path.join(self._folder, name), self.files)
        except (OSError, shutil.Error) as error:
            raise Failed(f"The scratch folder below {base} cannot be made: {error}.", EX_IOERR) from None
        threading.Thread(target=remove_stale_scratch, args=(base,), name="scratch", daemon=True).start()

    def _start_guard(self) -> None:
        """Start what ends the commands if this process is killed. Best effort."""
        try:
            parts = [inspect.getsource(part) for part in (children_of, kill_tree, processes_of, guard)]
            script = os.path.join(self.scratch, "guard.py")
            with open(script, "w") as file:
                imports = "import os, signal, sys, time\nfrom contextlib import suppress\n"
                file.write("\n".join([imports, *parts, "guard(sys.argv[1])\n"]))
            # Slurm may signal all processes of a job: the guard inherits that these are blocked, and stays.
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [*SIGNALS, signal.SIGUSR2])
            try:
                self._guard = self.processes.start(
                    [sys.executable, "-I", "-S", script, self.scratch], env=self.environment, cwd="/", start_new_session=True,
                    stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                )  # fmt: skip
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        except (OSError, TypeError) as error:
            log(f"There is no guard here: if this pilot is killed, its commands may run on ({error}).")

    def _end_guard(self) -> None:
        if self._guard is not None:
            with suppress(OSError, subprocess.TimeoutExpired):
                self._guard.communicate(b"the pilot has ended", timeout=2)

    def _check_command(self) -> None:
        """Say once, not once a token, that the command cannot be run. Raises Failed; the code is the shell's."""
        command = self.config.command
        # Anything but a plain word at the beginning is for the shell to judge.
        first = re.match(r"\s*([A-Za-z0-9._/+-]+)(\s|$)", command) if isinstance(command, str) else None
        word = command[0] if isinstance(command, list) else first.group(1) if first else ":"
        path = os.path.join(self.files, word)
        if "/" not in word:
            look = self.processes.start(
                ["/bin/sh", "-c", 'command -v "$1"', "sh", word], cwd=self.files, env=self.environment
            )
            self.processes.ended(look)
            if look.returncode:
                raise Failed(f"There is no command {word} here: load its module in the setup, or give its path.", 127)
        elif not os.path.exists(path):
            raise Failed(f"The command {word} does not exist: list it in files, or give its full path.", 127)
        elif not os.access(path, os.X_OK) or os.path.isdir(path):
            raise Failed(f"The command {word} is not executable: chmod +x it.", 126)

    def _watch(self) -> None:
        """Ten times a second: what has to be stopped or given back?"""
        work, config, now = self.work, self.config, time.monotonic()
        if now - self._watched > config.lease / 3:
            self._thawed = now  # the process, or the machine, stood still
            self.wall_clock.ask_again()
        self._watched = now
        fresh = now - self._thawed < min(CONFIRM, config.lease / 4)
        remaining, silence = self.wall_clock.remaining(), min(self.clock.silence(), now - self._thawed)
        if self._signal:
            work.stop(STOP, f"told to by {signal.Signals(self._signal).name}")
        elif remaining is not None and remaining < STOP_WITHIN and not fresh:
            work.stop(STOP, "the job's wall-clock ends")
        elif silence > max(config.outage, config.lease):
            work.stop(STOP, f"the database has not answered for {silence:.0f} s", EX_UNAVAILABLE)
        valid = self.lease.valid()
        for token in work.stale(all_of_them=work.level != GO or not valid):
            self.reporter.put(release(token))
        with work.changed:
            runs = list(work.runs.values())
        for run in runs:
            if work.level == STOP:
                run.stop(work.why, TERM_GRACE)
            elif not valid and not fresh:
                if not run.stopped:
                    log(f"The lease of {config.lease:g} s is lost: work on {run.token.id} stops.")
                run.stop("the pilot lost its lease", 0)

    def _finish(self, claimer: Claimer) -> int:
        """Report what is left, or keep it in files. Returns the exit code."""
        work, started = self.work, time.monotonic()
        claimer.join(2)
        claimer.release_in_flight()  # it may hang in a request, or have died of a fault
        for token in work.stale(all_of_them=True):
            self.reporter.put(release(token))
        self.reporter.gather = 0.0
        while self.reporter.pending() and time.monotonic() < self._deadline(started):
            time.sleep(0.02)
        unsent = self.reporter.close()
        for change in unsent:
            try:
                self._outbox.keep(change)
            except Exception as error:  # of whatever kind: the others must not be lost with it
                log(f"The result of {change.token} is lost: it could be neither sent nor kept in a file: {error}.")
        self._outbox.flush(1.0)
        self.lease.end(clean=not unsent)
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(work.counts.items()) if count)
        log(f"Ended: {work.why}. Tokens: {counts or 'none'}. Claims that others won: {claimer.conflicts}.")
        if unsent:
            results = sum(change.kind != "released" for change in unsent)
            also = f", and {len(unsent) - results} tokens not given back," if len(unsent) > results else ""
            log(f"{results} results{also} could not be sent; they are in {self._folder}/unsent.")
            return EX_TEMPFAIL
        return work.code

    def _deadline(self, started: float) -> float:
        """Until when (monotonic) results may be sent; a signal may come in the meantime."""
        if self._signal or self.work.level == STOP:
            # Commands had TERM_GRACE of the time to end.
            return started + STOP_WITHIN - TERM_GRACE - 2.0
        remaining = self.wall_clock.remaining()
        return min(
            started + self.config.outage, float("inf") if remaining is None else time.monotonic() + remaining - 3
        )


def main(arguments: Sequence[str]) -> int:
    """Run a pilot with the configuration in the named file."""
    if len(arguments) != 1:
        log("Usage: picas_pilot.py pilot.json")
        return EX_USAGE
    path = os.path.abspath(arguments[0])
    try:
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read()
        except (OSError, ValueError) as error:
            raise Failed(f"{path} cannot be read: {error}.", EX_CONFIG) from None
        return Pilot(os.path.dirname(path), parse_config(text)).run()
    except Failed as error:
        log(f"The pilot cannot work. {error}")
        return error.code
    except Exception:
        log("The pilot failed:", traceback.format_exc())
        return EX_SOFTWARE


if __name__ == "__main__":
    exit_code = main(sys.argv[1:])
    _LOG.flush(1.0)
    os._exit(exit_code)  # threads may hang in a request, or in the log: nothing waits for them
