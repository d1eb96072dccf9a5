"""How a question becomes a prompt: by the words of a task, through the model's chat template or not.

Training, evaluation, `--input` and chat all ask here. What an adapter was trained with is kept in its folder.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dwellmoe.data.chat_template import REASONING_OFF, templated
from dwellmoe.data.conversations import in_plain_words, in_template
from dwellmoe.data.examples import Example, usable
from dwellmoe.data.fields import conversation_text, with_options
from dwellmoe.data.task import Task, load_task, worded
from dwellmoe.data.templates import fill, placeholders
from dwellmoe.errors import UserError, first_line
from dwellmoe.files import replacing
from dwellmoe.log import warn_once

WORDING_FILE = "wording.json"


@dataclass(frozen=True)
class Wording:
    """What is put around a question, and around an answer in training."""

    task: str = ""
    """Name of the data set that these are the words of; empty: none."""
    prompt: str = ""
    """With `{field}` for each field; empty: a question is the whole prompt, as for running text or a mix."""
    answer: str = ""
    chat_template: bool = False
    """Whether the prompt is a message in the model's chat template."""

    def prompt_of(self, question: str) -> str:
        """The prompt that asks a question: a text, or a JSON object where the words need several fields.

        Raises UserError for a question that lacks a field.
        """
        names = self.fields
        if self.of_conversations and not self.chat_template:
            question = conversation_text([{"role": "user", "content": question}])
        if len(names) < 2:
            return fill(self.prompt, dict.fromkeys(names, question)) if names else question
        return fill(self.prompt, _fields_of(question, names, self.task))

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that the prompt needs."""
        return tuple(sorted(placeholders(self.prompt)))

    @property
    def of_conversations(self) -> bool:
        """Whether a prompt is a whole conversation."""
        return self.fields == ("conversation",)

    @property
    def one_by_one(self) -> bool:
        """Whether each message is asked by itself: examples in plain words are trained so, unless they are
        conversations.
        """
        return bool(self.task) and not self.chat_template and not self.of_conversations

    def save(self, folder: Path) -> None:
        """Writes the wording into the folder of an adapter or a model."""
        with replacing(folder / WORDING_FILE) as file:
            file.write((json.dumps(dataclasses.asdict(self), indent=1) + "\n").encode())


def _fields_of(question: str, names: Sequence[str], task: str) -> dict[str, Any]:
    try:
        fields = json.loads(question)
    except (ValueError, RecursionError):
        fields = None
    if isinstance(fields, dict):
        fields = with_options({"gold": 0} | fields)
    missing = [name for name in names if name not in (fields or {})]
    if missing:
        raise UserError(
            f"the wording of '{task}' needs {', '.join(names)}: give a JSON object with them, which lacks "
            f"{', '.join(missing)}"
        )
    return fields or {}


def wording_of(task: Task) -> Wording:
    """The wording of a task as `as_asked` gives it."""
    return Wording(task.name, task.prompt, task.answer, task.chat)


def saved_wording(folder: str | Path | None) -> Wording | None:
    """The wording that trained what a folder holds; None where none was kept. Raises UserError."""
    path = Path(folder or "") / WORDING_FILE
    if not folder or not path.exists():
        return None
    types = {field.name: type(field.default) for field in dataclasses.fields(Wording)}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        wrong = [name for name, kind in types.items() if not isinstance(found[name], kind)]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{path}: not a wording: {type(error).__name__} {first_line(error)}") from None
    if wrong or len(found) > len(types):
        fault = wrong[0] if wrong else next(name for name in found if name not in types)
        raise UserError(f"{path}: not a wording: '{fault}' is {found[fault]!r:.60}")
    return Wording(**found)


def uses_chat_template(choice: str, requested: bool, tokenizer: Any) -> bool:
    """Whether prompts go through the chat template: `on`, `off`, or `auto`, which is as requested.

    Raises UserError for `on` where the tokenizer has no template; `auto` then goes without.
    """
    if choice == "on" and not tokenizer.chat_template:
        raise UserError("--use_chat_template on: the tokenizer has no chat template; choose from auto, off")
    return choice == "on" or (choice == "auto" and requested and bool(tokenizer.chat_template))


def as_asked(task: Task, tokenizer: Any, choice: str = "auto", trained: Wording | None = None) -> Task:
    """The task with the words that are used, and `chat` for whether they go through the chat template.

    `auto` is as an adapter was trained (`trained`), and without one as the task requests. Raises UserError.
    """
    requested = trained.chat_template if trained else task.chat
    if choice == "auto" and trained and trained.chat_template != task.chat:
        request = "requests" if task.chat else "does not request"
        warn_once(
            f"{task.name} {request} the chat template: asked {_manner(trained)}, as the adapter was trained "
            "(--use_chat_template)"
        )
    if choice == "auto" and requested and not tokenizer.chat_template:
        _check_template(task, tokenizer)
        warn_once(f"{task.name}: asked without a chat template, since the tokenizer has none")
    asked = worded(task, uses_chat_template(choice, requested, tokenizer))
    if others := [name for name in task.mix if choice == "auto" and load_task(name).chat != asked.chat]:
        warn_once(
            f"{task.name}: all of a mix is asked {_manner(wording_of(asked))}, which is not what "
            f"{', '.join(others)} would be by itself"
        )
    return asked


def _check_template(task: Task, tokenizer: Any) -> None:
    """UserError for conversations without a chat template, which the user has to choose."""
    if task.of_conversations:
        raise UserError(
            f"the tokenizer of '{tokenizer.name_or_path}' has no chat template for the conversations of "
            f"{task.name}: give it one (chat_template.jinja in the model's folder), or train and ask in "
            "plain words with --use_chat_template off"
        )


def as_message(text: str, tokenizer: Any) -> str:
    """A user's message in the chat template, ready for the reply."""
    return as_conversation([{"role": "user", "content": text}], tokenizer)


