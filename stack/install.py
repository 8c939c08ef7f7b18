"""Install the parts of the stack below ``.stack/``: ``python3 -m stack.install [airflow] [picas] [couchdb] [cluster]``.

Without names, it installs all of them. A part whose inputs have not changed since it was installed is skipped. Runs on a
bare Python 3.11: neither pip, venv's ensurepip nor root is needed. It respects pip's configuration (mirrors,
certificates).
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from stack import paths
from stack.commands import exit_code
from stack.processes import StackError, tail

PARTS = ("airflow", "picas", "couchdb", "cluster", "page", "browser")
EXTRA_PARTS = ("examples", "peers")
"""Installed only if they are named: an example and a benchmark need them."""
AIRFLOW_PINS = paths.PROJECT / "stack" / "requirements-airflow-3.3.txt"
PICAS_PINS = paths.PROJECT / "stack" / "requirements-picas.txt"
EXAMPLES_PINS = paths.PROJECT / "stack" / "requirements-examples.txt"
PEERS_PINS = paths.PROJECT / "stack" / "requirements-peers.txt"
LOG = paths.HOME / "log" / "install.log"
CACHE = paths.HOME / "cache"
CACHES = {
    "PIP_CACHE_DIR": str(CACHE / "pip"),
    "UV_CACHE_DIR": str(CACHE / "uv"),
    "npm_config_cache": str(CACHE / "npm"),
}
OLDEST_PYTHON = (3, 11)


def install(parts: Sequence[str] = PARTS) -> None:
    """Install these parts. Raises StackError, which carries the end of the log."""
    check_python()
    with locked(paths.HOME / "install.lock"):
        for part in (part for part in (*PARTS, *EXTRA_PARTS) if part in parts):
            INSTALLERS[part]()


def airflow() -> None:
    """The environment with Airflow, the provider (editable) and the tools that the other parts need."""
    venv = paths.AIRFLOW_VENV
    made = step("Airflow and the test tools", lambda: environment(venv, AIRFLOW_PINS),
                venv=venv, inputs=[AIRFLOW_PINS])  # fmt: skip
    project = ["install", "--no-deps", "--no-build-isolation", "--editable", str(paths.PROJECT)]
    step("the provider, editable", lambda: pip(venv, project),
         venv=venv, name="provider", inputs=[paths.PROJECT / "pyproject.toml"], again=made)  # fmt: skip


def picas() -> None:
    """The environment with the PiCaS client, for the cluster's side."""
    step("the PiCaS client", lambda: environment(paths.PICAS_VENV, PICAS_PINS),
         venv=paths.PICAS_VENV, inputs=[PICAS_PINS])  # fmt: skip


def examples() -> None:
    """The environment of ``dags/sunspot_pilot.sh``, which makes it itself where it is not there."""
    step("the packages of an example", lambda: environment(paths.EXAMPLES_VENV, EXAMPLES_PINS),
         venv=paths.EXAMPLES_VENV, inputs=[EXAMPLES_PINS])  # fmt: skip
    (paths.EXAMPLES_VENV / "complete").touch()


def peers() -> None:
    """The environment with the systems that a benchmark compares with."""
    step("HyperQueue and Parsl", lambda: environment(paths.PEERS_VENV, PEERS_PINS),
         venv=paths.PEERS_VENV, inputs=[PEERS_PINS])  # fmt: skip


def couchdb() -> None:
    """The embedded CouchDB-compatible server."""
    from stack import couchdb as part

    os.environ.setdefault("npm_config_cache", CACHES["npm_config_cache"])
    timed("CouchDB", part.install)


def cluster() -> None:
    """Slurm, munge, sshd and MariaDB."""
    from stack import cluster as part

    timed("Slurm and sshd", part.install)


def page() -> None:
    """The bundle of the page inside Airflow's UI."""
    from stack import page as part

    os.environ.setdefault("npm_config_cache", CACHES["npm_config_cache"])
    timed("the page", part.install)


def browser() -> None:
    """Chromium, for the page's tests."""
    from stack import browser as part

    timed("Chromium", part.install)


INSTALLERS: Mapping[str, Callable[[], None]] = {
    "airflow": airflow,
    "picas": picas,
    "examples": examples,
    "couchdb": couchdb,
    "cluster": cluster,
    "page": page,
    "browser": browser,
    "peers": peers,
}


def check_python() -> None:
    """Raise StackError on a Python that Airflow's providers do not run on."""
    if sys.version_info < OLDEST_PYTHON:
        raise StackError(
            f"This is Python {sys.version.split()[0]}, and the stack needs 3.11 or newer. "
            "Run it as `make PYTHON=/path/to/python3 ...`."
        )


