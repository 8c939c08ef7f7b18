"""Makes the tokens of groups whose members have finished. Operations, as in ``pool``."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from airflow_provider_picas.couchdb.http import Operation, Request, json_body
from airflow_provider_picas.couchdb.pool import PAGE, PAGE_BYTES, Pool, Row
from airflow_provider_picas.lifecycle.portions import portions
from airflow_provider_picas.tokens import groups, stage_views
from airflow_provider_picas.tokens.chain import Chain
from airflow_provider_picas.tokens.counts import Counts
from airflow_provider_picas.tokens.states import State

GROUPS = 200  # made in one go
MEMBERS = 2_000  # read together, or those of one group
FINISHED = ("done", "error")


def make_due(
    pool: Pool, chain: Chain, before: Mapping[str, Counts], after: Mapping[str, Counts], pending: Mapping[str, int]
) -> Operation[int]:
    """Make the tokens of groups of which enough members have finished, and record late members. Returns their number.

    ``before``, ``after``: counts before and after ``pending`` (lists, by batch) was read. No more members can appear if
    the batches that fill theirs had finished and did not change, and had no list pending in between.
    """
    stages = [
        stage for stage in chain.groups if chain.batch_of(stage) in chain.batches
    ]  # not those after the wait's own
    final = {stage for stage in stages if _is_final(chain, stage, before, after, pending)}
    seen = yield from _made(pool, chain, stages)
    # Of the others no group can be due.
    stages = [stage for stage in stages if stage in final or seen[stage] or chain.groups[stage].is_number]
    members = yield from _members(pool, {chain.batch_of(chain.groups[stage].of) for stage in stages})
    made = 0
    for stage in stages:
        grouping, known = chain.groups[stage], seen[stage]
        batch, of = chain.batch_of(stage), chain.batch_of(grouping.of)
        totals, finished, ended = members[of]
        new = (name for name in totals if name not in known)
        due = [name for name in new if grouping.due(finished[name], totals[name], known=stage in final)]
        for some in portions(due[:GROUPS], totals.__getitem__, MEMBERS):
            made += yield from _make(pool, some, stage, batch, of)
        changed = [name for name in known if name in ended and ended[name] != known[name]]
        # At random: those of which members were deleted stay among them.
        for some in portions(random.sample(changed, min(GROUPS, len(changed))), totals.__getitem__, MEMBERS):
            made += yield from _update(pool, some, batch, of)
    return made


def _is_final(
    chain: Chain, stage: str, before: Mapping[str, Counts], after: Mapping[str, Counts], pending: Mapping[str, int]
) -> bool:
    """True if no more members of a stage's groups can appear."""
    batches = list(chain.batches)
    fillers = batches[: batches.index(chain.batch_of(chain.groups[stage].of))]
    return all(
        before.get(name) == after.get(name) and not before[name].unfinished and not pending.get(name)
        for name in fillers
    )


def done_groups(pool: Pool, chain: Chain, stage: str) -> Operation[list[str]]:
    """The groups of a stage whose tokens are done, sorted. Raises NotFoundError without the view."""
    batch, grouping = chain.batch_of(stage), chain.groups.get(stage)
    if grouping is None:
        return []
    done = set((yield from pool.all_ids(State.DONE, batch)))
    made = yield from _made(pool, chain, [stage])
    return sorted(name for name in made[stage] if groups.group_id(batch, name) in done)


_Members = tuple[Counter[str], Counter[str], dict[str, float]]
"""The number of members of each group, the number of those that have finished, and the times when they did, added up."""


def _members(pool: Pool, batches: Collection[str]) -> Operation[dict[str, _Members]]:
    """The members of the groups of some batches. One request."""
    names = list(batches)
    queries = [{"group": True, "startkey": ["member", of], "endkey": ["member", of, {}]} for of in names]
    found = yield from pool.view_queries(
        stage_views.GROUPS, pool.profile.stages_design, queries, key=list, value={"count": int, "sum": (int, float)}
    )
    return {of: _add_up(rows) for of, rows in zip(names, found, strict=True)}


def _add_up(rows: Iterable[Mapping[str, Any]]) -> _Members:
    totals, finished = Counter[str](), Counter[str]()
    ended: dict[str, float] = {}
    for row in rows:
        (_, _, name, state), value = row["key"], row["value"]
        totals[name] += value["count"]
        finished[name] += value["count"] if state in FINISHED else 0
        ended[name] = ended.get(name, 0.0) + (value["sum"] if state in FINISHED else 0)
    return totals, finished, ended


