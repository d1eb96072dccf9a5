"""How train, validation and test are cut out of a source's own splits: `"dev + validation[:90%]"`."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from dwellmoe.errors import UserError

SPLITS = ("train", "validation", "test")
_PART = re.compile(r"(\w+)(?:\[(\d{0,18})(%?):(\d{0,18})(%?)\])?", re.ASCII)


def select(expression: str, rows_of: Callable[[str], Sequence[Any]]) -> list[Any]:
    """Rows of a split expression, in order; `rows_of` reads a raw split. UserError for a malformed one."""
    rows: list[Any] = []
    for part in expression.split("+"):
        rows.extend(_slice(part.strip(), rows_of))
    return rows


def raw_names(expression: str) -> list[str]:
    """Names of the raw splits an expression needs."""
    return [_parse(part.strip()).group(1) for part in expression.split("+")]


def _parse(part: str) -> re.Match[str]:
    found = _PART.fullmatch(part)
    if found is None:
        raise UserError(f"split {part!r} is not of the form name, name[:90%], name[100:200]")
    name, start, start_percent, stop, stop_percent = found.groups()
    shares = [share for share, percent in ((start, start_percent), (stop, stop_percent)) if percent and share]
    if any(int(share) > 100 for share in shares):
        raise UserError(f"split {part!r}: a share of '{name}' is at most 100 %")
    return found


def _slice(part: str, rows_of: Callable[[str], Sequence[Any]]) -> Sequence[Any]:
    name, start, start_percent, stop, stop_percent = _parse(part).groups()
    rows = rows_of(name)
    first = _position(start, start_percent, len(rows), 0)
    last = _position(stop, stop_percent, len(rows), len(rows))
    return rows[first:last]


def _position(text: str | None, percent: str | None, length: int, default: int) -> int:
    if not text:
        return default
    return length * int(text) // 100 if percent else int(text)
