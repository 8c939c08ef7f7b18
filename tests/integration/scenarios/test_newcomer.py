"""A new user's first commands, each in its own process, with connections stored in Airflow's database."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from stack import native
from stack.cluster import Cluster
from stack.docker import DockerStack
from stack.pool import Pool


def test_a_new_users_first_commands_work(pool: Pool, cluster: Cluster | DockerStack, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTHONPATH"))}
    environment |= {"AIRFLOW_HOME": str(tmp_path / "airflow"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    secrets = [pool.password, cluster.private_key.read_text().splitlines()[2]]

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", *command]
        ended = subprocess.run(argv, capture_output=True, text=True, env=environment, check=False, timeout=280)
        assert not [secret for secret in secrets if secret in ended.stdout + ended.stderr]
        return ended

    migrated = run("airflow", "db", "migrate")
    assert migrated.returncode == 0, migrated.stderr[-2000:]
    missing = run("airflow_provider_picas", "check")
    assert missing.returncode == 1
    assert "FAIL  database: Connection 'picas_default' does not exist." in missing.stdout
    assert "FAIL  ssh: Connection 'ssh_default' does not exist." in missing.stdout

    config = tmp_path / "picasconfig.py"
    values = {"HOST_URL": pool.url, "DATABASE": pool.database, "USERNAME": pool.user, "PASSWORD": pool.password}
    config.write_text("".join(f"PICAS_{name} = {value!r}\n" for name, value in values.items()))
    imported = run("airflow_provider_picas", "import-connection", str(config))
    assert imported.returncode == 0, imported.stderr
    file = tmp_path / "spider.json"
    file.touch(mode=0o600)
    file.write_text(json.dumps({"spider": native.ssh_connection(cluster)}))
    assert run("airflow", "connections", "import", str(file)).returncode == 0

    checked = run("airflow_provider_picas", "check", "--ssh-conn-id", "spider", "--submit")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    *lines, empty, verdict = checked.stdout.splitlines()
    assert (empty, verdict) == ("", "A run would work.")
    assert all(line.startswith("ok    ") for line in lines), checked.stdout
    assert all(line.startswith("      Job ") for line in checked.stderr.splitlines()), checked.stderr
