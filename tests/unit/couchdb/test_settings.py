"""How the fields of a connection become settings."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_picas.couchdb.errors import SettingsError
from airflow_provider_picas.couchdb.settings import Settings, from_connection, host_and_port


def settings(database: str | None = None, **fields: Any) -> Settings:
    given = {
        "host": "https://couch.example.org",
        "port": None,
        "schema": "pool",
        "login": "me",
        "password": "s3cret",
        "extra": {},
    }
    return from_connection("my_pool", database=database, **{**given, **fields})


@pytest.mark.parametrize(
    ("host", "port", "url"),
    [
        ("https://couch.example.org:6984", None, "https://couch.example.org:6984"),
        ("https://couch.example.org:6984", 5984, "https://couch.example.org:6984"),
        ("http://couch.example.org", 5984, "http://couch.example.org:5984"),
        ("couch.example.org", None, "https://couch.example.org"),
        ("couch.example.org:6984", None, "https://couch.example.org:6984"),
        ("https://example.org/couch/", None, "https://example.org/couch"),
        ("http://[::1]:5984", None, "http://[::1]:5984"),
        ("HTTP://Couch.Example.ORG", None, "http://couch.example.org"),
    ],
)
def test_host_and_port_make_the_url(host: str, port: int | None, url: str) -> None:
    assert settings(host=host, port=port).url == url


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"host": None}, "it has no host"),
        ({"host": ""}, "it has no host"),
        ({"host": "ftp://example.org"}, "not an http or https URL"),
        ({"host": "https://"}, "not an http or https URL"),
        ({"host": "https://me:s3cret@example.org"}, "its host contains a login or a password"),
        ({"host": "https://me@example.org"}, "its host contains a login or a password"),
        ({"host": "https://example.org:99999"}, "port in its host"),
        ({"host": "https://example.org:abc"}, "port in its host"),
        ({"host": "https://[::1"}, "its host"),
        ({"schema": "Upper"}, "not a valid CouchDB database name"),
        ({"schema": "../_users"}, "not a valid CouchDB database name"),
        ({"schema": "_users"}, "not a valid CouchDB database name"),
        ({"schema": "pool\n"}, "not a valid CouchDB database name"),
        ({"extra": {"verfy": False}}, "unknown extra field 'verfy'"),
        ({"extra": {"verify": "/etc/ca.pem"}}, "Use 'ca_file' for a file of certificates"),
        ({"extra": {"verify": 2}}, "'verify' is 2"),
        ({"extra": {"read_timeout": "soon"}}, "'read_timeout' is 'soon'"),
        ({"extra": {"read_timeout": 0}}, "'read_timeout' is 0"),
        ({"extra": {"connect_timeout": -1}}, "'connect_timeout' is -1"),
        ({"extra": {"connect_timeout": "inf"}}, "'connect_timeout' is 'inf'"),
        ({"extra": {"connect_timeout": "nan"}}, "'connect_timeout' is 'nan'"),
        ({"extra": {"web_ui": "ftp://example.org"}}, "'web_ui' is 'ftp://example.org'"),
        ({"extra": {"web_ui": "https://me:s3cret@example.org"}}, "'web_ui' contains a login or a password"),
        (
            {"extra": {"monitoring_url": "https://s3cret@example.org"}},
            "'monitoring_url' contains a login or a password",
        ),
        ({"extra": {"monitoring_url": "ftp://:s3cret@example.org"}}, "'monitoring_url' contains a login or a password"),
        ({"extra": {"web_ui": "https://[::1"}}, "'web_ui' is not a URL"),
    ],
)
def test_invalid_fields_are_named(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings(**fields)
    assert str(caught.value).startswith("Connection 'my_pool': ")
    assert words in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("extra", "verify"),
    [
        ({}, True),
        ({"verify": None}, True),
        ({"verify": ""}, True),
        ({"verify": "True"}, True),
        ({"verify": False}, False),
        ({"verify": "false"}, False),
        ({"ca_file": ""}, True),
        ({"ca_file": "/etc/ca.pem"}, "/etc/ca.pem"),
        ({"ca_file": "/etc/ca.pem", "verify": True}, "/etc/ca.pem"),
        ({"ca_file": "/etc/ca.pem", "verify": False}, False),
    ],
)
def test_verify_is_a_switch_or_a_file(extra: dict[str, Any], verify: bool | str) -> None:
    assert settings(extra=extra).verify == verify


def test_extras_replace_defaults() -> None:
    plain = settings()
    assert (plain.connect_timeout, plain.read_timeout, plain.design_document) == (10.0, 60.0, "Monitor")
    chosen = settings(extra={"connect_timeout": "2.5", "read_timeout": 90, "design_document": "SingleCore"})
    assert (chosen.connect_timeout, chosen.read_timeout, chosen.design_document) == (2.5, 90.0, "SingleCore")
    blank = settings(extra={"connect_timeout": "", "read_timeout": None, "design_document": ""})
    assert (blank.connect_timeout, blank.read_timeout, blank.design_document) == (10.0, 60.0, "Monitor")


def test_the_database_may_be_another_than_the_connections() -> None:
    assert settings(database="other/pool+1").database_path == "/other%2Fpool%2B1"
    with pytest.raises(SettingsError, match="Connection 'my_pool'"):
        settings(database="Other")


def test_no_database_is_reported_when_it_is_needed() -> None:
    nowhere = settings(schema=None)
    assert nowhere.place == "(no database) on https://couch.example.org"
    with pytest.raises(SettingsError, match="No database is set"):
        _ = nowhere.database_path


def test_the_password_is_in_no_repr() -> None:
    assert "s3cret" not in repr(settings())
    assert "s3cret" not in settings().place


@pytest.mark.parametrize("url", ["https://db.example:6984", "http://127.0.0.1:5984/couch", "http://[::1]:5984"])
def test_a_port_has_a_field_of_its_own(url: str) -> None:
    fields = host_and_port(url)
    assert str(fields["port"]) not in fields["host"]
    assert settings(**fields).url == url


@pytest.mark.parametrize("url", ["https://db.example", "https://db.example:port", "http://[::1]"])
def test_a_url_without_a_port_is_a_host(url: str) -> None:
    assert host_and_port(url) == {"host": url}
