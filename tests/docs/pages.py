"""The pages of the project and what stands in them: code blocks, code spans, links, headings."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
HISTORY = ROOT / "docs" / "dev" / "LOG.md"
"""The notebook: it quotes commands as they were when they were run."""
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "models").glob("*/README.md")])
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block of code."""

    page: Path
    language: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    for found in _BLOCK.finditer(page.read_text(encoding="utf-8")):
        yield Block(page, found[1], found[2])


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return _BLOCK.sub("", page.read_text(encoding="utf-8"))


def code_spans(page: Path) -> list[str]:
    """What stands between backticks outside the blocks."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))
