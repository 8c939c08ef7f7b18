"""The command that imports credentials, from files that the PiCaS client's own program has written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_provider_picas import __version__, cli
from airflow_provider_picas.cli.import_connection import ImportFailedError, connection, read_credentials
from airflow_provider_picas.lifecycle.credentials import KEY_FILE
from stack import paths

PASSWORD = 'pa\'ss "wörd" \\ $HOME'

NEWEST_EXAMPLE = """
# First create configuration file with "python create_config.py"
from picas.picas_config import PicasConfig
from picas.crypto import decrypt_password

config = PicasConfig(load=True)
PICAS_HOST_URL = config.config['host_url']
PICAS_DATABASE = config.config['database']
PICAS_USERNAME = config.config['username']
PICAS_PASSWORD = decrypt_password(config.config['encrypted_password']).decode()
"""


def test_a_picasconfig_becomes_a_connection(tmp_path: Path) -> None:
    file = tmp_path / "picasconfig.py"
    file.write_text(
        f"# mine\nPICAS_HOST_URL = 'https://picas.example:6984'\nPICAS_DATABASE='db'\nPICAS_USERNAME=\"me\"\nPICAS_PASSWORD={PASSWORD!r}\n"
    )
    found = read_credentials(file)
    assert found == {"host": "https://picas.example:6984", "database": "db", "login": "me", "password": PASSWORD}
    assert connection(found) == {
        "conn_type": "picas", "host": "https://picas.example", "port": 6984,
        "schema": "db", "login": "me", "password": PASSWORD,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("PICAS_HOST_URL = 'x'\n", "does not set database, login, password"),
        ("PICAS_PASSWORD = open('/etc/passwd').read()\n", "PICAS_PASSWORD is neither a string literal"),
        ("PICAS_PASSWORD = 's3cret\n", "line 1 is not valid Python"),
    ],
)
def test_an_invalid_picasconfig_is_refused(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "picasconfig.py"
    file.write_text(text)
    with pytest.raises(ImportFailedError, match=words) as caught:
        read_credentials(file)
    assert "s3cret" not in str(caught.value)


def test_nothing_in_the_file_is_executed(tmp_path: Path) -> None:
    file = tmp_path / "picasconfig.py"
    file.write_text(f"import os\nos.system('touch {tmp_path}/evil')\nPICAS_HOST_URL='x'\n")
    with pytest.raises(ImportFailedError):
        read_credentials(file)
    assert not (tmp_path / "evil").exists()


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """What the real ``picas init`` writes, in a home of its own."""
    program = paths.PICAS_VENV / "bin" / "picas-cli"
    if not program.exists():
        pytest.skip(f"the PiCaS client is not installed in {paths.PICAS_VENV}")
    (tmp_path / ".config").mkdir()  # it makes one folder only
    named = ["--host-url", "https://picas.example:6984", "--database", "db", "--username", "me", "--password", PASSWORD]
    ended = subprocess.run(
        [str(program), "init", *named], capture_output=True, text=True, timeout=60, env={**os.environ, "HOME": str(tmp_path)},
        check=False,
    )  # fmt: skip
    file = tmp_path / ".config" / "picas" / "conf.yml"
    assert file.exists(), ended.stdout + ended.stderr
    return file


def test_a_conf_yml_becomes_a_connection(conf: Path) -> None:
    assert PASSWORD not in conf.read_text()
    found = read_credentials(conf)
    assert found == {"host": "https://picas.example:6984", "database": "db", "login": "me", "password": PASSWORD}


def test_the_clients_newest_picasconfig_is_code_that_reads_conf_yml(
    conf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "picasconfig.py"
    file.write_text(NEWEST_EXAMPLE)
    assert read_credentials(file) == read_credentials(conf)
    assert read_credentials(file)["password"] == PASSWORD
    conf.unlink()
    with pytest.raises(ImportFailedError, match=r"\.config/picas/conf\.yml cannot be read \(No such file"):
        read_credentials(file)


def test_conf_yml_whose_key_is_lost_or_another(conf: Path) -> None:
    key = conf.with_name(KEY_FILE)
    key.write_bytes(b"x" * 44)
    with pytest.raises(ImportFailedError, match="was not encrypted with the key in"):
        read_credentials(conf)
    key.unlink()
    with pytest.raises(ImportFailedError, match=r"key to its password, .*key\.dat, cannot be read \(No such file"):
        read_credentials(conf)


def test_a_file_that_is_missing_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(ImportFailedError, match="cannot be read"):
        read_credentials(tmp_path / "nowhere.yml")
    (tmp_path / "bytes.py").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ImportFailedError, match="is not a text file"):
        read_credentials(tmp_path / "bytes.py")


def test_the_command_says_what_is_wrong_and_never_the_password(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "picasconfig.py"
    file.write_text("PICAS_PASSWORD = 's3cret'\n")
    assert cli.main(["import-connection", str(file)]) == 1
    said = capsys.readouterr()
    assert "does not set host, database, login" in said.err
    assert "s3cret" not in said.out + said.err


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"airflow-provider-picas {__version__}\n"


def test_help_and_version_do_not_wait_for_airflow() -> None:
    program = "import sys; from airflow_provider_picas import cli; sys.exit('airflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0


def test_output_that_nobody_reads_and_a_terminal_without_unicode(tmp_path: Path) -> None:
    file = tmp_path / "picasconfig.py"
    file.write_text("PICAS_HOST_URL = 'x'\n")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "airflow_provider_picas", "import-connection", str(tmp_path / "é.py")]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=60)
    assert ended.returncode == 1
    assert r"\xe9.py cannot be read" in ended.stderr
