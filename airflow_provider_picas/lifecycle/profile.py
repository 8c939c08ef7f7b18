"""The shape of a pool: which documents are its tokens, what their states are, and what a pilot writes into them."""

import json
import re
from typing import Any, Callable, Dict, FrozenSet, List, Mapping, NamedTuple, Optional, Tuple, Union

from airflow_provider_picas.lifecycle import conditions, states
from airflow_provider_picas.lifecycle.conditions import Condition, Conditions, all_hold
from airflow_provider_picas.lifecycle.ids import PAGE, PROVIDER, STAGES
from airflow_provider_picas.lifecycle.javascript import MISSING, to_number
from airflow_provider_picas.lifecycle.json_values import Doc, holds_large_integer, is_nested_more

JOB_FIELD = "slurm_job_id"
# Ids that the PiCaS client writes for jobs of other systems (its jobid.py).
FOREIGN_JOB_FIELDS = ("dirac_job_id", "wms_job_id", "cream_job_id", "pbs_job_id")
EVENTS = ("claim", "done", "failed", "release")
STATES = tuple(states.CONDITIONS)
EXIT_CODE = "$exit_code"  # in ``writes``: stands for the attempt's exit code
RESULT = "result"  # where the command's output goes if the profile itself writes ``output``
_NO_EXIT_CODE = -1  # of an attempt whose pilot died
# What a pilot needs to find its own claims and results. Two of PiCaS's fields may be written: exit_code and output.
_KEPT = (
    "lock", "done", "hostname", "scrub_count", "pilot", "claim", "seconds", "attempts", "error", "batch", "push", "ordinal",
)  # fmt: skip
_MOST = 100  # states of a profile, and types


class NamedState(NamedTuple):
    """A state of the pool: its name there, the state as which it counts, and its conditions."""

    name: str
    state: str
    conditions: Conditions


_PICAS_STATES = tuple(NamedState(name, name, parts) for name, parts in states.CONDITIONS.items())


class ProfileError(ValueError):
    """A profile that is not valid. The message says what is wrong in it."""


class Profile(NamedTuple):
    """The shape of a pool. The default one is that of the PiCaS client 1.1.2 and of this package."""

    name: str = "picas"
    types: Optional[Tuple[str, ...]] = ("token",)  # of tokens; None: any document whose type is a string
    states: Tuple[NamedState, ...] = _PICAS_STATES  # the first that fits counts
    writes: Mapping[str, Doc] = {}  # further fields that a pilot sets, by event
    job_field: str = JOB_FIELD  # the field with the id of the Slurm job
    priorities: Tuple[Conditions, ...] = ()  # tokens of the first are claimed first; none: by the field ``priority``
    batch_field: Optional[str] = None  # its value is the token's batch; None: ``batch``, if it agrees with the id

    @property
    def is_default(self) -> bool:
        """True for PiCaS's own shape, whose views this package has always had."""
        return self is PICAS or self == PICAS

    @property
    def design(self) -> str:
        """The name of the design document with the views that count and find tokens."""
        return PROVIDER if self.is_default else f"{PROVIDER}-{self.name}"

    @property
    def page_design(self) -> str:
        """The name of the design document of the page in Airflow's UI."""
        return PAGE if self.is_default else f"{PAGE}-{self.name}"

    @property
    def stages_design(self) -> str:
        """The name of the design document for tokens that make tokens."""
        return STAGES if self.is_default else f"{STAGES}-{self.name}"

    @property
    def output_field(self) -> str:
        """The field for the output of commands: ``writes`` may use ``output`` for something else."""
        return RESULT if any("output" in fields for fields in self.writes.values()) else "output"

    @property
    def further_names(self) -> Tuple[Tuple[str, str], ...]:
        """The named states: for each, the state that it counts as, and its name. In the order of the counts' views."""
        return tuple(dict.fromkeys((row.state, row.name) for row in self.states if row.name != row.state))

    @property
    def fields(self) -> FrozenSet[str]:
        """The fields on which the state of a token depends."""
        return frozenset(condition.field for row in self.states for condition in row.conditions)

    def named_state_of(self, doc: Mapping[str, Any]) -> Optional[NamedState]:
        """The first state that fits a token; None: none does."""
        for row in self.states:
            if all_hold(row.conditions, doc):
                return row
        return None

    def further_name_of(self, doc: Mapping[str, Any]) -> Optional[str]:
        """The name that the pool itself gives to the state of a token; None if it is that of the state."""
        row = None if self.is_default else self.named_state_of(doc)
        return row.name if row and row.name != row.state else None

    def state_of(self, doc: Mapping[str, Any]) -> Optional[str]:
        """The state as which a token counts, or None for one in no state."""
        row = self.named_state_of(doc)
        return row.state if row else None

    def is_token(self, doc: Mapping[str, Any]) -> bool:
        """True if the document is a token of this pool, as in its views."""
        kind = doc.get("type", MISSING)
        if self.types is None:
            return isinstance(kind, str)
        return any(Condition("type", "==", value=name).holds(doc) for name in self.types)

    def is_claimable(self, doc: Mapping[str, Any]) -> bool:
        """True if a pilot may claim the document: a waiting token that nobody has locked."""
        if self.is_default:
            return states.is_todo(doc)
        return self.is_token(doc) and self.state_of(doc) == "todo" and not to_number(doc.get("lock", MISSING)) > 0

    def batch_of(self, doc: Mapping[str, Any]) -> Optional[str]:
        """The batch of a token, as in the views."""
        if self.batch_field is not None:
            value = doc.get(self.batch_field)
            return value if isinstance(value, str) and value else None
        prefix, colon, _ = str(doc.get("_id", "")).partition(":")
        return prefix if prefix and colon and doc.get("batch") == prefix else None

    def written(self, event: str, exit_code: Any = None) -> Doc:
        """The fields that a pilot sets at an event, besides PiCaS's and ours."""
        fields = self.writes.get(event)
        if not fields:
            return {}
        code = exit_code if isinstance(exit_code, int) else _NO_EXIT_CODE
        return {name: code if value == EXIT_CODE else value for name, value in fields.items()}

    def fields_of_new(self, batch: str) -> Doc:
        """The fields of a new token that make it one of this pool and of the batch."""
        kind = self.types[0] if self.types else "token"
        fields: Doc = {"type": kind}
        if self.batch_field is not None:
            fields[self.batch_field] = batch
        return fields

    def to_json(self) -> Doc:
        """The profile as JSON, in the form that ``read`` takes."""
        rows = [_row_to_json(row) for row in self.states]
        found: Doc = {"name": self.name, "types": list(self.types) if self.types is not None else None, "states": rows}
        found.update({"writes": {event: dict(fields) for event, fields in self.writes.items()}} if self.writes else {})
        found.update({"job_field": self.job_field} if self.job_field != JOB_FIELD else {})
        found.update({"priorities": list(map(conditions.text_of, self.priorities))} if self.priorities else {})
        found.update({"batch_field": self.batch_field} if self.batch_field is not None else {})
        return found


