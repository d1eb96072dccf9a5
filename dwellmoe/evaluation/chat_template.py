"""Formats the prompts of a task, or of a user, with the model's chat template."""

import dataclasses
from typing import Any

from dwellmoe.data.examples import Example
from dwellmoe.data.task import Task
from dwellmoe.data.tokenised import beginning
from dwellmoe.errors import UserError


def uses_chat_template(choice: str, task: Task, tokenizer: Any) -> bool:
    """Whether the chat template is used; `auto`: where the task requests it and the model has one.

    Raises UserError for `on` without a template, or with a mix, whose members have prompts of their own.
    """
    if choice == "on" and (not tokenizer.chat_template or task.mix):
        why = f"'{task.name}' is a mix" if task.mix else "the tokenizer has no chat template"
        raise UserError(f"--use_chat_template on: {why}; choose from auto, off")
    return choice == "on" or (choice == "auto" and task.chat and bool(tokenizer.chat_template))


def chat_task(task: Task) -> Task:
    """The task with its prompt and answer for a chat, where a reply ends by itself and needs no stop word."""
    prompt = task.chat_prompt or task.prompt.strip()
    answer = task.chat_answer or task.answer.strip()
    return dataclasses.replace(task, prompt=prompt, answer=answer, stop=())


def as_message(text: str, tokenizer: Any) -> str:
    """A user's message in the chat template, ready for the reply; reasoning is off where it is an option."""
    messages = [{"role": "user", "content": text}]
    prompt = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    # Where the tokenizer puts BOS before every text, that of the template would be a second one.
    return prompt.removeprefix(tokenizer.bos_token) if beginning(tokenizer) else prompt


def as_messages(examples: list[Example], tokenizer: Any) -> list[Example]:
    """The examples with their prompts as messages of a chat."""
    return [dataclasses.replace(each, prompt=as_message(each.prompt, tokenizer)) for each in examples]
