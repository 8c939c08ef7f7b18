"""Requests, responses, and the typed errors for responses."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar
from urllib.parse import urlencode

from airflow_provider_picas.couchdb import errors
from airflow_provider_picas.couchdb.settings import Settings
from airflow_provider_picas.lifecycle.backoff import growing_pause
from airflow_provider_picas.lifecycle.dates import parse_date
from airflow_provider_picas.lifecycle.ids import STAGES
from airflow_provider_picas.tokens.documents import integer
from airflow_provider_picas.tokens.text import one_line

TRIES = 5
"""Limit on the tries of a request that is safe to repeat."""

TRIES_TO_CONNECT = 5
"""Limit on the tries if the server does not answer at all."""

Kinds = type | tuple[type, ...] | Mapping[str, Any]
"""The allowed types of a value. ``type(None)``: it may be missing. A mapping: those of the fields of an object."""


def _no_json(word: str) -> float:
    raise ValueError(f"{word} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_json)
_SLOW_DECODER = json.JSONDecoder(parse_constant=_no_json, parse_int=integer)
# json.dumps creates an encoder for each call.
_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False)

LARGEST_RESPONSE = 64_000_000
"""Limit of a decompressed response in bytes; a page of tokens has some 4 MB."""

SLOWEST_RESPONSE = 10
"""Limit on the time of a whole response, in read timeouts. Each piece of it has one read timeout."""

RETRY_STATUSES = frozenset({429, 500, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # seconds
_BODY_SHOWN = 200  # characters shown of a response that is not JSON


@dataclass(frozen=True)
class Request:
    """One HTTP request. ``path`` is quoted and below the server's URL; ``body`` is JSON, encoded.

    ``repeatable``: sending it twice has the same effect as sending it once, so it may be repeated if the response is
    lost.
    """

    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    content_type: str = "application/json"
    repeatable: bool = True
    read_timeout: float | None = None  #: seconds; None is the connection's
    raw: bool = False  #: the response is an attachment, with any content
    endless: bool = False  #: CouchDB responds when something happens, and sends heartbeats until then
    largest: int = LARGEST_RESPONSE  #: limit of the decompressed response in bytes

    @property
    def target(self) -> str:
        """Path and query."""
        return self.path + (f"?{urlencode(self.params)}" if self.params else "")

    @property
    def headers(self) -> dict[str, str]:
        """Headers of only this request."""
        headers = {"Accept": "application/json"}
        if self.body is not None:
            headers["Content-Type"] = self.content_type
        return headers


@dataclass(frozen=True)
class Response:
    """A response. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    source: str = field(default="CouchDB", compare=False)  #: the request and the server, for errors

    def json(self) -> Any:
        """The body as JSON; integers with too many digits are ``HugeInteger``.

        Raises UnavailableError if it was cut off, and UnexpectedResponseError if it is nested too deeply for Python.
        """
        try:
            with suppress(ValueError):
                return _DECODER.decode(self._text())
            return _SLOW_DECODER.decode(self._text())
        except ValueError:
            raise errors.UnavailableError(
                f"The response from {self.source} is not JSON ({len(self.body):,} bytes): it may have been truncated on the way.",
                status=self.status,
            ) from None
        except RecursionError:
            raise self.unexpected("it is nested too deeply") from None

    def _text(self) -> str:
        return self.body.decode("utf-8-sig")

    def object(self, **fields: Kinds) -> dict[str, Any]:
        """The body, which must be an object in which these fields are of these types. Raises UnexpectedResponseError."""
        return self.checked(self.json(), fields)

    def rows(self, name: str | None = "rows", **fields: Kinds) -> list[dict[str, Any]]:
        """The list of objects in a field of the body (None: the body itself), each with fields of these types.

        Raises UnexpectedResponseError.
        """
        body = self.json()
        rows = body if name is None else self.checked(body, {name: list})[name]
        if not isinstance(rows, list):
            raise self.unexpected(f"it is {_kind(rows)} instead of a list")
        return [self.checked(row, fields) for row in rows]

    def documents(self) -> dict[str, dict[str, Any]]:
        """The documents in the rows of the body, by id. Rows without one are skipped. Raises UnexpectedResponseError."""
        found = [row["doc"] for row in self.rows(doc=(dict, type(None))) if row.get("doc")]
        return {self.document(document)["_id"]: document for document in found}

    def document(self, value: Any) -> dict[str, Any]:
        """A part of the body, which must be a document. Raises UnexpectedResponseError."""
        parts: dict[str, Kinds] = {"_id": str, "_rev": str}
        parts |= {"_attachments": (dict, type(None)), "_conflicts": (list, type(None))}
        document = self.checked(value, parts)
        for file in (document.get("_attachments") or {}).values():
            self.checked(file, {})
        return document

    def checked(self, value: Any, fields: Mapping[str, Kinds]) -> dict[str, Any]:
        """A part of the body, if it is an object with these fields. Raises UnexpectedResponseError."""
        if not isinstance(value, dict):
            raise self.unexpected(f"{_kind(value)} was found instead of an object")
        for name, kinds in fields.items():
            found = value.get(name)
            if isinstance(kinds, Mapping):
                self.checked(found, kinds)
            elif not isinstance(found, kinds) or (isinstance(found, bool) and kinds is int):
                raise self.unexpected(f"{name!r} is {_kind(found)}" if name in value else f"{name!r} is missing")
        return value

    def unexpected(self, what: str) -> errors.UnexpectedResponseError:
        """The error for JSON that is not in CouchDB's form. ``what``: the mismatch."""
        return errors.UnexpectedResponseError(
            f"The response from {self.source} is not in CouchDB's format: {what}. Check that the connection's host is a"
            " CouchDB server, and any proxy in front of it.",
            status=self.status,
        )

    @property
    def time(self) -> int | None:
        """The server's clock at the response, in seconds since 1970, or None if it sent no date."""
        seconds = parse_date(self.headers.get("date"))
        return None if seconds is None else int(seconds)


