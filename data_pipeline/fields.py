"""Knows how a raw record becomes the fields a task names; declared in the task file, so no data set needs code.

A rule is a dotted path (`"doc.goal"`), a list of paths, or a table:
`{from = "label", offset = -1}` an integer shifted; `{from = "key", index_of = ["A", "B"]}` a position in a list;
`{from = "query", match = "Question: (.*)"}` the first group of a pattern; `{from = "label", values = {"1" = "true"}}`
a look-up; `{from = "options", split = ","}` a text cut into a list; `{join = ["a", "b"], with = " "}` texts joined.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from errors import UserError

LETTERS = "ABCDEFGHIJ"


def map_record(raw: Mapping, rules: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of one raw record. Raises KeyError naming the path that the record lacks."""
    if not rules:
        return dict(raw)
    return {name: _apply(rule, raw) for name, rule in rules.items()}


def _apply(rule: Any, raw: Mapping) -> Any:
    if isinstance(rule, str):
        return _value_at(raw, rule)
    if isinstance(rule, list):
        return [_value_at(raw, path) for path in rule]
    if "join" in rule:
        return rule.get("with", " ").join(str(_value_at(raw, path)) for path in rule["join"] if path)
    return _transform(rule, _value_at(raw, rule["from"]))


def _transform(rule: Mapping, value: Any) -> Any:
    if "match" in rule:
        found = re.search(rule["match"], str(value), re.DOTALL)
        if found is None:
            raise KeyError(f"{rule['from']} (no match for '{rule['match']}')")
        value = found.group(1).strip()
    if "split" in rule:
        value = [part.strip() for part in re.split(rule["split"], str(value)) if part.strip()]
    if "index_of" in rule:
        value = rule["index_of"].index(str(value))
    if "values" in rule:
        value = rule["values"][str(value)]
    return int(value) + rule["offset"] if "offset" in rule else value


def _value_at(raw: Any, path: str) -> Any:
    value = raw
    for part in path.split("."):
        if isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, Mapping) and part in value:
            value = value[part]
        else:
            raise KeyError(path)
    return value


def with_options(fields: dict[str, Any]) -> dict[str, Any]:
    """Adds what a prompt may name of a multiple-choice record: options, option_numbers, choice, letter, number.

    Raises UserError if `choices` is no list (a JSON list inside a CSV cell is read) or `gold` is out of its range.
    """
    if "choices" not in fields:
        return fields
    choices = fields["choices"]
    if isinstance(choices, str):
        choices = json.loads(choices)
    if not isinstance(choices, list) or not choices:
        raise UserError(f"'choices' must be a list of texts, found {choices!r:.60}")
    gold = int(fields["gold"])
    if not 0 <= gold < len(choices):
        raise UserError(f"'gold' must lie in 0..{len(choices) - 1}, found {gold}")
    choices = [str(choice).strip() for choice in choices]
    return fields | {
        "choices": choices,
        "gold": gold,
        "options": "\n".join(f"{LETTERS[i]}. {choice}" for i, choice in enumerate(choices)),
        "option_numbers": "\n".join(f"{i + 1}. {choice}" for i, choice in enumerate(choices)),
        "choice": choices[gold],
        "letter": LETTERS[gold],
        "number": str(gold + 1),
    }


def fill(template: str, fields: Mapping[str, Any]) -> str:
    """The template with each `{name}` replaced; only plain names, so a data file cannot reach into objects."""
    return re.sub(r"\{(\w+)\}", lambda found: str(fields[found.group(1)]), template)
