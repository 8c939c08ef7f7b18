"""``PicasHook``: a PiCaS pool, from a task, over the operations of ``couchdb``."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, BinaryIO, TypeVar

import requests

from airflow_provider_picas.couchdb import counting, deployment, edits, errors, http
from airflow_provider_picas.couchdb.http import Operation, Request
from airflow_provider_picas.couchdb.pool import PAGE, Document, Next
from airflow_provider_picas.couchdb.push import push, requests_of
from airflow_provider_picas.couchdb.retries import Retries
from airflow_provider_picas.hooks.connection import cause_of
from airflow_provider_picas.hooks.couchdb import CHUNK, CouchDBHook, answer_of
from airflow_provider_picas.hooks.duplicate_keys import KeyLog
from airflow_provider_picas.hooks.editing import TokenEditor
from airflow_provider_picas.lifecycle.ids import has_path
from airflow_provider_picas.tokens import attachments, views
from airflow_provider_picas.tokens.counts import Counts
from airflow_provider_picas.tokens.documents import BadTokenError
from airflow_provider_picas.tokens.push import DuplicateTokenError, MayDiffer, OnExisting, PushReport
from airflow_provider_picas.tokens.selection import UnknownBatchError, last_activity
from airflow_provider_picas.tokens.states import State
from airflow_provider_picas.tokens.text import one_line

Item = TypeVar("Item")
Result = TypeVar("Result")

PUSH_CONNECTIONS = 4
"""Requests of a push that are under way at once (measured on CouchDB 3.5.0: more are no faster)."""


class PicasHook(CouchDBHook):
    """A PiCaS pool, from a task.

    :param picas_conn_id: a connection of type ``picas``: host (URL of the CouchDB server), database, login, password;
        extras ``verify``, ``ca_file``, ``design_document``, ``profile``, ``connect_timeout`` and ``read_timeout`` (seconds).
    :param database: another database than the connection's.
    :param design_document: another design document with PiCaS's views than the connection's, such as ``SingleCore``:
        then only the tokens in its views are counted, read and changed, except tokens that are named by their ids.
    :param profile: another shape of the pool than the connection's: the name of a profile, or an object; see docs/howto/pools.md.
    :param method: HTTP method of ``run()``, which is inherited from ``HttpHook``, for requests that have no method here.
    :param wait_for_index: repeat the query of a view while CouchDB builds its index: CouchDB then answers 500 after a
        minute, and the index of a large pool takes longer. With False, UnavailableError is raised after a few tries, as
        for other requests.

    Methods take ``batch``: the id of a batch, or None for the whole pool; ``token_id`` or ``token``: a token's id or document;
    ``state``: one of ``todo``, ``locked``, ``done`` and ``error``; ``tokens``: token documents; ``limit``: the largest number of
    results; ``on_existing``: what to do with tokens that exist, as for ``PicasPushTokensOperator``; ``expected``: the number of
    tokens that were pushed; ``page``: a function that reads one page; ``name`` and ``file``: of an attachment, and the file to
    write it to; ``work`` and ``items``: a function, and what it is called with.

    Methods raise the errors of ``airflow_provider_picas.couchdb.errors``. Requests that are safe to repeat are sent
    again when the server is unavailable or asks for it, with growing pauses.
    """

    conn_name_attr = "picas_conn_id"
    default_conn_name = "picas_default"
    conn_type = "picas"
    hook_name = "PiCaS"

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """The connection form of Airflow 3.1; later versions read the provider info."""
        from airflow_provider_picas.provider_info import UI_FIELD_BEHAVIOUR

        return {name.replace("-", "_"): value for name, value in UI_FIELD_BEHAVIOUR.items()}

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """The connection form of Airflow 3.1; later versions read the provider info."""
        from flask_babel import lazy_gettext
        from wtforms import BooleanField, StringField

        from airflow_provider_picas.provider_info import CONN_FIELDS

        return {
            name: (BooleanField if "boolean" in field["schema"]["type"] else StringField)(
                lazy_gettext(field["label"]),
                description=lazy_gettext(field["description"]),
                default=field["schema"].get("default"),
            )
            for name, field in CONN_FIELDS.items()
        }

    # -- the pool -----------------------------------------------------------------------------------------------------

    def count(self, batch: str | None = None) -> Counts:
        """Tokens by state, of a batch or of the whole pool."""
        return self.do(counting.count(self.pool, batch))

    def todo_by_class(self, batch: str | None = None) -> dict[str, int]:
        """Waiting tokens, by resource class. Raises NotFoundError if the provider's views are not deployed."""
        return self.do(counting.todo_by_class(self.pool, batch))

    def get(self, token_id: str) -> Document:
        """One token. Raises NotFoundError."""
        return self.do(self.pool.get(token_id))

    def tokens(self, state: State | str, batch: str | None = None) -> Iterator[Document]:
        """The tokens in a state, of a batch or of the whole pool, read page by page."""
        state = State(state)
        yield from _flat(self.state_pages(state, batch))

    def token_ids(self, state: State | str, batch: str | None = None) -> Iterator[str]:
        """The ids of the tokens in a state, read page by page."""
        state = State(state)
        yield from _flat(self.id_pages(state, batch, PAGE))

    def batch_documents(self, batch: str) -> Iterator[Document]:
        """All tokens of a batch, in any state, read page by page."""
        yield from _flat(self.pages(lambda after: self.pool.batch_documents(batch, after=after)))

    def state_pages(self, state: State, batch: str | None) -> Iterator[list[Document]]:
        return self.pages(lambda after: self.pool.tokens(state, batch, after=after))

    def id_pages(self, state: State, batch: str | None, limit: int) -> Iterator[list[str]]:
        return self.pages(lambda after: self.pool.ids(state, batch, after=after, limit=limit))

    def token_pages(self, batch: str | None) -> Iterator[list[Document]]:
        """All tokens of a batch, or of the pool, in pages; with another design document than ``Monitor``, those in its
        views."""
        if self.settings.design_document != views.MONITOR:
            return itertools.chain.from_iterable(self.state_pages(state, batch) for state in State)
        found = self.pages(lambda after: self.pool.batch_documents(batch, after=after))
        return ([token for token in page if not token["_id"].startswith("_")] for page in found)

    def pages(
        self, page: Callable[[Next | None], Operation[tuple[list[Result], Next | None]]]
    ) -> Iterator[list[Result]]:
        after: Next | None = None
        while True:
            found, after = self.do(page(after))
            yield found
            if after is None:
                return

    def stateless_ids(self, batch: str | None = None, limit: int = PAGE) -> list[str]:
        """Ids of tokens in no state."""
        return self.do(self.pool.stateless(batch, limit=limit))

    def missing(self, batch: str, expected: int, limit: int = 5) -> list[str]:
        """Some of the missing tokens of a batch: they were pushed and no longer exist. Reads all remaining ones."""
        return self.do(counting.missing(self.pool, batch, expected, limit=limit))

    def deploy_views(self, design_documents: Mapping[str, str] | None = None) -> deployment.Deployment:
        """Write missing design documents, if the login is allowed to.

        ``design_documents``: additional ones, with PiCaS's views of the tokens for which a JavaScript condition holds,
        by name: ``{"SingleCore": "doc.cores == 1"}``.
        """
        return self.do(deployment.deploy(self.pool, design_documents))

    def push(
        self,
        tokens: Iterable[Document],
        *,
        on_existing: OnExisting | str = OnExisting.RESET,
        numbered: bool = False,
        may_differ: MayDiffer | str = MayDiffer.ALL,
        progress: Callable[[PushReport], None] | None = None,
    ) -> PushReport:
        """Write new tokens (``documents.new_token``), each once, with several requests at a time.

        ``tokens`` is streamed: memory does not grow with their number. ``numbered``: their ids are made from their
        ordinals, so there are no duplicates. ``may_differ``: which tokens may be kept although their input now differs;
        TokenExistsError is raised for others. ``progress`` is called after each request. If an input is invalid, those
        before it are written before BadTokenError is raised; running the push again writes nothing twice. Raises
        DuplicateTokenError, mostly at the end, and the errors of ``couchdb.push``.
        """
        existing, differing, report = OnExisting(on_existing), MayDiffer(may_differ), PushReport()
        fault: ValueError | None = None

        def until_fault() -> Iterator[Mapping[str, bytes]]:
            nonlocal fault
            try:
                yield from requests_of(tokens, secrets.token_hex(4))
            except (BadTokenError, DuplicateTokenError) as error:
                fault = error

        with KeyLog() as keys:
            requests = until_fault() if numbered else keys.noted(until_fault())
            for part in self.side_by_side(
                lambda request: self.do(push(self.pool, request, existing, differing)), requests
            ):
                report.add(part)
                if progress:
                    progress(report)
            if fault:
                raise fault
            if report.written < report.tokens and (places := keys.duplicate()):
                raise DuplicateTokenError(*places)
        return report

    # -- tokens that are in the pool already --------------------------------------------------------------------------

    @property
    def editor(self) -> TokenEditor:
        """The editor that selects, resets, updates, deletes and restores tokens."""
        return TokenEditor(self)

    def with_attachments(self, tokens: Iterable[Document]) -> Iterator[Document]:
        """The tokens, in any order, with the data of their attachments. Tokens deleted in the meantime are omitted."""

        def fetch(token: Document) -> Document | None:
            try:
                return self.do(edits.with_attachments(self.pool, token))
            except errors.NotFoundError:
                return None

        return (token for token in self.side_by_side(fetch, tokens) if token is not None)

    def download(self, token: Document, name: str, file: BinaryIO, limit: int | None = None) -> int:
        """Stream an attachment of a token to a file. Returns its size in bytes. ``limit``: keep only this number of
        bytes at its end.

        Raises NotFoundError if the token has changed since it was read and CouchDB no longer has that revision.
        """
        expected = attachments.size(attachments.stubs_of(token).get(name, {}))
        if not (has_path(token["_id"]) and has_path(name)):
            content = self.do(edits.attachment_in_document(self.pool, token, name))
            return file.write(content if limit is None else content[-limit:])
        request = edits.attachment(self.pool, token["_id"], name, token["_rev"])
        start = file.tell()
        retries = Retries(request)
        while True:
            file.seek(start)
            file.truncate()
            try:
                size = self._download_once(request, file, limit, expected)
                if size == expected:
                    return size
                raise errors.UnavailableError(
                    f"Attachment {name!r:.80} of {token['_id']!r:.200} has {expected:,} bytes, but {size:,} were received."
                )
            except errors.UnavailableError as error:
                if (pause := retries.after(error)) is None:
                    raise
                self.log.warning("%s Trying again.", error)
                time.sleep(pause)

    def _download_once(self, request: Request, file: BinaryIO, limit: int | None, expected: int) -> int:
        settings = self.settings
        try:
            with self.get_conn().get(
                settings.url + request.target,
                timeout=(settings.connect_timeout, settings.read_timeout),
                allow_redirects=False,
                stream=True,
            ) as response:
                if response.status_code >= 300:
                    http.check(settings, self.picas_conn_id, request, answer_of(response))
                size, tail = 0, b""
                for chunk in response.iter_content(CHUNK):
                    size += len(chunk)
                    if size > expected:
                        break
                    if limit is None:
                        file.write(chunk)
                    else:
                        tail = (tail + chunk)[-limit:]
                file.write(tail)
                return size
        except requests.exceptions.RequestException as error:
            raise http.unreachable(settings, self.picas_conn_id, cause_of(error)) from None

    def batches(self) -> dict[str, Counts]:
        """The batches of the pool, each with its counts. Raises NotFoundError if the provider's views are not deployed."""
        return self.do(edits.batches(self.pool))

    def count_existing(self, batch: str | None) -> Counts:
        """``count``. Raises UnknownBatchError for a batch without tokens."""
        counts = self.count(batch)
        if batch is not None and not counts.total:
            raise UnknownBatchError(
                f"Batch {batch!r} has no tokens in {self.settings.place}. Check the batch name and the database; the tokens"
                " may also have been deleted."
            )
        return counts

    def unfinished(self, batch: str, seconds: float) -> str | None:
        """Why a batch has not been finished for at least ``seconds``; None if it has."""
        counts = self.count_existing(batch)
        if counts.finished < counts.total:
            return f"it has not finished ({counts})"
        now = self.now()
        for token in _flat(self.token_pages(batch)):
            active_at = last_activity(token)
            if active_at is None:
                return f"token {one_line(token['_id'])} has no time at which it ended"
            if now - active_at < seconds:
                return f"token {one_line(token['_id'])} ended {now - active_at:.0f} s ago, less than {seconds:g} s"
        return None

    def now(self) -> int:
        """The database's time, in seconds since 1970."""
        return self.do(edits.clock(self.pool))

    def side_by_side(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Process items in a few threads, as they come. Yields results in the order in which they are ready."""
        _ = self.pool  # reads the connection once, in this thread
        under_way: set[Future[Result]] = set()
        with ThreadPoolExecutor(PUSH_CONNECTIONS, thread_name_prefix="picas") as workers:
            try:
                for item in items:
                    if len(under_way) >= 2 * PUSH_CONNECTIONS:
                        finished, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                        yield from (future.result() for future in finished)
                    under_way.add(workers.submit(work, item))
                while under_way:
                    finished, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in finished)
            except BaseException:
                workers.shutdown(wait=True, cancel_futures=True)
                raise


def _flat(pages: Iterable[list[Item]]) -> Iterator[Item]:
    return itertools.chain.from_iterable(pages)
