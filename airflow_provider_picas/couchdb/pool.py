"""The operations on a pool. Each yields requests and receives responses, so the sync and the async hook share it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from airflow_provider_picas.couchdb import errors
from airflow_provider_picas.couchdb.http import LARGEST_RESPONSE, Operation, Request, Response, json_body
from airflow_provider_picas.couchdb.settings import Settings
from airflow_provider_picas.lifecycle.ids import END_OF_PREFIX, has_path, id_range
from airflow_provider_picas.lifecycle.profile import Profile
from airflow_provider_picas.tokens import ids, views
from airflow_provider_picas.tokens.states import State

PAGE = 1_000
"""Documents that a request reads or writes: 500 to 2,000 are fastest (CouchDB 3.5.0, documents of 244 bytes)."""

PAGE_BYTES = 4_000_000
"""Target size of a page in bytes, estimated from the page before; at least one document, and at most ``PAGE``."""

FIRST_PAGE = 100
"""Documents of the first page, while their size is unknown."""

TOO_LARGE = "too_large"
"""The error of a document that CouchDB, or a proxy in front of it, refuses because of its size."""

_BARE = frozenset({"update", "startkey_docid"})  # query values of a view that CouchDB expects bare
_WHOLE = {"include_docs": True, "buffer_response": True}  # else CouchDB sends a chunk for every document or two

Document = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One row of a ``_bulk_docs`` response."""

    id: str
    rev: str | None
    error: str | None
    reason: str | None


@dataclass(frozen=True)
class Next:
    """The start of the next page, and the number of its rows."""

    #: Of the last row of the previous page, which may no longer exist: skipping one row could skip another one.
    key: Any
    limit: int


