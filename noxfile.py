"""The provider on each Airflow and Python that it is for, as far as they are found: ``make compat``, or with a nox of
yours:

    nox -t oldest                             the oldest pair; likewise the newest
    nox -s "tests(3.2-3.12)"                  Airflow 3.2 with Python 3.12
    nox -t oldest -- tests/unit -k states     with arguments of pytest

The environments are kept in ``.stack/compat``. A pair whose tests pass is recorded in ``docs/reference/compatibility.json``,
which the documentation shows; with arguments of pytest, nothing is recorded.
"""

import datetime
import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import nox

sys.path.insert(0, str(Path(__file__).parent))

from stack import install, paths

AIRFLOWS = ("3.1", "3.2", "3.3")
PYTHONS = ("3.11", "3.12", "3.13")


def find(python: str) -> str | None:
    """The command of this Python, if there is one that runs: pyenv's shims may exist and not run."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    commands = [shutil.which(f"python{python}"), *map(str, sorted(pyenv.glob(f"{python}.*/bin/python{python}")))]
    for command in filter(None, commands):
        if subprocess.run([command, "-c", ""], capture_output=True, check=False).returncode == 0:
            return command
    return None


FOUND = {python: command for python in PYTHONS if (command := find(python))}
OLDEST = (next(iter(FOUND), PYTHONS[0]), AIRFLOWS[0])
NEWEST = (next(reversed(FOUND), PYTHONS[-1]), AIRFLOWS[-1])
TAGS = {OLDEST: ["oldest"], NEWEST: ["newest"]}

# The tests that involve Airflow: its hooks, operators, sensor, triggers and page. The other tests involve databases, clusters and
# pilots, which are the same for all versions.
TESTS = (
    "tests/unit",
    *(
        f"tests/integration/{what}"
        for what in (
            "decorators",
            "hooks/test_connection.py",
            "hooks/test_picas.py",
            "operators/pilots/test_cancel.py",
            "operators/pilots/test_submit.py",
            "operators/pilots/test_submit_command.py",
            "operators/tokens/test_collect.py",
            "operators/tokens/test_push.py",
            "operators/tokens/test_reset.py",
            "operators/tokens/test_update.py",
            "plugins",
            "sensors/test_tokens.py",
            "test_dags.py",
            "triggers",
        )
    ),
)

RECORD = paths.PROJECT / "docs" / "reference" / "compatibility.json"
VERSIONS = """
import json, platform
from importlib.metadata import version
providers = ("common-compat", "http", "ssh")
print(json.dumps({
    "airflow": version("apache-airflow"),
    "python": platform.python_version(),
    "providers": {name: version(f"apache-airflow-providers-{name}") for name in providers},
}))
"""

nox.needs_version = ">=2025.5"
nox.options.envdir = str(paths.HOME / "compat")
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.download_python = "never"
nox.options.reuse_venv = "yes"
nox.options.error_on_missing_interpreters = False


@nox.session
@nox.parametrize(
    ("python", "airflow"),
    [
        nox.param(FOUND.get(python, python), airflow, id=f"{airflow}-{python}", tags=TAGS.get((python, airflow), []))
        for airflow in AIRFLOWS
        for python in PYTHONS
    ],
)
def tests(session: nox.Session, airflow: str) -> None:
    """Unit tests, and the integration tests that involve Airflow."""
    # The indexes and certificates of pip's configuration as uv's variables; a cache below .stack.
    env = {**install.CACHES, **install.uv_settings(Path(sys.executable))}
    pins = paths.PROJECT / "stack" / f"requirements-airflow-{airflow}.txt"
    session.install("-r", str(pins), env=env)
    session.install("--no-deps", "--no-build-isolation", "--editable", str(paths.PROJECT), env=env)
    report = Path(session.create_tmp()) / "tests.xml"
    chosen = session.posargs or ("-n", "3", "--dist", "loadfile", *TESTS)
    session.run("pytest", f"--junitxml={report}", *chosen, env={"PYTHONDONTWRITEBYTECODE": None})
    if not session.posargs:
        record(session, report)


def record(session: nox.Session, report: Path) -> None:
    """Add what ran in this environment, and how many tests passed, to the file that the documentation shows."""
    found = json.loads(str(session.run("python", "-c", VERSIONS, silent=True)))
    counts = {key: sum(int(suite.get(key, 0)) for suite in ET.parse(report).iter("testsuite"))
              for key in ("tests", "skipped")}  # fmt: skip
    found |= {
        "passed": counts["tests"] - counts["skipped"],
        "skipped": counts["skipped"],
        "date": datetime.date.today().isoformat(),
    }
    known = json.loads(RECORD.read_text()) if RECORD.exists() else []
    others = [row for row in known if _pair(row) != _pair(found)]
    RECORD.write_text(json.dumps(sorted([*others, found], key=_pair), indent=2) + "\n")


def _pair(row: dict[str, str]) -> list[list[int]]:
    """Airflow and Python, without their last numbers."""
    return [[int(part) for part in row[name].split(".")[:2]] for name in ("airflow", "python")]
