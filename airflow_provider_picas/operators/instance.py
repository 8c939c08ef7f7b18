"""What identifies a task instance, the same for each of its tries and after a clear; and the state that Airflow has for it."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from airflow.providers.common.compat.sdk import conf

from airflow_provider_picas.slurm import submission
from airflow_provider_picas.tokens import ids


def deployment() -> str:
    """The name of this Airflow: ``[picas] deployment``, else host and path of ``[api] base_url``, else ``airflow``."""
    named = conf.get("picas", "deployment", fallback="") or ""
    url = urlsplit(conf.get("api", "base_url", fallback="") or "")
    return named or f"{url.hostname or 'airflow'}{url.path.rstrip('/')}"


def push_id(context: Any) -> str:
    """The id of the push that a task instance makes."""
    ti = context["ti"]
    return ids.push_id(deployment(), ti.dag_id, ti.run_id, ti.task_id, _map_index(ti))


def submission_key(context: Any) -> str:
    """The part that stays of the key of the submissions that a task instance makes."""
    ti = context["ti"]
    return submission.base_key(ti.task_id, deployment(), ti.dag_id, ti.run_id, str(_map_index(ti)))


def state(ti: Any) -> str | None:
    """The state that Airflow has for a task instance now, asked over the line of this process to its supervisor; it blocks."""
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    index = _map_index(ti)
    states: Any = RuntimeTaskInstance.get_task_states(
        dag_id=ti.dag_id, task_ids=[ti.task_id], run_ids=[ti.run_id], map_index=index
    )
    found = states.get(ti.run_id, {})
    told = found.get(ti.task_id, found.get(f"{ti.task_id}_{index}"))
    return None if told is None else str(getattr(told, "value", told))


def _map_index(ti: Any) -> int:
    index = getattr(ti, "map_index", -1)
    return -1 if index is None else int(index)
