"""Configuration objects: arguments that belong together, as one typed value.

``PicasSubmitPilotsOperator`` takes ``scaling=Scaling(...)`` and ``pilot=PilotOptions(...)``, ``PicasTokenStateSensor``
takes ``policy=WaitPolicy(...)`` and ``watch=PilotWatch(...)``, and ``picas_run`` takes all four. A field means what the
argument of that name means; the arguments stay valid, but an object and one of its arguments cannot be given together.

Values are checked when the DAG is parsed. A field may also hold a Jinja template or the output of a task, where the
argument may; the operator checks the rendered value when the task runs. Operators unpack the objects into their
arguments, so Airflow serializes and renders them as usual.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import timedelta
from functools import wraps
from typing import Any, ParamSpec

from airflow.providers.common.compat.sdk import XComArg

from airflow_provider_picas.lifecycle.attempts import MAX_ATTEMPTS
from airflow_provider_picas.lifecycle.pilot_config import Config, wrong_value
from airflow_provider_picas.parameters import (
    flag,
    number_above_zero,
    optional_positive_number,
    optional_seconds,
    whole_number,
)
from airflow_provider_picas.submissions.stop import StopMode
from airflow_provider_picas.tokens.counts import ErrorBudget
from airflow_provider_picas.tokens.groups import Grouping
from airflow_provider_picas.tokens.waiting import Threshold

MAX_SCRUBS = MAX_ATTEMPTS - 1
_PILOT = Config(command="", submission="")  # for its defaults


class _Checked:
    """Base class: checks the values of its fields, except those that are known only when the task runs."""

    def __post_init__(self) -> None:
        for name, value in values_of(self).items():
            if isinstance(value, XComArg) or _is_template(value):
                if name not in _NOT_TEMPLATES:
                    continue
                raise ValueError(
                    f"{type(self).__name__}: `{name}` is not a template field, so it must be a plain value."
                )
            try:
                self._check(name, value)
            except ValueError as error:
                raise ValueError(f"{type(self).__name__}: {error}") from None

    def _check(self, name: str, value: Any) -> None:
        """Raises ValueError."""
        _CHECKS[name](name, value)


@dataclass(frozen=True, kw_only=True)
class Scaling(_Checked):
    """How many pilots ``PicasSubmitPilotsOperator`` submits.

    :param pilots: the number of pilots, or ``"auto"`` for a number that depends on the waiting tokens. With
        ``resource_classes``: for each class.
    :param tokens_per_pilot: with ``"auto"``, submit one pilot for this number of waiting tokens.
    :param max_pilots: limit on the pilots of this package that are pending or running for this user of the cluster.
    :param max_queued: limit on those that are pending.
    :param max_running: limit on the pilots of this submission that run at the same time.
    :param resource_classes: submit one array for each resource class; a mapping adds sbatch options to a class.
    """

    pilots: int | str | None = None
    tokens_per_pilot: float | str = 10
    max_pilots: int | str | None = None
    max_queued: int | str | None = None
    max_running: int | str | None = None
    resource_classes: bool | str | Mapping[str, Mapping[str, Any]] = False


@dataclass(frozen=True, kw_only=True)
class PilotOptions(_Checked):
    """Options of the pilot that runs a ``command``. ``docs/reference/pilot.md`` describes each of them, under ``pilot.json``.

    The schema of ``pilot.json`` gives the defaults and checks the values. A ``dict`` of these options works too, but is
    checked only when the task runs.

    :param classes: claim only tokens of these resource classes, ``<cores>/<gpu>/<time>``. Default: any.
    :param ca_file: PEM file, on the nodes, of the authority that signed the database's certificate. Default: the system's.
    :param lease: seconds for which a pilot is believed to live after its last sign of life.
    :param slots: number of tokens that run at the same time.
    :param max_retries: how many times a failed token is run again, 0 to 9; a token's own ``max_retries`` takes precedence.
    :param max_scrubs: how many times a token is released because its pilot died, 0 to 9.
    :param time_limit: seconds for one token; a token's own ``time_limit`` takes precedence. Default: none.
    :param kill_after: seconds between SIGTERM and SIGKILL at the time limit.
    :param no_retry_exit_codes: exit codes of the command after which a token is not run again.
    :param stop_exit_codes: exit codes of the command after which its token is released, and the pilot stops.
    :param wait_for_work: seconds to wait for new tokens when none remain.
    :param log_bytes: bytes kept of stdout and of stderr, each: the last ones.
    :param output_bytes: largest JSON that a command may leave as output.
    :param max_claim: largest number of tokens that are claimed in one request for one slot.
    :param outage: seconds that the pilot waits for a database that does not answer.
    :param margin: seconds of the job's time limit that must remain after a token is expected to end.
    """

    classes: Sequence[str] | str | None = _PILOT.classes
    ca_file: str | None = _PILOT.ca_file
    lease: float | str = _PILOT.lease
    slots: int | str = _PILOT.slots
    max_retries: int | str = _PILOT.max_retries
    max_scrubs: int | str = _PILOT.max_scrubs
    time_limit: float | str | None = _PILOT.time_limit
    kill_after: float | str = _PILOT.kill_after
    no_retry_exit_codes: Sequence[int] | str = tuple(_PILOT.no_retry_exit_codes)
    stop_exit_codes: Sequence[int] | str = tuple(_PILOT.stop_exit_codes)
    wait_for_work: float | str = _PILOT.wait_for_work
    log_bytes: int | str = _PILOT.log_bytes
    output_bytes: int | str = _PILOT.output_bytes
    max_claim: int | str = _PILOT.max_claim
    outage: float | str = _PILOT.outage
    margin: float | str = _PILOT.margin

    def _check(self, name: str, value: Any) -> None:
        if wanted := wrong_value(name, _as_json(value)):
            raise ValueError(f"`{name}` must be {wanted}, not {value!r:.100}.")

    def as_dict(self) -> dict[str, Any]:
        """The options that differ from their defaults, as ``pilot.json`` has them."""
        defaults = {field.name: _as_json(field.default) for field in fields(self)}
        values = {name: _as_json(value) for name, value in values_of(self).items()}
        return {name: value for name, value in values.items() if value != defaults[name]}


@dataclass(frozen=True, kw_only=True)
class WaitPolicy(_Checked):
    """When ``PicasTokenStateSensor`` succeeds or fails.

    :param max_errors: how many tokens may fail: a number, or a fraction below 1.
    :param fail_fast: fail as soon as more tokens than that have failed, instead of when all have finished.
    :param success_threshold: succeed as soon as this number or fraction of the tokens is done. ``max_errors`` does not
        apply then.
    :param no_progress: fail if no token finishes for this time: seconds, or a timedelta. Not a template field.

    ``fail_fast`` is not a template field either.
    """

    max_errors: float | str = 0
    fail_fast: bool = False
    success_threshold: float | str | None = None
    no_progress: float | timedelta | None = None


@dataclass(frozen=True, kw_only=True)
class PilotWatch(_Checked):
    """How ``PicasTokenStateSensor`` watches the pilots.

    :param resubmit: how many times to submit the same pilots again when none remain and tokens still wait.
    :param max_scrubs: how many times the sensor requeues the token of a dead pilot before the token fails, 0 to 9.
    :param max_lock_age: requeue a token after this number of seconds if its pilot has no lease, as with the PiCaS
        client.
    :param interval: seconds between two queries of Slurm, the sensor's ``pilots_interval``. Not a template field.
    :param on_kill: what to do with the pilots when a person marks the waiting task failed: ``cancel``, ``drain`` or
        ``leave``. Not a template field.
    """

    resubmit: int | str = 0
    max_scrubs: int | str = 3
    max_lock_age: float | str | None = None
    interval: float | None = None
    on_kill: str = StopMode.CANCEL


@dataclass(frozen=True, kw_only=True)
class PilotStage:
    """A stage of ``picas_run``: the pilots for the tokens that other tokens make.

    ``command`` to ``scaling`` are those of ``PicasSubmitPilotsOperator``. Pilots end when no tokens wait, after
    ``PilotOptions(wait_for_work=…)``; when all have ended, the same number is submitted again for new tokens.

    :param command: what the pilots run for each token.
    :param setup: shell code that runs once in each pilot's job before it.
    :param files: files to send.
    :param pilot: options of the pilot.
    :param script: a PiCaS client pilot, instead of ``command``.
    :param sbatch: options of sbatch.
    :param env: environment variables of the pilots' jobs.
    :param scaling: how many pilots are submitted at a time. Default: one.
    :param batch: the batch of the stage's tokens. Default: ``<batch>.<stage>``. For pools in which other scripts make the
        tokens of a workflow: its name.
    :param group_of: the stage has one token for each group of the tokens of this stage, which name their ``group``. An empty
        string: of the tokens that were pushed.
    :param at_least: with ``group_of``: the members of a group that must have finished: a fraction up to 1.0, a number, or
        -2 for all but two.
    :param least_work: number of tokens that must wait before pilots are submitted, while more may appear.
    :param waves: how many times pilots are submitted again when new tokens appear after the earlier ones have ended.
    :param max_errors: how many tokens may fail, as for ``PicasTokenStateSensor``.
    :param outlets: assets that get an event when the tokens of the stage have finished.
    :param watch: as for ``PicasTokenStateSensor``; its ``resubmit`` replaces ``waves``.
    """

    command: str | Sequence[str] | None = None
    setup: str | None = None
    files: Sequence[str] = ()
    pilot: PilotOptions | Mapping[str, Any] | None = None
    script: str | None = None
    sbatch: Mapping[str, Any] | None = None
    env: Mapping[str, str] | None = None
    scaling: Scaling | None = None
    batch: str | None = None
    group_of: str | None = None
    at_least: float = 1.0
    least_work: int = 10
    waves: int = 100
    max_errors: float = 0
    outlets: Sequence[Any] = ()
    watch: PilotWatch | None = None

    def __post_init__(self) -> None:
        if (self.command is None) == (self.script is None):
            raise ValueError("PilotStage: give either `command` or `script`.")
        for name, least in (("least_work", 1), ("waves", 0)):
            try:
                whole_number(name, getattr(self, name), least=least)
            except ValueError as error:
                raise ValueError(f"PilotStage: {error}") from None
        ErrorBudget.parse(self.max_errors)
        Grouping(self.group_of or "", self.at_least)


def values_of(given: Any) -> dict[str, Any]:
    """The fields of a configuration object, by name."""
    return {field.name: getattr(given, field.name) for field in fields(given)}


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _is_template(value: Any) -> bool:
    return isinstance(value, str) and ("{{" in value or "{%" in value)


def _check_pilots(name: str, value: Any) -> None:
    if value != "auto":
        optional_positive_number(name, value)


def _check_classes(name: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        flag(name, value)
    elif wrong := [key for key, options in value.items() if not isinstance(options, Mapping)]:
        raise ValueError(f"`{name}` must map a class to sbatch options, but {wrong[0]!r:.80} has none.")


def _check_switch(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"`{name}` is {value!r:.80}; it takes True or False.")


def _check_span(name: str, value: Any) -> None:
    if isinstance(value, str):
        raise ValueError(f"`{name}` is {value!r:.80}; it takes a number of seconds.")
    if value is not None:
        number_above_zero(name, value.total_seconds() if isinstance(value, timedelta) else value)


def _check_on_kill(name: str, value: Any) -> None:
    if value not in list(StopMode):
        raise ValueError(f"`{name}` is {value!r:.80}; it takes {', '.join(map(repr, map(str, StopMode)))}.")


_CHECKS: dict[str, Callable[[str, Any], object]] = {
    "pilots": _check_pilots,
    "tokens_per_pilot": number_above_zero,
    "max_pilots": optional_positive_number,
    "max_queued": optional_positive_number,
    "max_running": optional_positive_number,
    "resource_classes": _check_classes,
    "max_errors": lambda name, value: ErrorBudget.parse(value),
    "fail_fast": _check_switch,
    "success_threshold": lambda name, value: Threshold.parse(value),
    "no_progress": _check_span,
    "resubmit": whole_number,
    "max_scrubs": lambda name, value: whole_number(name, value, most=MAX_SCRUBS),
    "max_lock_age": optional_seconds,
    "interval": _check_span,
    "on_kill": _check_on_kill,
}
_NOT_TEMPLATES = ("fail_fast", "no_progress", "interval", "on_kill")
_OBJECTS: dict[str, type[_Checked]] = {"scaling": Scaling, "policy": WaitPolicy, "watch": PilotWatch}
_RENAMED = {"interval": "pilots_interval"}  # a field, and the argument that it sets


def unpack(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an operator, with configuration objects replaced by the arguments that they set.

    Raises TypeError for an object of another class, or one that is given together with one of its arguments.
    """
    result = dict(arguments)
    for name, kind in _OBJECTS.items():
        given = result.pop(name, None)
        if given is None:
            continue
        if not isinstance(given, kind):
            raise TypeError(f"`{name}` takes a {kind.__name__}, not {given!r:.80}.")
        values = {_RENAMED.get(field, field): value for field, value in values_of(given).items()}
        if both := [field for field in values if field in result]:
            raise TypeError(f"Give either `{name}` or {', '.join(f'`{field}`' for field in both)}, not both.")
        result.update(values)
    if isinstance(pilot := result.get("pilot"), PilotOptions):
        result["pilot"] = pilot.as_dict()
    return result


_Parameters = ParamSpec("_Parameters")


def unpacks_options(init: Callable[_Parameters, None]) -> Callable[_Parameters, None]:
    """Decorate the ``__init__`` of an operator, so that it gets the arguments that configuration objects set.

    The wrapper sees which arguments were given, even with default values; ``__init__`` sees only the defaults.
    """

    @wraps(init)
    def wrapper(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> None:
        init(*args, **unpack(kwargs))

    return wrapper


class TakesOptions:
    """Base of operators that take configuration objects, before Airflow's own base class."""

    @classmethod
    def partial(cls, **kwargs: Any) -> Any:
        """As for every operator. The objects are unpacked here, too, so that Airflow serializes plain arguments."""
        return super().partial(**unpack(kwargs))  # type: ignore[misc]


def read_rendered(pilot: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the pilot, with strings such as ``"120"``, which a template has rendered, as the values that it takes.

    What cannot be read stays a string, for the schema of ``pilot.json`` to refuse.
    """
    return {name: _read(name, value) for name, value in pilot.items()}


def _read(name: str, value: Any) -> Any:
    if not isinstance(value, str) or name not in Config._fields or not wrong_value(name, value):
        return _as_json(value)
    try:
        return _as_json(ast.literal_eval(value.strip()))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value
