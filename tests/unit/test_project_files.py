"""The project's pages and settings name commands, files and versions that exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from airflow_provider_picas import __version__
from stack.paths import PROJECT

PAGES = sorted([*PROJECT.glob("*.md"), *PROJECT.glob("docs/**/*.md")])
RECORDS = sorted(PROJECT.glob("docs/development/decisions/[0-9]*.md"))


def settings(name: str) -> Any:
    return yaml.safe_load((PROJECT / name).read_text())


def commands(text: str) -> list[str]:
    """Lines that call make."""
    return [line.strip() for line in text.splitlines() if re.match(r"\s*([A-Z_]+=\S+ )*make ", line)]


def test_hosted_ci_runs_the_commands_of_ci_run() -> None:
    jobs = settings(".github/workflows/ci.yml")["jobs"]
    hosted = [entry["run"] for entry in jobs["make"]["strategy"]["matrix"]["include"]]
    hosted += [step["run"] for step in jobs["docker"]["steps"] if "run" in step]
    assert sorted(hosted) == sorted(commands((PROJECT / ".ci" / "run").read_text()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_a_page_names_targets_and_files_that_exist(page: Path) -> None:
    text = page.read_text()
    targets = set(re.findall(r"^([a-z]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"(?:`|^|[A-Z_]=\S+ )make (?:[A-Z]+=\S+ )*([a-z]+)\b", text, re.MULTILINE)
    assert set(named) <= targets
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_tests_behind_each_promise_exist() -> None:
    named = re.findall(r"`((?:unit|integration|e2e|chaos)/[^`]+)`", (PROJECT / "SECURITY.md").read_text())
    assert len(named) > 20
    assert [name for name in named if not any((PROJECT / "tests").glob(name))] == []


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.stem)
def test_a_decision_has_its_parts_and_is_listed(record: Path) -> None:
    number, parts = record.name[:4], re.findall(r"^## (.*)$", record.read_text(), re.MULTILINE)
    assert record.read_text().startswith(f"# {int(number)}. ")
    assert parts == ["Context", "Decision", "Consequences"]
    assert f"(decisions/{record.name})" in (PROJECT / "docs" / "development" / "architecture.md").read_text()


def test_decisions_are_numbered_in_order() -> None:
    assert [record.name[:4] for record in RECORDS] == [f"{number:04}" for number in range(1, len(RECORDS) + 1)]


def test_the_version_is_the_same_everywhere() -> None:
    assert tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"] == __version__


def test_hooks_use_the_projects_own_tools() -> None:
    """Local hooks need no network. The patterns are Python's, so that a fault in one is seen here."""
    (repository,) = settings(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    hooks = {hook["id"]: hook for hook in repository["hooks"]}
    makefile = (PROJECT / "Makefile").read_text()
    for hook in hooks.values():
        assert hook["language"] in ("system", "pygrep")
        if hook["language"] == "system":
            tool = hook["entry"].split()[0]
            assert f"$(VENV)/{Path(tool).name}" in makefile
        else:
            re.compile(hook["entry"])


def test_editors_and_hooks_know_the_code_that_is_kept_as_it_is() -> None:
    kept = "tests/integration/picas_client/"
    assert settings(".pre-commit-config.yaml")["exclude"] == f"^{kept}"
    assert f"[{kept}**]" in (PROJECT / ".editorconfig").read_text()
