"""A pool without views, and a login that may not create them: nothing is pushed or submitted that could not run."""

from __future__ import annotations

import io
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from airflow_provider_picas import cli
from airflow_provider_picas.checks.finding import Level
from airflow_provider_picas.checks.pool import OneTry
from airflow_provider_picas.checks.pool import check as check_pool
from airflow_provider_picas.couchdb import errors
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.hooks.slurm import SlurmHook
from airflow_provider_picas.operators.pilots import PicasSubmitPilotsOperator
from airflow_provider_picas.operators.tokens import PicasPushTokensOperator
from airflow_provider_picas.sensors.tokens import PicasTokenStateSensor
from airflow_provider_picas.slurm.credentials import picasconfig
from airflow_provider_picas.tokens import views
from airflow_provider_picas.tokens.counts import Counts
from stack import install, native, paths
from stack.couchdb import CouchDBAdmin
from stack.pool import Pool
from tests.conftest import set_connection
from tests.integration.faults import Proxy
from tests.integration.tasks import context

EXAMPLES = Path(__file__).parent.with_name("picas_client")
STATES = ["done", "error", "locked", "todo"]


@pytest.fixture(autouse=True)
def member(pool: Pool, couchdb: CouchDBAdmin, picas_default: str) -> None:
    """The pool's login is a member of the database and no admin."""
    set_security(pool, couchdb, admins=[], members=[pool.user])


def set_security(pool: Pool, couchdb: CouchDBAdmin, admins: list[str], members: list[str]) -> None:
    roles = ["_admin"] if members else []
    security = {"admins": {"names": admins, "roles": ["_admin"]}, "members": {"names": members, "roles": roles}}
    assert couchdb.request("PUT", f"/{pool.database}/_security", security)[0] == 200


def put_design(pool: Pool, couchdb: CouchDBAdmin, name: str, document: dict[str, Any]) -> None:
    assert couchdb.request("PUT", f"/{pool.database}/_design/{name}", document)[0] == 201


def push(**arguments: Any) -> dict[str, Any]:
    output: dict[str, Any] = PicasPushTokensOperator(task_id="push", inputs=["x", "y"], **arguments).execute(context())
    return output


def refusal(**arguments: Any) -> str:
    with pytest.raises(AirflowFailException) as caught:
        push(**arguments)
    assert PicasHook().do(PicasHook().pool.info())["doc_count"] == 0, "not even a design document is written"
    return str(caught.value)