def as_conversation(messages: Sequence[dict[str, str]], tokenizer: Any) -> str:
    """Messages in the chat template, ready for the next reply; reasoning is off where it is an option.

    Raises UserError where the template refuses them.
    """
    return templated(messages, tokenizer, reply=True)


def conversation_prompt(
    wording: Wording,
    messages: Sequence[dict[str, str]],
    tokenizer: Any,
    options: Mapping[str, Any] = REASONING_OFF,
) -> str:
    """The prompt for the next reply to messages of a role and a content each, the user's already worded.

    `options` go to the chat template, where there is one. Raises UserError where it refuses them.
    """
    if wording.chat_template:
        return templated(messages, tokenizer, reply=True, options=options)
    if wording.one_by_one:
        return messages[-1]["content"]
    if wording.of_conversations:
        return fill(wording.prompt, {"conversation": conversation_text(messages)})
    return "\n".join(message["content"] for message in messages) + "\n"


def worded_examples(task: Task, examples: Sequence[Example], tokenizer: Any) -> list[Example]:
    """The examples with prompts as the task asks them (`as_asked`), and conversations as text.

    Raises UserError for a conversation that does not go through the chat template, unless `skip_faulty`.
    """
    if task.of_conversations:
        return usable(task, examples, lambda example: _rendered(task, example, tokenizer))
    return as_messages(examples, tokenizer) if task.chat else list(examples)


def _rendered(task: Task, example: Example, tokenizer: Any) -> Example:
    assert example.chat is not None
    try:
        found = in_template(example.chat, tokenizer) if task.chat else in_plain_words(example.chat)
    except UserError as error:
        raise UserError(f"{example.where}: {error}") from None
    return dataclasses.replace(example, prompt=found.text[: found.spans[-1][0]], rendered=found)


def as_messages(examples: Sequence[Example], tokenizer: Any) -> list[Example]:
    """The examples with their prompts as messages of a chat; running text, which has none, stays as it is."""
    return [
        dataclasses.replace(each, prompt=_message_of(each, tokenizer)) if each.prompt else each
        for each in examples
    ]


def _message_of(example: Example, tokenizer: Any) -> str:
    """A prompt that is a whole conversation keeps its messages and their roles."""
    if example.prompt == example.fields.get("conversation"):
        return as_conversation(example.fields["messages"][:-1], tokenizer)
    return as_message(example.prompt, tokenizer)


def difference(trained: Wording, asked: Wording) -> str:
    """How prompts differ from those of training, in one phrase; empty where they do not."""
    parts = []
    if trained.chat_template != asked.chat_template:
        how = f"trained {_manner(trained)}, asked {_manner(asked)} (--use_chat_template)"
        parts.append(how)
    if trained.task != asked.task or not parts:
        parts += [
            f"trained with the {what} {before!r:.80} of '{trained.task}', asked with {now!r:.80}"
            for what, before, now in (
                ("prompt", trained.prompt, asked.prompt),
                ("answer", trained.answer, asked.answer),
            )
            if before != now
        ]
    return "; ".join(parts)


def _manner(wording: Wording) -> str:
    return "through the chat template" if wording.chat_template else "without the chat template"
