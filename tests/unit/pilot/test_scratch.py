"""The scratch folder of a pilot."""

from __future__ import annotations

from pathlib import Path

from airflow_provider_picas.pilot.scratch import remove_tree


def test_scratch_folders_go_whatever_was_done_to_them(tmp_path: Path) -> None:
    inner = tmp_path / "run" / "a" / "b"
    inner.mkdir(parents=True)
    (inner / "file").touch()
    (tmp_path / "kept").mkdir()
    (tmp_path / "run" / "link").symlink_to(tmp_path / "kept")
    for folder in (inner, inner.parent, tmp_path / "run"):
        folder.chmod(0)
    remove_tree(str(tmp_path / "run"))
    remove_tree(str(tmp_path / "never was"))
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
