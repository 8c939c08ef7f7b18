"""What identifies a task instance, the same for each of its tries and after a clear."""

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


def _map_index(ti: Any) -> int:
    index = getattr(ti, "map_index", -1)
    return -1 if index is None else int(index)
