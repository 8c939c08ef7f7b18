"""The commands on the pages below ``docs/start``, run in order as a new user does: with the wheel, on a real site.

Only what differs from site to site is replaced: addresses, names and keys.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_picas import __version__
from stack import install, native, paths, processes
from stack.airflow import Airflow
from stack.cluster import Cluster
from stack.docker import DockerStack
from stack.pool import Pool
from tests.docs_pages import DOCS, blocks
from tests.wheels import build_wheel

ORDER = ("install", "connections", "first-dag", "page", "failed-tokens")
RUN = "my-first-run"


class Terminal:
    """A new user's: an environment with the wheel in it, a home, and the running Airflow."""

    def __init__(self, folder: Path, airflow: Airflow, replaced: dict[str, str]) -> None:
        self._folder = folder
        self._replaced = replaced
        venv = folder / "venv"
        self._env = {**airflow.environ(), "HOME": str(folder), "AIRFLOW__SECRETS__BACKEND": ""}
        self._env |= {"PATH": f"{venv / 'bin'}:{self._env['PATH']}", "AIRFLOW__PICAS__DEPLOYMENT": ""}
        # pip takes the package from the wheel; what it depends on is in the environment of the tests.
        self._env |= {
            "PIP_NO_INDEX": "1",
            "PIP_NO_DEPS": "1",
            "PIP_FORCE_REINSTALL": "1",
            "PIP_FIND_LINKS": str(folder),
        }
        self._env["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"

    def run(self, text: str) -> str:
        """Run the text of a block, or of several; returns what it prints."""
        for example, real in self._replaced.items():
            text = text.replace(example, real)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            env=self._env, cwd=self._folder, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, f"{text}\nended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        print(text, done.stdout, sep="\n")
        return done.stdout


def runs_of(airflow: Airflow, dag_id: str) -> set[str]:
    return {run["dag_run_id"] for run in airflow.api.runs(dag_id)}


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def make_environment(venv: Path, site: Cluster | DockerStack) -> None:
    """A virtual environment without the provider, which sees the packages of this one. ``ssh`` knows the site."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True, timeout=120)
    (purelib,) = venv.glob("lib/python3*/site-packages")
    (ours,) = Path(sys.prefix).glob("lib/python3*/site-packages")
    (purelib / "airflow.pth").write_text(f"{ours}\n")
    python = venv / "bin" / "python"
    script(venv / "bin" / "pip", f'exec "{python}" {" ".join(install.bootstrap_pip())} "$@"')
    script(venv / "bin" / "airflow", f'exec "{python}" -m airflow "$@"')
    options = (
        f'-i "{site.private_key}" -p {site.logins[0][1]} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null'
    )
    tools = paths.CLUSTER_PREFIX / "usr" / "bin"
    script(venv / "bin" / "ssh", f'exec "{tools / "ssh"}" {options} -o LogLevel=ERROR "$@"')
    (venv / "bin" / "ssh-keyscan").symlink_to(tools / "ssh-keyscan")


@pytest.fixture
def terminal(tmp_path: Path, airflow: Airflow, pool: Pool, cluster: Cluster | DockerStack) -> Iterator[Terminal]:
    build_wheel(tmp_path)
    make_environment(tmp_path / "venv", cluster)
    (tmp_path / "picas_cfg").mkdir()
    values = {"HOST_URL": pool.url, "DATABASE": pool.database, "USERNAME": pool.user, "PASSWORD": pool.password}
    text = "".join(f"PICAS_{name} = {value!r}\n" for name, value in values.items())
    (tmp_path / "picas_cfg" / "picasconfig.py").write_text(text)
    address, login = native.picas_connection(pool), cluster.logins[0]
    replaced = {
        "https://picas.surfsara.nl": address["host"],
        '"port": 22,': f'"port": {login[1]},',
        '"port": 6984': f'"port": {address["port"]}',
        "my_pool": pool.database,
        "my_login": pool.user,
        "my_password": pool.password,
        "my_account": cluster.user,
        "spider.surf.nl": login[0],
        "-p 22 ": f"-p {login[1]} ",
        "--conn-port 22 ": f"--conn-port {login[1]} ",
        "/home/airflow/.ssh/id_ed25519": str(cluster.private_key),
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExample": cluster.host_key,
    }
    for conn_id in ("picas_default", "spider"):
        airflow.disconnect(conn_id)
    dag = airflow.dags / "first_dag.py"
    yield Terminal(tmp_path, airflow, replaced)
    dag.unlink(missing_ok=True)


def test_a_new_user_gets_from_the_installation_to_a_repaired_run(
    terminal: Terminal, airflow: Airflow, pool: Pool, cluster: Cluster | DockerStack
) -> None:
    pages = {name: blocks(DOCS / "start" / f"{name}.md") for name in ORDER}
    commands = {name: [block.text for block in found if block.language == "bash"] for name, found in pages.items()}
    for block in (block for found in pages.values() for block in found if block.caption):
        (airflow.dags / str(block.caption)).write_text(block.text)  # Airflow parses it meanwhile

    installed, version = terminal.run("\n".join(commands["install"])).strip().splitlines()[-2:]
    assert "Successfully installed airflow-provider-picas" in installed
    assert version == f"airflow-provider-picas {__version__}"

    *ways, check = commands["connections"]
    keyscan = next(number for number, way in enumerate(ways) if "ssh-keyscan" in way)
    for way in ways[:keyscan]:  # to make the connection to the pool: each has to work
        assert "airflow-picas-1" in terminal.run(f"{way}\nairflow-picas deploy-views")
    assert cluster.host_key in terminal.run(ways[keyscan])
    for way in ways[keyscan + 1 :]:  # likewise to the cluster
        assert "0 pilots running" in terminal.run(f"{way}\nairflow-picas status --ssh-conn-id spider")
    assert terminal.run(check).endswith("A run would work.\n")

    processes.wait_for(lambda: airflow.api.has_dag("first_dag"), what="DAG first_dag", seconds=120)
    terminal.run("\n".join(commands["first-dag"]))
    assert airflow.api.wait_for_run("first_dag", RUN)["state"] == "failed"

    assert "0 todo, 0 locked, 2 done, 1 error" in terminal.run("\n".join(commands["page"]))

    errors, logs, *repair, folder, rerun = commands["failed-tokens"]
    found = re.search(r"first_dag\.\S+:00000002", terminal.run(errors))
    assert found
    logs = re.sub(r"first_dag\.\S+:00000002", found[0], logs)
    assert "three.txt: No such file" in terminal.run(logs)
    terminal.run("\n".join(repair))
    assert Path(terminal.run(folder).strip(), "picas_rerun_failed.py").is_file()
    before = runs_of(airflow, "picas_rerun_failed")
    terminal.run(rerun)
    (started,) = runs_of(airflow, "picas_rerun_failed") - before
    assert airflow.api.wait_for_run("picas_rerun_failed", started)["state"] == "success"
    assert sorted(token["output"]["words"] for token in pool.tokens()) == [1, 2, 3]
