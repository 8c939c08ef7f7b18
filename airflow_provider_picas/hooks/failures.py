"""Why tokens are in error: groups of the same cause, each with ids and the end of one token's log."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from airflow_provider_picas.couchdb.errors import NotFoundError
from airflow_provider_picas.couchdb.pool import Document
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.tokens import attachments
from airflow_provider_picas.tokens.causes import Groups
from airflow_provider_picas.tokens.states import State, state_of
from airflow_provider_picas.tokens.text import last_lines, number_of, one_line, sample

_GROUPS = 10  # causes in the summary
_TAIL = 1_000  # characters of a log in the summary


class FailedTokens:
    """Groups tokens in error by cause, and keeps one token of each cause, whose log is shown."""

    def __init__(self, hook: PicasHook) -> None:
        self._hook = hook
        self._groups = Groups()
        self._examples: dict[str, Document] = {}
        self.tokens = 0

    def watch(self, tokens: Iterator[Document]) -> Iterator[Document]:
        """Add tokens while passing them through."""
        for token in tokens:
            if state_of(token, self._hook.settings.profile) is State.ERROR:
                self.tokens += 1
                if self._groups.add(token):
                    kept = {name: token.get(name) for name in ("_id", "_rev", "_attachments")}
                    self._examples[token["_id"]] = kept
            yield token

    def add(self, tokens: Iterator[Document]) -> None:
        """Add tokens to the groups."""
        for _ in self.watch(tokens):
            pass

    def summary(self, most: int = _GROUPS) -> list[dict[str, Any]]:
        """The largest groups, at most ``most`` of them, for XCom."""
        return [
            {
                "cause": group.cause,
                "tokens": group.tokens,
                "ids": group.ids,
                "log": self._log(self._examples[group.ids[0]]),
            }
            for group in self._groups.largest(most)
        ]

    def _log(self, token: Document) -> dict[str, str] | None:
        for name in attachments.log_names(token)[:1]:
            file = io.BytesIO()
            try:
                self._hook.download(token, name, file, limit=4 * _TAIL)
            except NotFoundError:
                return None  # it was run again in the meantime
            text = file.getvalue().decode("utf-8", "replace").strip()
            return {"id": token["_id"], "name": name, "tail": text[-_TAIL:]}
        return None


def report(groups: Sequence[Mapping[str, Any]], tokens: int) -> Iterator[str]:
    """A summary for people, as strings of one or more lines. ``tokens`` is the number in error."""
    if groups:
        yield f"{number_of(tokens, 'token')} failed. The causes:"
    for group in groups:
        yield f"{group['tokens']:8d}  {one_line(group['cause'])} ({sample(group['ids'], total=group['tokens'])})"
        if group["log"]:
            log = group["log"]
            yield f"The end of {one_line(log['name'])} of {one_line(log['id'])}:\n{last_lines(log['tail'], _TAIL)}"
