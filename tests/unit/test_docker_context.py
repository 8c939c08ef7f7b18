"""The build contexts of the images, as their ``.dockerignore`` files define them. No Docker engine is needed."""

from __future__ import annotations

import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from stack import paths
from tests.wheels import build_wheel

DOCKERFILES = sorted(paths.PROJECT.glob("docker/*/Dockerfile"))


def regex(pattern: str) -> re.Pattern[str]:
    """A pattern of a .dockerignore file: ``*`` and ``?`` stay within a folder's name, ``**`` stands for any folders."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern.strip("/"))
    wild = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(wild.get(part, re.escape(part)) for part in parts))


def context(dockerfile: Path) -> Iterator[str]:
    """Paths of the project's files that a build of this Dockerfile gets: of the patterns that match, the last one counts."""
    lines = dockerfile.with_name("Dockerfile.dockerignore").read_text().splitlines()
    patterns = [(line.startswith("!"), regex(line.removeprefix("!"))) for line in lines if line and line[0] != "#"]
    for folder, folders, files in os.walk(paths.PROJECT):
        folders[:] = [name for name in folders if name not in (".git", ".stack")]
        for file in files:
            path = PurePosixPath(folder, file).relative_to(paths.PROJECT)
            names = [str(path), *map(str, path.parents)]
            verdicts = [kept for kept, pattern in patterns if any(map(pattern.fullmatch, names))]
            if not verdicts or verdicts[-1]:
                yield str(path)


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.parent.name)
def test_what_an_image_copies_is_in_its_context(dockerfile: Path) -> None:
    copied = re.findall(r"^COPY (?:--\S+ )*(.+) \S+$", dockerfile.read_text(), re.MULTILINE)
    assert copied
    files = set(context(dockerfile))
    known = {"."} | files | {str(parent) for file in files for parent in PurePosixPath(file).parents}
    assert [source for sources in copied for source in sources.split() if source not in known] == []


def test_the_wheel_of_the_airflow_image_is_the_projects(tmp_path: Path) -> None:
    dockerfile = paths.PROJECT / "docker" / "airflow" / "Dockerfile"
    image = tmp_path / "image"
    for file in context(dockerfile):
        (image / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(paths.PROJECT / file, image / file)
    names = wheel(image, tmp_path / "of-the-image")
    assert "airflow_provider_picas/example_dags/picas_word_count.py" in names
    assert names == wheel(paths.PROJECT, tmp_path / "of-the-project")


def wheel(project: Path, target: Path) -> list[str]:
    """The names of the files in a wheel."""
    with zipfile.ZipFile(build_wheel(target, project)) as archive:
        return sorted(archive.namelist())
