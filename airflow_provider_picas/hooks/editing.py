"""``TokenEditor``: selects tokens of a pool, and changes the selected ones."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_provider_picas.couchdb import edits, errors, indexes
from airflow_provider_picas.couchdb.http import Operation
from airflow_provider_picas.couchdb.pool import PAGE, Document
from airflow_provider_picas.hooks import regex
from airflow_provider_picas.tokens import attachments, documents
from airflow_provider_picas.tokens.causes import error_text
from airflow_provider_picas.tokens.selection import EditReport, Selection

if TYPE_CHECKING:
    from airflow_provider_picas.hooks.picas import PicasHook

Item = TypeVar("Item")

MOST_BEHIND = 20_000
"""Deleted tokens that the indexes of the views may lack. CouchDB 3.5 removes all of them from an index at once, which takes
time that grows with the square of their number (``collapse_rem_keys`` in ``couch_mrview_updater.erl``)."""


class TokenEditor:
    """Edits tokens through a hook; ``PicasHook.editor`` makes one.

    Changes are made page by page, with a few requests at once. A token that changes meanwhile is skipped, and the
    report says so.
    """

    def __init__(self, hook: PicasHook) -> None:
        self._hook = hook

    def select(self, selection: Selection) -> Iterator[Document]:
        """The selected tokens, read page by page. Raises PatternError."""
        find_objections = self._find_objections(selection)
        for tokens in self._candidates(selection):
            yield from (
                token for token, objection in zip(tokens, find_objections(tokens), strict=True) if objection is None
            )

    def reset(
        self, selection: Selection, *, reason: str = "reset", keep_logs: bool = False, dry_run: bool = False
    ) -> EditReport:
        """Reset the selected tokens to todo, and keep the attempt in ``attempts``. Raises PatternError.

        Tokens that pilots claim or finish in the meantime are skipped. ``keep_logs`` copies the logs of foreign pilots
        under the attempt's name, and skips tokens with a log that is too large. ``dry_run`` only reports what would be
        done.
        """
        if not reason.startswith("reset"):
            reason = f"reset: {reason}"  # the pilot counts attempts from the last reset
        of_selection = self._find_objections(selection)

        def find_objections(tokens: Sequence[Document]) -> Sequence[str | None]:
            objections = of_selection(tokens)
            if not keep_logs:
                return objections
            return [
                why or ("has a log above 1 MB, too large to keep" if attachments.too_large_to_copy(token) else None)
                for token, why in zip(tokens, objections, strict=True)
            ]

        def change(tokens: Sequence[Document]) -> Operation[EditReport]:
            return edits.reset(self._hook.pool, tokens, find_objections, reason=reason, keep_logs=keep_logs)

        return self._edit(selection, find_objections, change, dry_run)

    def update(self, selection: Selection, fields: Mapping[str, Any], *, dry_run: bool = False) -> EditReport:
        """Set fields of the selected tokens. Raises BadTokenError for fields of PiCaS or the provider, and PatternError."""
        documents.check_update(fields)
        of_selection = self._find_objections(selection)

        def find_objections(tokens: Sequence[Document]) -> list[str | None]:
            objections = zip(tokens, of_selection(tokens), strict=True)
            return [why or ("already has these values" if documents.has(t, fields) else None) for t, why in objections]

        return self._edit(
            selection,
            find_objections,
            lambda tokens: edits.update(self._hook.pool, tokens, find_objections, fields),
            dry_run,
        )

    def delete(self, tokens: Iterable[tuple[str, str]]) -> EditReport:
        """Delete tokens, given by id and revision. Tokens that have changed since are skipped."""
        revisions = (edits.Revision(token_id, rev) for token_id, rev in tokens)
        behind, lock = 0, threading.Lock()

        def delete(page: list[edits.Revision]) -> EditReport:
            nonlocal behind
            report = self._hook.do(edits.delete(self._hook.pool, page))
            with lock:  # the other threads wait, too
                behind += len(page)
                if behind >= MOST_BEHIND:
                    self._update_indexes()
                    behind = 0
            return report

        return self._in_parts(delete, _pages_of(revisions), "deleted")

    def _update_indexes(self) -> None:
        try:
            self._hook.do(indexes.update(self._hook.pool))
        except errors.CouchDBError as error:
            self._hook.log.warning("The indexes of the views are behind, so later queries may take long: %s", error)

    def restore(self, tokens: Iterable[Document]) -> EditReport:
        """Write archived tokens (``archive.restored``) unchanged. Tokens that exist in the pool are skipped."""
        requests = edits.requests_of(tokens)
        return self._in_parts(
            lambda request: self._hook.do(edits.restore(self._hook.pool, request)), requests, "restored"
        )

    def _find_objections(self, selection: Selection) -> edits.FindObjections:
        now, profile = self._hook.now(), self._hook.settings.profile
        if selection.error_pattern:
            regex.check(selection.error_pattern)

        def find_objections(tokens: Sequence[Document]) -> list[str | None]:
            matches = [True] * len(tokens)
            if selection.error_pattern and tokens:
                matches = regex.search(selection.error_pattern, [error_text(token) for token in tokens])
            return [
                selection.objection(token, now, match, profile) for token, match in zip(tokens, matches, strict=True)
            ]

        return find_objections

    def _candidates(self, selection: Selection) -> Iterator[list[Document]]:
        """The tokens that may be selected, page by page."""
        if selection.ids is not None:
            for ids in _pages_of(selection.ids):
                yield list(self._hook.do(self._hook.pool.fetch(ids)).values())
        elif selection.worth_reading_all(self._hook.count(selection.batch)):
            yield from self._hook.token_pages(selection.batch)
        else:
            for state in selection.ordered_states:
                yield from self._hook.state_pages(state, selection.batch)

    def _edit(
        self,
        selection: Selection,
        find_objections: edits.FindObjections,
        change: Callable[[Sequence[Document]], Operation[EditReport]],
        dry_run: bool,
    ) -> EditReport:
        def edit(tokens: Sequence[Document]) -> EditReport:
            return edits.preview(tokens, find_objections) if dry_run else self._hook.do(change(tokens))

        def fetch_and_edit(ids: Sequence[str]) -> EditReport:
            tokens = self._hook.do(self._hook.pool.fetch(ids))
            report = edit(list(tokens.values()))
            for token_id in ids:
                if token_id not in tokens:
                    report.skip("is not in the pool", token_id)
            return report

        report, done = EditReport(), "would be changed" if dry_run else "changed"
        counts = self._hook.count_existing(selection.batch)
        if selection.worth_reading_all(counts):
            report.add(self._in_parts(edit, self._hook.token_pages(selection.batch), done))
        else:
            report.add(selection.others(counts))
            report.add(self._in_parts(fetch_and_edit, _pages_of(self._candidate_ids(selection)), done))
        return report

    def _in_parts(self, work: Callable[[Item], EditReport], items: Iterable[Item], done: str) -> EditReport:
        """Edit tokens in parts and return the report. If this fails half-way, the log has what was done before."""
        report, lock = EditReport(), threading.Lock()

        def add(item: Item) -> None:
            part = work(item)
            with lock:
                report.add(part)

        try:
            for _ in self._hook.side_by_side(add, items):
                pass
        except Exception:
            if report.changed:
                self._hook.log.warning("The operation failed midway. Before that: %s", " ".join(report.lines(done)))
            raise
        return report

    def _candidate_ids(self, selection: Selection) -> Iterable[str]:
        """The ids of the tokens that may be selected. Read in large pages: each query updates the index of the views."""
        if selection.ids is not None:
            return selection.ids
        return itertools.chain.from_iterable(
            page
            for state in selection.ordered_states
            for page in self._hook.id_pages(state, selection.batch, 20 * PAGE)
        )


def _pages_of(items: Iterable[Item]) -> Iterator[list[Item]]:
    iterator = iter(items)
    while page := list(itertools.islice(iterator, PAGE)):
        yield page
