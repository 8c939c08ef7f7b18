"""The pilot reads the PiCaS client's own files of credentials, with the standard library alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from cryptography.fernet import Fernet
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_picas.lifecycle.credentials import parse_conf_yml, parse_picasconfig
from airflow_provider_picas.lifecycle.exit_codes import Failed
from airflow_provider_picas.lifecycle.fernet import decrypt_fernet
from airflow_provider_picas.lifecycle.pilot_config import Config
from airflow_provider_picas.pilot.access import Access, read_access
from airflow_provider_picas.pilot.log import _LOG

CONFIG = Config(command="true", submission="s")


@given(st.binary(max_size=100))
def test_fernet_as_cryptography_has_it(text: bytes) -> None:
    key = Fernet.generate_key()
    token = Fernet(key).encrypt(text)
    assert decrypt_fernet(token, key) == text
    for wrong_token, wrong_key in (
        (token, Fernet.generate_key()),
        (token[:-4], key),
        (token[:30] + bytes([token[30] ^ 1]) + token[31:], key),
        (b"", key),
        (token, b"short"),
    ):
        with pytest.raises(ValueError):  # noqa: PT011
            decrypt_fernet(wrong_token, wrong_key)


@given(st.dictionaries(st.sampled_from(["host_url", "database", "username"]), st.text(max_size=60)))
def test_yaml_is_read_as_the_client_means_it_or_not_at_all(values: dict[str, str]) -> None:
    text = yaml.safe_dump(values, default_flow_style=False) if values else ""
    try:
        assert parse_conf_yml(text) == values
    except ValueError:
        assert any(not value.isprintable() or not value.isascii() for value in values.values()), text


def test_yaml_by_hand() -> None:
    text = "---\n# mine\nhost_url: https://h:6984 # the new one\n\ndatabase:   'it''s'\nusername: \"a\\\"\\xE9\"\n"
    assert parse_conf_yml(text) == {"host_url": "https://h:6984", "database": "it's", "username": 'a"é'}
    for wrong in ("hunter2", "a:\n  - hunter2", "a: |\n  hunter2", 'a: "hunter2', "a: [hunter2]", 'a: "\\x1"'):
        with pytest.raises(ValueError, match=r"line [12] is not in the format of the PiCaS client") as caught:
            parse_conf_yml(wrong)
        assert "hunter2" not in str(caught.value)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with ``conf.yml`` and its key, and nothing on PYTHONPATH."""
    folder = tmp_path / ".config" / "picas"
    folder.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    key = Fernet.generate_key()
    (folder / "key.dat").write_bytes(key)
    (folder / "key.dat").chmod(0o600)
    settings = {"host_url": "https://h:1", "database": "d", "username": "u"}
    settings["encrypted_password"] = Fernet(key).encrypt(b"hunter2").decode()
    (folder / "conf.yml").write_text(yaml.safe_dump(settings, default_flow_style=False))
    return tmp_path


def test_existing_credentials_may_be_conf_yml_alone(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    access = read_access("/nowhere", CONFIG._replace(credentials="existing"))
    assert access == Access("https://h:1", "d", "u", "hunter2", str(home / ".config" / "picas"))
    (home / ".config" / "picas" / "key.dat").chmod(0o644)
    read_access("/nowhere", CONFIG._replace(credentials="existing"))
    _LOG.flush(10)
    said = capfd.readouterr()
    assert "key.dat" in said.out + said.err
    (home / ".config" / "picas" / "conf.yml").unlink()
    with pytest.raises(Failed, match=r"no picasconfig\.py on PYTHONPATH, and no .*/\.config/picas/conf\.yml"):
        read_access("/nowhere", CONFIG._replace(credentials="existing"))


def test_a_picasconfig_that_reads_conf_yml(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "own").mkdir()
    (home / "own" / "picasconfig.py").write_text(
        "from picas.picas_config import PicasConfig\nfrom picas.crypto import decrypt_password\n"
        "config = PicasConfig(load=True)\nPICAS_HOST_URL = config.config['host_url']\nPICAS_DATABASE = 'mine'\n"
        "PICAS_USERNAME = config.config['username']\n"
        "PICAS_PASSWORD = decrypt_password(config.config['encrypted_password']).decode()\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"/nowhere{os.pathsep}{home / 'own'}")
    access = read_access("/nowhere", CONFIG._replace(credentials="existing"))
    assert access == Access("https://h:1", "mine", "u", "hunter2", str(home / "own"))
    (home / ".config" / "picas" / "key.dat").write_bytes(Fernet.generate_key())
    with pytest.raises(Failed, match=r"was not encrypted with the key in .*key\.dat"):
        read_access("/nowhere", CONFIG._replace(credentials="existing"))


def test_a_picasconfig_that_reads_another_conf_yml(home: Path) -> None:
    elsewhere = home / "elsewhere.yml"
    (home / ".config" / "picas" / "conf.yml").rename(elsewhere)
    text = f"PICAS_PASSWORD = decrypt_password(PicasConfig({str(elsewhere)!r}).config['encrypted_password']).decode()\n"
    assert parse_picasconfig(text).values == {"PICAS_PASSWORD": "hunter2"}


@pytest.mark.parametrize("prefix", ["", "b"])
def test_a_password_that_is_encrypted_in_picasconfig_itself(home: Path, prefix: str) -> None:
    key_file = home / ".config" / "picas" / "key.dat"
    token = Fernet(key_file.read_bytes()).encrypt(b"other").decode()
    text = f"from picas.crypto import decrypt_password\nPICAS_PASSWORD = decrypt_password({prefix}'{token}').decode()\n"
    assert parse_picasconfig(text) == ({"PICAS_PASSWORD": "other"}, str(key_file))


@pytest.mark.parametrize(
    "code", ["config['host_url']", "os.environ['host_url']", "PicasConfig().config['other']", "decrypt_password(x)"]
)
def test_other_code_is_refused(home: Path, code: str) -> None:
    with pytest.raises(ValueError, match="PICAS_HOST_URL is neither a string literal"):
        parse_picasconfig(f"PICAS_HOST_URL = {code}\n")


def test_picasconfig_is_read_and_never_executed() -> None:
    text = "import os\nPICAS_HOST_URL=\"https://h:6984\"\nPICAS_PASSWORD = 'a\"b'\nOTHER = 1\nPICAS_DATABASE = ''\nos.abort()\n"
    values, secret = parse_picasconfig(text, "/x/picasconfig.py")
    assert secret == "/x/picasconfig.py"
    assert values == {"PICAS_HOST_URL": "https://h:6984", "PICAS_PASSWORD": 'a"b', "PICAS_DATABASE": ""}


@pytest.mark.parametrize("text", ["PICAS_PASSWORD = get('hunter2')", "PICAS_PASSWORD = 'hunter2"])
def test_an_unreadable_picasconfig_is_told_without_its_text(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"PICAS_PASSWORD is neither a string literal|line 1 is not valid Python"
    ) as caught:
        parse_picasconfig(text)
    assert "hunter2" not in str(caught.value)
