"""The wheel, and its page on PyPI."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

from airflow_provider_picas import __version__
from airflow_provider_picas.provider_info import HOME
from stack import dist, paths
from tests.wheels import build_wheel

INFO = f"airflow_provider_picas-{__version__}.dist-info"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        return Parser().parsestr(archive.read(f"{INFO}/METADATA").decode())


def test_a_second_build_has_the_same_bytes(wheel: Path, tmp_path: Path) -> None:
    assert build_wheel(tmp_path).read_bytes() == wheel.read_bytes()


def test_pypi_accepts_the_metadata(wheel: Path) -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", str(wheel)], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "warning" not in checked.stdout.lower()


def test_the_metadata_lead_to_home_documentation_and_changelog(metadata: Message) -> None:
    addresses = dict(value.split(", ", 1) for value in metadata.get_all("Project-URL", []))
    assert {"Homepage", "Documentation", "Changelog", "Issues", "Source"} <= set(addresses)
    assert metadata["Author"] == "The airflow-provider-picas maintainers"
    assert metadata["License-Expression"] == "Apache-2.0 AND MIT"


def test_the_page_on_pypi_has_absolute_links_only(metadata: Message) -> None:
    """Relative in README.md, so that they lead to the same branch there; each leads to a file that exists."""
    from readme_renderer import markdown

    page = markdown.render(str(metadata.get_payload()))
    assert page is not None
    found = re.findall(r'(?:href|src|srcset)="([^"]*)"', page)
    targets = [target for target in found if not target.startswith("#user-content-")]  # a heading's link to itself
    assert len(targets) > 10
    assert [target for target in targets if not target.startswith("https://")] == []
    own = [match for target in targets if (match := re.match(rf"{HOME}/(blob|raw)/v{__version__}/([^#]*)", target))]
    assert [match[2] for match in own if not (paths.PROJECT / match[2]).exists()] == []
    pictures = re.findall(r'<img[^>]*src="([^"]*)"', page)
    assert pictures
    assert [picture for picture in pictures if not picture.startswith(f"{HOME}/raw/")] == []


def test_the_wheel_has_the_licences_and_the_bill_of_its_bundle(wheel: Path, metadata: Message) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert json.loads(archive.read(f"{INFO}/sboms/{dist.BILL.name}")) == json.loads(dist.BILL.read_text())
        for name in metadata.get_all("License-File", []):
            assert archive.read(f"{INFO}/licenses/{name}") == (paths.PROJECT / name).read_bytes()
    assert len(metadata.get_all("License-File", [])) == 2
    assert "airflow_provider_picas/www/dist/picas.js" in names
    assert [name for name in names if "node_modules" in name or "__pycache__" in name or "/src/" in name] == []


def test_the_bill_names_the_packages_that_are_in_the_bundle() -> None:
    packages = dist.bundled()
    assert dist.bill(packages) == dist.BILL.read_text(), "write both with `python -m stack.dist notices`"
    assert dist.notices(packages) == dist.NOTICES.read_text()
