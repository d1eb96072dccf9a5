"""A data file without a task file: its layout is recognised by the fields of its first record."""

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dwellmoe.data.chat_turns import TURN_KEYS, Chat, Remarks, chat_of
from dwellmoe.data.fields import read_list
from dwellmoe.data.files import Record, first_record
from dwellmoe.data.splits import SPLITS
from dwellmoe.errors import UserError
from dwellmoe.log import warn_once

Row = Mapping[str, Any]
TASK_FILE = "a task file says how to read any other (docs/data.md)"
_FREE_TEXT = {"form": "free_text", "metric": "rouge"}
_CHAT = _FREE_TEXT | {
    "fields": ("messages",),
    "prompt": "{conversation}",
    "answer": " {reply}",
    "chat": True,
    "stop": ("\nUser:",),
}
"""The settings of a task whose examples are chats."""


class Content(NamedTuple):
    """What a record holds: the fields of the task, and in a chat the conversation."""

    fields: dict[str, Any]
    chat: Chat | None = None


@dataclass(frozen=True)
class Layout:
    """A usual form of a record."""

    title: str
    keys: tuple[str, ...]
    """The keys that a record of this layout has."""
    content: Callable[[Row, Remarks], Content | None]
    """What a record holds; None for nothing. Raises UserError."""
    optional: tuple[str, ...] = ()
    task: Mapping[str, Any] = field(default_factory=lambda: _CHAT)
    """The settings of its task."""
    prompt_of_turns: bool | None = None
    """Whether `prompt` is a list of turns or a text; None where a layout has none."""

    def fits(self, row: Row) -> bool:
        """Whether a record is of this layout."""
        if not row.keys() >= {*self.keys}:
            return False
        return self.prompt_of_turns is None or self.prompt_of_turns == _holds_turns(row["prompt"])


def layout_of(row: Row) -> str:
    """The name of the only layout that a record fits. Raises UserError."""
    fitting = [name for name, layout in LAYOUTS.items() if layout.fits(row)]
    if len(fitting) == 1:
        return fitting[0]
    names = ", ".join(repr(name)[1:-1] for name in row)
    if fitting:
        raise UserError(
            f"a record of {names} fits {' as well as '.join(fitting)}: take out the fields of all but one; "
            f"{TASK_FILE}"
        )
    raise UserError(f"a record of {names} is of no known layout, which are {', '.join(LAYOUTS)}; {TASK_FILE}")


def content_of(layout: str, row: Row, remarks: Remarks) -> Content | None:
    """What a record of a file of that layout holds; None for nothing. UserError also for another layout."""
    found = layout_of(row)
    if found != layout:
        raise UserError(f"this record holds {found}, the first of its file {layout}")
    for name in ignored_keys(layout, row):
        remarks[f"the field {name!r:.40} is ignored"] += 1
    return LAYOUTS[layout].content(row, remarks)


def ignored_keys(layout: str, row: Row) -> list[str]:
    """The fields of a record that its layout has no use for."""
    used = {*LAYOUTS[layout].keys, *LAYOUTS[layout].optional}
    return [name for name, value in row.items() if name not in used and value not in (None, "", [], {})]


