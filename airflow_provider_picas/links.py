"""Links from a task to the pool's own web page, to a monitoring page, and to the provider's page in Airflow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from airflow.providers.common.compat.sdk import BaseOperatorLink, XCom, conf

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseOperator, TaskInstanceKey

    from airflow_provider_picas.couchdb.settings import Settings

POOL_KEY = "picas_pool_url"
MONITORING_KEY = "picas_monitoring_url"
PAGE_KEY = "picas_page"
RERUN_KEY = "picas_rerun_url"
RUN_TAB = "picas-run"
"""The page's tab of a DAG run, in its address."""


def push_links(context: Any, settings: Settings) -> None:
    """Push the addresses to XCom for the UI, since the connection is not available where links are computed."""
    ti = context["ti"]
    ti.xcom_push(POOL_KEY, pool_url(settings))
    if settings.monitoring_url:
        ti.xcom_push(MONITORING_KEY, settings.monitoring_url)


def push_page(context: Any, conn_id: str, settings: Settings, batch: str | None, **more: Any) -> None:
    """Push to XCom which batch the task is about (None: the whole pool), for the page of its DAG run.

    ``more``: ``role``, which is what the task does with the batch; ``label``, a name for people; ``max_errors`` and
    ``expected`` of a wait.
    """
    context["ti"].xcom_push(PAGE_KEY, {"picas_conn_id": conn_id, "database": settings.database, "batch": batch, **more})


def push_rerun(context: Any) -> None:
    """Push to XCom the address at which the run's failed tokens are rerun."""
    ti = context["ti"]
    ti.xcom_push(RERUN_KEY, f"{run_tab(ti.dag_id, ti.run_id)}?picas_do=rerun")


def run_tab(dag_id: str, run_id: str) -> str:
    """The page's tab of a DAG run, as a path. Airflow marks the tab only if ``:`` and ``+`` are not quoted."""
    return f"{base_path()}/dags/{quote(dag_id, safe='')}/runs/{quote(run_id, safe=':+')}/plugin/{RUN_TAB}"


def base_path() -> str:
    """The path below which a proxy shows Airflow; empty if there is none."""
    return urlsplit(conf.get("api", "base_url", fallback="") or "").path.rstrip("/")


def pool_url(settings: Settings) -> str:
    """The pool's page in Fauxton, CouchDB's web UI, or the connection's extra ``web_ui``."""
    return settings.web_ui or f"{settings.url}/_utils/#database/{quote(settings.database, safe='')}/_all_docs"


class PicasPoolLink(BaseOperatorLink):
    """The pool's web page."""

    name = "Token pool"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """The address that the task stored."""
        return str(XCom.get_value(ti_key=ti_key, key=POOL_KEY) or "")


class PicasMonitoringLink(BaseOperatorLink):
    """The monitoring page in the connection's extra ``monitoring_url``."""

    name = "Monitoring"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """The address that the task stored, if the connection has one."""
        return str(XCom.get_value(ti_key=ti_key, key=MONITORING_KEY) or "")


class PicasRerunLink(BaseOperatorLink):
    """The page where the failed tokens of the run are rerun."""

    name = "Rerun failed tokens"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """The address that the task stored, if tokens were in error when it ended."""
        return str(XCom.get_value(ti_key=ti_key, key=RERUN_KEY) or "")
