"""The state of a task in Airflow. It is queried when a task is stopped, since Airflow does not pass the reason."""

from __future__ import annotations

from typing import Any


def task_state(ti: Any) -> str | None:
    """The current state of a task instance. Blocks; uses this process's connection to its supervisor."""
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance  # noqa: PLC0415 - heavy, and parsing a DAG needs none

    index = -1 if ti.map_index is None else ti.map_index
    states: Any = RuntimeTaskInstance.get_task_states(
        dag_id=ti.dag_id, task_ids=[ti.task_id], run_ids=[ti.run_id], map_index=index
    )
    found = states.get(ti.run_id, {})
    state = found.get(ti.task_id, found.get(f"{ti.task_id}_{index}"))
    return None if state is None else str(getattr(state, "value", state))