PICAS = Profile()


def _row_to_json(row: NamedState) -> Doc:
    found = {"state": row.state, "when": conditions.text_of(row.conditions)}
    return found if row.name == row.state else dict(found, name=row.name)


def _named(*rows: Tuple[str, str, str]) -> Tuple[NamedState, ...]:
    return tuple(NamedState(name, state, parts) for name, state, when in rows for parts in conditions.parse(when))


SHIPPED: Dict[str, Profile] = {
    "picas": PICAS,
    # Tokens of PiCaS's form, of several workflows in one pool: the workflow is the batch.
    "picas_cortex": Profile("picas_cortex", batch_field="workflow"),
    # The type is the name of a campaign. Its views call a token done by its status, and its overview by its output.
    "grid_lrt": Profile(
        "grid_lrt",
        types=None,
        states=_named(
            ("todo", "todo", "lock == 0 && done == 0"),
            ("done", "done", 'status == "done"'),
            ("error", "error", 'status == "error"'),
            ("downloading", "locked", 'lock > 0 && done == 0 && status == "downloading"'),
            ("launched", "locked", 'lock > 0 && done == 0 && status == "launched"'),
            ("locked", "locked", "lock > 0 && done == 0"),
            ("done", "done", "lock > 0 && done > 0 && output == 0"),
            ("error", "error", "lock > 0 && done > 0 && output != 0"),
        ),
        writes={
            "claim": {"status": "locked"},
            "done": {"status": "done", "output": 0},
            "failed": {"status": "error", "output": EXIT_CODE},
            "release": {"status": "todo", "output": ""},
        },
        batch_field="type",
    ),
}


def read(given: Union[str, Mapping[str, Any], Profile, None]) -> Profile:
    """A profile from a name, or an object: its keys replace those of the profile that it names as ``base``.

    Raises ProfileError.
    """
    if given is None or given == "":
        return PICAS
    if isinstance(given, Profile):
        return given
    if isinstance(given, str) and given.lstrip().startswith("{"):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError) as error:
            raise ProfileError(f"the profile is not valid JSON ({error})") from None
    if isinstance(given, str):
        if given not in SHIPPED:
            raise ProfileError(f"there is no profile {given!r:.80}; there are {', '.join(SHIPPED)}")
        return SHIPPED[given]
    if not isinstance(given, Mapping):
        raise ProfileError(f"a profile is the name of one, or an object, not {given!r:.80}")
    return _from_json(given)


