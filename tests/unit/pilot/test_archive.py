"""The file that is sent to a cluster."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from airflow_provider_picas.pilot import archive


def test_the_file_stands_alone_and_keeps_to_old_syntax() -> None:
    imported = set()
    for content in archive.sources().values():
        tree = ast.parse(content, feature_version=(3, 6))
        imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    sent = {name[: -len(".py")].removesuffix("/__init__").replace("/", ".") for name in archive.sources()}
    own = {name for name in imported if name.startswith("airflow_provider_picas.")}
    assert own <= sent
    assert {name.split(".")[0] for name in imported - own} <= sys.stdlib_module_names
    newer = {"dataclasses", "tomllib", "zoneinfo", "graphlib", "contextvars", "__future__"}
    assert not imported & newer


def test_the_same_source_gives_the_same_archive() -> None:
    assert archive.build.__wrapped__() == archive.build.__wrapped__()


def test_an_unpacked_archive_runs(tmp_path: Path) -> None:
    file = tmp_path / archive.FILE
    file.write_bytes(archive.build())
    subprocess.run([sys.executable, "-m", "zipfile", "-e", str(file), str(tmp_path / "unpacked")], check=True)
    for program in (file, tmp_path / "unpacked"):
        ended = subprocess.run([sys.executable, "-I", str(program)], capture_output=True, text=True)
        assert (ended.returncode, "Usage: picas_pilot.pyz pilot.json" in ended.stdout) == (64, True), ended.stderr