@dataclass(frozen=True)
class Pool:
    """A pool's operations. All of them raise CouchDBError, see ``couchdb.errors``."""

    settings: Settings

    @property
    def profile(self) -> Profile:
        """The shape of the pool."""
        return self.settings.profile

    # -- requests ----------------------------------------------------------------------------------------------------

    def path(self, *parts: str) -> str:
        """The path of something in the database. Each part is quoted whole. Raises ValueError for a part without a path."""
        if not all(map(has_path, parts)):
            raise ValueError(f"{'/'.join(parts)!r:.200} has no URL.")
        return "/".join([self.settings.database_path, *(quote(part, safe="") for part in parts)])

    def document_path(self, document_id: str) -> str:
        """The path of a document; design and local documents keep the slash of their prefix."""
        prefix, slash, name = document_id.partition("/")
        return self.path(prefix, name) if slash and prefix in ("_design", "_local") else self.path(document_id)

    def view_request(self, view: str, design_document: str | None = None, **query: Any) -> Request:
        """A query of a view. Query values are encoded as JSON, except those that CouchDB expects bare."""
        design = design_document or self.settings.design_document
        params = {
            name: value if name in _BARE else json.dumps(value) for name, value in query.items() if value is not None
        }
        return Request("GET", self.path("_design", design, "_view", view), params)

    def queries_request(self, view: str, design_document: str, queries: Sequence[Mapping[str, Any]]) -> Request:
        """Several queries of a view in one request."""
        path = self.path("_design", design_document, "_view", view, "queries")
        return Request("POST", path, body=json_body({"queries": list(queries)}))

    def view_queries(
        self, view: str, design_document: str, queries: Sequence[Mapping[str, Any]], **fields: Any
    ) -> Operation[list[list[dict[str, Any]]]]:
        """The rows of each of several queries of a view, with fields of these types. One request, or several if the response
        would be too large."""
        if not queries:
            return []
        try:
            response = yield self.queries_request(view, design_document, queries)
        except errors.LargeResponseError:
            half = len(queries) // 2
            if not half:
                raise
            first = yield from self.view_queries(view, design_document, queries[:half], **fields)
            return first + (yield from self.view_queries(view, design_document, queries[half:], **fields))
        results = response.rows("results", rows=list)
        if len(results) != len(queries):
            raise response.unexpected(f"it has {len(results):,} results for {len(queries):,} queries")
        return [[response.checked(row, fields) for row in result["rows"]] for result in results]

    # -- the server and the database ----------------------------------------------------------------------------------

    def info(self) -> Operation[Mapping[str, Any]]:
        """The database's information about itself (``doc_count``, ``update_seq`` …)."""
        response = yield Request("GET", self.path())
        info: Mapping[str, Any] = response.object(doc_count=int, update_seq=(str, int))
        return info

    def server_version(self) -> Operation[str]:
        """The server's version. Raises NotCouchDBError if the server is not a CouchDB."""
        response = yield Request("GET", "/")
        welcome = response.json()
        if not (isinstance(welcome, dict) and "couchdb" in welcome):
            raise errors.NotCouchDBError(f"The server at {self.settings.url} is not CouchDB.")
        return str(welcome.get("version", "unknown"))

    # -- documents ----------------------------------------------------------------------------------------------------

    def get(self, document_id: str) -> Operation[Document]:
        """A document. Raises NotFoundError if it does not exist."""
        if not has_path(document_id):
            found = yield from self.fetch([document_id])
            if document_id not in found:
                raise errors.NotFoundError(f"There is no document {document_id!r} in {self.settings.place}.")
            return found[document_id]
        response = yield Request("GET", self.document_path(document_id))
        document: Document = response.document(response.json())
        return document

    def with_attachments(self, document_id: str, rev: str, size: int, *, data: bool = True) -> Operation[Document]:
        """A revision of a document, by default with the ``data`` of its attachments, of ``size`` bytes in total.

        Raises NotFoundError if CouchDB no longer has it.
        """
        largest = LARGEST_RESPONSE + size * 4 // 3
        if has_path(document_id):
            params = {"attachments": json.dumps(data), "rev": rev}
            response = yield Request("GET", self.document_path(document_id), params, largest=largest)
            return _with_data(response, response.document(response.json()), data)
        body = json_body({"docs": [{"id": document_id, "rev": rev}]})
        response = yield Request(
            "POST", self.path("_bulk_get"), {"attachments": json.dumps(data)}, body, largest=largest
        )
        for result in response.rows("results", docs=list):
            for found in result["docs"]:
                if "ok" in response.checked(found, {}):
                    return _with_data(response, response.document(found["ok"]), data)
        raise errors.NotFoundError(f"Revision {rev} of {document_id!r} is gone from {self.settings.place}.")

    def fetch(self, document_ids: Sequence[str]) -> Operation[dict[str, Document]]:
        """Documents by id, at most a page of them; missing ones are omitted."""
        found, _ = yield from self.fetch_measured(document_ids)
        return found

    def fetch_all(self, document_ids: Sequence[str]) -> Operation[dict[str, Document]]:
        """Documents by id, any number of them, in pages; missing ones are omitted."""
        found: dict[str, Document] = {}
        for start in range(0, len(document_ids), PAGE):
            found |= yield from self.fetch(document_ids[start : start + PAGE])
        return found

    def fetch_measured(
        self, document_ids: Sequence[str], *, with_conflicts: bool = False
    ) -> Operation[tuple[dict[str, Document], int]]:
        """``fetch``, and the size of the response in bytes. ``with_conflicts``: documents name their conflicting
        revisions."""
        body = json_body({"keys": list(document_ids)})
        query = {"include_docs": "true"} | ({"conflicts": "true"} if with_conflicts else {})
        try:
            response = yield Request("POST", self.path("_all_docs"), query, body)
        except errors.LargeResponseError:
            half = len(document_ids) // 2
            if not half:
                raise
            first, one = yield from self.fetch_measured(document_ids[:half], with_conflicts=with_conflicts)
            rest, other = yield from self.fetch_measured(document_ids[half:], with_conflicts=with_conflicts)
            return first | rest, one + other
        return response.documents(), len(response.body)

    def revisions(self, document_ids: Sequence[str]) -> Operation[dict[str, str]]:
        """The current revisions of documents, at most a page of them; missing ones are omitted."""
        response = yield Request("POST", self.path("_all_docs"), body=json_body({"keys": list(document_ids)}))
        found: dict[str, str] = {}
        for row in response.rows(id=(str, type(None)), value=(dict, type(None))):
            value = row.get("value") or {}
            if row.get("id") and not value.get("deleted"):
                found[row["id"]] = response.checked(value, {"rev": str})["rev"]
        return found

    def write(self, encoded: Iterable[bytes], *, repeatable: bool = False) -> Operation[list[Row]]:
        """Write encoded documents in one request, or in several if CouchDB or a proxy does not accept a request of that
        size.

        ``repeatable``: they have no revision, so writing them twice writes them once. An error does not mean that
        nothing was written: read them again. A document that is too large on its own has a row with the error
        ``TOO_LARGE``.

        Raises UnavailableError with status 202 if a cluster stores changes on too few of its nodes: other writes may
        win over them.
        """
        documents = list(encoded)
        body = b'{"docs":[' + b",".join(documents) + b"]}"
        try:
            response = yield Request("POST", self.path("_bulk_docs"), body=body, repeatable=repeatable)
        except errors.TooLargeError as error:
            half = len(documents) // 2
            if not half:
                return [Row(json.loads(text)["_id"], None, TOO_LARGE, str(error)) for text in documents]
            rows = yield from self.write(documents[:half], repeatable=repeatable)
            return rows + (yield from self.write(documents[half:], repeatable=repeatable))
        if response.status == 202 and not repeatable:
            raise errors.UnavailableError(
                f"{self.settings.place} stores changes on too few nodes of its cluster (202). Try again later.",
                status=202,
            )
        return _rows(response, documents)

    def put(self, document: Mapping[str, Any]) -> Operation[str]:
        """Write one document, whose id has a path. Returns its new revision. Raises ConflictError."""
        request = Request("PUT", self.document_path(document["_id"]), body=json_body(document), repeatable=False)
        response = yield request
        return str(response.object(rev=str)["rev"])

    def local_documents(
        self, prefix: str, *, start: str | None = None, limit: int = PAGE
    ) -> Operation[tuple[list[Document], int | None]]:
        """The local documents whose ids begin with ``prefix``, from the id ``start`` on, and the database's time."""
        query = {"include_docs": "true", "limit": str(limit)}
        query |= {"startkey": json.dumps(start or prefix), "endkey": json.dumps(f"{prefix}{END_OF_PREFIX}")}
        response = yield Request("GET", self.path("_local_docs"), query)
        return list(response.documents().values()), response.time

    # -- pages -------------------------------------------------------------------------------------------------------

    def _span(self, batch: str | None, state: State | None = None, *, listed: bool = True) -> tuple[Any, Any]:
        """The first and the last key of a batch, or of the pool, in a view. ``listed``: by state, in that of a profile."""
        if self.profile.is_default:
            return id_range(batch) if batch is not None else (None, None)
        key = [batch or "", state] if listed else [batch]
        return key, [*key, {}]

    def state_request(self, state: State | None, span: Mapping[str, Any]) -> Request:
        """A query of the tokens in a state; None: in no state. ``span``: keys and limits."""
        if not self.profile.is_default:
            return self.view_request("counts", self.profile.design, reduce=False, **span)
        if state is None:
            return self.view_request("stateless", views.PROVIDER, reduce=False, **span)
        return self.view_request(state, reduce=False, **span)

    def _range(self, span: tuple[Any, Any], after: Next | None, limit: int) -> dict[str, Any]:
        """The keys of a page. ``limit``: of the first page."""
        start, end = span
        if after is None:
            return {"startkey": start, "endkey": end, "limit": limit}
        return {"startkey": after.key, "endkey": end, "limit": after.limit + 1}

    def _page(
        self, response: Response, batch: str | None, after: Next | None, limit: int
    ) -> tuple[list[dict[str, Any]], Next | None]:
        """The rows of a page, and the start of the next one, or None at the end."""
        rows = response.rows(id=str, doc=(dict, type(None)))
        full = len(rows) == (limit if after is None else after.limit + 1)
        last = after.key if after else None
        by_id = self.profile.is_default and batch is not None  # views have a linguistic order
        found = [row for row in rows if last not in (row["id"], row.get("key"))]
        found = [row for row in found if ids.in_batch(row["id"], str(batch))] if by_id else found
        if not full:
            return found, None
        key = rows[-1].get("key")
        if key is None or key == last:  # the next page would be the same
            raise response.unexpected("its rows are not in the order of their keys")
        return found, Next(key, limit)

    def _documents(
        self, batch: str | None, span: tuple[Any, Any], after: Next | None, request: Callable[[dict[str, Any]], Request]
    ) -> Operation[tuple[list[Document], Next | None]]:
        """The documents of a page, fewer if they are too large together, and the start of the next page."""
        limit = FIRST_PAGE if after is None else after.limit
        while True:
            begin = after and Next(after.key, limit)
            try:
                response = yield request({**self._range(span, begin, limit), **_WHOLE})
            except errors.LargeResponseError:
                if limit == 1:
                    raise
                limit = max(1, limit // 8)
                continue
            rows, following = self._page(response, batch, begin, limit)
            if following:
                read = limit + 1 if begin else limit
                following = Next(following.key, page_of(len(response.body), read))
            found = (row["doc"] for row in rows if row.get("doc"))
            return [response.document(document) for document in found], following

    def ids(
        self, state: State, batch: str | None = None, *, after: Next | None = None, limit: int = PAGE
    ) -> Operation[tuple[list[str], Next | None]]:
        """A page of the ids in a state, and the start of the next page (``after``), or None at the end."""
        response = yield self.state_request(state, self._range(self._span(batch, state), after, limit))
        rows, following = self._page(response, batch, after, limit)
        return [row["id"] for row in rows], following

    def all_ids(self, state: State, batch: str | None = None) -> Operation[list[str]]:
        """All ids in a state."""
        names: list[str] = []
        after: Next | None = None
        while True:
            found, after = yield from self.ids(state, batch, after=after, limit=20 * PAGE)
            names += found
            if after is None:
                return names

    def tokens(
        self, state: State, batch: str | None = None, *, after: Next | None = None
    ) -> Operation[tuple[list[Document], Next | None]]:
        """A page of the tokens in a state, and the start of the next page (``after``), or None at the end."""
        span = self._span(batch, state)
        return (yield from self._documents(batch, span, after, lambda query: self.state_request(state, query)))

    def batch_documents(
        self, batch: str | None, *, after: Next | None = None
    ) -> Operation[tuple[list[Document], Next | None]]:
        """A page of all documents of a batch, or of the pool, in any state, and the start of the next page."""
        by_view = batch is not None and not self.profile.is_default

        def request(query: Mapping[str, Any]) -> Request:
            if by_view:
                return self.view_request("tokens", self.profile.design, reduce=False, **query)
            params = {name: json.dumps(value) for name, value in query.items() if value is not None}
            return Request("GET", self.path("_all_docs"), params)

        span = self._span(batch, listed=False) if by_view or self.profile.is_default else (None, None)
        return (yield from self._documents(batch, span, after, request))

    def stateless(self, batch: str | None = None, *, limit: int = PAGE) -> Operation[list[str]]:
        """Ids of tokens in no state, at most ``limit``; none if the provider's views are not deployed."""
        try:
            response = yield self.state_request(None, self._range(self._span(batch), None, limit))
        except errors.NotFoundError as error:
            if error.database_missing:
                raise
            return []
        found = [str(row["id"]) for row in response.rows(id=str)]
        by_id = batch is not None and self.profile.is_default
        return [name for name in found if not by_id or ids.in_batch(name, str(batch))]

    # -- changes ------------------------------------------------------------------------------------------------------

    def sequence(self) -> Operation[str]:
        """The current position of the feed of changes."""
        response = yield Request("GET", self.path("_changes"), {"since": "now", "limit": "1"})
        return str(response.object(last_seq=(str, int))["last_seq"])


def page_of(size: int, number: int) -> int:
    """The number of documents in a page, estimated from ``number`` documents with ``size`` bytes."""
    return min(PAGE, max(1, PAGE_BYTES * number // max(1, size)))


def _rows(response: Response, documents: Sequence[bytes]) -> list[Row]:
    """The rows of a ``_bulk_docs`` response, one for each document. Raises UnexpectedResponseError."""
    text = (str, type(None))
    rows = response.rows(None, id=str, rev=text, error=text, reason=text)
    if len(rows) != len(documents):
        raise response.unexpected(f"it has {len(rows):,} rows for {len(documents):,} documents")
    for row, document in zip(rows, documents, strict=True):
        if b'"_id":' + json_body(row["id"]) not in document:
            raise response.unexpected("its rows are for other documents")
    return [Row(row["id"], row.get("rev"), row.get("error"), row.get("reason")) for row in rows]


def _with_data(response: Response, document: Document, data: bool) -> Document:
    """The document, if its attachments are valid. Raises UnexpectedResponseError."""
    for file in (document.get("_attachments") or {}).values() if data else ():
        response.checked(file, {"content_type": str, "data": str})
    return document