def run_command(text: str, couchdb: CouchDBAdmin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the command that an error names, as the administrator whom it tells to."""
    found = re.search("`(airflow-picas .*?)`", text)
    assert found, text
    words = [couchdb.admin if word == "ADMIN" else word for word in shlex.split(found[1])]
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "server")  # which the command sets for itself
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{couchdb.password}\n"))
    assert cli.main(words[1:]) == 0


def test_nothing_is_pushed_and_the_command_that_the_error_names_helps(
    pool: Pool, couchdb: CouchDBAdmin, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refusal()
    assert f"lacks the views {', '.join(STATES)} of design document 'Monitor'" in told
    assert f"Login {pool.user!r} may not create them, since it is not an admin of the database." in told
    run_command(told, couchdb, monkeypatch)
    said = capsys.readouterr()
    assert (
        f"Wrote the design documents Monitor, airflow-picas-1, airflow-picas-page-1 to {pool.database} on" in said.out
    )
    assert couchdb.password not in said.out + said.err
    batch = push()
    assert PicasHook().count(batch["batch"]) == Counts(todo=2)
    assert "may not write" not in capsys.readouterr().out


def test_the_command_with_a_login_that_is_not_an_admin(
    pool: Pool, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "server")
    assert cli.main(["deploy-views"]) == 1
    refused = "Monitor, airflow-picas-1, airflow-picas-page-1"
    assert f"Login {pool.user!r} may not write the design documents {refused}" in capsys.readouterr().err
    assert cli.main(["deploy-views", "--design-document", "SingleCore"]) == 1
    assert "takes NAME=CONDITION" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO("wrong password\n"))
    assert cli.main(["deploy-views", "--login", "somebody"]) == 1
    assert "CouchDB refused login 'somebody'" in capsys.readouterr().err


def test_a_connection_without_a_login_is_refused(
    pool: Pool, couchdb: CouchDBAdmin, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_security(pool, couchdb, [], [])
    connection = {**native.picas_connection(pool), "login": "", "password": ""}
    set_connection(monkeypatch, "picas_default", connection)
    assert "A connection without a login may not create them" in refusal()


def test_the_views_of_the_picas_client_will_do(
    pool: Pool, couchdb: CouchDBAdmin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install.install(["picas"])
    shutil.copytree(EXAMPLES, tmp_path, dirs_exist_ok=True)
    config = picasconfig(couchdb.url, pool.database, couchdb.admin, couchdb.password)
    (tmp_path / "picasconfig.py").write_bytes(config)
    subprocess.run([paths.PICAS_VENV / "bin" / "python", "create_views.py"], cwd=tmp_path, check=True)
    batch = push()
    assert PicasHook().count(batch["batch"]) == PicasHook().count() == Counts(todo=2)
    assert "may not write the design documents airflow-picas-1" in capsys.readouterr().out


def test_views_of_another_version_that_may_not_be_replaced(
    pool: Pool, couchdb: CouchDBAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    newer = views.provider()
    newer["views"]["more"] = {"map": "function (doc) {}"}
    put_design(
        pool, couchdb, "Monitor", {"views": views.monitor()["views"] | {"overview_total": {"map": "function (doc) {}"}}}
    )
    put_design(pool, couchdb, "airflow-picas-1", newer)
    assert PicasHook().count(push()["batch"]) == Counts(todo=2)
    assert "may not write the design documents airflow-picas-1" in capsys.readouterr().out


def test_missing_views_are_named(pool: Pool, couchdb: CouchDBAdmin) -> None:
    put_design(pool, couchdb, "Monitor", {"views": {"todo": views.monitor()["views"]["todo"]}})
    with pytest.raises(AirflowFailException, match="lacks the views done, error, locked of design document 'Monitor'"):
        push()
    assert pool.tokens() == []


def test_another_design_document_is_required_too(
    pool: Pool, couchdb: CouchDBAdmin, monkeypatch: pytest.MonkeyPatch
) -> None:
    further = {"Single Core": "doc.cores == 1 && doc.name != 'a b'"}
    told = refusal(design_documents=further)
    assert "'Monitor' and the views done, error, locked, todo of design document 'Single Core'" in told
    run_command(told, couchdb, monkeypatch)
    push(design_documents=further)
    assert PicasHook(design_document="Single Core").count() == Counts()
    assert PicasHook().count() == Counts(todo=2)


def test_the_connections_own_design_document(
    pool: Pool, couchdb: CouchDBAdmin, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    connection = {**native.picas_connection(pool), "extra": {"design_document": "ddcal"}}
    set_connection(monkeypatch, "picas_default", connection)
    assert "the views done, error, locked, todo of design document 'ddcal', so" in refusal()
    set_security(pool, couchdb, [pool.user], [pool.user])
    with pytest.raises(AirflowFailException, match=r"A push does not create them.*--design-document ddcal=CONDITION`"):
        push()
    assert pool.tokens() == []
    set_security(pool, couchdb, [], [pool.user])
    put_design(pool, couchdb, "ddcal", views.monitor("doc.workflow == 'ddcal'"))
    assert push()["tokens"] == 2


def test_on_demand_views_are_not_asked_for(pool: Pool) -> None:
    assert push(deploy_views=False)["tokens"] == 2


def test_a_login_that_may_only_read_pushes_nothing(pool: Pool, couchdb: CouchDBAdmin) -> None:
    put_design(pool, couchdb, "Monitor", views.monitor())
    put_design(pool, couchdb, "rights", {"validate_doc_update": "function () { throw({forbidden: 'read only'}); }"})
    with pytest.raises(errors.ForbiddenError, match=rf"Login {pool.user!r} is not allowed to write token .*read only"):
        push()
    assert pool.tokens() == []


def test_pilots_and_waits_without_a_push(pool: Pool, spider: str, tmp_path: Path) -> None:
    submit = PicasSubmitPilotsOperator(task_id="pilots", command="true", ssh_conn_id=spider, remote_folder="no-views")
    with SlurmHook(spider) as slurm:
        slurm.run("mkdir -p ~/no-views")
        with pytest.raises(
            AirflowException, match=r"Nothing was submitted.*no view 'todo'.*`airflow-picas deploy-views"
        ):
            submit.execute(context("pilots"))
        assert slurm.run("ls -A ~/no-views").stdout == ""
    for batch in (None, "batch"):
        wait = PicasTokenStateSensor(task_id="wait", batch=batch, poke_interval=0.1, timeout=30)
        with pytest.raises(Exception, match="`airflow-picas deploy-views --picas-conn-id picas_default`"):
            wait.execute(context("wait"))


def test_local_documents_that_may_not_be_listed(
    pool: Pool, couchdb: CouchDBAdmin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as behind a proxy with a list of paths: pilots write their leases there, and waits read them."""

    def refuse(request: str, status: int, content: bytes) -> tuple[int, bytes]:
        refused = "/_local_docs" in request
        return (403, b'{"error":"forbidden","reason":"not here"}') if refused else (status, content)

    put_design(pool, couchdb, "Monitor", views.monitor())
    with Proxy(pool.url) as proxy:
        proxy.rewrite = refuse
        set_connection(monkeypatch, "picas_default", native.picas_connection(replace(pool, url=proxy.url)))
        found = {finding.what: finding for finding in check_pool(OneTry("picas_default"))}
    assert found["write access"].level is Level.FAIL
    assert "is not allowed to do this" in found["write access"].text
    assert "not here" in found["write access"].text
