"""What is sent to a node to check it, and how its report is read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_provider_picas.checks import job, node
from airflow_provider_picas.checks.finding import Level
from airflow_provider_picas.checks.node import Probe
from airflow_provider_picas.checks.wanted import Wanted
from airflow_provider_picas.hooks.picas import PicasHook


@pytest.fixture
def probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Probe:
    """Of a connection with a password and a CA file, to a port where nothing answers."""
    (tmp_path / "ca.pem").write_text("certificates")
    extra = {"ca_file": str(tmp_path / "ca.pem")}
    fields = {
        "conn_type": "picas",
        "host": "http://127.0.0.1:1",
        "schema": "db",
        "login": "me",
        "password": "s3cret",
        "extra": extra,
    }
    monkeypatch.setenv("AIRFLOW_CONN_PICAS_DEFAULT", json.dumps(fields))
    return Probe.of(PicasHook())


def test_no_secret_goes_to_the_cluster(probe: Probe) -> None:
    plan = job.plan("picas-check-1", probe, Wanted("picas_default", "ssh_default", sbatch={"account": "a"}))
    files = plan.files("/home/me/picas-pilots/picas-check-1.1", "picas-check-1.1")
    assert [file.path.rpartition("/")[2] for file in files] == ["node_check.py", "check.json", "ca.pem", "check.sh"]
    commands = plan.commands("/f", "k")
    for text in (*(file.content.decode() for file in files), str(commands), str(plan.environment), repr(plan)):
        assert "s3cret" not in text
    assert "--time=00:01:00" in commands[0]
    assert "--account=a" in commands[0]
    assert not plan.python_path


def test_a_report_becomes_findings(probe: Probe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in probe.files(str(tmp_path), to_file=True):
        Path(file.path).write_bytes(file.content)
    command = [sys.executable, "-I", str(tmp_path / node.PROGRAM), str(tmp_path / node.CONFIG)]
    environment = {"TMPDIR": str(tmp_path / "nowhere")}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=True, timeout=60)
    assert (tmp_path / node.RESULT).read_text() == ended.stdout.strip()
    report = node.read_report(f"module loaded\n{ended.stdout}")
    assert report is not None
    assert "Connection refused" in str(probe.reaches(report))
    (found,) = node.scratch("scratch", report)
    assert found.level is Level.FAIL
    assert "nowhere cannot be written ([Errno 2] No such file" in found.text
    assert list(node.clock("clock", report)) == []


@pytest.mark.parametrize("text", ["", "Welcome", "[]", "{", "null", '"x"', "1"])
def test_other_output_is_not_a_report(text: str) -> None:
    assert node.read_report(text) is None


@pytest.mark.parametrize(
    "report",
    [
        {},
        {"database": None},
        {"database": {}},
        {"database": {"error": "\x1b[31m" * 1_000}},
        {"database": {"status": 10**400}},
    ],
)
def test_a_report_of_another_shape_is_not_trusted(probe: Probe, report: dict[str, object]) -> None:
    why = probe.reaches(report)
    assert why
    assert why.isprintable()
    assert len(why) < 400
    assert list(node.scratch("s", {"scratch": report})) is not None
    assert list(node.clock("s", report)) == []


@pytest.mark.parametrize(
    ("off", "level", "words"),
    [
        (0.0, "ok", "within 1 s"),
        (-29.4, "ok", "within 29 s"),
        (31.0, "warn", "31 s ahead of"),
        (-4000.0, "warn", "4000 s behind"),
    ],
)
def test_clocks_are_compared_with_the_databases(off: float, level: str, words: str) -> None:
    found = node.clock_finding("clock", off)
    assert found.level == level
    assert words in found.text
