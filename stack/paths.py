"""The paths of the stack: all are below the project's ignored folder ``.stack/``."""

from __future__ import annotations

from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
HOME = PROJECT / ".stack"

AIRFLOW_VENV = HOME / "airflow"
"""Virtual environment with Airflow, the provider (editable) and the test tools."""

PICAS_VENV = HOME / "picas-client"
"""Virtual environment with the PiCaS client, for the cluster's side. It cannot live beside Airflow."""

PEERS_VENV = HOME / "peers"
"""Virtual environment with HyperQueue and Parsl, which only the benchmark "peers" needs."""

EXAMPLES_VENV = HOME / "examples"
"""Virtual environment of an example's pilots, with scientific packages."""

CLUSTER_PREFIX = HOME / "cluster"
"""Debian's Slurm, munge, sshd and MariaDB, unpacked; its ``usr/`` is what ``/usr`` would be."""

NODE_MODULES = HOME / "couchdb"
"""Copy of ``stack/couchdb`` with the packages of the embedded CouchDB-compatible server installed beside it."""

RUN = HOME / "run"
"""One folder for each running stack: ``demo``, ``tests-<pid>``."""
