"""The states of a token, from one table of conditions."""

from typing import Any, Callable, Dict, Mapping, NamedTuple, Optional, Tuple

from airflow_provider_picas.lifecycle.javascript import MISSING, equals_zero, parse_int, to_number
from airflow_provider_picas.lifecycle.json_values import Doc


class Condition(NamedTuple):
    """One comparison of a field with zero. ``parsed`` compares ``parseInt(field)`` instead of the field."""

    field: str
    operator: str
    parsed: bool = False

    def holds(self, doc: Mapping[str, Any]) -> bool:
        """True if the condition holds for a document, as in JavaScript."""
        value = doc.get(self.field, MISSING)
        return _COMPARISONS[self.operator](parse_int(value) if self.parsed else value)


# The conditions of the PiCaS client's create_views.py (client 1.1.2). At most one state fits.
CONDITIONS: Dict[str, Tuple[Condition, ...]] = {
    "todo": (Condition("lock", "=="), Condition("done", "==")),
    "locked": (Condition("lock", ">"), Condition("done", "==")),
    "done": (Condition("lock", ">"), Condition("done", ">"), Condition("exit_code", "==", parsed=True)),
    "error": (Condition("lock", ">"), Condition("done", ">"), Condition("exit_code", "!=", parsed=True)),
}


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
    """True if a token waits for a pilot, as in the view ``todo``."""
    return doc.get("type") == "token" and state_of(doc) == "todo"


def is_finished(doc: Doc) -> bool:
    """True if a token is done or in error."""
    return state_of(doc) in ("done", "error")


_COMPARISONS: Dict[str, Callable[[Any], bool]] = {
    "==": equals_zero,
    "!=": lambda value: not equals_zero(value),
    ">": lambda value: to_number(value) > 0,
}
