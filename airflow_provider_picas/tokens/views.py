"""The design documents: PiCaS's ``Monitor`` and the provider's own. All JavaScript is made from one table of states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_provider_picas.lifecycle import ids
from airflow_provider_picas.tokens.states import State, javascript_condition

MONITOR = ids.MONITOR
"""Name of PiCaS's design document."""

PROVIDER = ids.PROVIDER
"""Name of the provider's design document; the number is its version."""

PAGE = "airflow-picas-page-1"
"""Name of the design document of the page in Airflow's UI: another one, so that its index is built beside the others."""

OVERVIEW = "overview_total"
"""Name of the view of ``Monitor`` that counts the pool by state."""


def monitor(condition: str = "") -> dict[str, Any]:
    """PiCaS's design document: its pilots and scripts use these views.

    ``condition`` is an additional JavaScript condition on ``doc`` from the pool's administrator, such as ``doc.cores ==
    1``: the PiCaS client's autopilot example has one such design document for each resource class.
    """
    conditions = {state: javascript_condition(state) + (f" && {condition}" if condition else "") for state in State}
    views: dict[str, dict[str, str]] = {
        state: {"map": _map(f"if ({conditions[state]}) {{ emit(doc._id, doc._id); }}")} for state in State
    }
    emits = "\n".join(f"if ({conditions[state]}) {{ emit('{state}', 1); }}" for state in State)
    # PiCaS's own reduce is "sum(values)" in JavaScript: the same numbers, but computed again for each query.
    views[OVERVIEW] = {"map": _map(emits), "reduce": "_sum"}
    return {"language": "javascript", "views": views}


def provider() -> dict[str, Any]:
    """The provider's design document: counts by batch and state, and the rows that pilots claim from.

    A token is in the batch that its field names only if its id agrees: others may use a field of that name.
    """
    find_state = " : ".join(f"({javascript_condition(state)}) ? '{state}'" for state in State)
    counts = f"""{_FIND_BATCH}
        emit([batch, {find_state} : null], null);"""
    any_state = " || ".join(f"({javascript_condition(state)})" for state in State)
    todo = f"""
        if ({javascript_condition(State.TODO)}) {{{_FIND_BATCH}
          var part = function (value) {{
            return (typeof value == "number" || typeof value == "string") ? String(value).replace(/\\//g, "") : "";
          }};
          var name = part(doc.cores) + "/" + part(doc.gpu) + "/" + part(doc.time);
          var priority = typeof doc.priority == "number" ? doc.priority : 0;
          var text = doc._id + "#" + doc.scrub_count, number = 7;
          for (var i = 0; i < text.length; i++) {{
            number = (number * 48271 + text.charCodeAt(i)) % 2147483647;
          }}
          if (batch) {{ emit([batch, name, -priority, number], null); }}
          emit(["", name, -priority, number], null);
        }}"""
    return {
        "language": "javascript",
        "views": {
            "counts": {"map": _map(counts), "reduce": "_count"},
            "stateless": {"map": _map(f"if (!({any_state})) {{ emit(doc._id, null); }}"), "reduce": "_count"},
            "todo": {"map": _map(todo), "reduce": "_count"},
        },
    }


def page() -> dict[str, Any]:
    """The design document of the page: when and where tokens ended.

    ``ended`` has the time as day, hour, minute and second, so that a group level is a step of a plot. A token in error
    of the PiCaS client has the time of its last error. Pilots claim short tokens in advance, so a token began when its
    seconds say, not when it was locked.

    ``autoupdate``: CouchDB does not bring this index up to date for each change of a token, only when the page reads it.
    """
    ended = f"""
        var state = ({javascript_condition(State.DONE)}) ? 'done' : ({javascript_condition(State.ERROR)}) ? 'error' : null;
        if (state) {{{_FIND_BATCH}
          var at = doc.done, errors = doc.error;
          if (!(at > 1000000000) && errors && errors.length) {{ at = errors[errors.length - 1].time; }}
          at = typeof at == "number" && at > 1000000000 ? Math.floor(at) : 0;
          var text = function (value) {{
            return typeof value == "string" || typeof value == "number" ? String(value).substring(0, 100) : null;
          }};
          var began = typeof doc.lock == "number" && doc.lock > 1000000000 ? doc.lock : null;
          if (began && at && typeof doc.seconds == "number" && doc.seconds >= 0) {{
            began = Math.max(began, at - doc.seconds);
          }}
          emit([batch, state, Math.floor(at / 86400), Math.floor(at / 3600) % 24, Math.floor(at / 60) % 60, at % 60],
            [text(doc.slurm_job_id), text(doc.hostname), began]);
        }}"""
    nodes = f"""
        var state = ({javascript_condition(State.DONE)}) ? 'done' : ({javascript_condition(State.ERROR)}) ? 'error' : null;
        if (state) {{{_FIND_BATCH}
          emit([batch, typeof doc.hostname == "string" ? doc.hostname.substring(0, 100) : "", state], null);
        }}"""
    maps = {"ended": ended, "nodes": nodes}
    return {
        "language": "javascript",
        "autoupdate": False,
        "views": {name: {"map": _map(text), "reduce": "_count"} for name, text in maps.items()},
    }


def design_documents() -> dict[str, dict[str, Any]]:
    """All design documents that the provider deploys, by name."""
    return {MONITOR: monitor(), PROVIDER: provider(), PAGE: page()}


_FIND_BATCH = """
        var prefix = doc._id.split(":")[0];
        var batch = prefix && prefix != doc._id && doc.batch === prefix ? prefix : null;"""


def missing_views(present: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> list[str]:
    """Names of the views of a wanted design document that the present one (None: there is none) lacks, sorted."""
    have = present.get("views") if present else None
    return sorted(name for name in wanted["views"] if not (isinstance(have, Mapping) and name in have))


def differs(present: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> bool:
    """True if the present design document is not as wanted. Changed views are built from scratch."""
    return present is None or any(present.get(name) != value for name, value in wanted.items())


def _map(body: str) -> str:
    return f"function (doc) {{\n  if (doc.type == 'token') {{\n    {body.strip()}\n  }}\n}}"
