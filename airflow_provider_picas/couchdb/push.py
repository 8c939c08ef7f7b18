"""Writes new tokens, each once, even if some were written before. Operations, as in ``pool``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

from airflow_provider_picas.couchdb import errors
from airflow_provider_picas.couchdb.http import Operation, refused
from airflow_provider_picas.couchdb.pool import Document, Pool, Row
from airflow_provider_picas.tokens import documents
from airflow_provider_picas.tokens.documents import BadTokenError
from airflow_provider_picas.tokens.push import (
    Action,
    DuplicateTokenError,
    MayDiffer,
    OnExisting,
    PushReport,
    action_for,
    of_execution,
    pushed_by,
    run_again,
)

REQUEST_TOKENS = 1_000
"""Limit on the tokens of one request (measured on CouchDB 3.5.0: 500 to 2,000 are fastest)."""

REQUEST_BYTES = 4_000_000
"""Limit on the bytes of one request, unless it has only one token."""

_TRIES = 10  # for a token that others change at each try; the requests have the backoff


class TokenExistsError(ValueError):
    """A token already exists in the pool, and the push must fail in that case."""


def requests_of(tokens: Iterable[Document], execution: str) -> Iterator[dict[str, bytes]]:
    """New tokens in requests: encoded, by id. ``execution`` is unique to this execution of a push.

    Raises BadTokenError, and DuplicateTokenError for duplicates within a request, after it has yielded the tokens
    before.
    """
    request: dict[str, bytes] = {}
    size = 0
    fault: ValueError | None = None
    try:
        for token in tokens:
            text = documents.encode(of_execution(token, execution))
            if request and (len(request) == REQUEST_TOKENS or size + len(text) > REQUEST_BYTES):
                yield request
                request, size = {}, 0
            if (token_id := token["_id"]) in request:
                raise DuplicateTokenError(json.loads(request[token_id])["ordinal"], token["ordinal"], token_id)
            request[token_id] = text
            size += len(text)
    except (BadTokenError, DuplicateTokenError) as error:
        fault = error
    if request:
        yield request
    if fault:
        raise fault


def push(
    pool: Pool, tokens: Mapping[str, bytes], on_existing: OnExisting, may_differ: MayDiffer = MayDiffer.ALL
) -> Operation[PushReport]:
    """Write one request of new tokens, encoded, by id.

    If a response is lost, the tokens are written again: those that were written before are conflicts with this same
    execution, and are not changed, since pilots may have claimed them. Raises TokenExistsError, after the rest of the
    request was written, and ForbiddenError if the login may only read.
    """
    report = PushReport()
    waiting = dict(tokens)
    unanswered: dict[str, Action] = {}
    for _ in range(_TRIES):
        rows = yield from pool.write(waiting.values(), repeatable=True)
        conflicts = _read(pool, rows, waiting, report)
        if conflicts:
            yield from _settle(pool, conflicts, waiting, on_existing, may_differ, report, unanswered)
        if not waiting:
            return report
    raise errors.ConflictError(
        f"{len(waiting)} tokens of {pool.settings.place} keep changing, including {next(iter(waiting))!r}."
    )


def _read(pool: Pool, rows: Sequence[Row], waiting: dict[str, bytes], report: PushReport) -> list[str]:
    """Read every row, and remove written tokens from ``waiting``. Returns the ids in conflict; raises any other error."""
    before, conflicts = len(waiting), []
    for row in rows:
        if row.error is None:
            del waiting[row.id]
        elif row.error == "conflict":
            conflicts.append(row.id)
        else:
            raise refused(pool.settings, row.id, row.error, row.reason)
    report.written += before - len(waiting)
    return conflicts


def _settle(
    pool: Pool,
    conflicts: Sequence[str],
    waiting: dict[str, bytes],
    on_existing: OnExisting,
    may_differ: MayDiffer,
    report: PushReport,
    unanswered: dict[str, Action],
) -> Operation[None]:
    """Read the tokens that already exist, and apply ``on_existing``. Removes settled tokens from ``waiting``.

    ``unanswered`` has the actions for tokens that may or may not have been written.
    """
    present = yield from pool.fetch(conflicts)  # a missing one was deleted in the meantime: it is written again
    changes: list[tuple[Action, Document]] = []
    for token_id, found in present.items():
        wanted = json.loads(waiting[token_id])
        action = action_for(found, wanted, on_existing, pool.profile)
        if action is Action.REFUSE:
            raise TokenExistsError(
                f"Token {token_id!r} is already in {pool.settings.place}, pushed by {pushed_by(found) or 'others'!r:.200}."
                " Give the batch another name, or set on_existing to keep, reset or replace."
            )
        if action is Action.WRITTEN:
            report.write(unanswered.get(token_id, action))
            del waiting[token_id]
        elif action is Action.KEEP:
            if on_existing is OnExisting.RESET and may_differ.forbids(found, wanted):
                raise _another_input(pool, found, wanted)
            report.keep(found, wanted, pool.profile)
            del waiting[token_id]
        elif action is Action.RESET:
            changes.append((action, run_again(found, wanted, pool.profile)))
        else:
            changes.append((action, {**wanted, "_rev": found["_rev"]}))
    if changes:
        yield from _write_changes(pool, changes, waiting, report, unanswered)


def _another_input(pool: Pool, found: Document, wanted: Document) -> TokenExistsError:
    """The error for an existing token with another input: its result would be mistaken for this one's."""
    token_id = found["_id"]
    exists = f"Token {token_id!r} is already in {pool.settings.place}, with a different input from this task's"
    if (pushed := pushed_by(found)) != pushed_by(wanted):
        return TokenExistsError(
            f"{exists}, pushed by {pushed or 'others'!r:.200}. Give the batch another name, or each input its own `key`;"
            " or set on_existing to keep or replace."
        )
    return TokenExistsError(
        f"{exists}. This task runs for the first time, so another Airflow of the same name has pushed it,"
        " or a deleted run of the same name. Give each Airflow its own name in `[picas] deployment`, or the batch another name;"
        " or set on_existing to keep or replace."
    )


def _write_changes(
    pool: Pool,
    changes: Sequence[tuple[Action, Document]],
    waiting: dict[str, bytes],
    report: PushReport,
    unanswered: dict[str, Action],
) -> Operation[None]:
    """Overwrite existing tokens that have not changed since they were read. Removes written tokens from ``waiting``."""
    try:
        rows = yield from pool.write([documents.encode(token) for _, token in changes])
    except errors.UnavailableError:
        unanswered.update((token["_id"], action) for action, token in changes)
        return  # written or not: the next query shows
    for (action, token), row in zip(changes, rows, strict=True):
        # A row in conflict is a token that changed in the meantime: it is read again.
        if row.error is None:
            del waiting[token["_id"]]
            report.write(action)
        elif row.error != "conflict":
            raise refused(pool.settings, row.id, row.error, row.reason)
