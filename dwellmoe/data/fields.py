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
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from dwellmoe.data import keys
from dwellmoe.data.keys import Place, list_of, table_of, table_with
from dwellmoe.data.templates import as_text
from dwellmoe.errors import UserError

LETTERS = "ABCDEFGHIJ"
OF_CHOICES = ("options", "option_numbers", "choice", "letter", "number")
OF_MESSAGES = ("conversation", "reply")
MESSAGE_KEYS = ("role", "content")


def derived_fields(fields: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Fields that are made out of a task's own: name -> what it is made from."""
    found: dict[str, tuple[str, ...]] = {}
    if "choices" in fields:
        found |= dict.fromkeys(OF_CHOICES, ("choices", "gold"))
    if "messages" in fields:
        found |= dict.fromkeys(OF_MESSAGES, ("messages",))
    return found


def check_rule(rule: Any, place: Place) -> None:
    """A check for a rule of `source.map`. Raises UserError."""
    if isinstance(rule, str):
        return keys.WORD(rule, place)
    if isinstance(rule, list):
        return list_of(keys.WORD)(rule, place)
    for key, check in _RULES.items():
        if isinstance(rule, dict) and key in rule:
            return check(rule, place)
    raise place.error(
        f"must be a path, a list of paths, or a table with {', '.join(_RULES)}, found {rule!r:.60}"
    )


def map_record(raw: Mapping, rules: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of one raw record. KeyError names a path that the record lacks, UserError a bad value."""
    if not rules:
        return dict(raw)
    return {name: _apply(rule, raw) for name, rule in rules.items()}


def columns_of(rules: Mapping[str, Any]) -> set[str]:
    """The keys of a raw record that rules read."""
    paths: list[str] = []
    for rule in rules.values():
        table = rule if isinstance(rule, Mapping) else {"join": [rule] if isinstance(rule, str) else rule}
        paths += [*table.get("join", ()), *filter(None, [table.get("from")])]
    return {path.partition(".")[0] for path in paths}


def _apply(rule: Any, raw: Mapping) -> Any:
    if isinstance(rule, str):
        return _value_at(raw, rule)
    if isinstance(rule, list):
        return [_value_at(raw, path) for path in rule]
    if "value" in rule:
        return rule["value"]
    if "join" in rule:
        values = [(path, _value_at(raw, path)) for path in rule["join"]]
        texts = [_plain_text(path, value) for path, value in values if value is not None]
        return rule.get("with", " ").join(text for text in texts if text.strip())
    value = _value_at(raw, rule["from"])
    for step, argument in rule.items():
        if step != "from":
            value = _step(step, argument, value, rule["from"])
    return value


def _step(step: str, argument: Any, value: Any, path: str) -> Any:
    try:
        return STEPS[step](argument, value)
    except (KeyError, ValueError, TypeError):
        raise UserError(f"'{path}' is {value!r:.60}, which does not fit {step} = {argument!r:.60}") from None


def _match(pattern: str, value: Any) -> str:
    found = re.search(pattern, _plain_text("", value), re.DOTALL)
    if found is None or found.group(1) is None:
        raise ValueError
    return found.group(1).strip()


def _split(pattern: str, value: Any) -> list[str]:
    return [part.strip() for part in re.split(pattern, _plain_text("", value)) if part and part.strip()]


def _remove(pattern: str, value: Any) -> Any:
    return (
        [_remove(pattern, part) for part in value]
        if isinstance(value, list)
        else re.sub(pattern, "", value).strip()
    )


def _plain_text(name: str, value: Any) -> str:
    """A text, number or truth value as Python writes it. UserError for null, a list, a table, NaN."""
    as_text(name, value)
    return str(value)


STEPS = {
    "match": _match,
    "split": _split,
    "remove": _remove,
    "index_of": lambda items, value: items.index(str(value)),
    "values": lambda table, value: table[str(value)],
    "offset": lambda offset, value: _integer(value) + offset,
    "lines": lambda _, value: "\n".join(_plain_text("", part).strip() for part in value),
}
_RULES = {
    "value": table_with({"value": keys.constant}),
    "join": table_with({"join": list_of(keys.WORD), "with": keys.TEXT}),
    "from": table_with(
        {
            "from": keys.WORD,
            "match": keys.grouped_pattern,
            "split": keys.pattern,
            "remove": keys.pattern,
            "index_of": list_of(keys.TEXT),
            "values": table_of(keys.SCALAR),
            "offset": keys.WHOLE,
            "lines": keys.TRUE,
        }
    ),
}
"""Tables that are rules, by the key that each must have."""


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
    choices = [_plain_text("choices", choice).strip() for choice in _list_of(fields["choices"])]
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
    choices = read_list(value)
    if not 1 <= len(choices) <= len(LETTERS):
        raise UserError(f"'choices' must be a list of 1 to {len(LETTERS)} texts, found {value!r:.60}")
    return choices


def read_list(value: Any) -> list:
    """A list, or the JSON list that a text is; an empty one for anything else."""
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, list) else []


def _integer(value: Any) -> int:
    value = int(value) if isinstance(value, float) and value.is_integer() else value
    if isinstance(value, bool) or not re.fullmatch(r"-?\d{1,18}", str(value).strip()):
        raise UserError(
            f"'gold' must be the position of the right choice, counted from 0, found {value!r:.60}"
        )
    return int(value)


def with_messages(fields: dict[str, Any]) -> dict[str, Any]:
    """Adds to a chat the fields `conversation`, all before its last message as text, and `reply`, the last.

    UserError if `messages` is no list of texts with roles (a JSON list in a CSV cell is read), or the last is
    not of the assistant.
    """
    if "messages" not in fields:
        return fields
    messages = read_list(fields["messages"])
    for message in messages:
        parts = [message.get(key) if isinstance(message, dict) else None for key in MESSAGE_KEYS]
        if not all(isinstance(part, str) for part in parts):
            raise UserError(f"each of 'messages' must have the texts role and content, found {message!r:.60}")
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        found = messages[-1:] or fields["messages"]
        raise UserError(
            f"'messages' must be a list that ends with an answer of the assistant, found {found!r:.60}"
        )
    *before, last = messages
    return fields | {
        "messages": messages,
        "conversation": conversation_text(before),
        "reply": last["content"],
    }


def conversation_text(messages: Sequence[Mapping[str, str]]) -> str:
    """Messages as text without a chat template: a line each, after its role, up to the assistant's answer."""
    lines = [f"{message['role'].capitalize()}: {message['content']}" for message in messages]
    return "\n".join([*lines, "Assistant:"])


def check_characters(fields: Mapping[str, Any]) -> None:
    """Raises UserError for a text with half of a character in it, which no tokenizer and no file takes."""
    for name, value in fields.items():
        try:
            str(value).encode() if isinstance(value, str) else None
        except UnicodeEncodeError as error:
            half = ascii(error.object[error.start])
            raise UserError(f"'{name}' has half of a character (lone surrogate {half})") from None


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
