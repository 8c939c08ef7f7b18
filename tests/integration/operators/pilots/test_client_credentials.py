"""Credentials in the PiCaS client's own place, read by the real client: scripts call ``PicasConfig(load=True)``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.hooks.slurm import SlurmHook
from airflow_provider_picas.operators.pilots import PicasSubmitPilotsOperator
from airflow_provider_picas.operators.tokens import PicasPushTokensOperator
from airflow_provider_picas.sensors.tokens import PicasTokenStateSensor
from airflow_provider_picas.slurm import client_config
from airflow_provider_picas.slurm.remote import quote
from stack.pool import Pool
from tests.integration.tasks import context

pytestmark = pytest.mark.usefixtures("picas_default", "spider")

SCRIPT = """#!/bin/bash
#SBATCH --time=5
~/picas-venv/bin/python - <<'END'
from picas.clients import CouchDB
from picas.crypto import decrypt_password
from picas.documents import Task
from picas.iterators import TaskViewIterator
from picas.picas_config import PicasConfig
config = PicasConfig(load=True).config
password = decrypt_password(config["encrypted_password"]).decode()
db = CouchDB(url=config["host_url"], db=config["database"], username=config["username"], password=password)
for task in TaskViewIterator(db, "todo"):
    task["exit_code"] = 0
    db.save(task.done())
END
"""
READ = (
    "from picas.picas_config import PicasConfig; from picas.crypto import decrypt_password; c = PicasConfig(load=True).config;"
    " print(c['host_url'], c['database'], c['username'], decrypt_password(c['encrypted_password']).decode())"
)
PLACE = "~/.config/picas"


@pytest.fixture(autouse=True)
def clean(remote: SlurmHook) -> Iterator[None]:
    remote.run(f"rm -rf {PLACE}; mkdir -p ~/.config")
    yield
    remote.run(f"rm -rf {PLACE}")


@pytest.fixture
def write(remote: SlurmHook, pool: Pool) -> Callable[..., bool]:
    def run(**changed: str) -> bool:
        values = {"url": pool.url, "database": pool.database, "login": pool.user, "password": pool.password, **changed}
        return remote.do(client_config.write(**values))

    return run


@pytest.fixture
def init(remote: SlurmHook, pool: Pool) -> Callable[..., None]:
    """The client's own program makes the file."""

    def run(database: str) -> None:
        argv = ["picas-venv/bin/picas-cli", "init", "--host-url", pool.url, "--database", database]
        made = remote.run(quote(*argv, "--username", pool.user, "--password", pool.password))
        assert made.code == 0, made.stderr

    return run


def read(remote: SlurmHook) -> list[str]:
    """What the client makes of its file."""
    output = remote.run(f"picas-venv/bin/python -c {quote(READ)}")
    assert output.code == 0, output.stderr
    return output.stdout.splitlines()[-1].split()


def test_scripts_that_read_conf_yml_find_the_pool(pool: Pool, remote: SlurmHook, tmp_path: Path) -> None:
    (tmp_path / "pilot.sh").write_text(SCRIPT)
    batch: Any = PicasPushTokensOperator(task_id="push", inputs=[1, 2]).execute(context(run_id=pool.database))
    submit = PicasSubmitPilotsOperator(
        task_id="pilots", script=str(tmp_path / "pilot.sh"), batch=batch, ssh_conn_id="spider", credentials="client"
    )
    pilots: Any = submit.execute(context("pilots", run_id=pool.database))
    wait = PicasTokenStateSensor(task_id="wait", batch=batch, pilots=pilots, poke_interval=0.5, timeout=120)
    assert wait.execute(context("wait"))["done"] == 2
    modes = remote.run(f"stat -c %a {PLACE} {PLACE}/conf.yml {PLACE}/key.dat").stdout.split()
    assert modes == ["700", "600", "600"]
    assert pool.password not in remote.run(f"cat {PLACE}/conf.yml {pilots['folder']}/*").stdout
    assert remote.run(f"ls -A {pilots['folder']}/credentials").stdout == ""


def test_a_new_password_is_written_with_the_key_that_is_there(
    pool: Pool, remote: SlurmHook, write: Callable[..., bool]
) -> None:
    assert write()
    key = remote.run(f"cat {PLACE}/key.dat").stdout
    assert not write(), "it is there"
    assert write(password='new: "päss" #word\'')
    assert remote.run(f"cat {PLACE}/key.dat").stdout == key
    output = remote.run(f"picas-venv/bin/python -c {quote(READ)}")
    assert output.stdout.splitlines()[-1].endswith(' new: "päss" #word\'')


def test_a_file_of_the_client_s_own_is_left_alone(
    pool: Pool, remote: SlurmHook, write: Callable[..., bool], init: Callable[[str], None]
) -> None:
    init(pool.database)
    before = remote.run(f"cat {PLACE}/*").stdout
    assert not write(password="another")
    assert remote.run(f"cat {PLACE}/*").stdout == before


def test_a_file_for_another_pool_is_not_replaced(
    pool: Pool, remote: SlurmHook, init: Callable[[str], None], tmp_path: Path
) -> None:
    init("other")
    (tmp_path / "pilot.sh").write_text(SCRIPT)
    PicasHook().deploy_views()
    submit = PicasSubmitPilotsOperator(
        task_id="refused", script=str(tmp_path / "pilot.sh"), ssh_conn_id="spider", credentials="client"
    )
    with pytest.raises(AirflowFailException, match=f"is for {pool.user} in other on .*; database differs") as failed:
        submit.execute(context("refused", run_id=pool.database))
    assert pool.password not in str(failed.value)
    assert read(remote)[1] == "other"


def test_a_key_that_others_use_is_kept_and_odd_files_are_said(
    remote: SlurmHook, write: Callable[..., bool], pool: Pool
) -> None:
    """A picasconfig.py may hold a password that was encrypted with this key."""
    remote.run(f"mkdir -p {PLACE}; picas-venv/bin/python -c 'from picas.crypto import *; generate_and_save_key()'")
    key = remote.run(f"cat {PLACE}/key.dat").stdout
    assert write()
    assert remote.run(f"cat {PLACE}/key.dat").stdout == key
    assert read(remote) == [pool.url, pool.database, pool.user, pool.password]
    remote.run(f"rm {PLACE}/conf.yml; echo nonsense > {PLACE}/key.dat")
    with pytest.raises(ValueError, match=r"key\.dat on the cluster is not a key"):
        write()
    remote.run(f"echo '[1, 2' > {PLACE}/conf.yml")
    with pytest.raises(ValueError, match="not in the format of the PiCaS client"):
        write()
