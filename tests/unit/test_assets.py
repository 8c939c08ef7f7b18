"""Pools as assets: one name for one pool."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import Asset
from airflow.sdk import DAG
from airflow.sdk.execution_time.context import OutletEventAccessor, OutletEventAccessors
from jinja2 import StrictUndefined

from airflow_provider_picas.assets import (
    add_partitions,
    add_to_events,
    hold_back,
    normalize_uri,
    pool_asset,
    stage_asset,
    to_openlineage,
)
from airflow_provider_picas.operators.pilots import PicasSubmitPilotsOperator
from airflow_provider_picas.operators.tokens import PicasPushTokensOperator
from airflow_provider_picas.sensors.tokens import PicasTokenStateSensor
from airflow_provider_picas.task_groups import picas_run


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
        ("picas://Host/p?stage=imaging", "picas://host/p?stage=imaging"),
        ("picas://host/p?group=imaging&a=1", "picas://host/p?group=imaging"),
        ("picas://host/p?stage=1", "picas://host/p"),
    ],
)
def test_uris_have_one_form(given: str, normal: str) -> None:
    import warnings
    from urllib.parse import urlsplit, urlunsplit

    assert urlunsplit(normalize_uri(urlsplit(given))) == normal
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Airflow warns of passwords
        assert Asset(given).uri == normal  # Airflow finds the handler in the provider's information


@pytest.mark.parametrize("uri", ["picas:///pool", "picas://host", "picas://host/Pool", "picas://host/1"])
def test_invalid_uris_are_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="picas:// URI"):
        Asset(uri)


def test_a_pool_is_an_asset() -> None:
    asset = pool_asset("picas.surfsara.nl", "group/pool", name="ours")
    assert (asset.uri, asset.name, asset.group) == ("picas://picas.surfsara.nl/group%2Fpool", "ours", "picas")
    assert pool_asset("h", "p").name == "picas://h/p"


@pytest.mark.parametrize("host", ["http://picas.surfsara.nl", "host/path", "me@host", "a b", ""])
def test_a_host_is_not_a_url(host: str) -> None:
    with pytest.raises(ValueError, match=r"`host` is .*; it takes the name of the database server"):
        pool_asset(host, "pool")


def test_a_pool_is_an_openlineage_dataset() -> None:
    pytest.importorskip("openlineage.client")
    dataset = to_openlineage(pool_asset("picas.surfsara.nl", "group/pool"))
    assert (dataset.namespace, dataset.name) == ("picas://picas.surfsara.nl", "group/pool")


def test_a_stage_is_an_asset_of_its_own() -> None:
    assert stage_asset("h", "p", "imaging").uri == "picas://h/p?stage=imaging"
    assert stage_asset("h", "p", "imaging", each_group=True, name="ours").name == "ours"
    with pytest.raises(ValueError, match="cannot be the name of a stage"):
        stage_asset("h", "p", "a b")


@pytest.mark.skipif(not hasattr(OutletEventAccessor, "add_partitions"), reason="Airflow has partition keys from 3.3 on")
def test_events_of_stages_have_partition_keys() -> None:
    pool = pool_asset("h", "p")
    stage, groups, other = (
        stage_asset("h", "p", "imaging"),
        stage_asset("h", "p", "imaging", each_group=True),
        stage_asset("h", "p", "other"),
    )
    events = OutletEventAccessors()
    outlets = [pool, stage, groups, other, Asset("s3://bucket/key?stage=imaging")]
    add_partitions({"outlet_events": events}, outlets, {"imaging": "b.imaging"}, lambda name: [f"{name}-1", "g2", " "])
    keys = [events[outlet].partition_keys for outlet in outlets]
    assert keys == [set(), {"b.imaging"}, {"imaging-1", "g2"}, set(), set()]


@pytest.mark.skipif(hasattr(OutletEventAccessor, "add_partitions"), reason="Airflow has partition keys from 3.3 on")
def test_before_airflow_3_3_events_of_stages_have_no_partition_keys() -> None:
    stage, events = stage_asset("h", "p", "imaging"), OutletEventAccessors()
    add_partitions({"outlet_events": events}, [stage], {"imaging": "b.imaging"}, lambda _: [])
    assert events[stage].extra == {}


def test_only_pools_get_extras() -> None:
    pool, other = pool_asset("h", "p"), Asset("s3://bucket/key")
    events = OutletEventAccessors()
    add_to_events({"outlet_events": events}, [pool, other, "text"], {"batch": "b"})
    assert (events[pool].extra, events[other].extra) == ({"batch": "b"}, {})
    add_to_events({}, [], {"batch": "b"})


def test_a_push_leaves_the_event_of_a_pool_to_a_later_task_that_makes_one() -> None:
    pool, elsewhere, file = pool_asset("h", "p"), pool_asset("h", "q"), Asset("s3://bucket/key")
    with DAG("d", default_args={"outlets": [pool]}):
        push = PicasPushTokensOperator(task_id="push", inputs=["a"], outlets=[pool, elsewhere, file])
        pilots = PicasSubmitPilotsOperator(task_id="pilots", command="true", batch=push.output)
        wait = PicasTokenStateSensor.partial(task_id="wait").expand(batch=["a", "b"])
        push >> pilots >> wait
        alone = PicasPushTokensOperator(task_id="alone", inputs=["a"])
    assert hold_back(push) == [pool.uri]
    assert push.outlets == [elsewhere, file]
    assert hold_back(pilots) == [pool.uri]
    assert pilots.outlets == []
    assert hold_back(alone) == []
    assert alone.outlets == [pool]
    assert hold_back(PicasPushTokensOperator(task_id="no_dag", inputs=["a"], outlets=[pool])) == []


@pytest.mark.parametrize("native", [False, True])
def test_what_the_grid_shows_of_mapped_runs_is_always_a_string(native: bool) -> None:
    """Anything else, or an error, would fail the task after it has done its work."""
    with DAG("d", render_template_as_native_obj=native, template_undefined=StrictUndefined) as dag:
        picas_run.partial(command="true").expand(inputs=[["a"], ["b"]])
    for task in dag.tasks:
        template = dag.get_template_env().from_string(str(task.map_index_template))
        pushed = {"batch": "d.push.r", "label": "a, b"}
        for batch, shown in ((pushed, "a, b"), ({"batch": "b"}, "b"), (None, "nothing pushed")):
            fields = {"batch": batch, "batch_label": shown}
            assert template.render(task=SimpleNamespace(**fields)) == shown
