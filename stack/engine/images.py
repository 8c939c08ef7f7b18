"""Stand-ins for the three images that ``docker/`` starts from, under their names, for a machine that cannot download them.

``docker/stand-ins`` has their Dockerfiles, and says what each has in common with the image.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stack import couchdb, install, paths
from stack.engine import daemon, packages
from stack.processes import StackError

SOURCES = paths.PROJECT / "docker" / "stand-ins"
CONTEXTS = packages.PREFIX / "contexts"
BASE = "debian:bookworm-slim"
LABEL = "picas.inputs"
SYSTEM_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
CERTIFICATES = "/etc/ssl/machine.pem"
"""Where the images have this machine's certificates: Debian's own file is written anew when packages are installed."""


def named(pattern: str, file: str) -> str:
    """The name of an image, as a file in ``docker/`` has it."""
    found = re.search(pattern, (paths.PROJECT / "docker" / file).read_text(), re.MULTILINE)
    if found is None:
        raise StackError(f"docker/{file} names no image that matches {pattern!r}.")
    return found[1]


def make() -> None:
    """Make all stand-ins, as far as they are not there. Raises StackError."""
    _timed(BASE, make_base)
    with ThreadPoolExecutor(2) as threads:
        jobs = [threads.submit(make_airflow), threads.submit(make_couchdb)]
        for job in jobs:
            job.result()


def make_base() -> None:
    """Debian's smallest system, by debootstrap, with this machine's certificates and settings of pip."""
    certificates, settings = _certificates(), _pip_settings()
    digest = hashlib.sha256(json.dumps([certificates, settings, packages.mirror(), packages.RECIPE]).encode())
    inputs = digest.hexdigest()
    format_ = f'{{{{index .Config.Labels "{LABEL}"}}}}'
    known = daemon.docker("image", "inspect", "--format", format_, BASE, check=False)
    if known.returncode == 0 and known.stdout.decode().strip() == inputs:
        return
    folder = _empty(CONTEXTS / "debian")
    (folder / "certificates").write_text(certificates)
    (folder / "pip.conf").write_text(settings)
    # Mounts of debootstrap, and the file system that it writes to, end with this shell.
    script = (SOURCES / "debian" / "make").read_text()
    words = ["unshare", "--mount", "bash", "-c", script, "bash", str(folder), packages.DEBIAN, packages.mirror()]
    environ = {**os.environ, **packages.environment(), "KEYRING": str(packages.KEYRING), "LC_ALL": "C"}
    log = folder / "log"
    with log.open("wb") as errors:
        made = subprocess.Popen(words, env=environ, stdout=subprocess.PIPE, stderr=errors)
        changes = [f"LABEL {LABEL}={inputs}", 'CMD ["bash"]']
        options = [word for change in changes for word in ("--change", change)]
        assert made.stdout is not None
        with made.stdout:  # closed afterwards, so that debootstrap ends if the import has failed
            imported = daemon.docker("import", *options, "-", BASE, check=False, stdin=made.stdout)
    if made.wait() or imported.returncode:
        said = log.read_text(errors="replace") + imported.stdout.decode(errors="replace")
        raise StackError(f"debootstrap failed: {said[-3000:]}")


def make_couchdb() -> None:
    """The embedded server, started as Apache CouchDB is in its image."""
    couchdb.install()
    context = _empty(CONTEXTS / "couchdb")
    shutil.copytree(paths.NODE_MODULES, context / "server", ignore=shutil.ignore_patterns("lock", "installed"))
    shutil.copy2(couchdb.node(), context / "node")
    _build("couchdb", context, named(r"^    image: (couchdb:.*)$", "compose.yaml"))


def make_airflow() -> None:
    """Airflow with the pinned versions of everything it needs, laid out as in its image."""
    context = _empty(CONTEXTS / "airflow")
    image = named(r"^FROM (apache/airflow:.*)$", "airflow/Dockerfile")
    shutil.copy2(paths.AIRFLOW_VENV / "bin" / "uv", context / "uv")
    asked = install.AIRFLOW_PINS.with_suffix(".in").read_text().splitlines()
    airflow = [line for line in asked if line.startswith("apache-airflow")]
    (context / "wanted.txt").write_text("\n".join([*airflow, "pip", ""]))
    shutil.copy2(install.AIRFLOW_PINS, context / "pins.txt")
    _build("airflow", context, image, "--build-arg", f"AIRFLOW_VERSION={image.partition(':')[2]}")


def _build(name: str, context: Path, image: str, *options: str) -> None:
    for file in (SOURCES / name).iterdir():
        shutil.copy2(file, context)
    _timed(image, lambda: daemon.docker("buildx", "build", "--progress=plain", "--tag", image, *options, str(context)))


def _timed(image: str, make: Callable[[], object]) -> None:
    begin = time.monotonic()
    make()
    print(f"  a stand-in for {image:<34} {time.monotonic() - begin:6.1f} s", flush=True)


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _certificates() -> str:
    """The authorities that this machine trusts: it may reach the package registries through a proxy that has its own."""
    path = Path(os.environ.get("SSL_CERT_FILE", SYSTEM_CERTIFICATES))
    return path.read_text() if path.is_file() else ""


def _pip_settings() -> str:
    """The configuration of pip in the images: the index of this machine, and its certificates."""
    index = install.uv_settings(Path(sys.executable)).get("UV_DEFAULT_INDEX", os.environ.get("UV_DEFAULT_INDEX"))
    lines = ["[global]", *([f"index-url = {index}"] if index else [])]
    return "\n".join([*lines, *([f"cert = {CERTIFICATES}"] if _certificates() else []), ""])
