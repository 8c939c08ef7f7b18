"""Sphinx's settings for the documentation site. ``make docs`` builds it, strictly, into ``.stack/docs``."""

from __future__ import annotations

import os
import re
import sys
import tomllib
from pathlib import Path

from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parent
PROJECT = DOCS.parent
sys.path[:0] = [str(PROJECT), str(DOCS)]

import generated  # noqa: E402

from airflow_provider_picas.provider_info import HOME  # noqa: E402

_PACKAGE = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]

project = _PACKAGE["name"]
author = "The airflow-provider-picas maintainers"
project_copyright = f"{author}. Apache License 2.0"
release = version = _PACKAGE["version"]
REPOSITORY = HOME

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton", "sphinx_design", "measured"]
exclude_patterns = ["**/__pycache__"]
nitpicky = True
highlight_language = "text"  # of blocks that name no language
# Types in signatures: those of Airflow and the standard library are documented on the web, which a build must not need. Those of
# this package have a page only if they are public.
nitpick_ignore_regex = [
    ("py:.*", r"(?!airflow_provider_picas).*"),
    ("py:(class|obj|data)", r"airflow_provider_picas\..*"),
]

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 90
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_logo = "images/logo.svg"
html_favicon = "images/logo.svg"
html_title = f"{project} {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "source_repository": REPOSITORY,
    "source_branch": "main",
    "source_directory": "docs/",
}

# Pages of the repository that the site shows, too. The page in the site consists of the comment "% file: NAME".
SHOWN = {
    "CHANGELOG.md": "reference/changelog.md",
    "CONTRIBUTING.md": "development/contributing.md",
    "SECURITY.md": "development/security.md",
}
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#|<)([^)#\s]+)(#[^)\s]*)?(?=\))")


def read_page(app: Sphinx, docname: str, source: list[str]) -> None:
    """Read the shown file, fill in generated parts, and let links to files outside of ``docs/`` lead to the repository."""
    page = DOCS / f"{docname}.md"
    shown = re.match(r"% file: (\S+)\s*\Z", source[0])
    original = PROJECT / shown[1] if shown else page
    if shown:
        source[0] = original.read_text()
        app.env.note_dependency(str(original))
    source[0] = generated.fill(source[0])
    source[0] = _LINK.sub(lambda link: _target(link[1], original, page) + (link[2] or ""), source[0])


def _target(link: str, original: Path, page: Path) -> str:
    """Where a link of ``original`` has to lead from ``page`` of the site."""
    path = (original.parent / link).resolve()
    if not path.is_relative_to(PROJECT) or not path.exists():
        return link  # the strict build reports it
    name = str(path.relative_to(PROJECT))
    if name in SHOWN:
        path = DOCS / SHOWN[name]
    if path.is_relative_to(DOCS) and path.is_file():
        return os.path.relpath(path, page.parent)
    return f"{REPOSITORY}/{'tree' if path.is_dir() else 'blob'}/main/{name}"


def link_pages(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Let the paths of pages in a docstring be links."""
    lines[:] = [generated.linked(line) for line in lines]


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", link_pages)
    app.connect("source-read", read_page)
