"""Checks that the pool answers, and the permissions of its login."""

from __future__ import annotations

import ipaddress
import secrets
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

from airflow_provider_picas.checks.finding import Finding, failed, ok, warned
from airflow_provider_picas.couchdb import deployment, errors, http, needed_views
from airflow_provider_picas.couchdb.http import Operation, Request, Response
from airflow_provider_picas.couchdb.pool import Pool
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.tokens import views
from airflow_provider_picas.tokens.states import State

SLOW = 10.0  # seconds after which a response of the views counts as slow
_ASK = "Ask the database's administrator"


class OneTry(PicasHook):
    """The hook, but it sends each request only once: a check should report at once."""

    def send(self, request: Request) -> Response:
        """Send one request and return the response. Raises CouchDBError."""
        return http.check(self.settings, self.picas_conn_id, request, self._send_once(request))


def check(hook: PicasHook) -> Iterator[Finding]:
    """Check the pool. Stops at the first failure that all later checks depend on."""
    try:
        _ = hook.settings
        yield from _server(hook)
        yield from _login(hook)
    except (errors.UnauthorizedError, errors.ForbiddenError) as error:
        yield failed("login", str(error))
        return
    except errors.CouchDBError as error:
        yield failed("database", str(error))
        return
    steps: tuple[tuple[str, Callable[[PicasHook], Iterator[Finding]]], ...] = (
        ("write access", _write),
        ("views", _views),
    )
    for what, step in steps:
        try:
            yield from step(hook)
        except errors.CouchDBError as error:
            yield failed(what, str(error))


def _server(hook: PicasHook) -> Iterator[Finding]:
    settings = hook.settings
    try:
        yield ok("database", f"CouchDB {hook.do(hook.pool.server_version())} answers at {settings.url}.")
    except errors.UnauthorizedError:
        yield ok("database", f"{settings.url} answers.")
        raise
    finally:
        address = urlsplit(settings.url)
        if address.scheme == "http" and not _is_loopback(address.hostname or ""):
            yield warned("encryption", "The host begins with http://, so passwords are sent unencrypted.")
        elif settings.verify is False:
            yield warned("encryption", "The connection does not verify the server's certificate (extra 'verify').")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _login(hook: PicasHook) -> Iterator[Finding]:
    documents = hook.do(hook.pool.info()).get("doc_count")
    yield ok("login", f"{_who(hook)} may read {hook.settings.database} ({documents} documents).")


def _who(hook: PicasHook) -> str:
    return repr(hook.settings.login) if hook.settings.login else "Anyone, without a login,"


def _write(hook: PicasHook) -> Iterator[Finding]:
    hook.do(_write_read_and_delete(hook.pool))
    yield ok("write access", f"{_who(hook)} may write.")


def _write_read_and_delete(pool: Pool) -> Operation[None]:
    """Use a local document: it is in no view, and is not replicated. Leases of pilots are such documents, and waits
    list them."""
    name = f"_local/airflow-picas-check-{secrets.token_hex(8)}"
    rev = yield from pool.put({"_id": name})
    yield from pool.local_documents(name)
    yield Request("DELETE", pool.document_path(name), {"rev": rev})


def _views(hook: PicasHook) -> Iterator[Finding]:
    if not hook.settings.profile.is_default:
        yield from _views_of_profile(hook, hook.settings.profile.design)
        return
    of_pool = hook.settings.design_document
    wanted = {of_pool: {"views": dict.fromkeys(State)}, views.PROVIDER: views.provider()}
    present = {name: hook.do(deployment.design_document(hook.pool, name)) for name in wanted}
    may_write = hook.do(_may_write_design(hook.pool))
    missing = {name: views.missing_views(present[name], wanted[name]) for name in wanted}
    if missing[of_pool] and (of_pool != views.MONITOR or may_write is False):
        lacks = f"Design document {of_pool!r} of {hook.settings.place} lacks the views {', '.join(missing[of_pool])}"
        may_not = f", and {_who(hook)} may not write design documents" if may_write is False else ""
        yield failed("views", f"{lacks}{may_not}. {_ASK} to run {_command(hook, of_pool)}, or PiCaS's create_views.py.")
        return
    if (missing[views.PROVIDER] or views.differs(present[views.PROVIDER], wanted[views.PROVIDER])) and not may_write:
        yield warned(
            "views",
            f"Design document {views.PROVIDER!r} is missing or of another version, and {_who(hook)} may not write it: waits and"
            f" pilots are slower, and pilots='auto' does not work. {_ASK} to run {_command(hook, of_pool)}.",
        )
    if missing[of_pool] and may_write:
        yield ok("views", "They do not exist yet; the first push creates them.")
    elif missing[of_pool]:
        yield warned(
            "views", f"They do not exist yet, and the server does not report whether {_who(hook)} may create them."
        )
    else:
        yield _answering(hook)


def _views_of_profile(hook: PicasHook, name: str) -> Iterator[Finding]:
    """The views of a pool of another shape."""
    present = hook.do(deployment.design_document(hook.pool, name))
    wanted = views.design_documents(hook.settings.profile)[name]
    if not views.differs(present, wanted):
        yield _answering(hook)
    elif hook.do(_may_write_design(hook.pool)):
        yield ok("views", f"Design document {name!r} is missing or of another version; the next push writes it.")
    else:
        yield failed(
            "views",
            f"Design document {name!r} of {hook.settings.place} is missing or of another version, and {_who(hook)} may not"
            f" write it. {_ASK} to run {needed_views.command(hook.picas_conn_id, hook.database, profile=hook.profile)}.",
        )


def _answering(hook: PicasHook) -> Finding:
    begin = time.monotonic()
    counts = hook.count()
    seconds = time.monotonic() - begin
    if seconds > SLOW:
        return warned(
            "views", f"They took {seconds:.0f} s to answer: {counts}. CouchDB may be indexing; waits are slow."
        )
    return ok("views", f"They answer: {counts}.")


def _command(hook: PicasHook, of_pool: str) -> str:
    others: dict[str, str | None] = {} if of_pool == views.MONITOR else {of_pool: None}
    return needed_views.command(hook.picas_conn_id, hook.database, others)


def _may_write_design(pool: Pool) -> Operation[bool | None]:
    """True if the login is an admin of the database; None if the server does not say."""
    try:
        session = (yield Request("GET", "/_session")).json()["userCtx"]
        admins = (yield Request("GET", pool.path("_security"))).json().get("admins", {})
        roles = set(session["roles"])
        return bool(
            "_admin" in roles or session["name"] in admins.get("names", []) or roles & set(admins.get("roles", []))
        )
    except (errors.CouchDBError, KeyError, TypeError, AttributeError):
        return None
