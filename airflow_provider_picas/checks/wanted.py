"""The requested checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Wanted:
    """The requested checks."""

    picas_conn_id: str
    ssh_conn_id: str
    database: str | None = None  #: another one than the connection's
    remote_folder: str | None = None  #: as in the submit operator
    submit: bool = False  #: run a job that checks a compute node
    sbatch: Mapping[str, Any] = field(default_factory=dict)  #: options of that job
    setup: str | None = None  #: shell code that it runs first, as in the submit operator
    wait: float = 300.0  #: seconds until it must have run
