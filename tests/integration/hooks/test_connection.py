"""What Airflow knows about the provider: its metadata, the form of its connection, and the Test button."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_picas.couchdb.settings import EXTRAS
from airflow_provider_picas.provider_info import get_provider_info
from stack import native
from stack.pool import Pool

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def airflow_cli(pool: Pool, tmp_path: Path) -> Run:
    """Runs ``airflow`` with a home of its own and a connection to the pool, whose fields may be changed."""

    def run(*arguments: str, **fields: Any) -> subprocess.CompletedProcess[str]:
        connection = {**native.picas_connection(pool), **fields}
        environment = {
            **os.environ,
            "AIRFLOW_HOME": str(tmp_path),
            "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW_CONN_PICAS_DEFAULT": json.dumps(connection),
        }
        return subprocess.run(
            [str(Path(sys.prefix) / "bin" / "airflow"), *arguments],
            env=environment, capture_output=True, text=True, check=False, timeout=600,
        )  # fmt: skip

    return run


def test_the_metadata_have_the_form_that_airflow_asks_for() -> None:
    import airflow
    import jsonschema  # type: ignore[import-untyped]

    info = get_provider_info()
    schema = json.loads((Path(str(airflow.__file__)).parent / "provider_info.schema.json").read_text())
    jsonschema.validate(info, schema)
    assert json.loads(json.dumps(info)) == info


def test_every_module_and_class_that_the_metadata_name_is_there() -> None:
    info = get_provider_info()
    for kind in ("hooks", "operators", "sensors", "triggers"):
        for entry in info[kind]:
            for module in entry["python-modules"]:
                assert import_module(module)
    names = [entry["hook-class-name"] for entry in info["connection-types"]]
    for name in [*names, *info.get("extra-links", [])]:
        module, _, attribute = name.rpartition(".")
        assert hasattr(import_module(module), attribute), name


def test_every_extra_of_the_form_is_one_that_the_hook_takes_and_back() -> None:
    (connection,) = get_provider_info()["connection-types"]
    assert set(connection["conn-fields"]) == set(EXTRAS)


def test_the_form_has_the_connections_fields() -> None:
    """As the API server gives it to the UI."""
    from airflow.api_fastapi.core_api.services.ui.connections import HookMetaService

    (meta,) = [meta for meta in HookMetaService.hook_meta_data() if meta.connection_type == "picas"]
    assert meta.hook_name == "PiCaS"
    fields = json.loads(meta.model_dump_json())
    standard = fields["standard_fields"]
    assert not standard["port"]["hidden"]  # without one, the Test button of Airflow 3.3.1 and 3.3.2 refuses
    assert standard["host"]["title"] == "Host (URL)"
    assert standard["host"]["placeholder"].startswith("https://")
    assert standard["url_schema"]["title"] == "Database"
    assert not standard["login"]["hidden"]
    assert set(fields["extra_fields"]) == set(EXTRAS)
    verify = fields["extra_fields"]["verify"]
    assert verify["value"] is True
    assert verify["schema"]["title"] == "Verify TLS certificate"


def test_airflow_3_1_has_the_same_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its hooks tell the form themselves, in fields of WTForms, or in Airflow's stand-ins for them where these are missing."""
    from airflow.api_fastapi.core_api.services.ui.connections import HookMetaService

    from airflow_provider_picas.hooks.picas import PicasHook

    fields = SimpleNamespace(BooleanField=HookMetaService.MockBooleanField, StringField=HookMetaService.MockStringField)
    monkeypatch.setitem(sys.modules, "wtforms", fields)
    monkeypatch.setitem(sys.modules, "flask_babel", SimpleNamespace(lazy_gettext=str))
    widgets = PicasHook.get_connection_form_widgets()
    assert set(widgets) == set(EXTRAS)
    assert isinstance(widgets["verify"], HookMetaService.MockBooleanField)
    assert isinstance(widgets["ca_file"], HookMetaService.MockStringField)


def test_field_behaviour_of_airflow_3_1() -> None:
    from airflow_provider_picas.hooks.picas import PicasHook

    behaviour = PicasHook.get_ui_field_behaviour()
    assert behaviour["hidden_fields"] == []
    assert behaviour["relabeling"]["schema"] == "Database"


def test_airflow_lists_the_provider(airflow_cli: Run) -> None:
    listed = airflow_cli("providers", "list", "--output", "json")
    assert listed.returncode == 0, listed.stderr
    rows = json.loads(listed.stdout[listed.stdout.index("[") :])
    (row,) = [row for row in rows if row["package_name"] == "airflow-provider-picas"]
    assert row["description"].startswith("Fill PiCaS token pools")
    hooks = airflow_cli("providers", "hooks", "--output", "json")
    rows = json.loads(hooks.stdout[hooks.stdout.index("[") :])
    (row,) = [row for row in rows if row["connection_type"] == "picas"]
    assert row["class"].endswith("PicasHook")
    assert row["conn_id_attribute_name"] == "picas_conn_id"


def test_a_connection_can_be_tested(airflow_cli: Run, pool: Pool) -> None:
    good = airflow_cli("connections", "test", "picas_default")
    assert "Connection success!" in good.stdout, good.stdout + good.stderr
    assert good.returncode == 0
    bad = airflow_cli("connections", "test", "picas_default", password="wrong")
    assert "Connection failed!" in bad.stdout, bad.stdout + bad.stderr
    assert "Check login and password of this connection" in bad.stdout
    assert pool.password not in good.stdout + good.stderr + bad.stdout + bad.stderr
