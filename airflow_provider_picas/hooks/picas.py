"""Hooks for a PiCaS pool: ``PicasHook`` for tasks, ``PicasAsyncHook`` for triggers, over the operations of ``couchdb.pool``."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import requests
from airflow.providers.common.compat.connection import get_async_connection, get_async_extra_dejson
from airflow.providers.http.hooks.http import HttpHook

from airflow_provider_picas import __version__
from airflow_provider_picas.couchdb import errors, protocol
from airflow_provider_picas.couchdb.pool import PAGE, Deployment, Document, Pool
from airflow_provider_picas.couchdb.protocol import Answer, Operation, Request
from airflow_provider_picas.couchdb.settings import EXTRAS, Settings, from_connection
from airflow_provider_picas.operation import drive, drive_async
from airflow_provider_picas.tokens import documents
from airflow_provider_picas.tokens.counts import Counts
from airflow_provider_picas.tokens.push import OnExisting, PushReport
from airflow_provider_picas.tokens.states import State

if TYPE_CHECKING:
    import aiohttp

Result = TypeVar("Result")

PUSH_CONNECTIONS = 4
"""Requests of a push that are under way at once (measured on CouchDB 3.5.0: more are no faster)."""

REQUEST_BYTES = 4_000_000
"""A request of a push is sent when it has a page of tokens or this many bytes."""

_USER_AGENT = f"airflow-provider-picas/{__version__}"


class PicasHook(HttpHook):
    """A PiCaS pool, from a task.

    :param picas_conn_id: a connection of type ``picas``: host (URL of the CouchDB server), database, login, password; extras
        ``verify``, ``ca_file``, ``design_document``, ``connect_timeout`` and ``read_timeout`` (seconds).
    :param database: another database than the connection's.
    :param method: HTTP method of ``run()``, which is ``HttpHook``'s, for anything that has no method here.

    Methods raise the errors of ``airflow_provider_picas.couchdb.errors``. Requests that are safe to repeat are sent again
    when the server is away or says so, with growing pauses.
    """

    conn_name_attr = "picas_conn_id"
    default_conn_name = "picas_default"
    conn_type = "picas"
    hook_name = "PiCaS"

    def __init__(
        self, picas_conn_id: str = default_conn_name, *, database: str | None = None, method: str = "GET"
    ) -> None:
        super().__init__(method=method, http_conn_id=picas_conn_id)
        self.picas_conn_id = picas_conn_id
        self.database = database
        self._sessions = threading.local()

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
            name: (BooleanField if "boolean" in field["schema"]["type"] else StringField)(lazy_gettext(field["label"]))
            for name, field in CONN_FIELDS.items()
        }

    # -- connection ---------------------------------------------------------------------------------------------------

    @cached_property
    def settings(self) -> Settings:
        """The connection's fields, looked up once."""
        return _settings(self.get_connection(self.picas_conn_id), self.picas_conn_id, self.database)

    @cached_property
    def pool(self) -> Pool:
        """The operations that this hook drives."""
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
            session = requests.Session()
            session.verify = settings.verify
            session.trust_env = False  # ~/.netrc would win over the connection
            session.headers["User-Agent"] = _USER_AGENT
            if settings.login:
                session.auth = requests.auth.HTTPBasicAuth(settings.login.encode(), settings.password.encode())
            session = self._configure_session_from_mount_adapters(session)
            self._sessions.session = session
        return session

    def url_from_endpoint(self, endpoint: str | None) -> str:
        """The URL of a path below the server's; for ``run()``."""
        return f"{self.settings.url}/{(endpoint or '').lstrip('/')}"

    def check_response(self, response: requests.Response) -> None:
        """Raise the typed error of an answer; for ``run()``."""
        request = Request(str(response.request.method), str(response.request.path_url))
        protocol.check(self.settings, self.picas_conn_id, request, _answer(response))

    def test_connection(self) -> tuple[bool, str]:
        """What the Test button of the connection form asks."""
        try:
            version = self.do(self.pool.server_version())
            if not self.settings.database:
                return True, f"CouchDB {version} answers. The connection names no database: operators must."
            info = self.do(self.pool.info())
            return True, f"CouchDB {version}, {self.settings.place}: {info['doc_count']:,} documents."
        except (errors.CouchDBError, ValueError) as error:
            return False, str(error)

    def do(self, operation: Operation[Result]) -> Result:
        """Drive an operation to its end and return its result."""
        return drive(operation, self._send)

    def _send(self, request: Request) -> Answer:
        for attempt in itertools.count(1):
            retry_after = None
            try:
                answer = self._send_once(request)
                retry_after = answer.headers.get("retry-after")
                return protocol.check(self.settings, self.picas_conn_id, request, answer)
            except errors.UnavailableError as error:
                if not protocol.worth_repeating(request, error, attempt):
                    raise
                pause = protocol.wait_before(attempt + 1, retry_after)
                self.log.warning("%s Trying again in %.1f s.", error, pause)
            time.sleep(pause)
        raise AssertionError("not reached")

    def _send_once(self, request: Request) -> Answer:
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
            )
        except requests.exceptions.SSLError as error:
            raise protocol.unreachable(settings, self.picas_conn_id, _cause(error), certificate=True) from None
        except requests.exceptions.RequestException as error:
            raise protocol.unreachable(settings, self.picas_conn_id, _cause(error)) from None
        return _answer(response)

    # -- the pool -----------------------------------------------------------------------------------------------------

    def count(self, batch: str | None = None) -> Counts:
        """Tokens by state, of a batch or of the whole pool."""
        return self.do(self.pool.count(batch))

    def get(self, token_id: str) -> Document:
        """One token. Raises NotFoundError."""
        return self.do(self.pool.get(token_id))

    def tokens(self, state: State | str, batch: str | None = None) -> Iterator[Document]:
        """The tokens in a state, of a batch or of the whole pool, read page by page."""
        state = State(state)
        yield from self._pages(lambda after: self.pool.tokens(state, batch, after=after))

    def token_ids(self, state: State | str, batch: str | None = None) -> Iterator[str]:
        """The ids of the tokens in a state, read page by page."""
        state = State(state)
        yield from self._pages(lambda after: self.pool.ids(state, batch, after=after))

    def batch_documents(self, batch: str) -> Iterator[Document]:
        """All tokens of a batch, whatever their state, read page by page."""
        yield from self._pages(lambda after: self.pool.batch_documents(batch, after=after))

    def _pages(self, page: Callable[[str | None], Operation[tuple[list[Result], str | None]]]) -> Iterator[Result]:
        after: str | None = None
        while True:
            found, after = self.do(page(after))
            yield from found
            if after is None:
                return

    def stateless_ids(self, batch: str | None = None, limit: int = PAGE) -> list[str]:
        """Ids of tokens that are in no state."""
        return self.do(self.pool.stateless(batch, limit=limit))

    def missing(self, batch: str, expected: int, limit: int = 5) -> list[str]:
        """Some of a batch's tokens that were pushed and are gone; reads all that are left."""
        return self.do(self.pool.missing(batch, expected, limit=limit))

    def deploy_views(self) -> Deployment:
        """Write the design documents that the pool lacks, if the login may."""
        return self.do(self.pool.deploy())

    def push(
        self,
        tokens: Iterable[Document],
        *,
        on_existing: OnExisting | str = OnExisting.RESET,
        progress: Callable[[PushReport], None] | None = None,
    ) -> PushReport:
        """Write new tokens (``documents.new_token``), each once, several requests at a time.

        ``tokens`` is read as it is sent: memory does not grow with their number. ``progress`` is told after each request.
        When an input is bad, what was sent before it stays written; running the push again writes nothing twice.
        """
        report = PushReport()
        existing = OnExisting(on_existing)
        under_way: set[Future[PushReport]] = set()

        def collect(finished: Iterable[Future[PushReport]]) -> None:
            for future in finished:
                report.add(future.result())
            if progress:
                progress(report)

        with ThreadPoolExecutor(PUSH_CONNECTIONS, thread_name_prefix="picas-push") as senders:
            try:
                for some, encoded in requests_of(tokens):
                    if len(under_way) >= 2 * PUSH_CONNECTIONS:
                        finished, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                        collect(finished)
                    under_way.add(senders.submit(lambda a, b: self.do(self.pool.push(a, b, existing)), some, encoded))
                while under_way:
                    finished, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                    collect(finished)
            except BaseException:
                senders.shutdown(wait=True, cancel_futures=True)
                raise
        return report


