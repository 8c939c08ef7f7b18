"""Changes tokens in a pool: reset, set fields, delete, restore. Operations, as in ``pool``.

Every change is written against the revision that was read. A token that changed in the meantime is read and evaluated
again, so that a token that a pilot has claimed, or finished, is never overwritten.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from airflow_provider_picas.couchdb import errors
from airflow_provider_picas.couchdb.counting import parse_rows
from airflow_provider_picas.couchdb.http import Operation, Request, json_body, refused
from airflow_provider_picas.couchdb.pool import PAGE, TOO_LARGE, Document, Pool
from airflow_provider_picas.lifecycle import transitions
from airflow_provider_picas.lifecycle.ids import has_path
from airflow_provider_picas.lifecycle.portions import portions
from airflow_provider_picas.tokens import attachments, documents
from airflow_provider_picas.tokens.counts import Counts, Key, from_rows
from airflow_provider_picas.tokens.selection import EditReport, scrubs_of

WRITE_BYTES = 4_000_000
"""Limit on the bytes of one request, unless it has only one document."""

_TRIES = 10  # for a token that changes at each try; the requests have the backoff

Item = TypeVar("Item")
FindObjections = Callable[[Sequence[Document]], Sequence[str | None]]
"""Returns for each token why it must be skipped, or None."""

GONE = "was deleted meanwhile"


@dataclass(frozen=True)
class Revision:
    """A revision of a token."""

    id: str
    rev: str


class Encoded(NamedTuple):
    """A token to write."""

    document: Document
    text: bytes


def requests_of(tokens: Iterable[Document]) -> Iterator[list[Encoded]]:
    """Tokens in requests."""
    return _in_bytes((Encoded(token, json_body(token)) for token in tokens), lambda token: len(token.text))


def _in_bytes(items: Iterable[Item], size: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Groups of items of about ``WRITE_BYTES``, each at most a page."""
    return portions(items, size, WRITE_BYTES, PAGE)


def clock(pool: Pool) -> Operation[int]:
    """The database's time, in seconds since 1970."""
    response = yield Request("GET", pool.path())
    return response.time if response.time is not None else int(time.time())


def _objections(tokens: Sequence[Document], find_objections: FindObjections) -> list[str | None]:
    """The objections of ``find_objections``, and those to tokens that cannot be written back."""
    return [
        documents.HUGE_INTEGER if objection is None and documents.holds_huge_integer(token) else objection
        for token, objection in zip(tokens, find_objections(tokens), strict=True)
    ]


def preview(tokens: Sequence[Document], find_objections: FindObjections) -> EditReport:
    """What a change of these tokens would report; nothing is written."""
    report = EditReport()
    for token, objection in zip(tokens, _objections(tokens, find_objections), strict=True):
        if objection is None:
            report.change(token["_id"])
        else:
            report.skip(objection, token["_id"])
    return report


def reset(
    pool: Pool,
    tokens: Sequence[Document],
    find_objections: FindObjections,
    *,
    reason: str = "reset",
    keep_logs: bool = False,
) -> Operation[EditReport]:
    """Reset tokens to todo, with the attempt kept in ``attempts`` and attachments unchanged.

    ``keep_logs`` copies the logs of foreign pilots under the attempt's name first: the next attempt would overwrite
    them. ``find_objections`` has to skip tokens that are ``too_large_to_copy``.
    """

    def scrub(token: Document) -> Operation[Document]:
        changed = transitions.scrubbed(token, reason, pool.profile)
        if keep_logs:
            changed = yield from _with_copied_logs(pool, token, changed)
        return changed

    report = EditReport()
    for some in _in_bytes(tokens, _bytes_of_copies) if keep_logs else [tokens]:
        report.add((yield from _change(pool, some, find_objections, scrub, _was_reset)))
    return report


def update(
    pool: Pool, tokens: Sequence[Document], find_objections: FindObjections, fields: Mapping[str, Any]
) -> Operation[EditReport]:
    """Set fields of tokens."""

    def with_fields(token: Document) -> Operation[Document]:
        yield from ()
        return {**token, **fields}

    return (
        yield from _change(pool, tokens, find_objections, with_fields, lambda token, _: documents.has(token, fields))
    )


