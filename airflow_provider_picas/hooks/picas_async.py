"""``PicasAsyncHook``: a PiCaS pool, from a trigger."""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.connection import get_async_connection, get_async_extra_dejson
from airflow.providers.common.compat.sdk import AirflowNotFoundException

if TYPE_CHECKING:
    import aiohttp

from airflow_provider_picas.couchdb import counting, deployment, errors, http
from airflow_provider_picas.couchdb.http import Operation, Request, Response
from airflow_provider_picas.couchdb.pool import Document, Next, Pool
from airflow_provider_picas.couchdb.refusals import Refusals
from airflow_provider_picas.couchdb.retries import Retries
from airflow_provider_picas.couchdb.settings import Settings
from airflow_provider_picas.hooks.connection import no_connection, settings_of, ssl_context, with_profile
from airflow_provider_picas.hooks.couchdb import USER_AGENT, Result
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.lifecycle.backoff import Backoff
from airflow_provider_picas.sansio import drive_async
from airflow_provider_picas.tokens.counts import Counts
from airflow_provider_picas.tokens.states import State

log = logging.getLogger(__name__)

_refusals = Refusals()

FIRST_LOOK_UP, LONGEST_LOOK_UP = 5.0, 300.0
"""Seconds until the connection is looked up again for a request that was refused; longer each time that it has not changed."""

_LONGEST_ERROR = 100_000  # bytes of an error's body that are read


