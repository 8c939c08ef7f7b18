"""The pilot's requests to CouchDB."""

import http.client
import json
import random
import socket
import ssl
import time
from typing import Any, Dict, List, Mapping, Optional, Sequence, Set, Tuple, Union
from urllib.parse import quote, urlencode

from airflow_provider_picas.lifecycle.conflicts import winner_first
from airflow_provider_picas.lifecycle.exit_codes import EX_CONFIG, EX_NOPERM, Failed
from airflow_provider_picas.lifecycle.ids import has_path, lease_id
from airflow_provider_picas.lifecycle.json_values import (
    HUGE_INTEGER,
    MOST_NESTED,
    TOO_DEEP,
    TOO_LONG,
    Doc,
    is_nested_more,
    number,
    read_answer,
)
from airflow_provider_picas.lifecycle.pilot_config import Config
from airflow_provider_picas.lifecycle.transitions import _OR_NONE
from airflow_provider_picas.pilot.access import Access, Login
from airflow_provider_picas.pilot.clock import Clock
from airflow_provider_picas.pilot.connection import LARGEST_RESPONSE, SLOWEST_RESPONSE, _Response, _tls, read_url
from airflow_provider_picas.pilot.errors import LargeAnswer, Unreachable, Unreadable
from airflow_provider_picas.pilot.log import log
from airflow_provider_picas.pilot.portions import BULK_BYTES

FIRST_PAGE = 100  # documents in a request while their size is not known


def _is_object(value: Any, kinds: Mapping[str, Any]) -> bool:
    """True if a JSON value is an object with fields of these types."""
    return isinstance(value, dict) and all(isinstance(value.get(name), kind) for name, kind in kinds.items())


def _is_document(value: Any) -> bool:
    """True if a JSON value is a document in CouchDB's form."""
    kinds = {"_id": str, "_rev": str, "_attachments": _OR_NONE, "_conflicts": (list, type(None))}
    return _is_object(value, kinds) and all(_is_object(file, {}) for file in (value.get("_attachments") or {}).values())