def delete(pool: Pool, tokens: Sequence[Revision]) -> Operation[EditReport]:
    """Delete these revisions of tokens. Skip tokens that have changed since."""
    report = EditReport()
    waiting = {token.id: token.rev for token in tokens}
    for _ in range(_TRIES):
        gone = [{"_id": token_id, "_rev": rev, "_deleted": True} for token_id, rev in waiting.items()]
        try:
            rows = yield from pool.write([json_body(document) for document in gone])
        except errors.UnavailableError:
            # Written or not: the next query shows.
            present = yield from pool.fetch(list(waiting))
            for token_id in [token_id for token_id in waiting if token_id not in present]:
                del waiting[token_id]
                report.change(token_id)
        else:
            for row in rows:
                del waiting[row.id]
                if row.error is None:
                    report.change(row.id)
                elif row.error == "conflict":
                    report.skip("has changed since it was read", row.id)
                else:
                    raise refused(pool.settings, row.id, row.error, row.reason)
        if not waiting:
            return report
    raise errors.UnavailableError(
        f"{len(waiting)} tokens of {pool.settings.place} could not be deleted. Try again later."
    )


def restore(pool: Pool, tokens: Sequence[Encoded]) -> Operation[EditReport]:
    """Write a request of archived tokens as new documents, in their old state. Tokens that exist in the pool are skipped."""
    report = EditReport()
    sent = False
    for _ in range(_TRIES):
        try:
            rows = yield from pool.write(token.text for token in tokens)
        except errors.UnavailableError:
            sent = True
            yield Request("GET", pool.path())  # waits until the database is back
            continue
        present = yield from _same(pool, [row.id for row in rows if row.error and sent], tokens)
        for row in rows:
            if row.error is None or row.id in present:
                report.change(row.id)
            elif row.error == "conflict":
                report.skip("is in the pool already", row.id)
            else:
                raise refused(pool.settings, row.id, row.error, row.reason)
        return report
    raise errors.UnavailableError(f"{pool.settings.place} does not accept tokens at present. Try again later.")


def attachment(pool: Pool, token_id: str, name: str, rev: str | None = None) -> Request:
    """The request for an attachment of a token, optionally at a revision."""
    return Request("GET", pool.path(token_id, name), {"rev": rev} if rev else {}, raw=True)


def attachment_in_document(pool: Pool, token: Document, name: str) -> Operation[bytes]:
    """An attachment that no URL can name. It is read together with all others of the token."""
    whole = yield from with_attachments(pool, token)
    file = (whole.get("_attachments") or {}).get(name, {})
    try:
        return base64.b64decode(file["data"])
    except (KeyError, ValueError):
        raise errors.UnavailableError(
            f"CouchDB's response lacks attachment {name!r:.80} of {token['_id']!r:.200}. Try again later."
        ) from None


def _content(pool: Pool, token: Document, name: str) -> Operation[bytes]:
    if not (has_path(token["_id"]) and has_path(name)):
        return (yield from attachment_in_document(pool, token, name))
    response = yield attachment(pool, token["_id"], name, token["_rev"])
    return response.body


def with_attachments(pool: Pool, token: Document) -> Operation[Document]:
    """The token with the data of its attachments, at the same revision. Raises NotFoundError if that no longer exists."""
    stubs = attachments.stubs_of(token)
    if not stubs:
        return token
    size = sum(map(attachments.size, stubs.values()))
    return (yield from pool.with_attachments(token["_id"], token["_rev"], size))


def batches(pool: Pool) -> Operation[dict[str, Counts]]:
    """The batches of a pool, each with its counts. Raises NotFoundError if the provider's views are not deployed."""
    group: dict[str, Any] = {"group": True} if pool.profile.is_default else {"group_level": 2}
    response = yield pool.view_request("counts", pool.profile.design, **group)
    rows: dict[str, list[tuple[Key, int]]] = {}
    for batch, state, number in parse_rows(response, profile=pool.profile):
        if batch:  # in the view of a profile, an empty name is the whole pool
            rows.setdefault(batch, []).append((state, number))
    return {batch: from_rows(states) for batch, states in rows.items()}


# -- writing ----------------------------------------------------------------------------------------------------------


