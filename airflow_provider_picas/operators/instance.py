"""The ids of a task instance's pushes and submissions: the same for each of its tries, and after a clear."""

from __future__ import annotations

import ipaddress
import logging
import secrets
import time
from typing import Any
from urllib.parse import urlsplit

from airflow.providers.common.compat.sdk import AirflowException, Variable, conf

from airflow_provider_picas.slurm import submission_folder
from airflow_provider_picas.tokens import ids

log = logging.getLogger(__name__)

VARIABLE = "picas_deployment"
"""The Airflow Variable with the name of an Airflow that has no other."""

SETTLE_SECONDS = 2.0
"""Two tasks may make a name at the same time; after so long both read the one that was written last."""


def deployment() -> str:
    """The name of this Airflow deployment. Raises AirflowException.

    It is ``[picas] deployment``; else host and path of ``[api] base_url``, unless that is ``localhost`` or the like;
    else a name that is generated once and kept in an Airflow Variable.
    """
    if named := conf.get("picas", "deployment", fallback=""):
        return str(named)
    url = urlsplit(conf.get("api", "base_url", fallback="") or "")
    return _kept_name() if _is_local(url.hostname) else f"{url.hostname}{url.path.rstrip('/')}"


def push_id(context: Any) -> str:
    """The id of the push that a task instance makes."""
    return _push_id(context["ti"], deployment())


def former_push_id(context: Any) -> str | None:
    """The id that a version without generated names used; None if no earlier try can have pushed with it."""
    former = _former_deployment(context["ti"])
    return None if former is None else _push_id(context["ti"], former)


def submission_key(context: Any) -> str:
    """The constant part of the keys of a task instance's submissions."""
    return _submission_key(context["ti"], deployment())


def submission_keys(context: Any) -> list[str]:
    """``submission_key``, and the keys that earlier versions used for earlier tries: as for ``former_push_id``, and
    names without DAG and run."""
    ti, names = context["ti"], [deployment()]
    if is_first_try(context):
        return [submission_key(context)]
    if former := _former_deployment(ti):
        names.append(former)
    earlier = [submission_folder.base_key(ti.task_id, *_identity(ti, name)) for name in names]
    return [*(_submission_key(ti, name) for name in names), *earlier]


def is_first_try(context: Any) -> bool:
    """True if this task instance has never run before: Airflow continues to count tries after a clear."""
    return int(getattr(context["ti"], "try_number", 1)) <= 1


def _former_deployment(ti: Any) -> str | None:
    """The name in versions that did not generate one, if it differs from today's and this task instance has run before."""
    if is_first_try({"ti": ti}):
        return None
    url = urlsplit(conf.get("api", "base_url", fallback="") or "")
    former = f"{url.hostname or 'airflow'}{url.path.rstrip('/')}"
    named = conf.get("picas", "deployment", fallback="")
    return former if not named and _is_local(url.hostname) else None


def _is_local(host: str | None) -> bool:
    """True if many deployments may have this host: no host, or a machine's own name for itself."""
    if not host or host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _kept_name() -> str:
    """The name in the Variable, which is created if it does not exist."""
    try:
        if not (name := Variable.get(VARIABLE, default=None)):
            made = f"airflow-{secrets.token_hex(4)}"
            Variable.set(
                VARIABLE, made, description="Name of this Airflow in the ids of PiCaS batches. Do not change it."
            )
            time.sleep(SETTLE_SECONDS)
            name = Variable.get(VARIABLE, default=None)
            log.info(
                "Generated a name for this Airflow, a part of the ids of PiCaS batches: %s. It is stored in the Variable %s.",
                name,
                VARIABLE,
            )
    except Exception as error:
        raise AirflowException(_unnamed(f"{type(error).__name__}: {error!s:.300}")) from error
    if not name:
        raise AirflowException(_unnamed("it was not stored"))
    return str(name)


def _unnamed(why: str) -> str:
    return (
        f"This Airflow has no name for the ids of its batches, and the Variable {VARIABLE!r} for a generated name could not be"
        f" read or created ({why}). Set `[picas] deployment` in Airflow's configuration."
    )


def _push_id(ti: Any, name: str) -> str:
    return ids.push_id(name, ti.dag_id, ti.run_id, ti.task_id, _map_index(ti))


def _submission_key(ti: Any, name: str) -> str:
    return submission_folder.task_key(name, ti.dag_id, ti.run_id, ti.task_id, _map_index(ti))


def _identity(ti: Any, name: str) -> tuple[str, ...]:
    return name, ti.dag_id, ti.run_id, str(_map_index(ti))


def _map_index(ti: Any) -> int:
    index = getattr(ti, "map_index", -1)
    return -1 if index is None else int(index)