class Database:
    """One keep-alive connection to one CouchDB database; each thread has its own."""

    def __init__(
        self,
        login: Union[Access, Login],
        config: Config,
        clock: Clock,
        timeout: float = 60,
        slowest: float = SLOWEST_RESPONSE,
    ) -> None:
        self._login = Login(login) if isinstance(login, Access) else login
        access = self._login.access
        scheme, host, port, path = read_url(access.url)
        self.place = f"{scheme}://{host}:{port}/{access.database}"
        self._prefix = path + "/" + quote(access.database, safe="")
        self._clock = clock
        self.quorum = clock.quorum
        self._skipped: Set[str] = set()  # ids of documents that this pilot cannot read or write
        self._skipped_until: Dict[
            str, float
        ] = {}  # ids of documents that are skipped for a time, each with its end (monotonic)
        self._waited_for: Set[str] = set()  # those of them that may be claimed after that
        self._longest = timeout * slowest  # seconds for a whole response
        self._page = FIRST_PAGE  # documents in BULK_BYTES, by the size of the last ones
        self._received = 0  # bytes of the last response
        self._response: Any = type(
            "Response", (_Response,), {}
        )  # for this connection: it has the limits of the next response
        self._connection = http.client.HTTPConnection(host, port, timeout=timeout)
        if scheme == "https":
            self._connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=_tls(config))
        self._headers = {"Accept": "application/json", "Content-Type": "application/json", "User-Agent": "picas-pilot"}

    def request(
        self, method: str, path: str, body: Any = None, query: Optional[Doc] = None, largest: int = LARGEST_RESPONSE
    ) -> Tuple[int, Any]:
        """Status and JSON of one request; values of ``query`` are sent as JSON. ``largest``: limit of the response in
        bytes.

        Raises Unreachable if there is no usable response: a write may have been carried out or not. If the content of a
        document is the cause, raises Unreadable.
        """
        url = self._prefix + ("/" + path if path else "")
        if query:
            url += "?" + urlencode({name: json.dumps(value) for name, value in query.items()})
        try:
            data = None if body is None else json.dumps(body, allow_nan=False, separators=(",", ":")).encode("ascii")
        except ValueError as error:  # a number in a document overflowed when it was read
            raise Unreachable(f"A request to {self.place} cannot be encoded as JSON: {error}", 400) from None
        tries = 3 if method == "GET" or path == "_all_docs" else 1  # a request that only reads can be repeated at once
        while True:
            sent, access = time.monotonic(), self._login.access
            try:
                response, dated, content = self._send(method, url, data, largest)
                if response.status in (401, 403) and self._login.has_changed(access):
                    continue  # it was not carried out
                return self._usable(response, (response.getheader("Date"), sent, dated), content)
            except LargeAnswer:
                self._connection.close()
                raise
            except (OSError, ValueError, http.client.HTTPException) as error:
                self._connection.close()
                if "CERTIFICATE_VERIFY_FAILED" in str(error) or isinstance(error, ssl.CertificateError):
                    raise Failed(f"The certificate of {self.place} cannot be verified: {error}.", EX_NOPERM) from None
                tries -= 1
                if not tries or isinstance(error, socket.timeout):
                    message = f"{self.place} does not answer ({type(error).__name__}: {error})"
                    raise Unreachable(message) from None
                time.sleep(random.uniform(0, 0.1))

    def _send(
        self, method: str, url: str, data: Optional[bytes], largest: int
    ) -> Tuple[http.client.HTTPResponse, float, bytes]:
        """The response to one request, when its headers came (monotonic), and its content."""
        self._response.limits = (self.place, largest, self._longest)
        self._connection.response_class = self._response
        self._connection.request(method, url, data, {**self._headers, **self._login.headers()})
        response = self._connection.getresponse()
        dated, content = time.monotonic(), response.read()
        self._received = len(content)
        return response, dated, content

    def _usable(
        self, response: http.client.HTTPResponse, dated: Tuple[Optional[str], float, float], answer: bytes
    ) -> Tuple[int, Any]:
        status = response.status
        try:
            data = read_answer(answer)
        except ValueError:
            if status == 413:  # a proxy's own page
                return status, {}
            encoding = response.getheader("Content-Encoding")
            if encoding:
                message = f"{self.place} answers HTTP {status} with content encoded as {encoding:.50}, which was not requested"
                raise Unreachable(message, status) from None
            if HUGE_INTEGER.search(answer):
                self._clock.record(*dated)
                raise Unreadable(f"{self.place} answers with an integer that is too large", status, TOO_LONG) from None
            raise Unreachable(f"{self.place} answers HTTP {status} without JSON", status) from None
        except RecursionError:
            self._clock.record(*dated)
            raise Unreadable(f"{self.place} answers with JSON that is nested too deeply", status, TOO_DEEP) from None
        details = data if isinstance(data, dict) else {}
        no_database = status == 404 and details.get("reason") in ("Database does not exist.", "no_db_file")
        if status >= 500 or status in (401, 403, 408, 429) or no_database:
            raise Unreachable(f"{self.place} answers {status} {details.get('error')}: {details.get('reason')}", status)
        self._clock.record(*dated)
        return status, data

    def close(self) -> None:
        """Close the connection. The next request opens a new one, which may lead to another node."""
        self._connection.close()

    def _check(self, is_so: bool, status: int, path: str) -> None:
        """Raise Unreachable if a response does not have CouchDB's form."""
        if not is_so:
            raise Unreachable(
                f"{self.place} answers {status} to {path:.200} with JSON that is not in CouchDB's form", status
            )

    def _objects(self, found: Any, status: int, path: str, **kinds: Any) -> List[Doc]:
        """A list of objects with these fields, as a part of a response. Raises Unreachable for anything else."""
        self._check(isinstance(found, list) and all(_is_object(item, kinds) for item in found), status, path)
        return list(found)

    def _document(self, value: Any, status: int, path: str) -> Doc:
        """A document, as a part of a response. Raises Unreachable for anything else."""
        self._check(_is_document(value), status, path)
        return dict(value)

    def info(self) -> Doc:
        """The database's information about itself. Raises Failed if the server is not a CouchDB."""
        status, info = self.request("GET", "")
        if status != 200 or not _is_object(info, {"db_name": str, "update_seq": (str, int)}):
            raise Failed(f"{self.place} is not a CouchDB database: check PICAS_HOST_URL (HTTP {status}).", EX_CONFIG)
        return dict(info)

    def get(self, path: str) -> Optional[Doc]:
        """The document at a quoted path, or None."""
        status, doc = self.request("GET", path)
        return self._document(doc, status, path) if status == 200 else None

    def leases(self, pilots: Sequence[str]) -> Dict[str, Doc]:
        """The leases of pilots that have one."""
        names = {lease_id(pilot): pilot for pilot in pilots}
        try:
            rows = self._rows_of(list(names), "_local_docs", include_docs=True) if names else []
        except Unreadable:
            half = len(pilots) // 2
            return dict(self.leases(pilots[:half]), **self.leases(pilots[half:])) if half else {}
        return {names[row["key"]]: row["doc"] for row in rows if row.get("doc") and row["key"] in names}

    def local(self, ids: Sequence[str]) -> Dict[str, Doc]:
        """Local documents by id; missing ones are omitted."""
        rows = self._rows_of(ids, "_local_docs", update_seq=False, include_docs=True)
        return {row["key"]: row["doc"] for row in rows if row.get("doc")}

    def _rows_of(self, ids: Sequence[str], path: str = "_all_docs", **query: Any) -> List[Doc]:
        status, answer = self.request("POST", path, {"keys": list(ids)}, query)
        if status != 200:
            raise Unreachable(f"{self.place} answers {status} to {path}", status)
        rows = answer.get("rows") if isinstance(answer, dict) else None
        found = self._objects(rows, status, path, key=str, doc=_OR_NONE, value=_OR_NONE)
        self._check(all(not row.get("doc") or _is_document(row["doc"]) for row in found), status, path)
        return found

    def read(self, ids: Sequence[str], **query: Any) -> Dict[str, Optional[Doc]]:
        """Documents by id; None for what is missing, deleted, or cannot be read."""
        try:
            docs = {row["key"]: row.get("doc") for row in self._rows_of(ids, include_docs=True, **query)}
        except Unreadable as error:
            if len(ids) > 1:  # split in halves until the document that causes the error is found
                half = len(ids) // 2
                return dict(self.read(ids[:half], **query), **self.read(ids[half:], **query))
            self.skip(ids[0], error.why)
            return {ids[0]: None}
        found = {name: docs.get(name) for name in ids}
        return {name: doc if doc and self._is_readable(doc) else None for name, doc in found.items()}

    def _is_readable(self, doc: Doc) -> bool:
        if is_nested_more(doc, MOST_NESTED + 1):
            self.skip(doc["_id"], TOO_DEEP)
            return False
        try:
            json.dumps(doc, allow_nan=False)
        except ValueError:
            self.skip(doc["_id"], "holds a number beyond 1.8e308")
            return False
        return True

    def branches(self, ids: Sequence[str]) -> Dict[str, List[Doc]]:
        """The conflicting revisions of documents, the winner first: mostly one, none for a document that cannot be read.

        In a cluster these are read from most copies, like documents by id, and unlike the rows of a view.
        """
        docs = self.read(ids, conflicts=True) if ids else {}
        return {name: self._branches_of(doc) for name, doc in docs.items()}

    def _branches_of(self, doc: Optional[Doc]) -> List[Doc]:
        if not doc:
            return []
        conflicts = doc.pop("_conflicts", None)
        if not conflicts:
            return [doc]
        path = quote(doc["_id"], safe="")
        if not has_path(doc["_id"]):
            others = [self._revision(doc["_id"], str(rev)) for rev in conflicts]
            return [doc, *winner_first(others)]
        status, answer = self.request("GET", path + "?open_revs=all")
        if status != 200:
            raise Unreachable(f"{self.place} answers {status} to a read of {path}", status)
        rows = self._objects(answer, status, path)
        return winner_first(self._document(row["ok"], status, path) for row in rows if "ok" in row)

    def _revision(self, name: str, rev: str, largest: int = LARGEST_RESPONSE, **query: Any) -> Doc:
        """A revision of a document whose id has no path of its own. Raises Unreachable."""
        body = {"docs": [{"id": name, "rev": rev}]}
        status, answer = self.request("POST", "_bulk_get", body, query, largest)
        results = answer.get("results") if isinstance(answer, dict) else None
        for result in self._objects(results, status, "_bulk_get", docs=list) if status == 200 else []:
            for found in self._objects(result["docs"], status, "_bulk_get"):
                if "ok" in found:
                    return self._document(found["ok"], status, "_bulk_get")
        raise Unreachable(f"{self.place} answers {status} to a read of revision {rev} of {name}", status or 404)

    def with_attachments(self, doc: Doc) -> Doc:
        """A document with the data of its attachments. Raises Unreachable."""
        if not doc.get("_attachments"):
            return doc
        sizes = [number(file.get("length")) for file in doc["_attachments"].values()]
        largest = LARGEST_RESPONSE + int(2 * sum(sizes))  # the data are in base64
        path = quote(doc["_id"], safe="")
        if has_path(doc["_id"]):
            status, found = self.request("GET", f"{path}?attachments=true&rev={quote(doc['_rev'])}", largest=largest)
            if status != 200:
                raise Unreachable(f"{self.place} answers {status} to a read of {path}", status)
            found = self._document(found, status, path)
        else:
            found = self._revision(doc["_id"], doc["_rev"], largest, attachments=True)
        files = (found.get("_attachments") or {}).values()
        self._check(all(_is_object(file, {"content_type": str, "data": str}) for file in files), 200, path)
        return found

    def delete(self, doc: Doc) -> None:
        """Delete a revision. It must not be the winner: this would delete the document. Raises Unreachable."""
        if has_path(doc["_id"]):
            self.request("DELETE", f"{quote(doc['_id'], safe='')}?rev={quote(doc['_rev'])}")
        else:
            self.bulk([{"_id": doc["_id"], "_rev": doc["_rev"], "_deleted": True}])

    def revisions(self, ids: Sequence[str]) -> Dict[str, Optional[str]]:
        """Current revisions by id."""
        found = {row["key"]: (row.get("value") or {}).get("rev") for row in self._rows_of(ids)}
        return {name: found.get(name) for name in ids}

    def bulk(self, docs: Sequence[Doc]) -> Tuple[int, Dict[str, Doc]]:
        """``_bulk_docs``: the status, and the row of each document; no rows if the request was refused as a whole.

        A row with ``accepted`` was stored on too few copies: see ``Quorum``.
        """
        status, rows = self.request("POST", "_bulk_docs", {"docs": list(docs)})
        found: Dict[str, Doc] = {}
        if status in (201, 202):
            text = (str, type(None))
            found = {row["id"]: row for row in self._objects(rows, status, "_bulk_docs", id=str, rev=text, error=text)}
        if status == 202 and not any(row.get("accepted") for row in found.values()):
            found = {name: dict(row, accepted=True) for name, row in found.items()}  # the response does not say which
        written = [not row.get("accepted") for row in found.values() if row.get("rev")]
        if written:
            self.quorum.note(any(written))
        return status, found

    def put_first_revisions(self, docs: Sequence[Doc]) -> Optional[Dict[str, str]]:
        """Write documents with revisions of their own: one that exists, or is an ancestor of one that exists, changes
        nothing. Returns those that the database refuses, and why; None if too few nodes of a cluster store them.

        Raises Unreachable.
        """
        status, rows = self.request("POST", "_bulk_docs", {"docs": list(docs), "new_edits": False})
        if status not in (201, 202):  # one of them may be the cause
            if len(docs) == 1:
                return {docs[0]["_id"]: f"{self.place} answers {status}"}
            half = len(docs) // 2
            parts = [self.put_first_revisions(docs[:half]), self.put_first_revisions(docs[half:])]
            return None if None in parts else dict(parts[0] or {}, **(parts[1] or {}))
        self.quorum.note(status == 201)
        text = (str, type(None))
        refused = [row for row in self._objects(rows, status, "_bulk_docs", id=str, error=text) if row.get("error")]
        return {row["id"]: f"{row['error']}: {row.get('reason')}" for row in refused} if status == 201 else None

    def put_local(self, doc_id: str, doc: Doc) -> None:
        """Write a ``_local`` document, overwriting any other. Raises Unreachable also if too few nodes of a cluster
        store it."""
        path = quote(doc_id)
        status, _ = self.request("PUT", path, doc)
        if status == 409:  # CouchDB overwrites, other servers require the revision
            there = self.get(path) or {}
            revision = {"_rev": there["_rev"]} if "_rev" in there else {}
            status, _ = self.request("PUT", path, dict({k: v for k, v in doc.items() if k != "_rev"}, **revision))
        if status in (201, 202):
            self.quorum.note(status == 201)
        if status != 201:
            raise Unreachable(f"{self.place} answers {status} to a write of {path}", status)

    def _view(self, view: str, query: Doc, **kinds: Any) -> List[Doc]:
        """The rows of a view. Raises Failed if there is no such view, and Unreachable if the rows do not have a view's
        form."""
        status, answer = self.request("GET", view, query=query)
        if status != 200:
            raise Failed(
                f"{self.place} has no view {view}. An admin can create it with `airflow-picas deploy-views`.", EX_CONFIG
            )
        return self._objects(answer.get("rows") if isinstance(answer, dict) else None, status, view, **kinds)

    def rows(self, view: str, limit: int, **query: Any) -> List[Doc]:
        """The first rows of a view, except those of unreadable documents. Raises Failed if there is no such view."""
        skipped = self._all_skipped()
        query["limit"] = limit + len(skipped)
        rows = self._view(view, query, id=str, doc=_OR_NONE)
        self._check(all(not row.get("doc") or _is_document(row["doc"]) for row in rows), 200, view)
        return [row for row in rows if row["id"] not in skipped][:limit]

    def sum(self, view: str, **query: Any) -> int:
        """The reduced value of a view. Raises Failed if there is no such view."""
        return int(sum(number(row["value"]) for row in self._view(view, query, value=(int, float))))

    def groups(self, view: str, **query: Any) -> List[Doc]:
        """The rows of a reduced view. Raises Failed if there is no such view."""
        return self._view(view, query, value=int)

    def documents(self, view: str, limit: int, **query: Any) -> List[Doc]:
        """The current documents of the first rows of a view, except those that cannot be read.

        Returns fewer if they have more than ``BULK_BYTES`` together, but at least one.
        """
        return self.page(view, limit, **query)[0]

    def page(self, view: str, limit: int, least: int = 1, **query: Any) -> Tuple[List[Doc], Optional[str]]:
        """``documents``, at least ``least`` of them, and the id of the last row if there may be more."""
        limit = max(least, min(limit, self._page))
        # CouchDB would read the documents of the skipped rows, too.
        rows_first = bool(self._all_skipped()) or query.get("skip", 0) > 0
        while True:
            try:
                rows = self.rows(view, limit, include_docs=True, **query) if not rows_first else None
                break
            except LargeAnswer:
                if limit == least:
                    rows = None
                    break
                limit = self._page = max(least, limit // 8)
            except Unreadable:
                rows = None
                break
        if rows is not None:
            docs = [row["doc"] for row in rows if row.get("doc")]
        else:
            rows = self.rows(view, limit, **query)
            docs = [doc for doc in self.read([row["id"] for row in rows]).values() if doc] if rows else []
        if docs:
            self._page = max(1, BULK_BYTES * len(docs) // max(1, self._received))
        return [doc for doc in docs if self._is_readable(doc)], rows[-1]["id"] if len(rows) == limit else None

    def skip_for(self, name: str, seconds: float, waits: bool = True) -> None:
        """Skip a document in the rows of views for ``seconds``. ``waits``: it may have work after that."""
        self._skipped_until[name] = time.monotonic() + seconds
        (self._waited_for.add if waits and seconds < float("inf") else self._waited_for.discard)(name)

    def skip(self, name: str, why: str) -> None:
        """Skip a document in the rows of views for as long as this pilot runs, and log the reason."""
        if name not in self._skipped:
            log(f"{name} {why}. It is skipped.")
        self._skipped.add(name)

    def skipped(self) -> int:
        """The number of documents that are skipped for as long as this pilot runs."""
        return len(self._skipped)

    def skips_for_now(self) -> bool:
        """True if there are documents that are skipped only for some time, and may be claimed after it."""
        return any(name in self._waited_for for name in self._skipped_until)

    def skips_any(self) -> bool:
        """True if there are documents that are skipped."""
        return bool(self._all_skipped())

    def _all_skipped(self) -> Set[str]:
        now = time.monotonic()
        for name in [name for name, until in self._skipped_until.items() if until <= now]:
            del self._skipped_until[name]
        return self._skipped.union(self._skipped_until)
