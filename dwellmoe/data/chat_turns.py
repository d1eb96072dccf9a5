"""The turns of a recorded chat as messages of a role and a text; a turn that cannot be used is named."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from dwellmoe.data.fields import read_list
from dwellmoe.errors import UserError, unknown_name

ROLES = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "chatgpt", "bot", "model"),
    "tool": ("tool", "function", "observation"),
}
"""Role of a message -> its names in chat files."""
_ROLE_OF = {name: role for role, names in ROLES.items() for name in names}
TURN_KEYS = (("role", "content"), ("from", "value"))
"""The keys of a turn: OpenAI's and ShareGPT's."""
TEXT_PARTS = ("text", "input_text", "output_text")
CALLS = ("tool_calls", "function_call")

Message = dict[str, str]
Remarks = Counter[str]
"""What is ignored, left out or read as something else -> how often."""


class Chat(NamedTuple):
    """A conversation that ends with an answer of the assistant."""

    messages: list[Message]
    turns: list[int]
    """The number of each message among the turns of its record, from 1."""
    given: int = 0
    """So many messages are a prompt: the answers among them are not learned."""

    @property
    def answers(self) -> list[int]:
        """The positions of the answers that are learned."""
        roles = [message["role"] for message in self.messages]
        return [i for i in range(self.given, len(roles)) if roles[i] == "assistant"]

    def fault(self, position: int, what: str) -> UserError:
        """What is wrong with a message, with the number of its turn."""
        return UserError(f"turn {self.turns[position]} ({self.messages[position]['role']}): {what}")


class _Turn(NamedTuple):
    number: int
    role: str
    content: Any
    calls_tools: bool


def chat_of(value: Any, remarks: Remarks, given: int = 0) -> Chat:
    """The conversation that a list of turns is (a JSON list in a CSV cell is read), of which the first
    `given` are a prompt.

    Turns after the last answer and empty system turns are left out. Raises UserError for an unknown role, an
    empty or unreadable turn, a chat without an answer, and one that begins with an answer.
    """
    if not (turns := read_list(value)):
        raise UserError(f"a chat must be a list of turns, found {value!r:.60}")
    found = [_turn(number, turn, remarks) for number, turn in enumerate(turns, start=1)]
    answered = max((turn.number for turn in found if turn.role == "assistant"), default=0)
    if answered <= given:
        raise UserError(f"no turn of the assistant among {len(found) - given} turns")
    if answered < len(found):
        remarks["the turns after the last answer are left out"] += 1
    kept = [*_readable(found[:answered], remarks)]
    first = next(turn for turn, _ in kept if turn.role != "system")
    if first.role == "assistant":
        raise UserError(f"turn {first.number}: the assistant answers before any turn of the user")
    messages = [{"role": turn.role, "content": text} for turn, text in kept]
    numbers = [turn.number for turn, _ in kept]
    return Chat(messages, numbers, sum(number <= given for number in numbers))


def _turn(number: int, turn: Any, remarks: Remarks) -> _Turn:
    table = turn if isinstance(turn, Mapping) else {}
    keys = next((keys for keys in TURN_KEYS if table.get(keys[0]) is not None), None)
    if keys is None:
        raise UserError(f"turn {number} must have role and content, or from and value, found {turn!r:.60}")
    role_key, content_key = keys
    for name, value in table.items():
        if name not in keys and value not in (None, "", [], {}):
            remarks[f"{name!r:.40} of a turn is ignored"] += 1
    return _Turn(
        number,
        _role(number, table[role_key], remarks),
        table.get(content_key),
        calls_tools=any(table.get(name) for name in CALLS),
    )


def _role(number: int, name: Any, remarks: Remarks) -> str:
    role = _ROLE_OF.get(name.strip().casefold()) if isinstance(name, str) else None
    if role is None:
        shown = repr(name)[:60].strip("'")
        raise UserError(f"turn {number}: {unknown_name('role', shown, _ROLE_OF)}")
    if name != role:
        remarks[f"{name.strip()} is read as {role}"] += 1
    return role


def _readable(turns: list[_Turn], remarks: Remarks) -> Iterator[tuple[_Turn, str]]:
    """Each turn with its text, but for empty system turns."""
    for turn in turns:
        text = _text(turn, remarks)
        if text.strip():
            yield turn, text
        elif turn.role == "system":
            remarks["an empty system turn is left out"] += 1
        else:
            instead = ", but for tool calls, which are ignored" if turn.calls_tools else ""
            raise UserError(f"turn {turn.number} ({turn.role}) is empty{instead}")


def _text(turn: _Turn, remarks: Remarks) -> str:
    """The text of a turn; one of several parts is joined as chat templates do, without anything between."""
    content = "" if turn.content is None else turn.content
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise UserError(f"turn {turn.number} ({turn.role}) must hold a text, found {content!r:.60}")
    remarks["a content in parts is joined to one text"] += 1
    return "".join(_part(turn, part) for part in content)


def _part(turn: _Turn, part: Any) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
    text = part.get("text") if isinstance(part, Mapping) else None
    if kind not in TEXT_PARTS or not isinstance(text, str):
        raise UserError(
            f"turn {turn.number} ({turn.role}) holds a part of type {kind!r:.40}: only parts of text can be "
            "learned"
        )
    return text