def _kind(value: Any) -> str:
    """The type of a JSON value, for errors; without its content, which is foreign and may be long."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


Result = TypeVar("Result")
Operation = Generator[Request, Response, Result]
"""Yields requests, receives their responses (errors are raised inside), and returns its result."""


def json_body(value: Any) -> bytes:
    """A value as a request's body."""
    return _ENCODER.encode(value).encode()


def check(settings: Settings, conn_id: str, request: Request, response: Response) -> Response:
    """The response, if it is not an error. Otherwise raises a CouchDBError that says what to do."""
    if response.status in _REDIRECTS:
        raise errors.NotCouchDBError(
            f"{settings.url} redirects to {one_line(response.headers.get('location', ''), 300)!r} (HTTP {response.status})."
            f" If CouchDB is there, put that address in the host of connection {conn_id!r}, without the path of the request.",
            status=response.status,
        )
    if response.status < 400:
        if not request.raw and _is_html(response):
            raise _not_couchdb(settings, conn_id, response)
        return replace(response, source=f"{settings.place} to {request.method} {one_line(request.path)}")
    try:
        body = json.loads(response.body) if request.method != "HEAD" else {}
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict) or (request.method != "HEAD" and "error" not in body):
        if response.status == 413:  # a proxy's own page, as below
            raise _too_large(settings, request, "")
        if response.status in RETRY_STATUSES:
            raise errors.UnavailableError(
                f"{settings.place} is not available (HTTP {response.status}). Try again later.", status=response.status
            )
        raise _not_couchdb(settings, conn_id, response)
    raise _error(settings, conn_id, request, response.status, str(body.get("error", "")), str(body.get("reason", "")))


def _error(
    settings: Settings, conn_id: str, request: Request, status: int, error: str, reason: str
) -> errors.CouchDBError:
    detail = f"({status} {one_line(f'{error}: {reason}', 500)})"
    details: dict[str, Any] = {"status": status, "error": error, "reason": reason}
    if status == 401:
        who = f"login {settings.login!r}" if settings.login else "a request without a login"
        return errors.UnauthorizedError(
            f"CouchDB refused {who} at {settings.place} {detail}. Check login and password of connection {conn_id!r}.",
            **details,
        )
    if status == 403:
        return errors.ForbiddenError(
            f"{settings.who} is not allowed to do this in {settings.place} {detail}."
            " Ask the database's administrator for permission.",
            **details,
        )
    if status == 404:
        if reason == errors.DATABASE_MISSING:
            message = f"There is no database {settings.place} {detail}. Check the database of connection {conn_id!r}."
        elif view := re.search(r"/_design/([^/]+)/_view/([^/?]+)", request.path):
            message = (
                f"There is no view {view[2]!r} in design document {view[1]!r} of {settings.place} {detail}."
                f" An admin of the database creates the views with `airflow-picas deploy-views --picas-conn-id {conn_id}"
                f"{' --stages' if view[1].startswith(STAGES) else ''}`,"
                " a push, or PiCaS's create_views.py."
            )
        else:
            message = f"Not found in {settings.place} {detail}."
        return errors.NotFoundError(message, **details)
    if status == 409:
        return errors.ConflictError(
            f"The document in {settings.place} has been changed in the meantime {detail}.", **details
        )
    if status == 413:
        return _too_large(settings, request, detail, **details)
    if status in RETRY_STATUSES:
        return errors.UnavailableError(f"{settings.place} is not available {detail}. Try again later.", **details)
    return errors.CouchDBError(f"CouchDB refused a request to {settings.place} {detail}.", **details)


