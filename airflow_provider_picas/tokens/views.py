"""The design documents: PiCaS's ``Monitor`` and the provider's own. All JavaScript is made from one table of states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_provider_picas.lifecycle import conditions, ids
from airflow_provider_picas.lifecycle.conditions import Condition
from airflow_provider_picas.lifecycle.profile import PICAS, Profile
from airflow_provider_picas.tokens.states import State, javascript_condition, javascript_name, javascript_state

MONITOR = ids.MONITOR
"""Name of PiCaS's design document."""

PROVIDER = ids.PROVIDER
"""Name of the provider's design document; the number is its version."""

PAGE = ids.PAGE
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
    counts = f"""{_FIND_BATCH}
        emit([batch, {javascript_state(PICAS)}], null);"""
    any_state = " || ".join(f"({javascript_condition(state)})" for state in State)
    return {
        "language": "javascript",
        "views": {
            "counts": {"map": _map(counts), "reduce": "_count"},
            "stateless": {"map": _map(f"if (!({any_state})) {{ emit(doc._id, null); }}"), "reduce": "_count"},
            "todo": {"map": _map(_todo(javascript_condition(State.TODO), PICAS)), "reduce": "_count"},
        },
    }


def of_profile(profile: Profile) -> dict[str, Any]:
    """The design document of a profile. For each token, ``counts`` has the row ``[batch, state, id]`` and the same with
    ``""`` for the batch, which is the whole pool; ``tokens`` has ``[batch, id]``; ``todo`` is as in ``provider``.

    Ids of these pools do not name the batch, so ``counts`` lists the tokens of a state, too. If states have names of their
    own, its values are ``[1, 0, …]``, with a 1 for the token's name, and their sums are the counts.
    """
    named, value = len(profile.further_names), "null"
    of_name = ""
    if named:
        value = "value"
        of_name = f"""
        var value = {[1] + named * [0]}, name = {javascript_name(profile)};
        if (name) {{ value[name] = 1; }}"""
    counts = f"""
        var state = {javascript_state(profile)};{of_name}{find_batch(profile)}
        emit([batch, state, doc._id], {value});
        emit(["", state, doc._id], {value});"""
    tokens = f"""{find_batch(profile)}
        emit([batch, doc._id], null);"""
    claimable = f"(({javascript_state(profile)}) === 'todo') && !(doc.lock > 0)"
    maps = {"counts": counts, "tokens": tokens, "todo": _todo(claimable, profile)}
    reduces = dict.fromkeys(maps, "_count") | ({"counts": "_sum"} if named else {})
    found = {name: {"map": _map(text, profile), "reduce": reduces[name]} for name, text in maps.items()}
    return {"language": "javascript", "views": found}


def _todo(condition: str, profile: Profile) -> str:
    ranks = enumerate(profile.priorities)
    rank = "".join(f"({conditions.javascript(parts)}) ? {len(profile.priorities) - n} : " for n, parts in ranks) + "0"
    priority = rank if profile.priorities else 'typeof doc.priority == "number" ? doc.priority : 0'
    return f"""
        if ({condition}) {{{find_batch(profile)}
          var part = function (value) {{
            return (typeof value == "number" || typeof value == "string") ? String(value).replace(/\\//g, "") : "";
          }};
          var name = part(doc.cores) + "/" + part(doc.gpu) + "/" + part(doc.time);
          var priority = {priority};
          var text = doc._id.replace(/([1-9]\\d+)\\d\\d$/, "$1") + "#" + doc.scrub_count, number = 7;
          for (var i = 0; i < text.length; i++) {{
            number = (number * 48271 + text.charCodeAt(i)) % 2147483647;
          }}
          if (batch) {{ emit([batch, name, -priority, number], null); }}
          emit(["", name, -priority, number], null);
        }}"""


def page(profile: Profile = PICAS) -> dict[str, Any]:
    """The design document of the page: when and where tokens ended.

    ``ended`` has the time as day, hour, minute and second, so that a group level is a step of a plot. A token in error
    of the PiCaS client has the time of its last error. Pilots claim short tokens in advance, so a token began when its
    seconds say, not when it was locked.

    ``autoupdate``: CouchDB does not bring this index up to date for each change of a token, only when the page reads it.
    """
    find_state, set_batch = _find_end(profile), find_batch(profile)
    ended = f"""
        var state = {find_state};
        if (state) {{{set_batch}
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
            [text({_field(profile.job_field)}), text(doc.hostname), began]);
        }}"""
    nodes = f"""
        var state = {find_state};
        if (state) {{{set_batch}
          emit([batch, typeof doc.hostname == "string" ? doc.hostname.substring(0, 100) : "", state], null);
        }}"""
    maps = {"ended": ended, "nodes": nodes}
    return {
        "language": "javascript",
        "autoupdate": False,
        "views": {name: {"map": _map(text, profile), "reduce": "_count"} for name, text in maps.items()},
    }


def _find_end(profile: Profile) -> str:
    """The state of a finished token, or null, as JavaScript."""
    if profile.is_default:
        return f"({javascript_condition(State.DONE)}) ? 'done' : ({javascript_condition(State.ERROR)}) ? 'error' : null"
    ends = ("null" if row.state in ("todo", "locked") else f"'{row.state}'" for row in profile.states)
    rows = zip(profile.states, ends, strict=True)
    return "".join(f"({conditions.javascript(row.conditions)}) ? {end} : " for row, end in rows) + "null"


def design_documents(profile: Profile = PICAS) -> dict[str, dict[str, Any]]:
    """All design documents that the provider deploys, by name.

    ``autoupdate``: CouchDB does not bring the index of ``Monitor`` up to date every few seconds. Its readers do, and waits.
    """
    if profile.is_default:
        return {MONITOR: {**monitor(), "autoupdate": False}, PROVIDER: provider(), PAGE: page()}
    return {profile.design: of_profile(profile), profile.page_design: page(profile)}


_FIND_BATCH = """
        var prefix = doc._id.split(":")[0];
        var batch = prefix && prefix != doc._id && doc.batch === prefix ? prefix : null;"""


def find_batch(profile: Profile) -> str:
    """JavaScript that sets ``batch`` to that of ``doc``, or null."""
    if profile.batch_field is None:
        return _FIND_BATCH
    field = _field(profile.batch_field)
    return f"""
        var batch = typeof {field} == "string" && {field} ? {field} : null;"""


def _field(name: str) -> str:
    return Condition(name, "==").javascript().removesuffix(" == 0")


def is_own(name: str) -> bool:
    """True for a design document of this package, which it replaces if it differs."""
    return any(name == own or name.startswith(f"{own}-") for own in (PROVIDER, PAGE, ids.STAGES))


def missing_views(present: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> list[str]:
    """Names of the views of a wanted design document that the present one (None: there is none) lacks, sorted."""
    have = present.get("views") if present else None
    return sorted(name for name in wanted["views"] if not (isinstance(have, Mapping) and name in have))


def differs(present: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> bool:
    """True if the present design document is not as wanted. Changed views are built from scratch."""
    return present is None or any(present.get(name) != value for name, value in wanted.items())


def _map(body: str, profile: Profile = PICAS) -> str:
    return f"function (doc) {{\n  if ({is_token(profile)}) {{\n    {body.strip()}\n  }}\n}}"


def is_token(profile: Profile) -> str:
    """The condition, as JavaScript, that ``doc`` is a token."""
    if profile.types is None:
        return "typeof doc.type == 'string'"
    if profile.types == PICAS.types:
        return "doc.type == 'token'"
    return " || ".join(Condition("type", "==", value=name).javascript() for name in profile.types)
