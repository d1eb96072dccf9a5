"""Knows how a mistake in a TOML table is told: file, key, what was expected, what was found."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from dwellmoe.errors import UserError

NAMES = {str: "a text", int: "a whole number", list: "a list", dict: "a table"}


def check_table(
    table: Mapping[str, Any], known: Collection[str], types: Mapping[str, type], path: Path, prefix: str = ""
) -> None:
    """Raises UserError for a key that is not known or a value of a wrong type; not in `types`: a text."""
    for key, value in table.items():
        if key not in known:
            raise UserError(f"{path}: unknown key '{prefix}{key}': choose from {', '.join(sorted(known))}")
        expected = types.get(key, str)
        if not isinstance(value, expected):
            found = f"{type(value).__name__} {value!r:.40}"
            raise UserError(f"{path}: '{prefix}{key}' must be {NAMES[expected]}, found {found}")


def require_keys(table: Mapping[str, Any], keys: Collection[str], path: Path, prefix: str = "") -> None:
    """Raises UserError naming the first key that the table lacks."""
    for key in keys:
        if key not in table:
            raise UserError(f"{path}: key '{prefix}{key}' is missing")


def require_choice(value: str, key: str, choices: Collection[str], path: Path) -> None:
    """Raises UserError, with the choices, for a value that is none of them."""
    if value not in choices:
        raise UserError(f"{path}: {key} = '{value}': choose from {', '.join(choices)}")
