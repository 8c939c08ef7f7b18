"""A task instance as far as the provider's operators look at it. The whole of Airflow runs in the end-to-end tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass
class TaskInstance:
    """The same arguments are the same task instance, whichever its try."""

    task_id: str = "push"
    dag_id: str = "dag"
    run_id: str = "run1"
    map_index: int = -1
    try_number: int = 1
    xcoms: dict[str, Any] = field(default_factory=dict)
    first_reschedule: datetime | None = None  #: when a rescheduled sensor looked first

    def get_first_reschedule_date(self, context: Any) -> datetime | None:
        """What rescheduled sensors measure their time-out by."""
        return self.first_reschedule

    def xcom_push(self, key: str, value: Any) -> None:
        """Keep a value."""
        self.xcoms[key] = value


def context(task_id: str = "push", **fields: Any) -> Any:
    """What Airflow gives to ``execute``."""
    return {"ti": TaskInstance(task_id, **fields)}
