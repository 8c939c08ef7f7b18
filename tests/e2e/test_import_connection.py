"""``airflow-picas import-connection`` against the database of a running Airflow, which then uses the connection."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from airflow_provider_picas import cli
from stack.airflow import Airflow
from stack.pool import Pool


def picasconfig(folder: Path, pool: Pool) -> str:
    """A file with the pool's credentials, as the PiCaS client reads it."""
    file = folder / "picasconfig.py"
    values = {"HOST_URL": pool.url, "DATABASE": pool.database, "USERNAME": pool.user, "PASSWORD": pool.password}
    file.write_text("".join(f"PICAS_{name} = {value!r}\n" for name, value in values.items()))
    return str(file)


def test_the_connection_is_stored_once_and_works(
    airflow: Airflow, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in airflow.environ().items():
        monkeypatch.setenv(name, value)
    command = ["import-connection", picasconfig(tmp_path, replace(pool, password="an0ther")), "--conn-id", "imported"]
    assert cli.main(command) == 0
    assert not airflow.api.test_connection("imported")[0]
    picasconfig(tmp_path, pool)
    assert cli.main(command) == 1
    assert "Connection 'imported' already exists" in capsys.readouterr().err
    assert not airflow.api.test_connection("imported")[0]
    assert cli.main([*command, "--overwrite"]) == 0
    good, message = airflow.api.test_connection("imported")
    assert good, message
    said = capsys.readouterr()
    assert pool.password not in said.out + said.err
