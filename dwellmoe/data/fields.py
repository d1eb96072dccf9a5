"""A raw record as the fields that a task names, by rules in the task file: no data set needs code.

A rule is a dotted path (`"doc.goal"`), a list of paths, or a table: `{from = "label", offset = -1}` an
integer shifted; `{from = "key", index_of = ["A", "B"]}` a position in a list; `{from = "query", match =
"Question: (.*)"}` the first group of a pattern; `{from = "label", values = {"1" = "true"}}` a look-up; `{from
= "options", split = ","}` a text cut into a list; `{from = "options", remove = "^[A-E]\\)"}` a pattern taken
out of a text or of each text of a list; `{from = "tests", lines = true}` a list joined to lines; `{join =
["a", "b"], with = " "}` texts joined, blank ones left out; `{value = 0}` the same for every record.
"""

import json
import random
import re
from collections.abc import Mapping
from typing import Any

from dwellmoe.errors import UserError

LETTERS = "ABCDEFGHIJ"


def map_record(raw: Mapping, rules: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of one raw record. KeyError names a path that the record lacks, UserError a bad value."""
    if not rules:
        return dict(raw)
    return {name: _apply(rule, raw) for name, rule in rules.items()}


def _apply(rule: Any, raw: Mapping) -> Any:
    if isinstance(rule, str):
        return _value_at(raw, rule)
    if isinstance(rule, list):
        return [_value_at(raw, path) for path in rule]
    if "value" in rule:
        return rule["value"]
    if "join" in rule:
        texts = [str(_value_at(raw, path)) for path in rule["join"]]
        return rule.get("with", " ").join(text for text in texts if text.strip())
    value = _value_at(raw, rule["from"])
    for step, argument in rule.items():
        if step != "from":
            value = _step(step, argument, value, rule["from"])
    return value


def _step(step: str, argument: Any, value: Any, path: str) -> Any:
    try:
        return STEPS[step](argument, value)
    except (KeyError, ValueError, TypeError, AttributeError):
        raise UserError(f"'{path}' is {value!r:.60}, which does not fit {step} = {argument!r:.60}") from None


def _match(pattern: str, value: Any) -> str:
    found = re.search(pattern, str(value), re.DOTALL)
    if found is None:
        raise ValueError
    return found.group(1).strip()


def _split(pattern: str, value: Any) -> list[str]:
    return [part.strip() for part in re.split(pattern, str(value)) if part.strip()]


def _remove(pattern: str, value: Any) -> Any:
    return (
        [_remove(pattern, part) for part in value]
        if isinstance(value, list)
        else re.sub(pattern, "", value).strip()
    )


STEPS = {
    "match": _match,
    "split": _split,
    "remove": _remove,
    "index_of": lambda items, value: items.index(str(value)),
    "values": lambda table, value: table[str(value)],
    "offset": lambda offset, value: int(value) + offset,
    "lines": lambda _, value: "\n".join(str(part).strip() for part in value),
}


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
    """Adds to a multiple-choice record the fields options, option_numbers, choice, letter and number.

    UserError if `choices` is no list (a JSON list in a CSV cell is read), or `gold` none of its positions.
    """
    if "choices" not in fields:
        return fields
    choices = [str(choice).strip() for choice in _list_of(fields["choices"])]
    gold = _integer(fields["gold"])
    if not 0 <= gold < len(choices):
        raise UserError(f"'gold' must lie in 0..{len(choices) - 1}, found {gold}")
    return fields | {
        "choices": choices,
        "gold": gold,
        "options": "\n".join(f"{LETTERS[i]}. {choice}" for i, choice in enumerate(choices)),
        "option_numbers": "\n".join(f"{i + 1}. {choice}" for i, choice in enumerate(choices)),
        "choice": choices[gold],
        "letter": LETTERS[gold],
        "number": str(gold + 1),
    }


def shuffle_choices(fields: dict[str, Any], seed: int) -> dict[str, Any]:
    """The fields with `choices` in an order that depends on the seed and the record alone; `gold` goes along.

    Raises UserError as `with_options` does.
    """
    fields = with_options(fields)
    order = list(range(len(fields["choices"])))
    random.Random("\n".join([str(seed), *fields["choices"]])).shuffle(order)
    choices = [fields["choices"][i] for i in order]
    return fields | {"choices": choices, "gold": order.index(fields["gold"])}


def _list_of(value: Any) -> list:
    try:
        choices = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError:
        choices = None
    if not isinstance(choices, list) or not 1 <= len(choices) <= len(LETTERS):
        raise UserError(f"'choices' must be a list of 1 to {len(LETTERS)} texts, found {value!r:.60}")
    return choices


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not re.fullmatch(r"-?\d+", str(value).strip()):
        raise UserError(
            f"'gold' must be the position of the right choice, counted from 0, found {value!r:.60}"
        )
    return int(value)


def fill(template: str, fields: Mapping[str, Any]) -> str:
    """The template with each `{name}` replaced; only plain names, so a data file cannot reach into objects.

    KeyError for a field that is missing, UserError for one that is neither text nor number nor true / false.
    """
    return re.sub(r"\{(\w+)\}", lambda found: _text(found.group(1), fields[found.group(1)]), template)


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str | int | float):
        raise UserError(f"'{name}' must be a text, found {type(value).__name__} {value!r:.60}")
    return str(value)


def check_answer(answer: str, form: str) -> None:
    """Raises UserError if a reference answer does not have the form that scoring will look for."""
    if form == "true_false" and answer.strip() not in ("true", "false"):
        raise UserError(f"the answer must be true or false, found {answer.strip()!r:.60}")
    if form == "rationale" and not answer.rpartition("####")[2].strip():
        raise UserError(f"the answer must end with '#### result', found {answer[-60:]!r}")
    if form == "boxed" and "\\boxed" not in answer:
        raise UserError(f"the answer must hold its result in \\boxed{{}}, found {answer[-60:]!r}")
    if not answer.strip():
        raise UserError("the answer is empty")
