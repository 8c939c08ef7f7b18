"""Makes the tokens of groups whose members have finished. Operations, as in ``pool``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from airflow_provider_picas.couchdb.http import Operation, Request, json_body
from airflow_provider_picas.couchdb.pool import PAGE, Pool
from airflow_provider_picas.tokens import groups, stage_views
from airflow_provider_picas.tokens.chain import Chain
from airflow_provider_picas.tokens.counts import Counts

GROUPS = 200  # made in one go
FINISHED = ("done", "error")


def make_due(
    pool: Pool, chain: Chain, before: Mapping[str, Counts], after: Mapping[str, Counts], pending: Mapping[str, int]
) -> Operation[int]:
    """Make the tokens of groups of which enough members have finished, and record late members. Returns their number.

    ``before``, ``after``: counts before and after ``pending`` (lists, by batch) was read. No more members can appear if
    the batches that fill theirs had finished and did not change, and had no list pending in between.
    """
    made = 0
    for stage, grouping in chain.groups.items():
        batch, of = chain.batch_of(stage), chain.batch_of(grouping.of)
        if batch not in chain.batches:
            continue  # of a later stage than the one that the wait is for
        fillers = list(chain.batches)[: list(chain.batches).index(of)]
        known = all(
            before.get(name) == after.get(name) and not _unfinished(before[name]) and not pending.get(name)
            for name in fillers
        )
        totals, finished, ended = yield from _members(pool, of)
        seen = yield from _made(pool, of)
        due = [name for name in totals if grouping.due(finished[name], totals[name], known=known)]
        made += yield from _make(pool, [name for name in due if name not in seen][:GROUPS], stage, batch, of)
        for name in [name for name in seen if ended[name] != seen[name]][:GROUPS]:
            made += yield from _update(pool, name, batch, of)
    return made


def _unfinished(counts: Counts) -> int:
    return counts.todo + counts.locked


def _members(pool: Pool, of: str) -> Operation[tuple[Counter[str], Counter[str], dict[str, float]]]:
    """The number of members of each group, the number of those that have finished, and the times when they did, added up."""
    query = {"group": True, "startkey": ["member", of], "endkey": ["member", of, {}]}
    response = yield pool.view_request(stage_views.GROUPS, stage_views.STAGES, **query)
    totals, finished = Counter[str](), Counter[str]()
    ended: dict[str, float] = {}
    for row in response.rows(key=list, value=dict):
        _, _, name, state = row["key"]
        value = response.checked(row["value"], {"count": int, "sum": (int, float)})
        totals[name] += value["count"]
        finished[name] += value["count"] if state in FINISHED else 0
        ended[name] = ended.get(name, 0.0) + (value["sum"] if state in FINISHED else 0)
    return totals, finished, ended


def _made(pool: Pool, of: str) -> Operation[dict[str, float]]:
    """The groups that have a token, each with the times of its members' ends that it knows of, added up."""
    query = {"reduce": False, "startkey": ["made", of], "endkey": ["made", of, {}]}
    response = yield pool.view_request(stage_views.GROUPS, stage_views.STAGES, **query)
    return {row["key"][2]: row["value"] for row in response.rows(key=list, value=(int, float))}


def _members_of(pool: Pool, of: str, name: str) -> Operation[list[dict[str, Any]]]:
    """The members of a group, with outcome and output, in the order of their ids."""
    query = {"reduce": False, "startkey": ["member", of, name], "endkey": ["member", of, name, {}]}
    response = yield pool.view_request(stage_views.GROUPS, stage_views.STAGES, **query)
    rows = response.rows(id=str, key=list, value=(int, float))
    states = {row["id"]: {"state": row["key"][3], "done": row["value"]} for row in rows}
    members = []
    names = sorted(states)
    for start in range(0, len(names), PAGE):
        documents = yield from pool.fetch(names[start : start + PAGE])
        for member in names[start : start + PAGE]:
            output = {"output": documents[member]["output"]} if "output" in documents.get(member, {}) else {}
            members.append({"id": member, **states[member], **output})
    return members


def _make(pool: Pool, names: Collection[str], stage: str, batch: str, of: str) -> Operation[int]:
    """Make the tokens of groups, except those that existed before. Returns the number of new ones."""
    ids = {groups.group_id(batch, name): name for name in names}
    gone = yield from _known_ids(pool, list(ids))
    new = []
    for token_id, name in ids.items():
        if token_id not in gone:  # else it was archived, or another token has this id
            members = yield from _members_of(pool, of, name)
            token = groups.group_token(name, members, batch=batch, stage=stage, of=of, profile=pool.profile)
            new.append(json_body(token))
    rows = (yield from pool.write(new, repeatable=True)) if new else []
    return sum(row.error is None for row in rows)


def _known_ids(pool: Pool, ids: list[str]) -> Operation[set[str]]:
    """Those ids that exist, or did until they were deleted."""
    if not ids:
        return set()
    response = yield Request("POST", pool.path("_all_docs"), body=json_body({"keys": ids}))
    return {row["key"] for row in response.rows(key=str) if "error" not in row}


def _update(pool: Pool, name: str, batch: str, of: str) -> Operation[int]:
    """Tell a group's token of late members, or let it run again because a member has. Returns 1 if it runs again."""
    token_id = groups.group_id(batch, name)
    found = yield from pool.fetch([token_id])
    if token_id not in found:
        return 0
    members = yield from _members_of(pool, of, name)
    new = groups.updated(found[token_id], members)
    if new is None:
        return 0
    (row,) = yield from pool.write([json_body(new)])
    return int(row.error is None and "late_members" not in new)
