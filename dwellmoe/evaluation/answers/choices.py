"""Ranks the possible answers of a multiple-choice request by their likelihood.

This also compares small models that cannot yet answer in the required form. An answer's score is its mean
log-likelihood a token (end token included), so that long options do not lose by their length.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from dwellmoe.data.examples import Example
from dwellmoe.data.fields import with_options
from dwellmoe.data.task import Task, load_task, worded
from dwellmoe.data.templates import fill
from dwellmoe.data.tokenised import encode_examples
from dwellmoe.evaluation.requests import Request
from dwellmoe.evaluation.teacher_forced import Score


class ChoiceRow(NamedTuple):
    """Tokens of one wrong answer to a request: `input_ids`, `labels`, `prompt_tokens`."""

    request_id: int
    row: dict[str, Any]


class ChoiceScore(NamedTuple):
    """The score of one wrong answer to a request."""

    request_id: int
    score: Score


def task_of(task: Task, example: Example) -> Task:
    """The task that an example comes from: in a mix, that of the member."""
    return worded(load_task(example.task), task.chat) if task.mix else task


def states_answers(task: Task, examples: Sequence[Example]) -> bool:
    """Whether the prompts state the choices whose text is an answer: no model can guess their very words."""
    if task.form != "choice_text":
        return True
    return any(
        all(str(choice) in example.prompt for choice in example.fields.get("choices", ()))
        for example in examples
    )


def other_answers(task: Task, example: Example) -> list[str]:
    """Every answer but the reference that the task's form allows; [] where it is not a choice."""
    member = task_of(task, example)
    if member.form == "true_false":
        reference = example.answer.strip()
        return [example.answer.replace(reference, "false" if reference == "true" else "true")]
    if member.metric != "accuracy" or "choices" not in example.fields:
        return []
    options = range(len(example.fields["choices"]))
    texts = [fill(member.answer, with_options(example.fields | {"gold": option})) for option in options]
    return [text for text in texts if text != example.answer]


def choice_rows(
    task: Task, requests: Sequence[Request], tokenizer: Any, max_tokens: int, limit: int
) -> list[ChoiceRow]:
    """Every other answer to the first `limit` requests that are choices."""
    found = [(request, other_answers(task, request.example)) for request in requests if request.has_prompt]
    choices = [(request, others) for request, others in found if others][:limit]
    pairs = [
        (request, replace(request.example, answer=text)) for request, others in choices for text in others
    ]
    if not pairs:
        return []
    rows = encode_examples([example for _, example in pairs], tokenizer, max_tokens)
    return [ChoiceRow(request.request_id, dict(row)) for (request, _), row in zip(pairs, rows, strict=True)]


def likeliest_is_right(reference: Mapping[int, Score], others: Sequence[ChoiceScore]) -> dict[int, float]:
    """Request id -> 1.0 where the reference has a lower loss a token than every other answer, else 0.0."""
    right: dict[int, float] = {}
    for request_id, score in others:
        wins = float(reference[request_id].loss < score.loss)
        right[request_id] = min(right.get(request_id, 1.0), wins)
    return right
