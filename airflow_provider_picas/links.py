"""Links from a task to the pool's own web page and to a monitoring page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.providers.common.compat.sdk import BaseOperatorLink, XCom

from airflow_provider_picas.couchdb.settings import Settings

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseOperator, TaskInstanceKey

POOL_KEY = "picas_pool_url"
MONITORING_KEY = "picas_monitoring_url"
PAGE_KEY = "picas_page"


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
