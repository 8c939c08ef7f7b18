"""``airflow-picas profile`` on the design documents that PiCaS's own script and others have written."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_picas import cli
from airflow_provider_picas.checks import pool as checks
from airflow_provider_picas.couchdb.http import Request
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.lifecycle import profile
from airflow_provider_picas.lifecycle.profile import PICAS, SHIPPED
from airflow_provider_picas.slurm.credentials import picasconfig
from stack import install, paths
from stack.couchdb import CouchDBAdmin
from stack.pool import Pool
from tests.unit.tokens.test_design_reader import OF_GRID_LRT, design

EXAMPLES = Path(__file__).parent.with_name("picas_client")


@pytest.fixture
def say(
    picas_default: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command: its exit code, output and errors."""
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "server")

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(["profile", *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def printed(out: str) -> list[Any]:
    """The profiles in the output."""
    return [profile.read(json.loads(text)) for text in re.findall(r'"profile": (.+)', out)]


def test_the_views_of_picas_own_script_are_its_profile(
    couchdb: CouchDBAdmin, pool: Pool, tmp_path: Path, say: Callable[..., tuple[int, str, str]]
) -> None:
    """With the further views of its autopilot example, whose condition is the number of cores."""
    assert say()[0] == 1
    install.install(["picas"])
    config = picasconfig(pool.url, pool.database, pool.user, pool.password)
    (tmp_path / "picasconfig.py").write_bytes(config)
    (tmp_path / "create_views.py").write_bytes((EXAMPLES / "create_views.py").read_bytes())
    python = str(paths.PICAS_VENV / "bin" / "python")
    for example in ([], ["autopilot"]):
        subprocess.run([python, "create_views.py", *example], cwd=tmp_path, check=True)
    code, out, _ = say("--design-document", "Monitor")
    assert (code, printed(out)) == (0, [PICAS])
    code, out, _ = say()
    assert code == 0
    assert "MultiCore:" in out
    assert "which is not the value of one field" in out


def test_views_of_others_become_profiles_or_are_said(pool: Pool, say: Callable[..., tuple[int, str, str]]) -> None:
    hook = PicasHook()
    hook.deploy_views()
    workflow = {name: f'{text} && doc.workflow == "imaging"' for name, text in OF_PICAS.items()}
    odd = design({**OF_PICAS, "done": "isDone(doc, '\x1b[31m')"})
    for name, document in (
        ("SKSP_pref_cal1", design(OF_GRID_LRT, "SKSP_pref_cal1")), ("imaging", design(workflow)), ("odd", odd),
    ):  # fmt: skip
        hook.do(hook.pool.put({"_id": f"_design/{name}", **document}))
    code, out, _ = say()
    assert code == 0
    assert "airflow-picas" not in out
    assert all(char.isprintable() or char == "\n" for char in out)
    campaign = printed(out)[1]
    assert printed(out) == [PICAS, campaign, SHIPPED["picas_cortex"]]
    assert campaign.types == ("SKSP_pref_cal1",)
    assert campaign.state_of({"status": "done", "lock": 5, "done": 0}) == "done"
    assert "odd:\n  View 'done': " in out
    assert say("--design-document", "odd")[0] == 1
    assert "has no design document 'other'" in say("--design-document", "other")[2]


OF_PICAS = {
    "todo": "doc.lock == 0 && doc.done == 0",
    "locked": "doc.lock > 0 && doc.done == 0",
    "done": "doc.lock > 0 && doc.done > 0 && parseInt(doc.exit_code) == 0",
    "error": "doc.lock > 0 && doc.done > 0 && parseInt(doc.exit_code) != 0",
}


def test_views_of_a_profile_are_created_and_checked(
    couchdb: CouchDBAdmin, pool: Pool, capsys: pytest.CaptureFixture[str], say: Callable[..., tuple[int, str, str]]
) -> None:
    assert cli.main(["deploy-views", "--profile", "grid_lrt"]) == 0
    assert "airflow-picas-1-grid_lrt, airflow-picas-page-1-grid_lrt" in capsys.readouterr().out
    hook = PicasHook(profile="grid_lrt")
    response = hook.send(Request("GET", hook.pool.path("_design", "airflow-picas-1-grid_lrt")))
    assert set(response.json()["views"]) == {"counts", "tokens", "todo"}


def test_a_check_looks_at_the_views_of_the_profile(couchdb: CouchDBAdmin, pool: Pool, picas_default: str) -> None:
    def views_of(profile: Any) -> list[tuple[str, str]]:
        found = checks.check(checks.OneTry(profile=profile))
        return [(str(finding.level), finding.text) for finding in found if finding.what == "views"]

    ((_, before),) = views_of("grid_lrt")
    assert "'airflow-picas-1-grid_lrt' is missing or of another version; the next push writes it" in before
    PicasHook(profile="grid_lrt").deploy_views()
    ((_, after),) = views_of("grid_lrt")
    assert after == "They answer: 0 todo, 0 locked, 0 done, 0 error."
    couchdb.request("PUT", f"/{pool.database}/_security", {"members": {"names": [pool.user]}})
    ((_, refused),) = views_of("picas_cortex")
    assert "'airflow-picas-1-picas_cortex'" in refused
    assert "deploy-views --picas-conn-id picas_default --profile picas_cortex --login ADMIN" in refused
