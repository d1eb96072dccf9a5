"""Helpers for dataclasses of settings: options with help texts, and checks whose errors name the option."""

from dataclasses import field
from typing import Any

from dwellmoe.errors import UserError


def option(default: Any, help: str, **metadata: Any) -> Any:
    """A dataclass field with a default and the text that `--help` shows."""
    # argparse formats help texts with %.
    return field(default=default, metadata={"help": help.replace("%", "%%"), **metadata})


def split_list(text: str) -> list[str]:
    """The names of a comma list."""
    return [name.strip() for name in text.split(",") if name.strip()]


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises UserError unless the value is one of the choices."""
    if value not in choices:
        raise UserError(f"--{name} {value}: choose from {', '.join(choices)}")


def check_at_least(name: str, value: float, least: float) -> None:
    """Raises UserError for a value below the least one (or for NaN)."""
    if not value >= least:
        raise UserError(f"--{name} {value}: must be at least {least}")
