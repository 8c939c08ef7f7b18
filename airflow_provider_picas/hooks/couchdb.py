"""``CouchDBHook``: sends requests to the CouchDB server of a connection, from a task. ``PicasHook`` is made of it."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar

import requests
import urllib3
from airflow.providers.common.compat.sdk import AirflowNotFoundException
from airflow.providers.http.hooks.http import HttpHook

from airflow_provider_picas import __version__
from airflow_provider_picas.couchdb import errors, http, indexes
from airflow_provider_picas.couchdb.http import Operation, Request, Response
from airflow_provider_picas.couchdb.pool import Pool
from airflow_provider_picas.couchdb.retries import Retries
from airflow_provider_picas.couchdb.settings import Settings
from airflow_provider_picas.hooks.connection import (
    _this_connection,
    cause_of,
    no_connection,
    settings_of,
    ssl_context,
    with_profile,
)
from airflow_provider_picas.sansio import drive

Result = TypeVar("Result")

CHUNK = 1 << 16
"""Bytes of a response that are read at once."""

NOTICE_INTERVAL = 60.0
"""Seconds between two log lines about an index that is being built."""

USER_AGENT = f"airflow-provider-picas/{__version__}"


class CouchDBHook(HttpHook):
    """Requests to the database of a connection, over one session per thread."""

    conn_name_attr = "picas_conn_id"
    default_conn_name = "picas_default"

    def __init__(
        self,
        picas_conn_id: str = default_conn_name,
        *,
        database: str | None = None,
        design_document: str | None = None,
        profile: str | Mapping[str, Any] | None = None,
        method: str = "GET",
        wait_for_index: bool = True,
    ) -> None:
        super().__init__(method=method, http_conn_id=picas_conn_id)
        self.wait_for_index = wait_for_index
        self._noticed_index = -NOTICE_INTERVAL
        self.picas_conn_id = picas_conn_id
        self.database = database
        self.design_document = design_document
        self.profile = profile
        self._sessions = threading.local()

    # -- connection ---------------------------------------------------------------------------------------------------

    @cached_property
    def settings(self) -> Settings:
        """The connection's fields, read once."""
        try:
            connection = self.get_connection(self.picas_conn_id)
        except AirflowNotFoundException:
            raise no_connection(self.picas_conn_id) from None
        found = with_profile(settings_of(connection, self.picas_conn_id, self.database), self.profile)
        return replace(found, design_document=self.design_document) if self.design_document else found

    @cached_property
    def pool(self) -> Pool:
        """The operations that this hook runs."""
        return Pool(self.settings)

    def get_conn(
        self, headers: dict[Any, Any] | None = None, extra_options: dict[str, Any] | None = None
    ) -> requests.Session:
        """The session of this thread: one for all requests, so that the password is checked once."""
        settings = self.settings
        self.base_url = settings.url
        self._base_url_initialized = True
        self.merged_extra = {"timeout": (settings.connect_timeout, settings.read_timeout), **(extra_options or {})}
        session: requests.Session | None = getattr(self._sessions, "session", None)
        if session is None:
            if isinstance(settings.verify, str):
                ssl_context(
                    settings, self.picas_conn_id
                )  # its error names an unreadable file; that of requests does not
            session = requests.Session()
            session.verify = settings.verify
            session.trust_env = False  # ~/.netrc would take precedence over the connection
            session.headers["User-Agent"] = USER_AGENT
            if settings.login:
                session.auth = requests.auth.HTTPBasicAuth(settings.login.encode(), settings.password.encode())
            session = self._configure_session_from_mount_adapters(session)
            self._sessions.session = session
        return session

    def url_from_endpoint(self, endpoint: str | None) -> str:
        """The URL of a path below the server's; for ``run()``."""
        return f"{self.settings.url}/{(endpoint or '').lstrip('/')}"

    def check_response(self, response: requests.Response) -> None:
        """Raise the typed error for a response; for ``run()``."""
        request = Request(str(response.request.method), str(response.request.path_url))
        http.check(self.settings, self.picas_conn_id, request, answer_of(response))

    def test_connection(self) -> tuple[bool, str]:
        """Test the connection. Called by the Test button of the connection form."""
        try:
            version = self.do(self.pool.server_version())
            if not self.settings.database:
                return (
                    True,
                    f"CouchDB {version} is reachable. The connection has no database, so operators must set one.",
                )
            info = self.do(self.pool.info())
            return True, f"CouchDB {version}, {self.settings.place}: {info['doc_count']:,} documents."
        except (errors.CouchDBError, ValueError) as error:
            # The Test button tests a connection under a temporary name from Airflow.
            return False, re.sub(
                rf"([Cc])onnection {re.escape(repr(self.picas_conn_id))}", _this_connection, str(error)
            )

    def do(self, operation: Operation[Result]) -> Result:
        """Run an operation to its end and return its result."""
        return drive(operation, self.send)

    def send(self, request: Request) -> Response:
        """Send one request, and repeat it if that is safe and may help. Returns the response. Raises CouchDBError."""
        retries = Retries(request)
        while True:
            retry_after = None
            try:
                answer = self._send_once(request)
                retry_after = answer.headers.get("retry-after")
                return http.check(self.settings, self.picas_conn_id, request, answer)
            except errors.UnavailableError as error:
                building = self._note_index(request)
                if (pause := retries.after(error, retry_after, building=building)) is None:
                    raise
                if not building:
                    self.log.warning("%s Trying again in %.1f s.", error, pause)
            time.sleep(pause)

    def _note_index(self, request: Request) -> bool:
        """Log from time to time that the request waits for an index, if it does."""
        if not self.wait_for_index or "/_view/" not in request.path:
            return False
        try:
            building = self.do(indexes.progress(self.pool))
        except errors.CouchDBError:
            return False
        if building is not None and time.monotonic() - self._noticed_index >= NOTICE_INTERVAL:
            self._noticed_index = time.monotonic()
            self.log.info("CouchDB is building the index of %s. The task continues when it is done.", building)
        return building is not None

    def _send_once(self, request: Request) -> Response:
        settings = self.settings
        session = self.get_conn()
        try:
            response = session.request(
                request.method,
                settings.url + request.target,
                data=request.body,
                headers=request.headers,
                timeout=(settings.connect_timeout, request.read_timeout or settings.read_timeout),
                allow_redirects=False,
                stream=True,
            )
            with response:
                body = _read(settings, request, response)
        except requests.exceptions.SSLError as error:
            raise http.tls_failed(settings, self.picas_conn_id, cause_of(error)) from None
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
            raise http.unreachable(settings, self.picas_conn_id, cause_of(error)) from None
        return Response(response.status_code, _headers(response), body)


def answer_of(response: requests.Response) -> Response:
    """The response as operations see it."""
    return Response(response.status_code, _headers(response), response.content)


def _headers(response: requests.Response) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}


def _read(settings: Settings, request: Request, response: requests.Response) -> bytes:
    """The body of a response. Raises LargeResponseError and UnavailableError at its limits of size and time."""
    started, longest = time.monotonic(), http.longest(settings, request)
    body = bytearray()
    while piece := response.raw.read1(CHUNK, decode_content=True):  # returns available data, unlike read()
        body += piece
        http.check_size(settings, request, len(body))
        if longest is not None and time.monotonic() - started > longest:
            raise http.too_slow(settings, request)
    return bytes(body)
