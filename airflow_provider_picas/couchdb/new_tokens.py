"""Makes the tokens that commands have named, where their pilots did not. Operations, as in ``pool``.

The rules are in ``lifecycle.new_tokens``, and the pilot uses the same ones.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_picas.couchdb import changes, conflicts, errors, groups
from airflow_provider_picas.couchdb.deployment import deploy_one, design_document
from airflow_provider_picas.couchdb.http import Operation, Request, json_body
from airflow_provider_picas.couchdb.pool import Document, Pool
from airflow_provider_picas.lifecycle import new_tokens
from airflow_provider_picas.lifecycle.json_values import number
from airflow_provider_picas.lifecycle.portions import portions
from airflow_provider_picas.tokens import stage_views
from airflow_provider_picas.tokens.chain import Chain, ChainCounts

PARENTS = 50  # whose lists are carried out at a time
WRITE_BYTES = 4_000_000  # of new tokens in one request


ROUNDS = 20  # counts of a chain in a row, while each shows new tokens


@dataclass(frozen=True)
class Lists:
    """The lists of new tokens of some batches."""

    by_batch: Mapping[str, int] = field(default_factory=dict)  #: to be carried out
    not_made: int = 0  #: with tokens that could not be made

    @property
    def pending(self) -> int:
        """The number of lists that are to be carried out."""
        return sum(self.by_batch.values())


def deploy(pool: Pool) -> Operation[str]:
    """Write the design document that shows pending lists, if it differs. Returns ``written``, ``unchanged`` or ``refused``."""
    name = pool.profile.stages_design
    present = yield from design_document(pool, name)
    return (yield from deploy_one(pool, name, present, stage_views.stages(pool.profile)))


def lists_of(pool: Pool, batches: Collection[str]) -> Operation[Lists]:
    """The lists of tokens of these batches. Raises NotFoundError if the pool has no such view."""
    keys = [[kind, batch] for kind in ("pending", "not_made") for batch in batches]
    path = pool.path("_design", pool.profile.stages_design, "_view", stage_views.LISTS)
    response = yield Request("POST", path, {"group": "true"}, json_body({"keys": keys}))
    rows = [(*row["key"], row["value"]) for row in response.rows(key=list, value=int) if len(row["key"]) == 2]
    pending = {batch: number for kind, batch, number in rows if kind == "pending"}
    return Lists(pending, sum(number for kind, _, number in rows if kind == "not_made"))


def carry_out(pool: Pool, batches: Collection[str]) -> Operation[int]:
    """Carry out pending lists of these batches, some of them if there are many. Returns their number."""
    carried_out = 0
    queries = [{"reduce": False, "key": ["pending", batch], "limit": PARENTS} for batch in batches]
    lists = yield from pool.view_queries(stage_views.LISTS, pool.profile.stages_design, queries, id=str)
    for names in ([row["id"] for row in rows] for rows in lists if rows):
        found = yield from conflicts.branches(pool, names)
        # Of revisions in conflict another one may win: pilots and the watch of a wait merge them.
        alone = (revisions[0] for revisions in found.values() if len(revisions) == 1)
        parents = [parent for parent in alone if new_tokens.is_pending(parent)]
        for some in portions(parents, _size_of_list, WRITE_BYTES):
            carried_out += yield from _carry_out(pool, some)
    return carried_out


def _size_of_list(parent: Document) -> int:
    stub = (parent.get("_attachments") or {}).get(new_tokens.FILE) or {}
    return int(number(stub.get("length")))


def _carry_out(pool: Pool, parents: Sequence[Document]) -> Operation[int]:
    """Carry out the lists of some parents together. Returns the number of those that are carried out."""
    tokens: list[Document] = []
    not_made: dict[str, dict[str, str]] = {}  # by parent
    for parent in parents:
        not_made[parent["_id"]] = {}
        try:
            tokens += yield from _list_of(pool, parent)
        except (ValueError, errors.NotFoundError) as error:
            not_made[parent["_id"]][parent["_id"]] = str(error)
    for some in portions(tokens, lambda token: len(json.dumps(token)), WRITE_BYTES):
        refused = yield from _make(pool, some)
        if refused is None:
            return 0
        for token, why in refused:
            not_made[token["parent"]][token["_id"]] = why
    finished = [json_body(new_tokens.carried_out(parent, not_made[parent["_id"]])) for parent in parents]
    rows = yield from pool.write(finished)
    return sum(row.error is None for row in rows)


def _list_of(pool: Pool, parent: Document) -> Operation[list[Document]]:
    """Raises ValueError if the list is not one that a pilot wrote."""
    stub = (parent.get("_attachments") or {}).get(new_tokens.FILE)
    if stub is None:
        raise ValueError(f"it has no attachment {new_tokens.FILE}")
    query = {"rev": parent["_rev"]}
    response = yield Request("GET", pool.path(parent["_id"], new_tokens.FILE), query, raw=True)
    return new_tokens.read_attachment(response.body, parent)


def _make(pool: Pool, tokens: Sequence[Document]) -> Operation[list[tuple[Document, str]] | None]:
    """Make those of these tokens that do not exist. Returns those that cannot be made, and why; None: not now."""
    present = yield from pool.fetch_all([token["_id"] for token in tokens])
    plan = new_tokens.Plan(tokens, present)
    not_made = list(plan.not_made)
    if plan.new:
        refused = yield from _put_first_revisions(pool, plan.new)
        not_made += [(token, refused[token["_id"]]) for token in plan.new if token["_id"] in refused]
    if plan.replaced:
        rows = yield from pool.write(list(map(json_body, plan.replaced)))
        if any(row.error is not None for row in rows):
            return None  # somebody else changed it: the next time shows what exists
    return not_made


def _put_first_revisions(pool: Pool, tokens: Sequence[Document]) -> Operation[dict[str, str]]:
    """Write new tokens with their first revisions. Returns those that are refused, and why."""
    body = json_body({"docs": list(tokens), "new_edits": False})
    try:
        response = yield Request("POST", pool.path("_bulk_docs"), body=body)
    except errors.TooLargeError as error:
        if len(tokens) == 1:
            return {tokens[0]["_id"]: str(error)}
        half = len(tokens) // 2
        first = yield from _put_first_revisions(pool, tokens[:half])
        return first | (yield from _put_first_revisions(pool, tokens[half:]))
    if response.status == 202:
        place = pool.settings.place
        raise errors.UnavailableError(f"{place} stores new tokens on too few nodes of its cluster (202).", status=202)
    return dict(_refused(response.rows(None, id=str)))


def _refused(rows: Iterable[dict[str, Any]]) -> Iterable[tuple[str, str]]:
    return ((row["id"], f"{row['error']}: {row.get('reason')}") for row in rows if row.get("error"))


def _copies(pool: Pool) -> Operation[int]:
    """The number of copies of the database that a cluster keeps. Views are read from one of them, which may lag behind."""
    cluster = (yield from pool.info()).get("cluster")
    return int(number(cluster.get("n"), 1)) if isinstance(cluster, Mapping) else 1


def count_chain(pool: Pool, chain: Chain, *, look: bool) -> Operation[ChainCounts]:
    """Count the tokens of a chain. ``look``: look for lists that nobody has carried out, and for groups of which enough
    members have finished, and make their tokens.

    No more tokens can appear only if those that make them have finished before and after a look that finds no list of
    theirs: a token may make others until its list has been carried out.
    """
    batches, fillers = list(chain.batches), chain.fillers
    counts = yield from changes.counts_of(pool, batches)
    lists = Lists()
    for _ in range(ROUNDS):
        unfinished = any(counts[batch].unfinished for batch in fillers)
        if unfinished and not look:
            return ChainCounts(counts)
        lists = yield from lists_of(pool, batches)
        if lists.pending and look:
            yield from carry_out(pool, batches)
        again = yield from changes.counts_of(pool, batches)
        made = yield from groups.make_due(pool, chain, counts, again, lists.by_batch)
        if chain.groups and not made:
            again = yield from changes.counts_of(pool, batches)  # another wait may have made the groups that exist now
        pending = any(lists.by_batch.get(batch) for batch in fillers)
        same = all(again[batch] == counts[batch] for batch in fillers)
        closed = same and not (unfinished or pending or made)
        if closed or unfinished or pending:
            copies = (yield from _copies(pool)) if closed else 1
            return ChainCounts(again, lists.pending, lists.not_made, closed=closed, looked=look, copies=copies)
        counts = again
    return ChainCounts(counts, lists.pending, lists.not_made, looked=look)