def recognised(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of the source and of the task that a data file is; prints in one line what it is.

    A file that is called after a split (`train.jsonl`) is that split, and those beside it that are called
    after the others are the others; any other file is split up by itself. Raises UserError.
    """
    record = first_record(path)
    try:
        layout = layout_of(record.row)
    except UserError as error:
        raise UserError(f"{record.where}: {error}") from None
    used = [*LAYOUTS[layout].keys, *LAYOUTS[layout].optional]
    columns = [name for name in used if name in record.row]
    warn_once(f"{path}: recognised as {LAYOUTS[layout].title}{_remarks_on(layout, record)}")
    source = {"kind": "file", "files": _files(path), "map": {name: name for name in columns}}
    return source, {**LAYOUTS[layout].task, "name": path.stem, "layout": layout}


def said(where: str, remarks: Remarks) -> None:
    """Prints what was ignored, left out and read as something else, in one line."""
    if remarks:
        warn_once(f"{where}: {'; '.join(f'{what} ({count:,})' for what, count in remarks.items())}")


def _remarks_on(layout: str, record: Record) -> str:
    """What the first record already shows to be ignored or read as something else."""
    remarks: Remarks = Counter()
    with suppress(UserError):  # of one record: all are looked at later
        content_of(layout, record.row, remarks)
    return f" ({'; '.join(remarks)})" if remarks else ""


def _files(path: Path) -> dict[str, str]:
    if path.stem not in SPLITS:
        return {"train": path.name}
    beside = {split: path.with_name(split + path.suffix).name for split in SPLITS}
    return {split: name for split, name in beside.items() if path.with_name(name).exists()}


def _holds_turns(value: Any) -> bool:
    """Whether a value is a list of turns, also one that is written as text in a cell of a CSV file."""
    names = {keys[0] for keys in TURN_KEYS}
    turns = read_list(value)
    return bool(turns) and all(isinstance(turn, Mapping) and names & turn.keys() for turn in turns)


def _chat(key: str) -> Callable[[Row, Remarks], Content]:
    return lambda row, remarks: _content_of(chat_of(row[key], remarks))


def _content_of(chat: Chat) -> Content:
    return Content({"messages": chat.messages}, chat)


def _prompt_of_messages(row: Row, remarks: Remarks) -> Content:
    prompt, completion = read_list(row["prompt"]), read_list(row["completion"])
    if not completion:
        raise UserError(f"'completion' must be a list of turns, found {row['completion']!r:.60}")
    return _content_of(chat_of([*prompt, *completion], remarks, given=len(prompt)))


def _instruction(row: Row, remarks: Remarks) -> Content:
    parts = [_text(row, "instruction"), _text(row, "input") if row.get("input") is not None else ""]
    question = "\n\n".join(part for part in parts if part.strip())
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": _text(row, "output")}]
    return _content_of(chat_of(turns, remarks))


def _prompt_and_completion(row: Row, remarks: Remarks) -> Content:
    fields = {name: _text(row, name) for name in ("prompt", "completion")}
    if empty := [name for name, text in fields.items() if not text.strip()]:
        raise UserError(f"'{empty[0]}' is empty")
    return Content(fields)


def _running_text(row: Row, remarks: Remarks) -> Content | None:
    text = _text(row, "text") if row["text"] is not None else ""
    if text.strip():
        return Content({"text": text})
    remarks["a record without text is left out"] += 1
    return None


def _text(row: Row, name: str) -> str:
    if not isinstance(row[name], str):
        raise UserError(f"'{name}' must be a text, found {row[name]!r:.60}")
    return row[name]


LAYOUTS = {
    "messages": Layout("chats as OpenAI has them", ("messages",), _chat("messages")),
    "conversations": Layout("chats as ShareGPT has them", ("conversations",), _chat("conversations")),
    "prompt and completion": Layout(
        "prompts and completions, which stay outside the chat template (--use_chat_template on)",
        ("prompt", "completion"),
        _prompt_and_completion,
        task=_FREE_TEXT
        | {"fields": ("prompt", "completion"), "prompt": "{prompt}", "answer": "{completion}"},
        prompt_of_turns=False,
    ),
    "prompt and completion of messages": Layout(
        "chats as prompts and completions",
        ("prompt", "completion"),
        _prompt_of_messages,
        prompt_of_turns=True,
    ),
    "instruction and output": Layout(
        "instructions as Alpaca has them, each a chat of one question",
        ("instruction", "output"),
        _instruction,
        optional=("input",),
    ),
    "text": Layout(
        "running text",
        ("text",),
        _running_text,
        task={
            "form": "free_text",
            "metric": "perplexity",
            "fields": ("text",),
            "prompt": "",
            "answer": "{text}",
        },
    ),
}
