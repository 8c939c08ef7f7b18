"""The connection to the Slurm cluster of a benchmark."""

from __future__ import annotations

import json
import os

from stack import native
from stack.cluster import Cluster

CONN_ID = "picas_bench_cluster"


def connect(cluster: Cluster) -> None:
    """Let the connection ``CONN_ID`` lead to this cluster."""
    os.environ[f"AIRFLOW_CONN_{CONN_ID.upper()}"] = json.dumps(native.ssh_connection(cluster))
