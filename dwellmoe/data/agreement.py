"""Whether the keys of a task file agree: each wording with the fields, each source's rules and splits too."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dwellmoe.data.fields import derived_fields
from dwellmoe.data.keys import Place
from dwellmoe.data.splits import SPLITS, raw_names
from dwellmoe.data.templates import placeholders
from dwellmoe.errors import UserError, unknown_name
from dwellmoe.log import warn_once

Table = Mapping[str, Any]
WORDINGS = ("prompt", "answer", "chat_prompt", "chat_answer", "program")
LISTS = ("choices", "messages")


def check_agreement(table: Table, path: Path) -> None:
    """Raises UserError for keys that contradict each other; a field that is never used is told.

    The values of `table` fit their keys already.
    """
    _check_code(table, path)
    _check_fields(table["fields"], path)
    _check_wordings(table, path)
    if "shuffle_choices_seed" in table and "choices" not in table["fields"]:
        raise UserError(f"{path}: 'shuffle_choices_seed' shuffles the field 'choices', which 'fields' lacks")
    for number, source in enumerate(table.get("source", ()), start=1):
        place = Place(path, f"source[{number}]")
        _check_map(source.get("map", {}), table["fields"], place.at("map"))
        _check_splits(source, place)


def _check_code(table: Table, path: Path) -> None:
    if (table["form"] == "code") != (table["metric"] == "pass_at_1"):
        raise UserError(f"{path}: form = 'code' and metric = 'pass_at_1' belong together")
    if table["form"] == "code" and "program" not in table:
        raise UserError(f"{path}: key 'program' is missing")
    if table["form"] != "code" and "program" in table:
        raise UserError(f"{path}: 'program' judges answers of form 'code', not of form '{table['form']}'")


def _check_fields(fields: list[str], path: Path) -> None:
    derived = derived_fields(fields)
    for name in fields:
        if name in derived:
            made = " and ".join(derived[name])
            raise UserError(f"{path}: field '{name}' is made from {made}: take it out of 'fields'")
    if "choices" in fields and "gold" not in fields:
        raise UserError(f"{path}: 'fields' has 'choices' but not 'gold', the position of the right choice")


def _check_wordings(table: Table, path: Path) -> None:
    fields, derived = table["fields"], derived_fields(table["fields"])
    used: set[str] = set()
    for key in WORDINGS:
        for name in placeholders(table.get(key, "")):
            if name in LISTS and name in fields:
                made = ", ".join(f"{{{text}}}" for text, of in derived.items() if name in of)
                raise UserError(f"{path}: '{key}' has {{{name}}}, which is a list: write {made}")
            known = [*fields, *derived, *(["code"] if key == "program" else [])]
            if name not in known:
                raise UserError(f"{path}: '{key}': {unknown_name('field', name, known)}")
            used |= {name, *derived.get(name, ())}
    if unused := [name for name in fields if name not in used]:
        warn_once(f"{path}: no wording uses {', '.join(unused)}")


def _check_map(rules: Table, fields: list[str], place: Place) -> None:
    if rules and (lost := [name for name in fields if name not in rules]):
        raise UserError(f"{place.file}: '{place.key}' has no rule for the field '{lost[0]}'")
    if unused := [name for name in rules if name not in fields]:
        warn_once(f"{place.file}: '{place.key}' makes {', '.join(unused)}, which 'fields' does not name")


def _check_splits(source: Table, place: Place) -> None:
    files, splits = source["files"], source.get("splits", {})
    for split, expression in splits.items():
        if again := _taken_twice(expression):
            raise UserError(f"{place.file}: '{place.key}.splits.{split}' takes {again!r} twice")
        for name in raw_names(expression):
            if name not in files:
                raise UserError(
                    f"{place.file}: '{place.key}.splits.{split}': {unknown_name('split', name, files)}"
                )
    used = {name for split in SPLITS for name in raw_names(splits.get(split, split))}
    unused = [name for name in files if name not in used]
    if unused and (splits or len(files) > 1):
        warn_once(f"{place.file}: no split uses {', '.join(unused)} of '{place.key}.files'")


def _taken_twice(expression: str) -> str | None:
    """The first part of a split expression that it names again."""
    parts = [part.strip() for part in expression.split("+")]
    return next((part for part in parts if parts.count(part) > 1), None)