def _made(pool: Pool, chain: Chain, stages: Sequence[str]) -> Operation[dict[str, dict[str, float]]]:
    """The groups of some stages that have a token, each with the times of its members' ends that it knows of, added up. One
    request."""
    names = sorted({chain.batch_of(chain.groups[stage].of) for stage in stages})
    queries = [{"reduce": False, "startkey": ["made", of], "endkey": ["made", of, {}]} for of in names]
    fields: dict[str, Any] = {"id": str, "key": list, "value": (int, float)}
    found = yield from pool.view_queries(stage_views.GROUPS, pool.profile.stages_design, queries, **fields)
    rows = dict(zip(names, found, strict=True))
    return {stage: _of_stage(rows[chain.batch_of(chain.groups[stage].of)], chain.batch_of(stage)) for stage in stages}


def _of_stage(rows: Iterable[Mapping[str, Any]], batch: str) -> dict[str, float]:
    """The groups among ``rows`` with a token in a batch: several stages may have groups of the same tokens."""
    found = ((row["key"][2], row["id"], row["value"]) for row in rows)
    return {name: value for name, token_id, value in found if token_id == groups.group_id(batch, name)}


def _members_of(pool: Pool, of: str, names: Collection[str]) -> Operation[dict[str, list[dict[str, Any]]]]:
    """The members of some groups, each with its outcome and output, in the order of their ids."""
    keys = [["member", of, name, state] for name in names for state in (*State, None)]
    path = pool.path("_design", pool.profile.stages_design, "_view", stage_views.GROUPS)
    response = yield Request("POST", path, {"reduce": "false"}, json_body({"keys": keys}))
    found: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in names}
    for row in response.rows(id=str, key=list, value=(int, float)):
        _, _, name, state = row["key"]
        found[name][row["id"]] = {"id": row["id"], "state": state, "done": row["value"]}
    ids = sorted(member for members in found.values() for member in members)
    output, outputs = pool.profile.output_field, dict[str, Any]()
    for start in range(0, len(ids), PAGE):  # of their documents, only the outputs are kept
        documents = yield from pool.fetch(ids[start : start + PAGE])
        outputs |= {name: document[output] for name, document in documents.items() if output in document}
    return {
        name: [
            {**members[member], **({"output": outputs[member]} if member in outputs else {})}
            for member in sorted(members)
        ]
        for name, members in found.items()
    }


def _make(pool: Pool, names: Collection[str], stage: str, batch: str, of: str) -> Operation[int]:
    """Make the tokens of groups, except those that existed before. Returns the number of new ones."""
    ids = {name: groups.group_id(batch, name) for name in names}
    gone = yield from _known_ids(pool, list(ids.values()))
    wanted = [name for name in names if ids[name] not in gone]  # else it was archived, or another token has this id
    if not wanted:
        return 0
    members = yield from _members_of(pool, of, wanted)
    new = (
        groups.group_token(name, members[name], batch=batch, stage=stage, of=of, profile=pool.profile)
        for name in wanted
    )
    rows = yield from _write(pool, [json_body(token) for token in new], repeatable=True)
    return sum(row.error is None for row in rows)


def _write(pool: Pool, tokens: Sequence[bytes], *, repeatable: bool = False) -> Operation[list[Row]]:
    rows: list[Row] = []
    for some in portions(tokens, len, PAGE_BYTES):
        rows += yield from pool.write(some, repeatable=repeatable)
    return rows


def _known_ids(pool: Pool, ids: list[str]) -> Operation[set[str]]:
    """Those ids that exist, or did until they were deleted."""
    if not ids:
        return set()
    response = yield Request("POST", pool.path("_all_docs"), body=json_body({"keys": ids}))
    return {row["key"] for row in response.rows(key=str) if "error" not in row}


def _update(pool: Pool, names: Collection[str], batch: str, of: str) -> Operation[int]:
    """Tell the tokens of groups about late members, or let them run again because a member has. Returns the number of
    those that run again."""
    ids = {name: groups.group_id(batch, name) for name in names}
    found = yield from pool.fetch(list(ids.values()))
    present = {name: found[token_id] for name, token_id in ids.items() if token_id in found}
    members = yield from _members_of(pool, of, list(present))
    changed = (groups.updated(token, members[name], pool.profile) for name, token in present.items())
    new = {token["_id"]: token for token in changed if token is not None}
    rows = yield from _write(pool, [json_body(token) for token in new.values()])
    return sum(row.error is None and "late_members" not in new[row.id] for row in rows)
