"""The pages of the reference name all that the code has: parameters, options, fields, views, codes and metrics."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import product
from typing import Any

import pytest

from airflow_provider_picas.lifecycle.pilot_config import Config
from airflow_provider_picas.options import PilotOptions
from airflow_provider_picas.tokens import documents
from stack.paths import PROJECT

sys.path.append(str(PROJECT / "docs"))  # as Sphinx does

import generated

REFERENCE = PROJECT / "docs" / "reference"
PUBLIC = [(page, *names) for page, found in generated.public().items() for names in found]
PACKAGE = "airflow_provider_picas"


def own_functions(value: Any) -> Iterator[Callable[..., Any]]:
    """The constructors of a class and its bases in this package; or the function itself."""
    if not isinstance(value, type):
        yield getattr(value, "function", value)
        return
    for base in value.__mro__:
        if base.__module__.startswith(PACKAGE) and "__init__" in vars(base):
            yield vars(base)["__init__"]


def parameters(function: Callable[..., Any]) -> list[str]:
    skipped = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = inspect.signature(function).parameters.items()
    return [name for name, parameter in found if name != "self" and parameter.kind not in skipped]


def docstring(value: Any) -> str:
    """A class's own, and those of its bases in this package."""
    if not isinstance(value, type):
        return inspect.getdoc(getattr(value, "function", value)) or ""
    return "\n".join(vars(base).get("__doc__") or "" for base in value.__mro__ if base.__module__.startswith(PACKAGE))


def undocumented(value: Any) -> list[str]:
    text = docstring(value)
    names = [name for function in own_functions(value) for name in parameters(function)]
    return [name for name in dict.fromkeys(names) if not re.search(rf":param {name}:", text)]


def undocumented_in_methods(hook: type) -> list[str]:
    """The parameters of public methods that neither the method nor the class explains."""
    shared = "".join(inspect.getdoc(getattr(import_module(f"{PACKAGE}.hooks.{module}"), name)) or "" for module, name in (
        ("picas", "PicasHook"), ("slurm", "SlurmHook"))) + docstring(hook)  # fmt: skip
    return [
        f"{name}({parameter})"
        for name, method in vars(hook).items()
        if inspect.isfunction(method) and not name.startswith("_")
        for parameter in parameters(method)
        if not re.search(rf":param {parameter}:|``{parameter}``", (inspect.getdoc(method) or "") + shared)
    ]


@pytest.mark.parametrize(("page", "module", "name"), PUBLIC, ids=[name for _, _, name in PUBLIC])
def test_each_public_parameter_is_documented(page: str, module: str, name: str) -> None:
    value = getattr(import_module(module), name)
    assert undocumented(value) == []
    if page == "hooks":
        assert undocumented_in_methods(value) == []


def test_an_undocumented_parameter_is_noticed() -> None:
    class Odd:
        """:param known: this one."""

        def __init__(self, *, known: int, new: int, **kwargs: Any) -> None: ...

    Odd.__module__ = PACKAGE
    assert undocumented(Odd) == ["new"]


def test_the_pages_have_everything_that_is_public() -> None:
    assert len(PUBLIC) > 20
    for page, _, name in PUBLIC:
        assert f"## {name}" in "\n".join(generated.PARTS[page]())
        assert f"% generated: {page}\n" in (REFERENCE / f"{page}.md").read_text()
    index = (REFERENCE / "index.md").read_text()
    linked = set(re.findall(r"^([a-z-]+)$", index, re.MULTILINE))
    assert {path.stem for path in REFERENCE.glob("*.md")} - {"index"} == linked


def test_each_generated_part_is_on_a_page_once() -> None:
    pages = "\n".join(path.read_text() for path in (PROJECT / "docs").rglob("*.md"))
    assert sorted(re.findall(r"^% generated: (\S+)$", pages, re.MULTILINE)) == sorted(generated.PARTS)


def test_the_table_of_pilot_json_has_its_keys_and_defaults() -> None:
    text = (REFERENCE / "pilot.md").read_text()
    section = text[text.index("## pilot.json") : text.index("## Exit codes")]
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*?) \|", section, re.MULTILINE))
    defaults = {name: default.strip("`") for name, default in rows.items()}
    required = {name: "required" for name in Config._fields if name not in Config._field_defaults}
    assert defaults == required | {name: json.dumps(value) for name, value in Config._field_defaults.items()}
    assert set(inspect.signature(PilotOptions).parameters) <= set(Config._fields)


def test_the_table_of_the_commands_environment_has_its_variables() -> None:
    code = "".join((PROJECT / PACKAGE / "pilot" / f"{name}.py").read_text() for name in ("attempt", "environment"))
    written = set(re.findall(r"[\"'](PICAS_[A-Z_]+)", code)) - {
        "PICAS_HOST_URL",
        "PICAS_PASSWORD",
        "PICAS_USERNAME",
    }  # removed
    named = re.findall(r"^\| `(PICAS_\w+?)(?:<NAME>)?` \|", (REFERENCE / "pilot.md").read_text(), re.MULTILINE)
    assert len(written) > 7
    assert written <= set(named)


def test_the_tables_of_fields_have_those_that_the_code_owns() -> None:
    tables = re.findall(r"^\| (`[^|]+) \|", (REFERENCE / "tokens.md").read_text(), re.MULTILINE)
    named = {name for cell in tables for name in re.findall(r"`(\w+)`", cell)}
    assert documents.OWNED_FIELDS - named == set(documents.JOB_ID_FIELDS) - {"slurm_job_id"}


def test_each_exit_code_has_a_meaning() -> None:
    codes = generated.exit_codes()
    assert len(codes) > 9
    assert [name for name, (_, meaning) in codes.items() if not meaning] == []


def test_the_fields_and_arguments_have_a_meaning() -> None:
    for part in ("connection-fields", "configuration", "cli", "metrics"):
        rows = [line for line in generated.PARTS[part]() if line.startswith("| `") or re.match(r"\| [A-Z]", line)]
        assert rows
        assert [row for row in rows if re.search(r"\|  \|$", row)] == []


def test_the_table_of_versions_is_what_make_compat_wrote() -> None:
    """Each row is of a pair that nox runs; the versions of Airflow are those of the pins."""
    source = (PROJECT / "noxfile.py").read_text()
    airflows, pythons = (
        re.findall(r"\d+\.\d+", re.search(rf"^{name} = \((.*)\)$", source, re.MULTILINE)[1])  # type: ignore[index]
        for name in ("AIRFLOWS", "PYTHONS")
    )
    rows = json.loads(generated.COMPATIBILITY.read_text()) if generated.COMPATIBILITY.exists() else []
    pairs = [(minor(row["airflow"]), minor(row["python"])) for row in rows]
    assert len(set(pairs)) == len(pairs)
    assert set(pairs) <= set(product(airflows, pythons))
    for row in rows:
        pins = (PROJECT / "stack" / f"requirements-airflow-{minor(row['airflow'])}.txt").read_text()
        assert f"apache-airflow=={row['airflow']} " in pins
        assert row["passed"] > 500


def minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def test_the_parts_need_no_sphinx() -> None:
    """So that these tests also run where the documentation is not built."""
    command = [sys.executable, "-c", "import sys, generated; sys.exit('sphinx' in sys.modules)"]
    assert subprocess.run(command, cwd=PROJECT / "docs", env={"PYTHONPATH": str(PROJECT)}, check=False).returncode == 0
