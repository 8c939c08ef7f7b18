"""``airflow-picas check`` as a new user runs it: on a healthy site, and on sites with one fault each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_picas import checks, cli
from airflow_provider_picas.checks import Finding, Level, Wanted
from airflow_provider_picas.hooks.picas import PicasHook
from airflow_provider_picas.hooks.slurm import SlurmHook
from stack import native
from stack.cluster import Cluster
from stack.couchdb import CouchDBAdmin
from stack.docker import DockerStack
from stack.pool import Pool
from tests.conftest import set_connection
from tests.integration.faults import Relay, profile, small_disk

NewPool = Callable[[], AbstractContextManager[Pool]]


@pytest.fixture
def no_secret(
    pool: Pool, cluster: Cluster | DockerStack, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Nothing that the test prints holds the password or the SSH key. What commands set for themselves goes again."""
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "server")
    yield
    said = capfd.readouterr()
    assert pool.password not in said.out + said.err
    assert cluster.private_key.read_text().splitlines()[2] not in said.out + said.err


pytestmark = pytest.mark.usefixtures("no_secret")


def check(**wanted: Any) -> dict[str, Finding]:
    """What is found, by its name."""
    found = {}
    for finding in checks.everything(Wanted(**{"picas_conn_id": "picas_default", "ssh_conn_id": "spider", **wanted})):
        print(finding)
        found[finding.what] = finding
    return found


def failures(found: dict[str, Finding]) -> set[str]:
    return {name for name, finding in found.items() if finding.level is Level.FAIL}


def warnings(found: dict[str, Finding]) -> set[str]:
    return {name for name, finding in found.items() if finding.level is Level.WARN}


