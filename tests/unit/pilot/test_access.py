"""Where the pilot finds its credentials."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from airflow_provider_picas.lifecycle.exit_codes import Failed
from airflow_provider_picas.pilot.access import Access, read_access
from tests.unit.lifecycle.claimed import CONFIG


def test_credentials_are_found_in_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Failed, match=r"no picasconfig\.py in"):
        read_access(str(tmp_path), CONFIG)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "picasconfig.py").write_text("PICAS_HOST_URL='http://h:1'\nPICAS_DATABASE='d'\n")
    monkeypatch.setenv("PYTHONPATH", f"/nowhere{os.pathsep}{folder}")
    access = read_access(str(tmp_path), CONFIG._replace(credentials="existing", database="other"))
    assert access == Access("http://h:1", "other", "", "", str(folder))
    assert read_access(str(tmp_path), CONFIG._replace(credentials="elsewhere")).database == "d"
