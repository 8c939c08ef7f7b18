"""Code on the documentation's pages: Python loads as a DAG file does, and commands exist."""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from airflow import sdk
from airflow.sdk import DAG
from airflow.sdk.definitions._internal.contextmanager import DagContext

from airflow_provider_picas.cli import check, deploy_views, import_connection, pool, profile
from stack.paths import PROJECT
from tests.docs_pages import DOCS, Block, blocks

try:
    from airflow.serialization.serialized_objects import DagSerialization as Serializer
except ImportError:  # before Airflow 3.2
    from airflow.serialization.serialized_objects import SerializedDAG as Serializer  # type: ignore[no-redef]

PAGES = [PROJECT / "README.md", *(page for part in ("start", "howto") for page in sorted((DOCS / part).glob("*.md")))]
SNIPPETS = [
    pytest.param(page, block, id=f"{page.relative_to(PROJECT)}:{block.line}")
    for page in PAGES
    for block in blocks(page)
    if block.language == "python"
]


@pytest.fixture
def defined(monkeypatch: pytest.MonkeyPatch) -> set[tuple[DAG, Any]]:
    """The DAGs that a file defines, with their modules, as Airflow collects them."""
    found: set[tuple[DAG, Any]] = set()
    monkeypatch.setattr(DagContext, "autoregistered_dags", found)
    monkeypatch.setattr(DagContext, "current_autoregister_module_name", "snippet")
    monkeypatch.setitem(sys.modules, "snippet", ModuleType("snippet"))
    return found


@pytest.mark.parametrize(("page", "block"), SNIPPETS)
def test_a_snippet_is_a_dag_file(page: Path, block: Block, tmp_path: Path, defined: set[tuple[DAG, Any]]) -> None:
    if "PartitionedAssetTimetable" in block.text and not hasattr(sdk, "PartitionedAssetTimetable"):
        pytest.skip("Airflow has partition keys from 3.3 on")
    file = tmp_path / "snippet.py"
    file.write_text("\n" * (block.line - 1) + block.text)  # so that an error names the page's line
    runpy.run_path(str(file))
    assert defined
    for dag, _ in defined:
        assert dag.tasks
        dag.validate()
        assert Serializer.to_dict(dag)


SHELL = [
    pytest.param(block, id=f"{page.relative_to(PROJECT)}:{block.line}")
    for page in sorted(DOCS.rglob("*.md"))
    for block in blocks(page)
    if block.language in ("bash", "text")
]


@pytest.mark.parametrize("block", SHELL)
def test_shell_on_a_page_is_valid(block: Block) -> None:
    """The syntax of scripts, and the options of our own command. ``tests/e2e/test_start_pages.py`` runs some of them."""
    if block.language == "bash":
        checked = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
        assert checked.stderr == ""
    parser = argparse.ArgumentParser(exit_on_error=False)
    commands = parser.add_subparsers(required=True)
    for command in (check, pool, deploy_views, profile, import_connection):
        command.add(commands)
    for line in re.findall(r"^(?:\$ )?airflow-picas (?!--version)(.*)$", block.text, re.MULTILINE):
        parser.parse_args(shlex.split(line, comments=True))
