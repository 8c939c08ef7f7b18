"""``picasconfig.py`` as the PiCaS client reads it."""

from __future__ import annotations

import pytest

from airflow_provider_picas.slurm.credentials import picasconfig


@pytest.mark.parametrize("password", ["s3cret", "", 'it\'s "q" \\ \n #', "пароль-é", "'''", "\\'; import os", "\u2028"])
def test_values_arrive_as_they_are(password: str) -> None:
    text = picasconfig("https://couch:6984", "a/b", None, password)
    names: dict[str, str] = {}
    exec(compile(text, "picasconfig.py", "exec"), names)
    assert names["PICAS_PASSWORD"] == password
    assert (names["PICAS_HOST_URL"], names["PICAS_DATABASE"], names["PICAS_USERNAME"]) == (
        "https://couch:6984",
        "a/b",
        "",
    )
    assert text.isascii()
    assert len(text.splitlines()) == 4
