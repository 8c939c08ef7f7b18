"""Tokens as a pilot has claimed them, and commands that have failed, for tests."""

from __future__ import annotations

from typing import Any

from airflow_provider_picas.lifecycle.pilot_config import Config
from airflow_provider_picas.lifecycle.transitions import Ended

CONFIG = Config(command="true", submission="s")


def claimed(**fields: Any) -> dict[str, Any]:
    """A token as a pilot holds it."""
    doc = {"_id": "b:1", "_rev": "2-x", "type": "token", "lock": 1000, "done": 0, "scrub_count": 0, "exit_code": ""}
    return {**doc, "hostname": "n1", "slurm_job_id": "5_1", "pilot": "p", "claim": "abc-1000", **fields}


def failed(code: int = 1, how: str = "exit", **fields: Any) -> Ended:
    return Ended(how, code, 1.25, **fields)
