"""Knows how a task's questions are put to a model: plainly or through its chat template; asks nothing."""

import dataclasses
from typing import Any

from dwellmoe.data.examples import Example
from dwellmoe.data.task import Task
from dwellmoe.data.tokenised import beginning
from dwellmoe.errors import UserError

CHOICES = ("auto", "on", "off")


def asked_in_chat(choice: str, task: Task, tokenizer: Any) -> bool:
    """Whether the chat template is used; `auto`: where the task asks for it and the model has one.

    Raises UserError for `on` without a template, or for a mix, whose members are worded apart.
    """
    if choice == "on" and (not tokenizer.chat_template or task.mix):
        why = f"'{task.name}' is a mix" if task.mix else "the tokenizer has no chat template"
        raise UserError(f"--use_chat_template on: {why}; choose from auto, off")
    return choice == "on" or (choice == "auto" and task.chat and bool(tokenizer.chat_template))


def chat_task(task: Task) -> Task:
    """The task in the words it has for a chat, where a reply ends by itself and needs no stop word."""
    prompt, answer = task.chat_prompt or task.prompt.strip(), task.chat_answer or task.answer.strip()
    return dataclasses.replace(task, prompt=prompt, answer=answer, stop=())


def as_message(text: str, tokenizer: Any) -> str:
    """What the model reads when a user says `text`, ready for its reply; thinking aloud is not asked for."""
    turns = [{"role": "user", "content": text}]
    shown = tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    # Where the tokenizer puts BOS before every text, the template's own would be a second one.
    return shown.removeprefix(tokenizer.bos_token) if beginning(tokenizer) else shown


def as_messages(examples: list[Example], tokenizer: Any) -> list[Example]:
    """The examples with their prompts as messages of a chat."""
    return [dataclasses.replace(each, prompt=as_message(each.prompt, tokenizer)) for each in examples]