class PicasAsyncHook:
    """A PiCaS pool, from a trigger: the same operations over one aiohttp session.

    Use it as an asynchronous context manager; the session lives as long. Parameters as for ``PicasHook``.
    """

    def __init__(self, picas_conn_id: str = PicasHook.default_conn_name, *, database: str | None = None) -> None:
        self.picas_conn_id = picas_conn_id
        self.database = database
        self._session: aiohttp.ClientSession | None = None
        self._settings: Settings | None = None

    async def __aenter__(self) -> PicasAsyncHook:
        import aiohttp

        settings = await self._look_up()
        auth = aiohttp.BasicAuth(settings.login, settings.password, "utf-8") if settings.login else None
        self._session = aiohttp.ClientSession(
            auth=auth,
            headers={"User-Agent": _USER_AGENT},
            connector=aiohttp.TCPConnector(ssl=await asyncio.to_thread(_ssl, settings.verify), limit=16),
            auto_decompress=True,
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def _look_up(self) -> Settings:
        if self._settings is None:
            connection = await get_async_connection(self.picas_conn_id)
            extra = await get_async_extra_dejson(connection)
            self._settings = _settings(connection, self.picas_conn_id, self.database, extra)
        return self._settings

    @property
    def settings(self) -> Settings:
        """The connection's fields; known once the hook was entered."""
        if self._settings is None:
            raise RuntimeError("PicasAsyncHook is used outside of its `async with`.")
        return self._settings

    @property
    def pool(self) -> Pool:
        """The operations that this hook drives."""
        return Pool(self.settings)

    async def do(self, operation: Operation[Result]) -> Result:
        """Drive an operation to its end and return its result."""
        return await drive_async(operation, self._send)

    async def _send(self, request: Request) -> Answer:
        for attempt in itertools.count(1):
            retry_after = None
            try:
                answer = await self.send_once(request)
                retry_after = answer.headers.get("retry-after")
                return protocol.check(self.settings, self.picas_conn_id, request, answer)
            except errors.UnavailableError as error:
                if not protocol.worth_repeating(request, error, attempt):
                    raise
            await asyncio.sleep(protocol.wait_before(attempt + 1, retry_after))
        raise AssertionError("not reached")

    async def send_once(self, request: Request) -> Answer:
        """Send one request and read its whole answer, whatever its status."""
        import aiohttp
        from yarl import URL

        settings = self.settings
        if self._session is None:
            raise RuntimeError("PicasAsyncHook is used outside of its `async with`.")
        timeout = aiohttp.ClientTimeout(
            total=None, connect=settings.connect_timeout, sock_read=request.read_timeout or settings.read_timeout
        )
        try:
            async with self._session.request(
                request.method,
                URL(settings.url + request.target, encoded=True),
                data=request.body,
                headers=request.headers,
                timeout=timeout,
                allow_redirects=False,
            ) as response:
                body = await response.read()
                headers = {name.lower(): value for name, value in response.headers.items()}
                return Answer(response.status, headers, body)
        except (aiohttp.ClientSSLError, aiohttp.ClientConnectorCertificateError) as error:
            raise protocol.unreachable(settings, self.picas_conn_id, str(error), certificate=True) from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise protocol.unreachable(settings, self.picas_conn_id, str(error) or type(error).__name__) from None

    async def count(self, batch: str | None = None) -> Counts:
        """Tokens by state, of a batch or of the whole pool."""
        return await self.do(self.pool.count(batch))

    async def get(self, token_id: str) -> Document:
        """One token. Raises NotFoundError."""
        return await self.do(self.pool.get(token_id))

    async def tokens(self, state: State | str, batch: str | None = None) -> AsyncIterator[Document]:
        """The tokens in a state, of a batch or of the whole pool, read page by page."""
        after: str | None = None
        while True:
            found, after = await self.do(self.pool.tokens(State(state), batch, after=after))
            for token in found:
                yield token
            if after is None:
                return

    async def deploy_views(self) -> Deployment:
        """Write the design documents that the pool lacks, if the login may."""
        return await self.do(self.pool.deploy())

    async def push(self, tokens: Iterable[Document], *, on_existing: OnExisting | str = OnExisting.RESET) -> PushReport:
        """Write new tokens (``documents.new_token``), each once, one request after the other."""
        report = PushReport()
        for some, encoded in requests_of(tokens):
            report.add(await self.do(self.pool.push(some, encoded, OnExisting(on_existing))))
        return report


def requests_of(tokens: Iterable[Document]) -> Iterator[tuple[list[Document], list[bytes]]]:
    """Tokens in requests of at most a page and at most some megabytes, each with its tokens' JSON."""
    some: list[Document] = []
    encoded: list[bytes] = []
    size = 0
    for token in tokens:
        text = documents.encode(token)
        if some and (len(some) == PAGE or size + len(text) > REQUEST_BYTES):
            yield some, encoded
            some, encoded, size = [], [], 0
        some.append(token)
        encoded.append(text)
        size += len(text)
    if some:
        yield some, encoded


def _settings(connection: Any, conn_id: str, database: str | None, extra: Mapping[str, Any] | None = None) -> Settings:
    fields = connection.extra_dejson if extra is None else extra
    return from_connection(
        conn_id,
        host=connection.host,
        port=connection.port,
        schema=connection.schema,
        login=connection.login,
        password=connection.password,
        extra={name: value for name, value in fields.items() if name in EXTRAS or value not in (None, "")},
        database=database,
    )


def _answer(response: requests.Response) -> Answer:
    return Answer(
        response.status_code, {name.lower(): value for name, value in response.headers.items()}, response.content
    )


def _cause(error: Exception) -> str:
    """The innermost reason that requests and urllib3 give, in one line."""
    reason: Any = error
    for _ in range(5):
        inner = getattr(reason, "reason", None) or next(
            (item for item in getattr(reason, "args", ()) if isinstance(item, Exception)), None
        )
        if inner is None:
            break
        reason = inner
    text = " ".join(str(reason).split())
    return text.rpartition(">: ")[2][:300] or type(error).__name__


def _ssl(verify: bool | str) -> Any:
    import ssl

    if verify is False:
        return False
    return ssl.create_default_context(cafile=verify if isinstance(verify, str) else _certifi())


def _certifi() -> str:
    import certifi  # what requests trusts, so that both hooks agree

    return certifi.where()
