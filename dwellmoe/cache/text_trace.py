"""Lines and numbers of traces that are text files."""

from pathlib import Path

import numpy as np

from dwellmoe.cache.memory import check_memory
from dwellmoe.errors import UserError

BYTES_A_BYTE = 20  # of memory, for each of a text file while it is read


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, with or without a byte-order mark; empty ones at its end are left out.

    UserError for another encoding, and for a file that takes too much memory.
    """
    check_memory(BYTES_A_BYTE * path.stat().st_size, f"{path}: reading it")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 text: byte {error.start} is {error.object[error.start]:#x}"
        ) from None
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def broken_row(path: Path, number: int, line: str, expected: str) -> UserError:
    """The error for a line, counted from 1, that cannot be read."""
    return UserError(f"{path}, line {number}: broken row {line[:60]!r}: expected {expected}")


def whole_number(text: str) -> int | None:
    """The number in a cell; None for anything but digits after a sign."""
    text = text.strip()
    digits = text.removeprefix("-")
    return int(text) if digits.isascii() and digits.isdecimal() and len(digits) < 20 else None


def check_range(path: Path, place: str, first: int, name: str, values: np.ndarray, most: int) -> None:
    """UserError for the first value of a column that is no whole number from 0 to `most`.

    `place` is the word for a row ("line"), and `first` the number of the first one.
    """
    good = (values >= 0) & (values <= most)  # NaN is neither
    if values.dtype.kind == "f":
        good &= values == np.floor(values)
    if not good.all():
        at = int((~good).argmax())
        value = values[at].item()
        raise UserError(
            f"{path}, {place} {first + at}: {name} is {int(value) if value % 1 == 0 else value}, "
            f"out of range: expected a whole number from 0 to {most}"
        )
