"""Where a Docker engine can be made, and how its network is chosen. ``make docker`` runs the engine itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from stack import paths
from stack.engine import network
from stack.processes import StackError


def test_where_no_engine_can_be_made_the_reason_is_printed() -> None:
    """As root without the right to mount, as in most containers; for other users, as they are."""
    limited = ["setpriv", "--bounding-set=-sys_admin"] if os.geteuid() == 0 else []
    ended = subprocess.run(
        [*limited, sys.executable, "-m", "stack.engine", "--check"],
        cwd=paths.PROJECT,
        env={**os.environ, "DOCKER_HOST": "unix:///nowhere"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 3, ended.stderr
    reason = "CAP_SYS_ADMIN, which root in this container does not have" if limited else "root"
    assert f"No Docker engine answers, and making one needs {reason}." in ended.stdout


def test_containers_get_addresses_to_which_the_machine_has_no_route(monkeypatch: pytest.MonkeyPatch) -> None:
    known = ["default", "10.128.0.0/17", "10.129.7.0/24", "192.0.2.0/24", "10.130.1.1"]
    monkeypatch.setattr(network, "call", lambda argv: json.dumps([{"dst": address} for address in known]))
    assert str(network._unused_pool()) == "10.131.0.0/16"
    monkeypatch.setattr(network, "call", lambda argv: json.dumps([{"dst": "10.0.0.0/8"}]))
    with pytest.raises(StackError, match="none is free"):
        network._unused_pool()
