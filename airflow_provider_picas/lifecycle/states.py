"""The states of a token, from one table of conditions."""

from typing import Any, Dict, Mapping, Optional

from airflow_provider_picas.lifecycle.conditions import Condition, Conditions, all_hold
from airflow_provider_picas.lifecycle.json_values import Doc

# The conditions of the PiCaS client's create_views.py (client 1.1.2). At most one state fits.
CONDITIONS: Dict[str, Conditions] = {
    "todo": (Condition("lock", "=="), Condition("done", "==")),
    "locked": (Condition("lock", ">"), Condition("done", "==")),
    "done": (Condition("lock", ">"), Condition("done", ">"), Condition("exit_code", "==", parsed=True)),
    "error": (Condition("lock", ">"), Condition("done", ">"), Condition("exit_code", "!=", parsed=True)),
}


def state_of(doc: Mapping[str, Any]) -> Optional[str]:
    """The state of a token, or None for one in no state (such as ``lock = 0, done > 0``)."""
    for state, conditions in CONDITIONS.items():
        if all_hold(conditions, doc):
            return state
    return None


def is_todo(doc: Mapping[str, Any]) -> bool:
    """True if a token waits for a pilot, as in the view ``todo``."""
    return doc.get("type") == "token" and state_of(doc) == "todo"


def is_finished(doc: Doc) -> bool:
    """True if a token is done or in error."""
    return state_of(doc) in ("done", "error")
