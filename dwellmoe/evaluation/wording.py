"""The wording that the evaluated model is asked in: of a data set, or of a question of the user's own.

By default it is the one that trained the adapter; where it is another, that is said.
"""

import dataclasses

from dwellmoe.data.task import Task, load_task
from dwellmoe.data.wording import (
    Wording,
    as_asked,
    as_message,
    difference,
    saved_wording,
    uses_chat_template,
    wording_of,
)
from dwellmoe.errors import UserError
from dwellmoe.evaluation.options import Options
from dwellmoe.log import warn_once


def asked_task(options: Options, tokenizer) -> Task:
    """The data set of the options as it is asked. Raises UserError."""
    trained = trained_wordings(options)
    first = next(iter(trained.values()), None)
    task = load_task(options.data.dataset_name, options.data.skip_faulty)
    task = as_asked(task, tokenizer, options.data.use_chat_template, first)
    _say_differences(trained, wording_of(task))
    return task


def own_wording(options: Options, tokenizer) -> Wording:
    """How a question of the user's own is asked: as the data set is that was named, else as the adapter was
    trained, else as a message in the chat template, where there is one. Raises UserError.
    """
    if "dataset_name" in options.given:
        return wording_of(asked_task(options, tokenizer))
    trained = trained_wordings(options)
    wording = next(iter(trained.values()), Wording(chat_template=True))
    chat_template = uses_chat_template(options.data.use_chat_template, wording.chat_template, tokenizer)
    wording = dataclasses.replace(wording, chat_template=chat_template)
    _say_differences(trained, wording)
    return wording


def question_text(wording: Wording, question: str, must_fit: bool) -> str:
    """The words that ask a question; one that lacks fields is asked as it is, or if it `must_fit` refused."""
    try:
        return wording.prompt_of(question)
    except UserError:
        if must_fit:
            raise
        warn_once(
            f"the wording of '{wording.task}' needs {', '.join(wording.fields)}: the question is the whole "
            "prompt, unless it is a JSON object with these fields"
        )
        return question


def own_prompt(wording: Wording, question: str, tokenizer, must_fit: bool) -> str:
    """The prompt that asks one question."""
    text = question_text(wording, question, must_fit)
    return as_message(text, tokenizer) if wording.chat_template else text


def trained_wordings(options: Options) -> dict[str, Wording]:
    """Adapter, or model -> the wording that trained it, if it was kept; the tuned one first. UserError."""
    folders = [*reversed(options.adapters.values())] or [options.model.model_name]
    found = {folder: saved_wording(folder) for folder in folders}
    return {folder: wording for folder, wording in found.items() if wording}


def _say_differences(trained: dict[str, Wording], asked: Wording) -> None:
    for folder, wording in trained.items():
        if found := difference(wording, asked):
            warn_once(f"'{folder}': {found}")