def _too_large(settings: Settings, request: Request, detail: str, **details: Any) -> errors.TooLargeError:
    return errors.TooLargeError(
        f"{settings.place} does not accept a request of {len(request.body or b''):,} bytes {detail or '(HTTP 413)'}."
        " The limit is CouchDB's (max_document_size, max_http_request_size), or that of a proxy in front of it"
        " (client_max_body_size in nginx).",
        **{"status": 413, **details},
    )


def refused(settings: Settings, token_id: str, error: str, reason: str | None) -> errors.CouchDBError:
    """The error for a token that a bulk request did not write. ``error`` and ``reason`` are from its row."""
    reason = reason or ""
    if error == "too_large":
        return errors.TooLargeError(
            f"Token {one_line(token_id)!r} is too large. {one_line(reason, 500)}", status=413, error=error
        )
    detail = f"({one_line(f'{error}: {reason}', 500)})"
    if error in ("forbidden", "unauthorized"):
        return errors.ForbiddenError(
            f"{settings.who} is not allowed to write token {one_line(token_id)!r} to {settings.place} {detail}."
            " Ask the database's administrator for permission to write.",
            error=error,
            reason=reason,
        )
    return errors.CouchDBError(
        f"CouchDB refused token {one_line(token_id)!r} in {settings.place} {detail}.", error=error, reason=reason
    )


def _is_html(response: Response) -> bool:
    return "html" in response.headers.get("content-type", "") or response.body[:20].lstrip().lower().startswith(b"<")


def _not_couchdb(settings: Settings, conn_id: str, response: Response) -> errors.NotCouchDBError:
    shown = one_line(" ".join(response.body[:2000].decode("utf-8", "replace").split()), _BODY_SHOWN)
    return errors.NotCouchDBError(
        f"The server at {settings.url} is not CouchDB: HTTP {response.status}, {shown!r}."
        f" Check host and port of connection {conn_id!r}.",
        status=response.status,
    )


def tls_failed(settings: Settings, conn_id: str, cause: str) -> errors.CouchDBError:
    """The error for a TLS connection that failed or broke. ``cause`` is the message of the underlying library."""
    cause = one_line(cause, 300)
    if "CERTIFICATE_VERIFY_FAILED" in cause:
        return errors.CouchDBError(
            f"The certificate of {settings.url} could not be verified ({cause}). If it is from your own authority, set"
            f" 'ca_file' in connection {conn_id!r} to the authority's file."
        )
    return errors.UnavailableError(
        f"The TLS connection to {settings.url} failed ({cause}). If the server does not use TLS, start the host of connection"
        f" {conn_id!r} with http://."
    )


def unreachable(settings: Settings, conn_id: str, cause: str) -> errors.CouchDBError:
    """The error for a request without a response. ``cause`` is the underlying library's message, with text from the
    server."""
    cause = one_line(cause, 300)
    tls = " and uses TLS; if it does not, start the host with http://" if settings.url.startswith("https:") else ""
    return errors.UnavailableError(
        f"{settings.url} does not answer ({cause}). Check host and port of connection {conn_id!r}, and that the server runs{tls}."
    )


def longest(settings: Settings, request: Request) -> float | None:
    """Seconds that a whole response may take; None without a limit."""
    return None if request.endless else SLOWEST_RESPONSE * (request.read_timeout or settings.read_timeout)


def check_size(settings: Settings, request: Request, size: int) -> None:
    """Raise LargeResponseError if a response exceeds its limit."""
    if size > request.largest:
        raise errors.LargeResponseError(
            f"The response from {settings.place} to {request.method} {one_line(request.path)} has more than"
            f" {request.largest:,} bytes and was not read completely."
        )


def too_slow(settings: Settings, request: Request) -> errors.UnavailableError:
    """The error for a response that was aborted because it was too slow."""
    return errors.UnavailableError(
        f"The response from {settings.place} to {request.method} {one_line(request.path)} was not complete after"
        f" {longest(settings, request):,.0f} s. If the network is that slow, raise `read_timeout` in the connection's extra."
    )


def wait_before(attempt: int, retry_after: str | None = None) -> float:
    """Seconds to wait before attempt number ``attempt`` (2 is the first repetition), with jitter."""
    if retry_after and re.fullmatch(r"\s*[0-9]{1,9}\s*", retry_after):
        return min(_LONGEST_WAIT, float(retry_after)) + random.uniform(0, 0.5)
    return growing_pause(attempt - 1, _FIRST_WAIT, _LONGEST_WAIT)


def worth_repeating(request: Request, error: errors.CouchDBError, attempt: int) -> bool:
    """True if a failed request should be sent again. ``attempt`` is the number of times that it was sent."""
    if not isinstance(error, errors.UnavailableError) or not request.repeatable:
        return False
    return attempt < (TRIES if error.status else TRIES_TO_CONNECT)
