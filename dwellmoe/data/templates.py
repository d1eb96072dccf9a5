"""Wordings: texts in which `{name}` stands for a field, and `{{` and `}}` for braces."""

import re
from collections.abc import Mapping
from typing import Any

from dwellmoe.errors import UserError

_PIECE = re.compile(r"(?P<brace>\{\{|\}\})|\{(?P<name>\w+)\}|(?P<fault>[{}].{0,20})", re.DOTALL)


def placeholders(template: str) -> tuple[str, ...]:
    """The names of the fields that a wording uses, each once, in its order.

    UserError, with line and column, for any other brace.
    """
    names = {}
    for piece in _PIECE.finditer(template):
        if piece["fault"]:
            raise _fault(template, piece)
        names[piece["name"]] = None
    return tuple(name for name in names if name)


def fill(template: str, fields: Mapping[str, Any]) -> str:
    """The wording with its fields filled in; only plain names, so that no data can reach into objects.

    KeyError for a field that is missing, UserError for one that is neither text nor number nor true / false.
    """

    def filled(piece: re.Match[str]) -> str:
        if name := piece["name"]:
            return as_text(name, fields[name])
        if piece["brace"]:
            return piece["brace"][0]
        raise _fault(template, piece)

    return _PIECE.sub(filled, template)


def as_text(name: str, value: Any) -> str:
    """A field's value as it stands in a wording. UserError for one that has no text, such as null and NaN."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        raise UserError(f"'{name}' must be a text or a finite number, found {value}")
    if not isinstance(value, str | int | float):
        raise UserError(f"'{name}' must be a text, found {type(value).__name__} {value!r:.60}")
    return str(value)


def _fault(template: str, piece: re.Match[str]) -> UserError:
    before = template[: piece.start()]
    line, column = before.count("\n") + 1, piece.start() - before.rfind("\n")
    return UserError(
        f"line {line}, column {column}, {piece['fault']!r}: only {{name}} stands for a field, without "
        "conversion, format or index; a brace of the text is written twice, {{ or }}"
    )
