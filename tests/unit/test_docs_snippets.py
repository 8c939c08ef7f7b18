"""Python on the documentation's pages: each block loads as a DAG file does, and Airflow can serialize its DAGs."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.definitions._internal.contextmanager import DagContext

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
    file = tmp_path / "snippet.py"
    file.write_text("\n" * (block.line - 1) + block.text)  # so that an error names the page's line
    runpy.run_path(str(file))
    assert defined
    for dag, _ in defined:
        assert dag.tasks
        dag.validate()
        assert Serializer.to_dict(dag)
