"""The files of a release: ``python -m stack.dist notices|build``.

``notices`` writes what the page's bundle contains into ``airflow_provider_picas/www``: the licences of its npm packages, and a
CycloneDX bill of materials. Both are committed, and the wheel has them. ``build`` makes the wheel and the sdist of the last
commit twice, in different folders, and keeps them in ``dist/`` only if both have the same bytes.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stack import install, page, paths
from stack.processes import StackError

WWW = paths.PROJECT / "airflow_provider_picas" / "www"
NOTICES = WWW / "THIRD-PARTY-LICENSES.txt"
BILL = WWW / "bundle.cdx.json"
TARGET = paths.PROJECT / "dist"
#: The bundler adds functions of its own to each bundle.
BUNDLER = "rolldown"

_PACKAGE = re.compile(r"node_modules/((?:@[^/]+/)?[^/]+)/")


def bundled() -> list[str]:
    """The npm packages whose code is in the bundle, by its source map."""
    with tempfile.TemporaryDirectory(dir=page.PACKAGES) as folder:
        page.npm("exec", "vite", "--", "build", "--logLevel=error", "--sourcemap=hidden", f"--outDir={folder}")
        if (Path(folder) / "picas.js").read_bytes() != (page.BUNDLES / "picas.js").read_bytes():
            raise StackError(
                "Two builds of the page differ, or www/dist has the bundle of other sources. Run `make install`."
            )
        sources = json.loads((Path(folder) / "picas.js.map").read_text())["sources"]
    return sorted({match[1] for source in sources if (match := _PACKAGE.search(source))} | {BUNDLER})


def notices(packages: list[str]) -> str:
    """The licence of each package, as it is in the package."""
    locked = _locked()
    parts = ["The page in Airflow's UI (www/dist/picas.js) contains code of these npm packages."]
    for name in packages:
        folder = WWW / "node_modules" / name
        licence = next(path for path in sorted(folder.iterdir()) if path.name.upper().startswith("LICEN"))
        entry = locked[name]
        parts.append(f"{'=' * 100}\n{name} {entry['version']} ({entry['license']})\n\n{licence.read_text().strip()}")
    return "\n\n".join(parts) + "\n"


def bill(packages: list[str]) -> str:
    """CycloneDX 1.6: the wheel, and the npm packages in its bundle."""
    project = tomllib.loads((paths.PROJECT / "pyproject.toml").read_text())["project"]
    name, version = project["name"], project["version"]
    wheel = {
        "bom-ref": f"pkg:pypi/{name}@{version}",
        "type": "library",
        "name": name,
        "version": version,
        "licenses": [{"license": {"id": "Apache-2.0"}}],
        "purl": f"pkg:pypi/{name}@{version}",
    }
    locked = _locked()
    components = [_component(package, locked[package]) for package in packages]
    content = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"lifecycles": [{"phase": "build"}], "component": wheel},
        "components": components,
        "dependencies": [
            {"ref": wheel["bom-ref"], "dependsOn": [component["bom-ref"] for component in components]},
            *({"ref": component["bom-ref"]} for component in components),
        ],
    }
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(content))  # the same content has the same number
    return json.dumps({"serialNumber": f"urn:uuid:{serial}", **content}, indent=2) + "\n"


def _component(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    algorithm, _, digest = entry["integrity"].partition("-")
    purl = f"pkg:npm/{name.replace('@', '%40')}@{entry['version']}"
    group, _, short = name.rpartition("/")
    return {
        "bom-ref": purl,
        "type": "library",
        **({"group": group} if group else {}),
        "name": short,
        "version": entry["version"],
        "licenses": [{"license": {"id": entry["license"]}}],
        "purl": purl,
        # npm's digest is that of the package's archive.
        "externalReferences": [
            {
                "type": "distribution",
                "url": purl,
                "hashes": [{"alg": algorithm.upper().replace("SHA", "SHA-"), "content": _hexadecimal(digest)}],
            }
        ],
    }


def _hexadecimal(digest: str) -> str:
    return base64.b64decode(digest).hex()


def _locked() -> dict[str, Mapping[str, Any]]:
    """The entries of the lock file, by package."""
    entries = json.loads((WWW / "package-lock.json").read_text())["packages"]
    return {path.removeprefix("node_modules/"): entry for path, entry in entries.items()}


def build() -> list[Path]:
    """Wheel and sdist of the last commit, in ``dist/``. Raises StackError if two builds differ."""
    made = [_built_from_export(number) for number in (1, 2)]
    (first, second) = ({path.name: _digest(path) for path in folder.iterdir()} for folder in made)
    if first != second:
        raise StackError(f"Two builds of the same commit differ: {first} and {second}, in {made[0]} and {made[1]}.")
    shutil.rmtree(TARGET, ignore_errors=True)
    shutil.copytree(made[0], TARGET)
    for folder in made:
        shutil.rmtree(folder.parent)
    return sorted(TARGET.iterdir())


def _built_from_export(number: int) -> Path:
    """Export the last commit into a new folder, and build both files there; the folder of these files."""
    folder = paths.HOME / "dist" / f"build-{'x' * number}"
    shutil.rmtree(folder, ignore_errors=True)
    source = folder / "source"
    source.mkdir(parents=True)
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=paths.PROJECT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x", "-C", source], input=archive, check=True)
    date = subprocess.run(
        ["git", "log", "-1", "--format=%ct"], cwd=paths.PROJECT, capture_output=True, text=True, check=True
    ).stdout.strip()
    python = paths.AIRFLOW_VENV / "bin" / "python"
    install.run(
        [python, "-m", "hatchling", "build", "-d", folder / "files"], cwd=source, env={"SOURCE_DATE_EPOCH": date}
    )
    return folder / "files"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_notices() -> None:
    packages = bundled()
    NOTICES.write_text(notices(packages))
    BILL.write_text(bill(packages))


def build_and_check() -> None:
    files = build()
    python = paths.AIRFLOW_VENV / "bin" / "python"
    subprocess.run(
        [python, "-m", "twine", "check", "--strict", *files], check=True, env={**os.environ, "NO_COLOR": "1"}
    )
    for path in files:
        print(f"{_digest(path)}  {path.relative_to(paths.PROJECT)}")


COMMANDS = {"notices": write_notices, "build": build_and_check}


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m stack.dist", description=__doc__)
    parser.add_argument("command", choices=COMMANDS)
    try:
        COMMANDS[parser.parse_args(words).command]()
    except (StackError, subprocess.CalledProcessError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