class PicasAsyncHook:
    """A PiCaS pool, from a trigger: the same operations over one aiohttp session.

    Use it as an asynchronous context manager, which also closes the session.

    :param picas_conn_id: a connection of type ``picas``, as for ``PicasHook``.
    :param database: another database than the connection's.
    :param profile: another shape of the pool than the connection's: the name of a profile, or an object.

    Methods take ``batch``, ``token_id`` and ``state`` as those of ``PicasHook``; ``operation``: a generator that yields requests;
    ``request``: one request.

    If a request is refused (401 or 403) or gets no response, the hook reads the Airflow connection again from time to
    time, since it may have changed, for example to a new password, and sends the request with the current values. No
    hook of the process repeats a refused login at once: ``couchdb.refusals`` explains why.
    """

    def __init__(
        self,
        picas_conn_id: str = PicasHook.default_conn_name,
        *,
        database: str | None = None,
        profile: str | Mapping[str, Any] | None = None,
    ) -> None:
        self.picas_conn_id = picas_conn_id
        self.database = database
        self.profile = profile
        self._session: aiohttp.ClientSession | None = None
        self._settings: Settings | None = None
        self._tls: Any = True
        self._renewal = asyncio.Lock()
        self._look_ups = Backoff(FIRST_LOOK_UP, LONGEST_LOOK_UP, jitter=(1.0, 1.0))
        self._look_up_due = 0.0  #: by the monotonic clock

    async def __aenter__(self) -> PicasAsyncHook:
        import aiohttp

        if self._settings is None:
            await self._apply(await self._look_up())
            self._look_up_due = time.monotonic() + self._look_ups.pause()
        self._session = aiohttp.ClientSession(
            headers={"User-Agent": USER_AGENT}, connector=aiohttp.TCPConnector(limit=16), auto_decompress=True
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def _look_up(self) -> Settings:
        try:
            connection = await get_async_connection(self.picas_conn_id)
            extra = await get_async_extra_dejson(connection)
        except AirflowNotFoundException:
            raise no_connection(self.picas_conn_id) from None
        except Exception as error:  # Airflow's API is unavailable: treat it like an unavailable database
            raise errors.UnavailableError(
                f"Airflow did not provide connection {self.picas_conn_id!r} ({type(error).__name__}: {error!s:.300})."
            ) from error
        return with_profile(settings_of(connection, self.picas_conn_id, self.database, extra), self.profile)

    async def _apply(self, settings: Settings) -> None:
        self._tls = await asyncio.to_thread(ssl_context, settings, self.picas_conn_id)
        self._settings = settings

    async def _renew(self, used: Settings) -> bool:
        """Read the connection again. True if it differs from ``used``."""
        async with self._renewal:
            if self.settings != used:
                return True  # another request has read it
            if time.monotonic() < self._look_up_due:
                return False
            try:
                found = await self._look_up()
                if found != used:
                    await self._apply(found)
            except errors.CouchDBError:
                found = used
            if found != used:
                self._look_ups.reset()
            self._look_up_due = time.monotonic() + self._look_ups.pause()
            if found == used:
                return False
            log.info("Connection %r has changed. Requests now use the new values.", self.picas_conn_id)
            return True

    @property
    def settings(self) -> Settings:
        """The connection's fields. Available once the hook was entered."""
        if self._settings is None:
            raise RuntimeError("PicasAsyncHook must be used inside its `async with` block.")
        return self._settings

    @property
    def pool(self) -> Pool:
        """The operations that this hook runs."""
        return Pool(self.settings)

    async def do(self, operation: Operation[Result]) -> Result:
        """Run an operation to its end and return its result."""
        return await drive_async(operation, self.send)

    async def send(self, request: Request) -> Response:
        """Send one request, and repeat it if that is safe and may help. Returns the response. Raises CouchDBError."""
        retries = Retries(request)
        while True:
            retry_after, used = None, self.settings
            known = _refusals.known(used, time.monotonic())
            try:
                if known is not None:
                    raise known
                answer = await self.send_once(request)
                retry_after = answer.headers.get("retry-after")
                checked = http.check(used, self.picas_conn_id, request, answer)
                _refusals.forget(used)
                return checked
            except (errors.UnauthorizedError, errors.ForbiddenError) as error:
                if error is not known:
                    _refusals.note(used, error, time.monotonic())
                if not await self._renew(used):
                    raise
                continue  # it was refused, so it had no effect
            except errors.UnavailableError as error:
                if (pause := retries.after(error, retry_after)) is None:
                    if not error.status:
                        await self._renew(used)  # for the next request
                    raise
            await asyncio.sleep(pause)

    async def send_once(self, request: Request) -> Response:
        """Send one request and read the whole response, with any status."""
        settings = self.settings
        async with self._open(request) as response:
            body = bytearray()
            async for piece in response.content.iter_any():
                body += piece
                http.check_size(settings, request, len(body))
            return Response(response.status, _headers(response), bytes(body))

    @asynccontextmanager
    async def stream(self, request: Request) -> AsyncIterator[AsyncIterator[bytes]]:
        """Send one request, and read its response piece by piece. Raises CouchDBError, also while it is read."""
        async with self._open(request) as response:
            if response.status >= 300:
                error = Response(response.status, _headers(response), await response.content.read(_LONGEST_ERROR))
                http.check(self.settings, self.picas_conn_id, request, error)
            yield response.content.iter_chunked(1 << 16)

    @asynccontextmanager
    async def _open(self, request: Request) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send one request, and read the head of its response."""
        import aiohttp
        from yarl import URL

        settings = self.settings
        if self._session is None:
            raise RuntimeError("PicasAsyncHook must be used inside its `async with` block.")
        longest = http.longest(settings, request)
        started = time.monotonic()
        headers = dict(request.headers)
        if settings.login:
            login = f"{settings.login}:{settings.password}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(login).decode()}"
        timeout = aiohttp.ClientTimeout(
            total=longest,
            connect=settings.connect_timeout,
            sock_read=request.read_timeout or settings.read_timeout,
        )
        try:
            async with self._session.request(
                request.method,
                URL(settings.url + request.target, encoded=True),
                data=request.body,
                headers=headers,
                ssl=self._tls,
                timeout=timeout,
                allow_redirects=False,
            ) as response:
                yield response
        except (aiohttp.ClientSSLError, aiohttp.ClientConnectorCertificateError) as error:
            raise http.tls_failed(settings, self.picas_conn_id, str(error)) from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if longest is not None and time.monotonic() - started >= longest:
                raise http.too_slow(settings, request) from None
            raise http.unreachable(settings, self.picas_conn_id, str(error) or type(error).__name__) from None

    async def count(self, batch: str | None = None) -> Counts:
        """Tokens by state, of a batch or of the whole pool."""
        return await self.do(counting.count(self.pool, batch))

    async def get(self, token_id: str) -> Document:
        """One token. Raises NotFoundError."""
        return await self.do(self.pool.get(token_id))

    async def tokens(self, state: State | str, batch: str | None = None) -> AsyncIterator[Document]:
        """The tokens in a state, of a batch or of the whole pool, read page by page."""
        after: Next | None = None
        while True:
            found, after = await self.do(self.pool.tokens(State(state), batch, after=after))
            for token in found:
                yield token
            if after is None:
                return

    async def deploy_views(self) -> deployment.Deployment:
        """Write missing design documents, if the login is allowed to."""
        return await self.do(deployment.deploy(self.pool))


def _headers(response: aiohttp.ClientResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}
