"""The schema of ``pilot.json``."""

import json
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple, Union

from airflow_provider_picas.lifecycle.attempts import MAX_ATTEMPTS
from airflow_provider_picas.lifecycle.exit_codes import EX_CONFIG, Failed
from airflow_provider_picas.lifecycle.ids import is_stage
from airflow_provider_picas.lifecycle.profile import Profile, ProfileError, read


class Config(NamedTuple):
    """The options in ``pilot.json``, which contains no secrets. Times are in seconds. docs/reference/pilot.md has this table."""

    command: Union[str, List[str]]  # a string for /bin/sh -c, or a list of arguments
    submission: str  # key of the submission
    database: Optional[str] = None  # None: the database in picasconfig.py
    batch: Optional[str] = None  # None: the whole pool
    profile: Union[str, Dict[str, Any], None] = None  # the shape of the pool: a name, or an object; None: PiCaS's own
    classes: Optional[List[str]] = None  # resource classes "<cores>/<gpu>/<time>"; None: any
    credentials: Optional[str] = None  # folder; None: "credentials"; "existing": PYTHONPATH, or the PiCaS client's
    tls_verify: bool = True
    ca_file: Optional[str] = None
    stages: Optional[Dict[str, str]] = None  # batch of each stage that commands may make tokens for; None: any stage
    files: List[str] = []  # names of files beside pilot.json that the command finds in its folder
    lease: float = 120  # how long the pilot is believed to live after its last sign of life
    slots: int = 1  # tokens that run at the same time
    max_retries: int = 0  # number of times a failed token is run again; a token's own max_retries takes precedence
    max_scrubs: int = 3  # number of times a token is released because its pilot died, before it becomes an error
    time_limit: Optional[float] = None  # for one token; a token's own time_limit takes precedence
    kill_after: float = 10  # between SIGTERM and SIGKILL at the time limit
    no_retry_exit_codes: List[int] = []
    stop_exit_codes: List[int] = []  # the token is released, and the pilot stops
    wait_for_work: float = 0  # how long to wait for new tokens when none remain
    log_bytes: int = 1_000_000  # bytes kept of stdout and of stderr, each: the last ones
    output_bytes: int = 1_000_000  # largest JSON that a command may leave as output
    max_claim: int = 200  # tokens claimed in one request for one slot, at most
    outage: float = 900  # how long the pilot waits for a database that does not answer
    margin: float = 30  # time that must remain of the wall-clock limit after a token is expected to end

    def pool_profile(self) -> Profile:
        """The shape of the pool. Raises ProfileError, unless ``parse_config`` has checked it."""
        return read(self.profile)


def _at_least(least: float, whole: bool = False) -> Callable[[Any], bool]:
    kinds = (int,) if whole else (int, float)
    return lambda value: isinstance(value, kinds) and not isinstance(value, bool) and least <= value < float("inf")


def _is_string(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and "\0" not in value


def _list_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(check(item) for item in value)


def _is_mapping(value: Any, is_name: Callable[[Any], bool], is_value: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(is_name(name) and is_value(item) for name, item in value.items())


def _is_small(value: Any) -> bool:
    return _at_least(0, whole=True)(value) and value < MAX_ATTEMPTS


def _is_profile(value: Any) -> bool:
    try:
        return isinstance(read(value), Profile)
    except ProfileError:
        return False


_STRING = (_is_string, "a string")
_SECONDS = (_at_least(0), "a number of seconds")
_BYTES = (_at_least(0, whole=True), "a number of bytes")
_COUNT = (_at_least(1, whole=True), "a whole number, at least 1")
_SMALL = (_is_small, "a whole number from 0 to 9")
_CODES = (_list_of(_at_least(0, whole=True)), "a list of whole numbers")
_CHECKS: Dict[str, Tuple[Callable[[Any], bool], str]] = {
    "command": (lambda v: _is_string(v) or (bool(v) and _list_of(_is_string)(v)), "a string or a list of strings"),
    "submission": _STRING,
    "database": _STRING,
    "batch": _STRING,
    "profile": (_is_profile, "the name of a profile, or an object that is one"),
    "classes": (lambda v: bool(v) and _list_of(_is_string)(v), "a list of strings"),
    "credentials": (_is_string, "a folder, or 'existing'"),
    "tls_verify": (lambda v: isinstance(v, bool), "true or false"),
    "ca_file": (_is_string, "a file"),
    "stages": (lambda v: _is_mapping(v, is_stage, _is_string), "an object of stages and their batches"),
    "files": (_list_of(lambda v: _is_string(v) and "/" not in v and v not in (".", "..")), "a list of file names"),
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
_DEFAULTS = Config(command="", submission="")._asdict()


def wrong_value(name: str, value: Any) -> Optional[str]:
    """What the option requires, if the value is invalid; else None. Raises KeyError for an unknown option."""
    check, wanted = _CHECKS[name]
    return None if (value is None and _DEFAULTS[name] is None) or check(value) else wanted


def parse_config(text: str) -> Config:
    """The configuration in a ``pilot.json``. Raises Failed, naming the key that is wrong."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Failed(f"pilot.json is not valid JSON: {error}.", EX_CONFIG) from None
    if not isinstance(values, dict):
        raise Failed("pilot.json must contain one JSON object.", EX_CONFIG)
    for name in ("command", "submission"):
        if name not in values:
            raise Failed(f"pilot.json has no key {name!r}.", EX_CONFIG)
    for name, value in values.items():
        if name not in _CHECKS:
            raise Failed(f"pilot.json has an unknown key: {name!r}.", EX_CONFIG)
        wanted = wrong_value(name, value)
        if wanted:
            raise Failed(f"pilot.json: {name!r} must be {wanted}, not {value!r:.100}.", EX_CONFIG)
    return Config(**values)