def _from_json(values: Mapping[str, Any]) -> Profile:
    unknown = sorted(set(map(str, values)) - {"base", *_READERS})
    if unknown:
        raise ProfileError(f"the profile has an unknown key {unknown[0]!r:.80}; it takes base, {', '.join(_READERS)}")
    base = read(str(values["base"])) if values.get("base") else PICAS
    found = {name: reader(values[name]) for name, reader in _READERS.items() if name in values}
    result = base._replace(**found)
    if result != base and result.name in SHIPPED and result != SHIPPED[result.name]:
        raise ProfileError(f"the profile differs from {result.name!r}, so it needs a `name` of its own")
    return result


def _name(value: Any) -> str:
    if not isinstance(value, str) or not re.match(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,59}\Z", value):
        raise ProfileError(f"`name` must be 1 to 60 letters, digits and _.-, not {value!r:.80}")
    return value


def _types(value: Any) -> Optional[Tuple[str, ...]]:
    if value is None:
        return None
    kinds = [value] if isinstance(value, str) else value
    if not isinstance(kinds, (list, tuple)) or not 0 < len(kinds) <= _MOST or not all(_is_text(kind) for kind in kinds):
        raise ProfileError(f"`types` must be a list of names, or null for any, not {value!r:.80}")
    return tuple(kinds)


def _states(value: Any) -> Tuple[NamedState, ...]:
    if not isinstance(value, (list, tuple)) or not 0 < len(value) <= _MOST:
        raise ProfileError(f"`states` must be a list of states, not {value!r:.80}")
    rows: List[NamedState] = []
    for number, row in enumerate(value):
        if not isinstance(row, Mapping) or not {"state", "when"} <= set(row) <= {"state", "when", "name"}:
            raise ProfileError(f"`states` [{number}] must have `state` and `when`, and may have `name`: {row!r:.80}")
        if row["state"] not in STATES:
            raise ProfileError(f"`states` [{number}] counts as {row['state']!r:.80}, not as {', '.join(STATES)}")
        name = row.get("name", row["state"])
        if not _is_text(name):
            raise ProfileError(f"`states` [{number}] has the name {name!r:.80}, which is not a string")
        try:
            rows += [NamedState(name, row["state"], parts) for parts in conditions.parse(str(row["when"]))]
        except conditions.UnreadableError as error:
            raise ProfileError(f"`states` [{number}]: {error}") from None
    missing = [state for state in STATES if state not in {row.state for row in rows}]
    if missing:
        raise ProfileError(f"`states` has none that counts as {missing[0]!r}")
    return tuple(rows)


def _writes(value: Any) -> Dict[str, Doc]:
    if not isinstance(value, Mapping):
        raise ProfileError(f"`writes` must map events to fields, not {value!r:.80}")
    for event, fields in value.items():
        if event not in EVENTS:
            raise ProfileError(f"`writes` has the event {event!r:.80}; it takes {', '.join(EVENTS)}")
        if not isinstance(fields, Mapping):
            raise ProfileError(f"`writes` of {event} must be an object of fields, not {fields!r:.80}")
        for name, content in fields.items():
            if not _is_text(name) or name.startswith("_") or name in _KEPT or name == "type":
                raise ProfileError(f"`writes` of {event} cannot set the field {name!r:.80}")
            if is_nested_more(content, 20) or holds_large_integer(content):
                raise ProfileError(f"`writes` of {event}: the value of {name!r:.80} cannot be stored")
    return {event: dict(value[event]) for event in EVENTS if value.get(event)}


def _priorities(value: Any) -> Tuple[Conditions, ...]:
    if not isinstance(value, (list, tuple)) or len(value) > _MOST or not all(isinstance(text, str) for text in value):
        raise ProfileError(f"`priorities` must be a list of conditions, not {value!r:.80}")
    found: List[Conditions] = []
    for text in value:
        try:
            alternatives = conditions.parse(text)
        except conditions.UnreadableError as error:
            raise ProfileError(f"`priorities`: {error}") from None
        if len(alternatives) > 1:
            raise ProfileError(f"`priorities`: {text!r:.80} has several alternatives, so list them one by one")
        found += alternatives
    return tuple(found)


def _job_field(value: Any) -> str:
    if not _is_text(value) or value.startswith("_") or value in (*_KEPT, *FOREIGN_JOB_FIELDS):
        raise ProfileError(f"`job_field` is {value!r:.80}, which cannot hold the id of a Slurm job")
    return str(value)


def _batch_field(value: Any) -> Optional[str]:
    if value is None:
        return None
    if not _is_text(value) or value.startswith("_") or value in _KEPT:
        raise ProfileError(f"`batch_field` is {value!r:.80}, which cannot say which tokens belong together")
    return str(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 200


_READERS: Dict[str, Callable[[Any], Any]] = {
    "name": _name,
    "types": _types,
    "states": _states,
    "writes": _writes,
    "job_field": _job_field,
    "priorities": _priorities,
    "batch_field": _batch_field,
}
