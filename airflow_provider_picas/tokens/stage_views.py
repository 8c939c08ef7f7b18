"""The design document for tokens that make tokens. It is deployed only where stages are used."""

from __future__ import annotations

from typing import Any

from airflow_provider_picas.lifecycle import new_tokens
from airflow_provider_picas.lifecycle.ids import STAGES
from airflow_provider_picas.lifecycle.profile import PICAS, Profile
from airflow_provider_picas.tokens.states import javascript_state
from airflow_provider_picas.tokens.views import find_batch, is_token

__all__ = ["GROUPS", "LISTS", "STAGES", "stages"]

LISTS = "lists"
"""Name of its view: ``["pending", batch]`` for each parent whose list is to be carried out, and ``["not_made", batch]``
for each parent some of whose tokens could not be made."""

# The same condition as ``new_tokens.is_pending``; a test runs both on the same documents.
_FIND_LIST = f"""
  var list = doc.{new_tokens.FIELD};
  var isList = list && typeof list.pending == "boolean" && typeof list.claim == "string" && list.claim === doc.claim &&
    typeof doc.done == "number" && doc.done > 0 && list.claim.split("-").pop() === String(doc.lock);"""

_LISTS = f"""function (doc) {{{_FIND_LIST}
  if (!isList) {{ return; }}
  var batch = typeof list.batch == "string" ? list.batch : null;
  if (list.pending) {{ emit(["pending", batch], null); }}
  else if (list.not_made > 0) {{ emit(["not_made", batch], null); }}
}}"""


GROUPS = "groups"
"""Name of its view: ``["member", batch, group, state]`` for each token with a ``group``, and ``["made", batch, group]`` for
each group's token. The values are the times when members ended: those of a group's token are added up in ``members_ended``,
so a member that has ended since, or again, makes a difference.

For the page, which reads them in the same request, it also has ``["edge", batch, batch]`` for each token, with the batch of the
token that made it before its own, and ``["pending", batch]`` for each parent whose list is to be carried out."""

_GROUPS = f"""function (doc) {{{_FIND_LIST}
  if (isList && list.pending && typeof list.batch == "string") {{ emit(["pending", list.batch], 0); }}
  if (typeof doc.parent == "string" && typeof doc.stage == "string") {{
    EDGE
  }}
  if (typeof doc.group_of == "string" && typeof doc.group_name == "string" && typeof doc.members_ended == "number") {{
    emit(["made", doc.group_of, doc.group_name], doc.members_ended);
  }}
  MEMBERS
}}"""

_MEMBERS = f"""var prefix = doc._id.split(":")[0];
  if (typeof doc.group == "string" && doc.group && doc.batch === prefix) {{
    emit(["member", prefix, doc.group, {javascript_state(PICAS)}], typeof doc.done == "number" ? doc.done : 0);
  }}"""


_EDGE = """emit(["edge", doc.parent.split(":")[0], doc._id.split(":")[0]], 0);"""


def _edge(profile: Profile) -> str:
    if profile.batch_field is None:
        return _EDGE
    return f"""var from = typeof doc.parent_batch == "string" ? doc.parent_batch : doc.parent.split(":")[0];{find_batch(profile)}
    emit(["edge", from, batch], 0);"""


def _members(profile: Profile) -> str:
    if profile.is_default:
        return _MEMBERS
    return f"""if (typeof doc.group == "string" && doc.group && ({is_token(profile)})) {{{find_batch(profile)}
    emit(["member", batch, doc.group, {javascript_state(profile)}], typeof doc.done == "number" ? doc.done : 0);
  }}"""


def stages(profile: Profile = PICAS) -> dict[str, Any]:
    """The design document. CouchDB updates its index only when somebody reads it."""
    groups = _GROUPS.replace("MEMBERS", _members(profile)).replace("EDGE", _edge(profile))
    views = {LISTS: {"map": _LISTS, "reduce": "_count"}, GROUPS: {"map": groups, "reduce": "_stats"}}
    return {"language": "javascript", "autoupdate": False, "views": views}
