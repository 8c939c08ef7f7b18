"""Reads a connection of type ``picas``, and reports errors in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from airflow_provider_picas.couchdb import errors
from airflow_provider_picas.couchdb.settings import EXTRAS, Settings, from_connection
from airflow_provider_picas.lifecycle import profile as profiles
from airflow_provider_picas.lifecycle.profile import Profile


def no_connection(conn_id: str) -> errors.SettingsError:
    """The error for a connection that does not exist."""
    return errors.SettingsError(
        f"Connection {conn_id!r} does not exist. Create one of type PiCaS in the UI or with `airflow connections add`, or set"
        " `picas_conn_id` to another one."
    )


def _this_connection(found: re.Match[str]) -> str:
    return f"{'T' if found[1] == 'C' else 't'}his connection"


def settings_of(
    connection: Any, conn_id: str, database: str | None, extra: Mapping[str, Any] | None = None
) -> Settings:
    """The settings in a connection. ``extra``: its extras, if they were already read. Raises SettingsError."""
    if connection.conn_type in ("ssh", "sftp"):
        raise errors.SettingsError(
            f"Connection {conn_id!r} is of type {connection.conn_type!r}. `picas_conn_id` takes a connection of type"
            " 'picas', to the CouchDB server; `ssh_conn_id` takes the one to the cluster."
        )
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


def with_profile(settings: Settings, profile: str | Mapping[str, Any] | Profile | None) -> Settings:
    """The settings with another profile than the connection's; None: unchanged. Raises SettingsError."""
    if profile is None or profile == "":
        return settings
    try:
        return replace(settings, profile=profiles.read(profile))
    except profiles.ProfileError as error:
        raise errors.SettingsError(f"`profile` is invalid: {error}.") from None


def cause_of(error: Exception) -> str:
    """The innermost reason in an error of requests and urllib3, on one line."""
    reason: Any = error
    for _ in range(5):
        parts = (getattr(reason, "reason", None), *getattr(reason, "args", ()))
        inner = next((part for part in parts if isinstance(part, Exception)), None)
        if inner is None:
            break
        reason = inner
    text = " ".join(str(reason).split())
    return text.rpartition(">: ")[2][:300] or type(error).__name__


def ssl_context(settings: Settings, conn_id: str) -> Any:
    """The TLS context, or False to verify nothing. Raises SettingsError if the CA file cannot be read."""
    import ssl

    if settings.verify is False:
        return False
    if settings.verify is True:
        return ssl.create_default_context(cafile=_certifi())
    try:
        return ssl.create_default_context(cafile=settings.verify)
    except OSError as error:
        raise errors.SettingsError(
            f"Connection {conn_id!r}: 'ca_file' {settings.verify!r} is not a file of certificates ({error})."
        ) from None


def _certifi() -> str:
    import certifi  # requests trusts these authorities, so both hooks agree

    return certifi.where()
