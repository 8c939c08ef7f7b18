"""What the package says about itself: to PyPI, to Airflow, and about the code of others that a wheel contains."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from airflow_provider_picas import __version__
from airflow_provider_picas.provider_info import HOME, get_provider_info
from stack import dist
from stack.paths import PROJECT

SETTINGS = tomllib.loads((PROJECT / "pyproject.toml").read_text())


def test_all_addresses_are_below_the_projects_home() -> None:
    addresses = SETTINGS["project"]["urls"]
    assert addresses["Homepage"] == HOME
    assert [address for address in addresses.values() if not f"{address}/".startswith(f"{HOME}/")] == []
    substitutions = SETTINGS["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]
    named = re.findall(r"https://[^\\\s]*", " ".join(entry["replacement"] for entry in substitutions))
    assert len(named) == 3
    assert [address for address in named if not address.startswith(f"{HOME}/")] == []


def test_the_addresses_name_files_that_exist() -> None:
    info = json.dumps([SETTINGS["project"]["urls"], get_provider_info()])
    files = re.findall(rf'{re.escape(HOME)}/(?:blob|raw)/(main|v[^/]+)/([^"]+)', info)
    assert len(files) > 4
    assert {version for version, _ in files} == {"main", f"v{__version__}"}
    assert [path for _, path in files if not (PROJECT / path).is_file()] == []


def test_the_classifiers_are_pypis() -> None:
    trove = pytest.importorskip("trove_classifiers")
    classifiers = SETTINGS["project"]["classifiers"]
    assert [name for name in classifiers if name not in trove.classifiers or name in trove.deprecated_classifiers] == []
    assert [
        name for name in classifiers if name.startswith("License ::")
    ] == []  # PyPI refuses them beside an expression
    pythons = re.search(r"^PYTHONS = \((.*)\)$", (PROJECT / "noxfile.py").read_text(), re.MULTILINE)
    assert pythons is not None
    versions = [match[1] for name in classifiers if (match := re.fullmatch(r".*Python :: (3\.\d+)", name))]
    assert versions == re.findall(r"3\.\d+", pythons[1])


def test_the_changelog_has_the_version_and_a_place_for_the_next() -> None:
    sections = re.findall(r"^## (.*)$", (PROJECT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert sections[0] == "Unreleased"
    assert re.fullmatch(rf"{re.escape(__version__)}( \(\d{{4}}-\d\d-\d\d\))?", sections[1])


def test_the_metadata_are_complete_for_airflows_documentation() -> None:
    """``provider.yaml`` of Airflow's own providers refuses unknown keys; it has three more that describe releases there."""
    import airflow
    import jsonschema  # type: ignore[import-untyped]

    path = Path(str(airflow.__file__)).parent / "provider.yaml.schema.json"
    if not path.exists():
        pytest.skip("this Airflow does not ship the schema of provider.yaml")
    info = get_provider_info()
    jsonschema.validate(
        {**info, "state": "ready", "source-date-epoch": 0, "versions": [__version__]}, json.loads(path.read_text())
    )
    known = {integration["integration-name"] for integration in info["integrations"]}
    for kind in ("hooks", "operators", "sensors", "triggers"):
        assert {entry["integration-name"] for entry in info[kind]} <= known
    assert all(integration["how-to-guide"] for integration in info["integrations"])


def test_the_metadata_name_every_public_module() -> None:
    named = {
        module
        for kind in ("hooks", "operators", "sensors", "triggers")
        for entry in get_provider_info()[kind]
        for module in entry["python-modules"]
    }
    root = PROJECT / "airflow_provider_picas"
    defining = {
        f"airflow_provider_picas.{'.'.join(path.relative_to(root).with_suffix('').parts)}"
        for folder in ("operators", "sensors", "triggers", "hooks")
        for path in (root / folder).rglob("*.py")
        if re.search(r"^class Picas\w*(Operator|Sensor|Trigger|Hook)\(", path.read_text(), re.MULTILINE)
    }
    assert [module for module in defining if not any(f"{module}.".startswith(f"{name}.") for name in named)] == []


def test_licences_and_bill_are_those_of_the_locked_packages() -> None:
    """That they name the packages that are in the bundle is tested where the page is built."""
    names = [
        f"{c['group']}/{c['name']}" if "group" in c else c["name"]
        for c in json.loads(dist.BILL.read_text())["components"]
    ]
    assert dist.bill(names) == dist.BILL.read_text(), "write both with `python -m stack.dist notices`"
    lock = json.loads((dist.WWW / "package-lock.json").read_text())["packages"]
    headings = re.findall(r"^={100}\n(\S+) (\S+) \((.*)\)$", dist.NOTICES.read_text(), re.MULTILINE)
    assert [name for name, _, _ in headings] == names
    for name, version, licence in headings:
        assert (version, licence) == (lock[f"node_modules/{name}"]["version"], lock[f"node_modules/{name}"]["license"])
        assert licence in SETTINGS["project"]["license"].split(" AND ")
