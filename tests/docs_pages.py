"""Code blocks of the documentation's pages."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from stack import paths

DOCS = paths.PROJECT / "docs"

_FENCE = re.compile(
    r"^(?P<indent> *)(?P<fence>```+)(?:\{code-block\} *)?(?P<language>[a-z]+)\n"
    r"(?P<options>(?: *:[a-z-]+:[^\n]*\n)*)(?P<text>.*?)^(?P=indent)(?P=fence) *$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A code block: its language, its text, the caption, which is a file's name, and the line where it begins."""

    language: str
    text: str
    caption: str | None
    line: int


def blocks(page: Path) -> list[Block]:
    """The code blocks of a page, in order."""
    source = page.read_text()
    found = []
    for match in _FENCE.finditer(source):
        caption = re.search(r":caption: *([^\n]*)", match["options"])
        line = source.count("\n", 0, match.start("text")) + 1
        found.append(Block(match["language"], match["text"].strip("\n") + "\n", caption[1] if caption else None, line))
    return found
