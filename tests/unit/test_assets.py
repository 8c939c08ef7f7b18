"""Pools as assets: one name for one pool."""

from __future__ import annotations

import pytest
from airflow.providers.common.compat.sdk import Asset
from airflow.sdk.execution_time.context import OutletEventAccessors

from airflow_provider_picas.assets import normalize_uri, pool_asset, tell, to_openlineage


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        ("picas://Picas.SURFsara.nl/my_pool/", "picas://picas.surfsara.nl/my_pool"),
        ("picas://picas.surfsara.nl:6984/my_pool", "picas://picas.surfsara.nl:6984/my_pool"),
        ("picas://me:secret@picas.surfsara.nl/my_pool", "picas://picas.surfsara.nl/my_pool"),
        ("picas://me@picas.surfsara.nl/my_pool?a=1#b", "picas://picas.surfsara.nl/my_pool"),
        ("picas://host/group/pool", "picas://host/group%2Fpool"),
        ("picas://host/group%2Fpool", "picas://host/group%2Fpool"),
        ("picas://[::1]:5984/p", "picas://[::1]:5984/p"),
    ],
)
def test_one_form(given: str, normal: str) -> None:
    import warnings
    from urllib.parse import urlsplit, urlunsplit

    assert urlunsplit(normalize_uri(urlsplit(given))) == normal
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Airflow warns of passwords
        assert Asset(given).uri == normal  # Airflow finds the handler in the provider's information


@pytest.mark.parametrize("uri", ["picas:///pool", "picas://host", "picas://host/Pool", "picas://host/1"])
def test_no_pool(uri: str) -> None:
    with pytest.raises(ValueError, match="picas:// URI"):
        Asset(uri)


def test_a_pool() -> None:
    asset = pool_asset("picas.surfsara.nl", "group/pool", name="ours")
    assert (asset.uri, asset.name, asset.group) == ("picas://picas.surfsara.nl/group%2Fpool", "ours", "picas")
    assert pool_asset("h", "p").name == "picas://h/p"


@pytest.mark.parametrize("host", ["http://picas.surfsara.nl", "host/path", "me@host", "a b", ""])
def test_a_host_is_no_url(host: str) -> None:
    with pytest.raises(ValueError, match=r"`host` is .*; it takes the name of the database server"):
        pool_asset(host, "pool")


def test_openlineage() -> None:
    pytest.importorskip("openlineage.client")
    dataset = to_openlineage(pool_asset("picas.surfsara.nl", "group/pool"))
    assert (dataset.namespace, dataset.name) == ("picas://picas.surfsara.nl", "group/pool")


def test_only_pools_are_told() -> None:
    pool, other = pool_asset("h", "p"), Asset("s3://bucket/key")
    events = OutletEventAccessors()
    tell({"outlet_events": events}, [pool, other, "text"], {"batch": "b"})
    assert (events[pool].extra, events[other].extra) == ({"batch": "b"}, {})
    tell({}, [], {"batch": "b"})