def _change(
    pool: Pool,
    tokens: Sequence[Document],
    find_objections: FindObjections,
    make: Callable[[Document], Operation[Document]],
    was_written: Callable[[Document, Document], bool],
) -> Operation[EditReport]:
    """Write the result of ``make`` for each token to which ``find_objections`` does not object.

    ``was_written`` compares the current token with the one that was sent, and returns True if a write without a
    response took place: pilots may have run the token since.
    """
    report = EditReport()
    again = ""
    unanswered: dict[str, Document] = {}
    for _ in range(_TRIES):
        wanted = []
        for token, objection in zip(tokens, _objections(tokens, find_objections), strict=True):
            if token["_id"] in unanswered and was_written(token, unanswered[token["_id"]]):
                report.change(token["_id"])
            elif objection is not None:
                report.skip(again + objection, token["_id"])
            else:
                wanted.append((yield from make(token)))
        conflicts, unanswered = yield from _write(pool, wanted, report)
        unsettled = [*conflicts, *unanswered]
        if not unsettled:
            return report
        present = yield from pool.fetch(unsettled)
        for token_id in unsettled:
            if token_id not in present:
                report.skip(GONE, token_id)
        tokens, again = list(present.values()), "meanwhile it "
    for token in tokens:
        report.skip("keeps changing", token["_id"])
    return report


def _write(
    pool: Pool, tokens: Sequence[Document], report: EditReport
) -> Operation[tuple[list[str], dict[str, Document]]]:
    """Write tokens. Returns the ids of those that had changed, and the tokens that may or may not have been written."""
    conflicts: list[str] = []
    unanswered: dict[str, Document] = {}
    for some in requests_of(tokens):
        try:
            rows = yield from pool.write(token.text for token in some)
        except errors.UnavailableError:
            unanswered.update((token.document["_id"], token.document) for token in some)
            continue
        for row in rows:
            if row.error is None:
                report.change(row.id)
            elif row.error == "conflict":
                conflicts.append(row.id)
            elif row.error == TOO_LARGE:
                report.skip("is too large to be written again", row.id)
            else:
                raise refused(pool.settings, row.id, row.error, row.reason)
    return conflicts, unanswered


def _equals(present: Mapping[str, Any], written: Mapping[str, Any]) -> bool:
    """True if a document is the written one, apart from the revision and stubs that CouchDB assigned."""
    own = ("_rev", "_attachments")
    return {k: v for k, v in present.items() if k not in own} == {k: v for k, v in written.items() if k not in own}


def _was_reset(present: Mapping[str, Any], written: Mapping[str, Any]) -> bool:
    """True if the reset that was sent took place, regardless of later changes: the token has the attempt that it kept."""
    kept = present.get("attempts")
    return scrubs_of(present) >= scrubs_of(written) and isinstance(kept, list) and written["attempts"][-1] in kept


def _same(pool: Pool, token_ids: Sequence[str], written: Sequence[Encoded]) -> Operation[set[str]]:
    """The tokens that are in the pool as they were written."""
    if not token_ids:
        return set()
    present = yield from pool.fetch(token_ids)
    by_id = {token.document["_id"]: token.document for token in written}
    return {token_id for token_id, token in present.items() if _equals(token, by_id[token_id])}


def _bytes_of_copies(token: Document) -> int:
    """The size, in base64, of the logs that are copied when a token is reset."""
    stubs = attachments.stubs_of(token)
    return sum(attachments.size(stubs[name]) * 4 // 3 for name in attachments.logs_to_copy(token).values())


def _with_copied_logs(pool: Pool, token: Document, changed: Document) -> Operation[Document]:
    """The changed token with copies of the logs that the next attempt would overwrite, and without outdated ones."""
    copies: dict[str, Any] = {}
    for copy, name in attachments.logs_to_copy(token).items():
        try:
            content = yield from _content(pool, token, name)
        except errors.NotFoundError:
            continue  # the token has changed: the write will be refused, and the token evaluated again
        copies[copy] = {"content_type": "text/plain", "data": base64.b64encode(content).decode()}
    if not copies:
        return changed
    kept = {name: stub for name, stub in token["_attachments"].items() if name not in attachments.outdated_logs(token)}
    return {**changed, "_attachments": {**kept, **copies}}