# One step: what it is, whether it is done already, how long it took


def step(
    what: str, do: Callable[[], None], *, venv: Path, inputs: Sequence[Path], name: str = "pins", again: bool = False
) -> bool:
    """Do it unless the venv's stamp says that it was done with the same inputs. Returns whether it was done now."""
    stamp = venv / f".installed-{name}"
    version = fingerprint(inputs)
    if not again and stamp.is_file() and stamp.read_text() == version and (venv / "bin" / "python").exists():
        return False
    stamp.unlink(missing_ok=True)
    timed(what, do)
    stamp.write_text(version)
    return True


def fingerprint(inputs: Sequence[Path]) -> str:
    """Changes with the files' content, the Python, and the place (scripts of an environment name their folder)."""
    digest = hashlib.sha256(f"{sys.version} {paths.HOME}".encode())
    for path in inputs:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def timed(what: str, do: Callable[[], object]) -> None:
    """Do it, with a line that says what, and how long it took; the line is left out when nothing was to do."""
    begin = time.monotonic()
    if sys.stdout.isatty():
        print(f"  installing {what} ...", end="", flush=True)
    do()
    seconds = time.monotonic() - begin
    if sys.stdout.isatty():
        print("\r\033[K", end="")
    if seconds > 1:
        print(f"  installed {what:<40} {seconds:6.1f} s", flush=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One installation at a time; a second one waits for the first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("  waiting for another installation to end ...", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> None:
    """Run a command with its output in install.log; ended with all its children if this process is interrupted.

    Raises StackError with the end of the log when it fails.
    """
    LOG.parent.mkdir(parents=True, exist_ok=True)
    words = [str(word) for word in argv]
    with LOG.open("ab") as log:
        log.write(f"\n$ {' '.join(words)}\n".encode())
        log.flush()
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=cwd, env=environ(env), start_new_session=True
        )
        try:
            process.wait()
        except BaseException:
            end_group(process)
            raise
    if process.returncode != 0:
        raise StackError(f"`{' '.join(words[:6])}` failed with code {process.returncode}. End of {LOG}:\n{tail(LOG)}")


def end_group(process: subprocess.Popen[bytes]) -> None:
    for sig in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sig)
            process.wait(timeout=5)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def environ(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment, with caches below ``.stack``, so that nothing of the person's home is touched."""
    env = {
        **CACHES,
        **os.environ,
        "UV_PYTHON_DOWNLOADS": "never",
        "PIP_REQUIRE_VIRTUALENV": "0",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        **(more or {}),
    }
    for name in ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
        env.pop(name, None)
    return env


# Python environments


def environment(venv: Path, pins: Path) -> None:
    """Create the virtual environment from scratch with exactly the pinned versions."""
    shutil.rmtree(venv, ignore_errors=True)
    run([sys.executable, "-m", "venv", "--without-pip", venv])
    uv = next(line.split()[0] for line in AIRFLOW_PINS.read_text().splitlines() if line.startswith("uv=="))
    if not (paths.AIRFLOW_VENV / "bin" / "uv").exists():
        run([venv / "bin" / "python", *bootstrap_pip(), "install", "--quiet", uv])
    pip(venv, ["install", "-r", str(pins)])


def pip(venv: Path, arguments: Sequence[str]) -> None:
    """Run a pip command for this environment: with uv, which is 20 times as fast, or with pip itself if uv fails."""
    python = venv / "bin" / "python"
    uv = next((path for path in (venv / "bin" / "uv", paths.AIRFLOW_VENV / "bin" / "uv") if path.exists()), None)
    if uv is not None:
        command, *options = arguments
        try:
            run([uv, "pip", command, "--python", python, "--compile-bytecode", *options], env=uv_settings(python))
            return
        except StackError as error:
            print("\n  uv failed, trying pip, which takes longer ...", flush=True)
            with LOG.open("a") as log:
                log.write(f"{error}\n")
    run([python, *bootstrap_pip(), *arguments])


def uv_settings(python: Path) -> dict[str, str]:
    """The index and certificates of pip's configuration as uv's variables; uv does not read pip's."""
    listed = subprocess.run(
        [python, *bootstrap_pip(), "config", "list"], capture_output=True, text=True, env=environ(), check=False
    )
    settings = dict(re.findall(r"^\S+?\.(index-url|cert)='(.*)'$", listed.stdout, re.MULTILINE))
    named = {"index-url": "UV_DEFAULT_INDEX", "cert": "SSL_CERT_FILE"}
    return {named[key]: value for key, value in settings.items() if named[key] not in os.environ}


def bootstrap_pip() -> list[str]:
    """Arguments after ``python`` that run a pip, though the environment has none.

    ensurepip's wheel, or Debian's, which its Python keeps in packages that may not be installed: then they are fetched
    and unpacked, which takes no root.
    """
    wheel = next(find_pip_wheels(), None)
    if wheel is None:
        fetch_debian(["python3-pip-whl", "python3-setuptools-whl"], paths.HOME / "bootstrap")
        wheel = next(find_pip_wheels(), None)
    if wheel is None:
        raise StackError("This Python has neither pip nor ensurepip. Install your system's python3-venv package.")
    return [str(wheel / "pip")]


def find_pip_wheels() -> Iterator[Path]:
    """Wheels of pip itself: ensurepip's, if there is one, and Debian's."""
    ensurepip = importlib.util.find_spec("ensurepip")
    if ensurepip is not None and ensurepip.origin is not None:
        yield from sorted((Path(ensurepip.origin).parent / "_bundled").glob("pip-*.whl"))
    for prefix in (Path("/usr"), paths.HOME / "bootstrap" / "usr"):
        yield from sorted((prefix / "share" / "python-wheels").glob("pip-*.whl"))


def fetch_debian(packages: Sequence[str], prefix: Path) -> None:
    """Download Debian packages as an ordinary user, with package lists of our own, and unpack them into ``prefix``."""
    if shutil.which("apt-get") is None:
        raise StackError(f"apt-get is missing; it is needed to fetch {', '.join(packages)}.")
    lists, debs = CACHE / "apt" / "lists", CACHE / "apt" / "debs"
    for folder in (lists / "partial", debs, prefix):
        folder.mkdir(parents=True, exist_ok=True)
    options = ["-o", f"Dir::State::lists={lists}", "-o", f"Dir::Cache={CACHE / 'apt'}", "-o", "Debug::NoLocking=1",
               "-o", "APT::Sandbox::User="]  # fmt: skip
    if not any(lists.glob("*Packages*")):
        run(["apt-get", *options, "update"])
    run(["apt-get", *options, "download", *packages], cwd=debs)
    for package in packages:
        run(["dpkg", "-x", max(debs.glob(f"{package}_*.deb"), key=lambda path: path.stat().st_mtime), prefix])


# Upkeep


def write_pins() -> None:
    """Resolve all environments again, for Python 3.11 and newer, and write the pins."""
    lists = [(asked.with_suffix(".txt"), asked) for asked in sorted(AIRFLOW_PINS.parent.glob("requirements-*.in"))]
    for pins, asked in (*lists, (PICAS_PINS, None)):
        heading = [line for line in pins.read_text().splitlines() if line.startswith("#")]
        source = asked or CACHE / "picas.in"
        if asked is None:
            source.write_text("picas\n")
        resolved = CACHE / pins.name
        options = ["--universal", "--python-version", "3.11", "--upgrade"]
        options += ["--generate-hashes", "--no-header", "--no-annotate"]
        run([paths.AIRFLOW_VENV / "bin" / "uv", "pip", "compile", *options, source, "-o", resolved],
            env=uv_settings(paths.AIRFLOW_VENV / "bin" / "python"))  # fmt: skip
        pins.write_text("\n".join([*heading, resolved.read_text()]))


def clean() -> None:
    """Remove ``.stack`` after ending all processes that still run from it."""
    from stack import page as www
    from stack.native import sweep

    www.remove()
    for folder in paths.RUN.glob("*/"):
        sweep(folder)
    shutil.rmtree(paths.HOME, ignore_errors=True)


def interrupt_on_sigterm() -> None:
    """Let SIGTERM unwind like Ctrl-C, so that started processes are ended."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m stack.install", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part",
                        help=f"of {', '.join(PARTS)} (default: all), {', '.join(EXTRA_PARTS)}")  # fmt: skip
    parser.add_argument("--pins", action="store_true", help="resolve the pinned versions anew")
    parser.add_argument("--clean", action="store_true", help="remove everything that was installed")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.parts) - set(INSTALLERS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    interrupt_on_sigterm()

    def work() -> int:
        if arguments.clean:
            clean()
        elif arguments.pins:
            install(["airflow"])
            write_pins()
        else:
            install(arguments.parts or PARTS)
        return 0

    return exit_code(work, "interrupted")


if __name__ == "__main__":
    sys.exit(main())
