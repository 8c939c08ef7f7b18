"""The address of a pool and how to connect to it, from the fields of an Airflow connection of type ``picas``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

from airflow_provider_picas.couchdb.errors import SettingsError
from airflow_provider_picas.lifecycle import profile as profiles
from airflow_provider_picas.lifecycle.profile import PICAS, Profile
from airflow_provider_picas.tokens import views

CONNECT_TIMEOUT = 10.0  # seconds
READ_TIMEOUT = 60.0  # seconds; building an index of a large pool delays responses
EXTRAS = (
    "verify", "ca_file", "design_document", "profile", "connect_timeout", "read_timeout", "web_ui", "monitoring_url",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """A pool's address and credentials. ``url`` has no credentials and no slash at its end."""

    url: str
    database: str
    login: str | None = None
    password: str = field(default="", repr=False)
    verify: bool | str = True  #: True, False, or the path of a file with certificates of authorities
    design_document: str = views.MONITOR
    profile: Profile = PICAS  #: the shape of the pool
    connect_timeout: float = CONNECT_TIMEOUT
    read_timeout: float = READ_TIMEOUT
    web_ui: str | None = None  #: page of the pool for people; None: Fauxton on the same server
    monitoring_url: str | None = None

    @property
    def database_path(self) -> str:
        """The database's path below ``url``, quoted (names may hold ``/`` and ``+``)."""
        if not self.database:
            raise SettingsError("No database is set: fill in the connection's database, or the operator's `database`.")
        return "/" + quote(self.database, safe="")

    @property
    def who(self) -> str:
        """The login as the subject of an error message."""
        return f"Login {self.login!r}" if self.login else "A connection without a login"

    @property
    def place(self) -> str:
        """The name of the pool in logs and errors."""
        return f"{self.database or '(no database)'} on {self.url}"


def host_and_port(url: str) -> dict[str, Any]:
    """The fields ``host`` and ``port`` of a connection to the server at a URL; only the host if the URL has no port.

    They are separate because the Test button of Airflow 3.3.1 and 3.3.2 refuses a stored connection without a port
    (apache/airflow#73298).
    """
    try:
        address = urlsplit(url)
        port = address.port
    except ValueError:
        return {"host": url}  # from_connection reports the error
    if port is None:
        return {"host": url}
    return {"host": address._replace(netloc=address.netloc.rpartition(":")[0]).geturl(), "port": port}


def from_connection(
    conn_id: str,
    *,
    host: str | None,
    port: int | None,
    schema: str | None,
    login: str | None,
    password: str | None,
    extra: Mapping[str, Any],
    database: str | None = None,
) -> Settings:
    """Read a connection's fields. ``schema`` is the database, unless ``database`` names another.

    A host without ``http://`` or ``https://`` means https. Raises SettingsError, which names the connection and the
    field.
    """

    def wrong(what: str) -> SettingsError:
        return SettingsError(f"Connection {conn_id!r}: {what}")

    if not host:
        raise wrong("it has no host. Give the database server's URL, such as https://picas.surfsara.nl:6984.")
    try:
        address = urlsplit(host if "://" in host else f"https://{host}")
    except ValueError as error:
        raise wrong(f"its host is not a URL ({error}).") from None
    if address.scheme not in ("http", "https") or not address.hostname:
        raise wrong("its host is not an http or https URL, such as https://picas.surfsara.nl:6984.")
    if address.username or address.password:
        raise wrong("its host contains a login or a password. Put them in their own fields: URLs end up in logs.")
    try:
        port = address.port or port
    except ValueError:
        raise wrong("the port in its host is not a number up to 65535.") from None
    name = f"[{address.hostname}]" if ":" in address.hostname else address.hostname
    unknown = sorted(set(extra) - set(EXTRAS))
    if unknown:
        raise wrong(f"unknown extra field {', '.join(map(repr, unknown))}. Known fields: {', '.join(EXTRAS)}.")
    chosen = database or schema or ""
    if chosen and not re.fullmatch(r"[a-z][a-z0-9_$()+/-]*", chosen):
        raise wrong(
            f"{chosen!r:.80} is not a valid CouchDB database name: a lower-case letter, then lower-case letters, digits"
            " and _$()+-/."
        )
    return Settings(
        url=f"{address.scheme}://{name}{f':{port}' if port else ''}{address.path.rstrip('/')}",
        database=chosen,
        login=login or None,
        password=password or "",
        verify=_verify(extra, wrong),
        design_document=str(extra.get("design_document") or views.MONITOR),
        profile=_profile(extra, wrong),
        connect_timeout=_seconds(extra, "connect_timeout", CONNECT_TIMEOUT, wrong),
        read_timeout=_seconds(extra, "read_timeout", READ_TIMEOUT, wrong),
        web_ui=_web_page(extra, "web_ui", wrong),
        monitoring_url=_web_page(extra, "monitoring_url", wrong),
    )


def _profile(extra: Mapping[str, Any], wrong: Any) -> Profile:
    try:
        found = profiles.read(extra.get("profile"))
    except profiles.ProfileError as error:
        raise wrong(f"its extra 'profile' is invalid: {error}.") from None
    if not found.is_default and extra.get("design_document"):
        raise wrong(
            "it has the extras 'profile' and 'design_document'. Keep one: a profile has its own design document."
        )
    return found


def _verify(extra: Mapping[str, Any], wrong: Any) -> bool | str:
    verify = extra.get("verify")
    if isinstance(verify, str) and verify.strip().lower() in ("true", "false", ""):
        verify = verify.strip().lower() != "false"
    if verify not in (None, True, False):
        raise wrong(
            f"its extra 'verify' is {verify!r:.80}; it takes true or false. Use 'ca_file' for a file of certificates."
        )
    if verify is False:
        return False
    return str(extra.get("ca_file") or "") or True


def _seconds(extra: Mapping[str, Any], name: str, default: float, wrong: Any) -> float:
    value = extra.get(name)
    if value in (None, ""):
        return default
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = 0.0
    if not 0 < seconds < 86_400:
        raise wrong(f"its extra {name!r} is {value!r:.80}; it takes a number of seconds.")
    return seconds


def _web_page(extra: Mapping[str, Any], name: str, wrong: Any) -> str | None:
    value = extra.get(name)
    if not value:
        return None
    try:
        address = urlsplit(str(value))
    except ValueError as error:
        raise wrong(f"its extra {name!r} is not a URL ({error}).") from None
    if address.username or address.password:
        raise wrong(f"its extra {name!r} contains a login or a password. Remove them: URLs end up in logs.")
    if address.scheme not in ("http", "https"):
        raise wrong(f"its extra {name!r} is {value!r:.80}; it takes the http or https address of a web page.")
    return str(value)
