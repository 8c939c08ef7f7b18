"""A simulated CouchDB as a value: a single server, or a cluster of three nodes of which one may be cut off.

A document is the set of its leaves in the tree of revisions. A revision follows from its parent and its content, as CouchDB's
do, so its content and its ancestors need not be part of a state.

Of a cluster's three copies, two are always together: ``copies`` are those of the larger side, which is a quorum, and
that of the node that may be cut off. Writes and reads behave as ``fabric`` of CouchDB 3: two equal answers decide;
without them a write that one node accepted is answered with 202. Internal replication (``synchronize``) happens at any
time, or not at all for a while. It does not carry ``_local`` documents.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

Doc = dict[str, Any]

LARGER, SMALLER = 0, 1  # the sides of a divided cluster

_CONTENT: dict[str, tuple[str, str | None]] = {}  # by revision: its parent, and the document without it; None: deleted


class Lease(NamedTuple):
    """A lease as stored. ``renewed``: by the database's clock, relative to now."""

    renewals: int
    renewed: int
    ended: bool = False


class Copy(NamedTuple):
    """The documents on a node, or on two nodes that agree. ``tokens``: by id, their leaves. ``leases``: by pilot."""

    tokens: tuple[tuple[str, tuple[str, ...]], ...] = ()
    leases: tuple[tuple[str, Lease], ...] = ()

    def leaves(self, token: str) -> tuple[str, ...]:
        """The leaves of a token."""
        return next((leaves for name, leaves in self.tokens if name == token), ())

    def with_leaves(self, token: str, leaves: Iterable[str]) -> Copy:
        """With other leaves of a token."""
        return self._replace(tokens=_set(self.tokens, token, tuple(sorted(leaves))))


def _set(items: tuple[tuple[str, Any], ...], name: str, value: Any) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted([*(item for item in items if item[0] != name), (name, value)]))


class Cluster(NamedTuple):
    """The database. ``reachable``: the nodes see each other."""

    copies: tuple[Copy, ...]
    joined: bool = True

    @property
    def synchronized(self) -> bool:
        """Whether all nodes have the same tokens."""
        return all(copy.tokens == self.copies[0].tokens for copy in self.copies)


def revision(parent: str, body: Mapping[str, Any] | None, salt: str = "") -> str:
    """The revision with this content on top of a parent (``""``: none)."""
    text = None if body is None else json.dumps(body, sort_keys=True)
    digest = hashlib.md5(f"{salt}{parent}{text}".encode()).hexdigest()[:8]
    name = f"{int(parent.partition('-')[0] or 0) + 1}-{digest}"
    _CONTENT[name] = parent, text
    return name


def content(token: str, rev: str) -> Doc:
    """The document of a revision."""
    text = _CONTENT[rev][1]
    return (
        {"_id": token, "_rev": rev, "_deleted": True}
        if text is None
        else {"_id": token, "_rev": rev, **json.loads(text)}
    )


def is_deleted(rev: str) -> bool:
    """Whether a revision is a deletion."""
    return _CONTENT[rev][1] is None


def _ancestors(rev: str) -> set[str]:
    found = set()
    while rev := _CONTENT[rev][0]:
        found.add(rev)
    return found


def merge_leaves(*sets: Iterable[str]) -> tuple[str, ...]:
    """The leaves of several copies together."""
    leaves = {rev for some in sets for rev in some}
    old = {rev for leaf in leaves for rev in _ancestors(leaf)}
    return tuple(sorted(leaves - old))


def winner_first(leaves: Iterable[str]) -> list[str]:
    """The leaves that are not deleted, in CouchDB's order."""
    kept = [rev for rev in leaves if not is_deleted(rev)]
    return sorted(kept, key=lambda rev: (int(rev.partition("-")[0]), rev.partition("-")[2]), reverse=True)


class Row(NamedTuple):
    """The result of a write of one document: ``ok``, ``accepted`` or ``conflict``."""

    token: str
    outcome: str
    rev: str


def sides(database: Cluster) -> list[int | None]:
    """Which nodes a client's request may reach; None: all."""
    return [None] if database.joined else [LARGER, SMALLER]


def write(
    database: Cluster, side: int | None, docs: Iterable[Doc], salt: str = "", new_edits: bool = True
) -> tuple[Cluster, list[Row]]:
    """``_bulk_docs`` through a node of this side."""
    copies, rows = list(database.copies), []
    numbers = range(len(copies)) if side is None else [side]
    for doc in docs:
        token, parent = doc["_id"], doc.get("_rev", "")
        body = {name: value for name, value in doc.items() if name not in ("_id", "_rev")}
        if new_edits:
            new = revision(parent, None if doc.get("_deleted") else body, salt)
        else:
            new, parent = parent, ""
            _CONTENT.setdefault(new, ("", json.dumps(body, sort_keys=True)))
        stored = 0
        for number in numbers:
            leaves = copies[number].leaves(token)
            if not new_edits:
                copies[number] = copies[number].with_leaves(token, merge_leaves(leaves, [new]))
            elif parent in leaves or (not parent and not winner_first(leaves)):
                copies[number] = copies[number].with_leaves(token, {*leaves, new} - {parent})
            else:
                continue
            stored += weight(database, number)
        rows.append(_row(token, new, stored, sum(weight(database, number) for number in numbers), database))
    return database._replace(copies=tuple(copies)), rows


def weight(database: Cluster, number: int) -> int:
    """The number of nodes that have a copy."""
    return 2 if number == LARGER and len(database.copies) > 1 else 1


def _row(token: str, new: str, stored: int, asked: int, database: Cluster) -> Row:
    quorum = 2 if len(database.copies) > 1 else 1
    if stored >= quorum:
        return Row(token, "ok", new)
    if stored and asked - stored < quorum:
        return Row(token, "accepted", new)
    return Row(token, "conflict", "")


def read(database: Cluster, side: int | None, token: str) -> list[tuple[str, ...]]:
    """What a read of a token by its id may return: its leaves. Two nodes that agree may answer before the third one."""
    if side is not None:
        return [database.copies[side].leaves(token)]
    larger = database.copies[LARGER].leaves(token)
    return list(dict.fromkeys([larger, merge_leaves(*(copy.leaves(token) for copy in database.copies))]))


def put_lease(database: Cluster, side: int | None, pilot: str, lease: Lease) -> tuple[Cluster, bool]:
    """Write a lease, over any other. True if enough nodes stored it."""
    copies = list(database.copies)
    for number in range(len(copies)) if side is None else [side]:
        copies[number] = copies[number]._replace(leases=_set(copies[number].leases, pilot, lease))
    return database._replace(copies=tuple(copies)), side != SMALLER


def synchronize(database: Cluster) -> Cluster:
    """Copy all revisions to all nodes."""
    names = {name for copy in database.copies for name, _ in copy.tokens}
    merged = {name: merge_leaves(*(copy.leaves(name) for copy in database.copies)) for name in names}
    tokens = tuple(sorted(merged.items()))
    return database._replace(copies=tuple(copy._replace(tokens=tokens) for copy in database.copies))


def current(copy: Copy, token: str) -> Doc | None:
    """The winning revision on a copy."""
    leaves = winner_first(copy.leaves(token))
    return content(token, leaves[0]) if leaves else None
