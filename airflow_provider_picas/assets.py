"""Pools and stages as Airflow assets: ``picas://<host>/<database>``, and the same with ``?stage=<name>``; and their events."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from airflow.providers.common.compat.sdk import Asset

from airflow_provider_picas.lifecycle.ids import is_stage

if TYPE_CHECKING:
    from airflow.providers.common.compat.openlineage.facet import Dataset as OpenLineageDataset

SCHEME = "picas"
_STAGE, _GROUP = "stage", "group"  # in the query of a URI: an event for the stage, or for each of its groups


def pool_asset(
    host: str,
    database: str,
    *,
    name: str | None = None,
    group: str = SCHEME,
    watchers: Iterable[Any] = (),
    **fields: Any,
) -> Asset:
    """The asset of a pool. Tasks that push to the pool or wait for it have it in ``outlets``; other DAGs are scheduled
    on it.

    An event of a wait means that the tokens are done, one of a push that they exist. If both tasks have the same pool,
    the push emits no event (``hold_back``). To start a DAG on new tokens as well, use ``PicasTokenEventTrigger``, or
    put the pool into the ``outlets`` of a push in a DAG in which no later task has it.

    :param host: host of the database server, with a nonstandard port. It is only a name: nothing connects to it.
    :param database: the pool's database.
    :param name: name of the asset. Default: its URI.
    :param group: group of the asset in Airflow's UI.
    :param watchers: ``AssetWatcher`` with ``PicasTokenEventTrigger``.
    :param fields: others of Airflow's ``Asset``, such as ``extra``.
    """
    if not host or re.search(r"[/@\s]", host):
        raise ValueError(
            f"`host` is {host!r:.200}; it takes the name of the database server, such as 'picas.surfsara.nl', with the port if it"
            " is not the default, and without http://, path or login."
        )
    uri = f"{SCHEME}://{host}/{quote(database, safe='')}"
    return Asset(uri=uri, name=name or uri, group=group, watchers=list(watchers), **fields)


def stage_asset(
    host: str, database: str, stage: str, *, each_group: bool = False, name: str | None = None, **fields: Any
) -> Asset:
    """The asset of a stage of a pool's chains, for the ``outlets`` of a wait for the stage, or for its chain.

    From Airflow 3.3 on, its events have a partition key, and start DAGs with ``PartitionedAssetTimetable``: the name of the
    stage's batch; with ``each_group``, an event for each group whose token is done, with the group's name. Before
    3.3, there is one event without a key.

    :param host: as for ``pool_asset``.
    :param database: as for ``pool_asset``.
    :param stage: name of the stage.
    :param each_group: an event for each group.
    :param name: name of the asset. Default: its URI.
    :param fields: others of Airflow's ``Asset``.
    """
    if not is_stage(stage):
        raise ValueError(f"`stage` is {stage!r:.80}, which cannot be the name of a stage.")
    uri = f"{pool_asset(host, database).uri}?{_GROUP if each_group else _STAGE}={stage}"
    return Asset(uri=uri, name=name or uri, group=fields.pop("group", SCHEME), **fields)


def normalize_uri(uri: SplitResult) -> SplitResult:
    """The URI of a pool or a stage in canonical form: lower case, no login, a path of one part. Airflow calls this for each
    such asset.

    Raises ValueError.
    """
    host = (uri.hostname or "").lower()
    if not host:
        raise ValueError("A picas:// URI names a host and a database: picas://picas.surfsara.nl/my_pool.")
    database = unquote(uri.path.strip("/"))
    if not re.fullmatch(r"[a-z][a-z0-9_$()+/-]*", database):
        raise ValueError(f"A picas:// URI ends with the name of one CouchDB database, not with {database!r:.80}.")
    port = f":{uri.port}" if uri.port else ""
    return uri._replace(
        scheme=SCHEME,
        netloc=f"[{host}]{port}" if ":" in host else f"{host}{port}",
        path="/" + quote(database, safe=""),
        query="&".join(f"{kind}={name}" for kind, name in _stage_of(uri.query)),
        fragment="",
    )


def to_openlineage(asset: Asset, lineage_context: Any = None) -> OpenLineageDataset:
    """The pool as an OpenLineage dataset."""
    from airflow.providers.common.compat.openlineage.facet import Dataset  # noqa: PLC0415 - loads OpenLineage

    scheme, _, rest = asset.uri.partition("?")[0].partition("://")
    host, _, path = rest.partition("/")
    return Dataset(namespace=f"{scheme}://{host}", name=unquote(path))


def hold_back(task: Any) -> list[str]:
    """Remove a pool from the outlets of a task that only begins the work on it, if a later task of the DAG has the same
    pool in its outlets: otherwise DAGs scheduled on the pool would start before its tokens are done. Returns the URIs
    of these pools.

    Airflow emits events for the outlets that a task has when it ends.
    """
    later = {outlet.uri for other in task.get_flat_relatives(upstream=False) for outlet in _pools(other.outlets)}
    held = [outlet for outlet in _pools(task.outlets) if outlet.uri in later]
    if held:
        task.outlets = [outlet for outlet in task.outlets if outlet not in held]
        task.log.info(
            "A later task emits the event for %s, when the tokens are done.", ", ".join(one.uri for one in held)
        )
    return [outlet.uri for outlet in held]


def add_partitions(
    context: Any, outlets: Iterable[Any], batch_of: Mapping[str, str], groups_of: Callable[[str], Iterable[str]]
) -> None:
    """Add the partition keys to the events of stages. Does nothing before Airflow 3.3.

    ``batch_of``: the batches of the stages by their names. ``groups_of``: the groups of a stage whose tokens are done.
    """
    for outlet in _pools(outlets):
        event = context["outlet_events"][outlet]
        for kind, stage in _stage_of(urlsplit(outlet.uri).query) if hasattr(event, "add_partitions") else ():
            if stage in batch_of:
                keys = groups_of(stage) if kind == _GROUP else [batch_of[stage]]
                event.add_partitions([key for key in keys if key.strip()])


def _stage_of(query: str) -> list[tuple[str, str]]:
    """Kind and name of the stage in the query of a URI; empty for a pool."""
    return [(kind, name) for kind, name in parse_qsl(query) if kind in (_STAGE, _GROUP) and is_stage(name)][:1]


def _pools(outlets: Iterable[Any]) -> list[Asset]:
    return [outlet for outlet in outlets if isinstance(outlet, Asset) and outlet.uri.startswith(f"{SCHEME}://")]


def add_to_events(context: Any, outlets: Iterable[Any], extra: Mapping[str, Any]) -> None:
    """Add ``extra``, such as batch and counts, to the events of a task's pools. Other assets are not changed."""
    for outlet in _pools(outlets):
        context["outlet_events"][outlet].extra.update(extra)
