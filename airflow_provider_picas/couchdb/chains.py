"""Which batches belong to a chain of stages: a wait for stages, or the task that submits their pilots, writes a small local
document for each of them.

So the page can show the chain of a batch, whoever runs it. Operations, as in ``pool``.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_picas.couchdb import errors
from airflow_provider_picas.couchdb.http import Operation, Request, Response, json_body
from airflow_provider_picas.couchdb.pool import Pool
from airflow_provider_picas.tokens import stage_views
from airflow_provider_picas.tokens.chain import Chain

PREFIX = "_local/picas-chain-"
MOST_GROUPS = 2_000  # of a stage that are counted
MOST_STAGES = 50  # of a chain that are read


def record_id(batch: str) -> str:
    """The id of the document that says to which chain a batch belongs."""
    return f"{PREFIX}{batch}"


def note(pool: Pool, chain: Chain) -> Operation[None]:
    """Record the stages of a chain, if they are not known yet. A login that may only read records nothing."""
    batches = {record_id(batch): batch for batch in (chain.batch, *chain.by_stage.values())}
    queries = [{"startkey": name, "endkey": name, "include_docs": True} for name in batches]
    response = yield Request("POST", pool.path("_local_docs", "queries"), body=json_body({"queries": queries}))
    rows = (response.checked(row, {}) for result in response.rows("results", rows=list) for row in result["rows"])
    present = {row["doc"]["_id"]: response.document(row["doc"]) for row in rows if row.get("doc")}
    new = (_record(chain, name, batch, present.get(name, {})) for name, batch in batches.items())
    changed = [record for record in new if record is not None]
    if changed:
        # Rows with errors: another wait writes the same.
        with suppress(errors.ForbiddenError, errors.UnauthorizedError):  # the login may only read
            yield from pool.write(map(json_body, changed), repeatable=True)


def _record(chain: Chain, name: str, batch: str, present: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the document of a batch is to be; None: unchanged."""
    groups = {stage: grouping.as_dict() for stage, grouping in chain.groups.items()}
    known = parse(batch, present)
    stages, grouped = chain.as_argument, dict(groups)
    if known is not None and known.batch == chain.batch:
        stages = known.as_argument if chain.by_stage.items() <= known.by_stage.items() else stages
        grouped = {of: value for of, value in {**(present.get("groups") or {}), **groups}.items() if of in stages}
    new = {"_id": name, "batch": chain.batch, "stages": stages, "groups": grouped, "since": int(time.time())}
    if all(present.get(key) == new[key] for key in ("batch", "stages", "groups")):
        return None
    return {**new, "_rev": present["_rev"]} if "_rev" in present else new


def parse(batch: str, document: Mapping[str, Any] | None) -> Chain | None:
    """The chain of a batch from its document; None if there is none, or if it does not have the batch: others may write
    local documents, too."""
    begin, stages = (document or {}).get("batch"), (document or {}).get("stages")
    if not isinstance(begin, str) or not isinstance(stages, list | dict) or not 0 < len(stages) <= MOST_STAGES:
        return None
    try:
        chain = Chain.parse(begin, stages, groups=(document or {}).get("groups"))
    except (ValueError, TypeError):
        return None
    return chain if chain is not None and batch in chain.own else None


@dataclass(frozen=True)
class Links:
    """How the batches of a chain depend on each other, as far as the index of its views is up to date."""

    pending: Mapping[str, int] = field(
        default_factory=dict
    )  #: lists of new tokens that are to be carried out, by batch
    groups: Mapping[str, int] = field(default_factory=dict)  #: groups that members of the batch name
    made: Mapping[str, int] = field(default_factory=dict)  #: groups of the batch's members that have a token
    more_groups: bool = False  #: there are more groups than were counted
    edges: Mapping[tuple[str, str], int] = field(
        default_factory=dict
    )  #: tokens that those of one batch made in another


def links(pool: Pool, chain: Chain) -> Operation[Links]:
    """How the batches depend on each other. One request, which does not wait for the index of the view: waits for the
    chain keep it up to date. Raises NotFoundError without the view."""
    queries: list[dict[str, Any]] = []
    of_groups = sorted({chain.batch_of(grouping.of) for grouping in chain.groups.values()})
    for batch in chain.own:
        queries += [_query("edge", batch, 3), _query("pending", batch, 2)]
    for batch in of_groups:
        queries += [_query("member", batch, 3, MOST_GROUPS), _query("made", batch, 2)]
    response = yield pool.queries_request(stage_views.GROUPS, pool.profile.stages_design, queries)
    edges: dict[tuple[str, str], int] = {}
    found: dict[str, Counter[str]] = {kind: Counter() for kind in ("pending", "member", "made")}
    for result in response.rows("results", rows=list):
        for row in result["rows"]:
            kind, batch, further, number = _row(response, row)
            if kind == "edge":
                edges[batch, further] = number
            elif kind in found:
                found[kind][batch] += 1 if kind == "member" else number
    most = max(found["member"].values(), default=0)
    return Links(found["pending"], found["member"], found["made"], most >= MOST_GROUPS, edges)


def _query(kind: str, batch: str, level: int, limit: int | None = None) -> dict[str, Any]:
    query = {"startkey": [kind, batch], "endkey": [kind, batch, {}], "group_level": level, "update": "lazy"}
    return query | ({"limit": limit} if limit else {})


def _row(response: Response, row: Any) -> tuple[str, str, str, int]:
    """Kind, batch, the third part of the key and the number of a row."""
    key: Sequence[Any] = response.checked(row, {"key": list, "value": dict})["key"]
    number: int = response.checked(row["value"], {"count": int})["count"]
    if not 2 <= len(key) <= 3 or not all(isinstance(part, str) for part in key):
        raise response.unexpected("a row of the view 'groups' does not have the expected form")
    return key[0], key[1], key[2] if len(key) == 3 else "", number