def test_a_healthy_site_passes_all_checks(
    picas_default: str, spider: str, pool: Pool, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["check", "--picas-conn-id", picas_default, "--ssh-conn-id", spider, "--submit", "--sbatch", "mem=10M"]
    assert cli.main(arguments) == 0
    out = capfd.readouterr().out
    print(out)
    lines = out.splitlines()
    assert lines[-2:] == ["", "A run would work."]
    assert all(line.startswith("ok    ") for line in lines[:-2]), out
    assert "\x1b" not in out
    for what in (
        "write access",
        "views",
        "ssh",
        "sacct",
        "home",
        "login node, database",
        "compute node, scratch",
    ):
        assert f"ok    {what}: " in out
    with SlurmHook(spider) as slurm:
        assert slurm.run("ls -A ~/picas-pilots; ls -Ad ~/.picas-check* 2>/dev/null").stdout.count("check") == 0
    assert pool.get("_local_docs")["rows"] == []


def test_a_wrong_password_fails_the_login_only(pool: Pool, spider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = replace(pool, password="wr0ng-password")
    set_connection(monkeypatch, "picas_default", native.picas_connection(wrong))
    found = check()
    assert failures(found) == {"login"}
    assert "Check login and password of connection 'picas_default'" in found["login"].text
    assert found["database"].level is Level.OK, "it is not the server's fault"
    assert "wr0ng" not in str(found)
    assert found["home"].level is Level.OK, "the cluster is checked all the same"


def test_no_views_and_no_right_to_write_them(
    pool: Pool, couchdb: CouchDBAdmin, picas_default: str, spider: str
) -> None:
    status, _ = couchdb.request(
        "PUT",
        f"/{pool.database}/_security",
        {"admins": {"names": [], "roles": []}, "members": {"names": [pool.user], "roles": []}},
    )
    assert status == 200
    found = check()
    assert failures(found) == {"views"}
    assert "lacks the views done, error, locked, todo" in found["views"].text
    assert (
        "may not write design documents. Ask the database's administrator to run `airflow-picas" in found["views"].text
    )
    assert found["write access"].level is Level.OK


def test_views_of_picas_alone_and_no_right_to_write_more(
    pool: Pool, couchdb: CouchDBAdmin, picas_default: str, spider: str
) -> None:
    PicasHook(picas_default).deploy_views()
    assert check()["views"].text == "They answer: 0 todo, 0 locked, 0 done, 0 error."
    design = pool.get("_design/airflow-picas-1")
    couchdb.request("DELETE", f"/{pool.database}/_design/airflow-picas-1?rev={design['_rev']}")
    couchdb.request("PUT", f"/{pool.database}/_security", {"members": {"names": [pool.user]}})
    levels = [finding.level for finding in checks.everything(Wanted(picas_default, spider)) if finding.what == "views"]
    assert levels == [Level.WARN, Level.OK]


def test_no_right_to_read_or_no_such_database(new_pool: NewPool, pool: Pool, picas_default: str, spider: str) -> None:
    with new_pool() as other:
        assert failures(check(database=other.database)) == {"login"}
    assert "There is no database" in check(database="nowhere")["database"].text


def test_a_ca_file_that_is_missing_and_a_server_without_tls(
    pool: Pool, spider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = native.picas_connection(pool)
    fields["host"] = fields["host"].replace("http:", "https:")
    set_connection(monkeypatch, "picas_default", {**fields, "extra": {"ca_file": "/nowhere/ca.pem"}})
    found = check()
    assert failures(found) == {"database", "login node, database"}
    assert "'ca_file' '/nowhere/ca.pem' is not a file of certificates" in found["database"].text
    set_connection(monkeypatch, "picas_default", {**fields, "extra": {"verify": False}})
    found = check()
    assert "The TLS connection to" in found["database"].text
    assert "SSLError" in found["login node, database"].text
    assert found["encryption"].level is Level.WARN


def test_missing_connections_are_named() -> None:
    found = check(picas_conn_id="nope", ssh_conn_id="nix")
    assert failures(found) == {"database", "ssh"}
    assert "Connection 'nope' does not exist" in found["database"].text
    assert "Connection 'nix' does not exist" in found["ssh"].text


def test_a_missing_sacct_is_a_warning(site: Cluster, picas_default: str, spider: str, tmp_path: Path) -> None:
    for name in ("sbatch", "squeue", "scontrol", "scancel"):
        script = tmp_path / name
        script.write_text(f'#!/bin/bash\nexec "{site.folder}/site/prefix/bin/{name}" "$@"\n')
        script.chmod(0o755)
    with profile(site, f"export PATH={tmp_path}:/usr/local/bin:/usr/bin:/bin"):
        found = check(submit=True)
    assert failures(found) == set()
    assert warnings(found) == {"sacct"}
    assert found["sacct"].text.startswith("It is not on the login shell's PATH")
    assert "why a pilot ended is known only from squeue" in found["sacct"].text


def test_slurms_commands_that_do_not_answer(site: Cluster, picas_default: str, spider: str) -> None:
    site.stop_accounting()
    try:
        found = check()
    finally:
        site.start_accounting()
    assert failures(found) == set()
    assert found["sacct"].level is Level.WARN
    assert "It fails with exit code 1: " in found["sacct"].text
    with profile(site, "export PATH=/usr/bin:/bin"):
        found = check(submit=True)
    assert failures(found) == {"sbatch", "squeue", "compute node"}
    assert found["compute node"].text.startswith("No job was submitted")


def test_a_home_that_cannot_be_written_fails(site: Cluster, picas_default: str, spider: str) -> None:
    with profile(site, "ulimit -f 64"):  # blocks of 1 KiB
        found = check(submit=True)
    assert failures(found) == {"home", "compute node"}
    assert "cannot be written" in found["home"].text
    assert not list(site.home.glob("**/.picas-check*"))
    found = check(remote_folder="no such folder")
    assert "No such file or directory" in found["home"].text


def test_a_full_home_fails(site: Cluster, picas_default: str, spider: str) -> None:
    with small_disk(site.home / "picas-pilots", "64k"):
        found = check()
        assert not list((site.home / "picas-pilots").iterdir())
    assert failures(found) == {"home"}
    assert "No space left on device). Free space there" in found["home"].text


def test_a_compute_node_that_cannot_reach_the_database(
    pool: Pool, spider: str, monkeypatch: pytest.MonkeyPatch, site: Cluster
) -> None:
    """Containers would not reach the relay, which is on this machine."""
    host, _, port = pool.url.rpartition("//")[2].rpartition(":")
    with closing(Relay((host, int(port)))) as relay:
        url = f"http://127.0.0.1:{relay.port}"
        set_connection(monkeypatch, "picas_default", native.picas_connection(replace(pool, url=url)))
        found = {}
        for finding in checks.everything(Wanted("picas_default", "spider", submit=True)):
            print(finding)
            found[finding.what] = finding
            if finding.what == "login node, database":
                relay.close()
    assert found["login node, database"].level is Level.OK
    assert failures(found) == {"compute node, database"}
    assert f"{url} does not answer from " in found["compute node, database"].text
    assert "Connection refused" in found["compute node, database"].text


def test_a_login_node_that_cannot_reach_the_database(pool: Pool, spider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is only a hint where a compute node is asked, and a fault where it is all that is known."""
    relay = Relay(("127.0.0.1", 1))
    relay.close()
    set_connection(
        monkeypatch, "picas_default", {**native.picas_connection(pool), "host": "http://127.0.0.1", "port": relay.port}
    )
    assert {"database", "login node, database"} == failures(check())
    found = check(submit=True)
    assert failures(found) == {"database", "compute node, database"}
    assert warnings(found) == {"login node, database"}


def test_a_wrong_host_key_fails_the_ssh_check(
    picas_default: str, cluster: Cluster | DockerStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = native.ssh_connection(cluster)
    kind, key = fields["extra"]["host_key"].split()
    swapped = key[:-6] + ("A" if key[-6] != "A" else "B") + key[-5:]
    set_connection(monkeypatch, "spider", {**fields, "extra": {**fields["extra"], "host_key": f"{kind} {swapped}"}})
    found = check(submit=True)
    assert failures(found) == {"ssh", "compute node"}
    assert "host key" in found["ssh"].text


def test_a_host_key_that_is_not_checked(
    picas_default: str, cluster: Cluster | DockerStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = native.ssh_connection(cluster)
    extra = {"private_key": fields["extra"]["private_key"], "no_host_key_check": "true"}
    set_connection(monkeypatch, "spider", {**fields, "extra": extra})
    found = check()
    assert failures(found) == set()
    assert found["ssh, host key"].level is Level.WARN


def test_a_login_node_that_is_down_fails_the_ssh_check(
    site: Cluster, picas_default: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_connection(monkeypatch, "spider", native.ssh_connection(site, 1))
    site.stop_sshd(1)
    try:
        found = check()
    finally:
        site.start_sshd(1)
    assert failures(found) == {"ssh"}
    assert "cannot be reached" in found["ssh"].text


@pytest.mark.parametrize(
    ("wanted", "what", "words"),
    [
        ({"sbatch": {"partition": "nope"}}, "sbatch", "invalid partition specified"),
        ({"sbatch": {"wait": True}}, "sbatch", "cannot be set"),
        ({"sbatch": {"begin": "now+1hour"}, "wait": 1.0}, "compute node", r"has not run within 1 s: PENDING"),
        (
            {"setup": "echo so >&2; false"},
            "compute node",
            r"ended without a report \(FAILED.*\)\. Its log ends: so The",
        ),
        ({"setup": "export TMPDIR=/nowhere"}, "compute node, scratch", r"/nowhere cannot be written .*No such file"),
    ],
)
def test_a_job_that_cannot_run_fails_with_the_cause(
    picas_default: str, spider: str, wanted: dict[str, Any], what: str, words: str
) -> None:
    found = check(submit=True, **wanted)
    assert failures(found) == {what}
    assert re.search(words, found[what].text), found[what]
    with SlurmHook(spider) as slurm:
        assert slurm.run("squeue --noheader --format=%j | grep picas-check").stdout == ""
        assert slurm.run("ls -A ~/picas-pilots | grep check").stdout == ""
