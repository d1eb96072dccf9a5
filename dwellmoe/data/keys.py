"""What each key of a task file may hold; a value that does not fit is reported with file, key and value."""

import datetime
import math
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dwellmoe.data.templates import placeholders
from dwellmoe.errors import UserError, first_line, unknown_name
from dwellmoe.files import check_name


class Place(NamedTuple):
    """Where a value stands: its file, and its key with those of the tables around it."""

    file: Path
    key: str = ""

    def at(self, key: str) -> "Place":
        """The place of a key of the table that stands here."""
        return Place(self.file, f"{self.key}.{key}" if self.key else key)

    def error(self, what: str) -> UserError:
        """What is wrong with the value here."""
        return UserError(f"{self.file}: {self.key!r} {what}")


Check = Callable[[Any, Place], None]
"""Raises UserError for a value that does not fit."""
TYPE_NAMES = {
    bool: "true or false",
    str: "a text",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "a table",
    datetime.time: "a time",
    **dict.fromkeys((datetime.date, datetime.datetime), "a date"),
}


def _fits(expected: str, fits: Callable[[Any], object]) -> Check:
    """A check by a predicate; `expected` says in words what it accepts."""

    def check(value: Any, place: Place) -> None:
        if not fits(value):
            raise place.error(f"must be {expected}, found {TYPE_NAMES[type(value)]}: {value!r:.60}")

    return check


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


TEXT = _fits("a text", lambda value: isinstance(value, str))
WORD = _fits("a text that is not blank", lambda value: isinstance(value, str) and value.strip())
NOT_EMPTY = _fits("a text that is not empty", lambda value: isinstance(value, str) and value)
SPLIT_NAME = _fits("a name of letters, digits and _", lambda value: _matches(r"\w+", value))
BOOL = _fits("true or false", lambda value: isinstance(value, bool))
TRUE = _fits("true", lambda value: value is True)
TABLE = _fits("a table", lambda value: isinstance(value, dict))
WHOLE = _fits("a whole number", lambda value: type(value) is int)
COUNT = _fits("a whole number from 0 on", lambda value: type(value) is int and value >= 0)
NUMBER = _fits("a number", _is_number)
WEIGHT = _fits("a number above 0", lambda value: _is_number(value) and value > 0)
SCALAR = _fits("a text, a number, or true or false", lambda value: isinstance(value, str | int | float))
CHECKSUM = _fits("64 hexadecimal digits", lambda value: _matches(r"[0-9a-f]{64}", value))
REQUIREMENT = _fits("of the form name==version", lambda value: _matches(r"\w[\w.-]*==\w[\w.+!-]*", value))
FILE_PATH = _fits(
    "the path of a file", lambda value: isinstance(value, str) and value.strip() and "\0" not in value
)


def _matches(pattern: str, value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(pattern, value, re.ASCII) is not None


def choice(choices: Collection[str]) -> Check:
    """A check for one of the names."""

    def check(value: Any, place: Place) -> None:
        TEXT(value, place)
        if value not in choices:
            raise UserError(f"{place.file}: {unknown_name(place.key, value, choices)}")

    return check


def list_of(item: Check, expected: str = "a list") -> Check:
    """A check for a list of items that each pass a check."""
    is_list = _fits(expected, lambda value: isinstance(value, list))

    def check(value: Any, place: Place) -> None:
        is_list(value, place)
        for number, each in enumerate(value, start=1):
            item(each, Place(place.file, f"{place.key}[{number}]"))

    return check


def table_of(value_check: Check, key_check: Check | None = None, at_least: int = 0) -> Check:
    """A check for a table of at least so many keys, whose values (and keys) each pass a check."""
    is_table = _fits(
        "a table" + " that is not empty" * (at_least > 0),
        lambda value: isinstance(value, dict) and len(value) >= at_least,
    )

    def check(table: Any, place: Place) -> None:
        is_table(table, place)
        for key, value in table.items():
            if key_check:
                key_check(key, place)
            value_check(value, place.at(key))

    return check


def table_with(known: Mapping[str, Check], required: Collection[str] = ()) -> Check:
    """A check for a table of known keys, each with its own check. An unknown one is told the nearest."""

    def check(table: Any, place: Place) -> None:
        TABLE(table, place)
        for key, value in table.items():
            if key not in known:
                kind = f"key of '{place.key}'" if place.key else "key"
                raise UserError(f"{place.file}: {unknown_name(kind, key, known)}")
            known[key](value, place.at(key))
        for key in required:
            if key not in table:
                raise UserError(f"{place.file}: key '{place.at(key).key}' is missing")

    return check


def constant(value: Any, place: Place) -> None:
    """A check for a text, a number, true or false, or a list of them."""
    (list_of(SCALAR) if isinstance(value, list) else SCALAR)(value, place)


def name(value: Any, place: Place) -> None:
    """A check for what becomes part of the name of a file."""
    TEXT(value, place)
    check_name(value, f"{place.file}: {place.key!r}")


def template(value: Any, place: Place) -> None:
    """A check for a wording, in which `{name}` stands for a field."""
    TEXT(value, place)
    try:
        placeholders(value)
    except UserError as error:
        raise UserError(f"{place.file}: {place.key!r}, {error}") from None


def pattern(value: Any, place: Place, groups: int = 0) -> None:
    """A check for a regular expression with at least so many groups."""
    TEXT(value, place)
    try:
        found = re.compile(value).groups
    except (re.error, OverflowError, RecursionError) as error:
        raise place.error(f"is not a regular expression: {first_line(error)}: {value!r:.60}") from None
    if found < groups:
        raise place.error(f"must hold a group in (...), the part that is taken: {value!r:.60}")


def grouped_pattern(value: Any, place: Place) -> None:
    """A check for a regular expression whose first group is taken."""
    pattern(value, place, groups=1)
