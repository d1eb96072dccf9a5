"""Knows the answers a multiple-choice request could have had and which one the model finds likeliest.

Likelihood ranking tells small models apart that cannot yet answer in the asked form: an answer's score is its
mean log-likelihood a token (end token included), so that long options do not lose by their length.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dwellmoe.data.examples import Example
from dwellmoe.data.fields import fill, with_options
from dwellmoe.data.task import Task, load_task
from dwellmoe.data.tokenised import encode_examples
from dwellmoe.evaluation.requests import Request
from dwellmoe.evaluation.teacher_forced import Score


def task_of(task: Task, example: Example) -> Task:
    """The task an example was rendered by: a member's own one in a mix."""
    return load_task(example.task) if task.mix else task


def other_answers(task: Task, example: Example) -> list[str]:
    """Every answer but the reference that the task's form allows; [] where it is not a choice."""
    rendered_by = task_of(task, example)
    if rendered_by.form == "true_false":
        said = example.answer.strip()
        return [example.answer.replace(said, "false" if said == "true" else "true")]
    if rendered_by.metric != "accuracy" or "choices" not in example.fields:
        return []
    places = range(len(example.fields["choices"]))
    texts = [fill(rendered_by.answer, with_options(example.fields | {"gold": place})) for place in places]
    return [text for text in texts if text != example.answer]


def choice_rows(
    task: Task, requests: Sequence[Request], tokenizer: Any, max_tokens: int, limit: int
) -> list[tuple[int, dict]]:
    """`(request number, row)` of every other answer to the first `limit` requests that are choices."""
    asked = [(request, other_answers(task, request.example)) for request in requests if request.has_prompt]
    asked = [(request, others) for request, others in asked if others][:limit]
    pairs = [(request, replace(request.example, answer=text)) for request, others in asked for text in others]
    if not pairs:
        return []
    rows = encode_examples([example for _, example in pairs], tokenizer, max_tokens)
    return [(request.number, dict(row)) for (request, _), row in zip(pairs, rows, strict=True)]


def chosen_rightly(reference: Mapping[int, Score], others: Sequence[tuple[int, Score]]) -> dict[int, float]:
    """Request number -> 1.0 where the reference is likelier a token than every other answer, else 0.0."""
    right: dict[int, float] = {}
    for number, score in others:
        wins = _loss_a_token(reference[number]) < _loss_a_token(score)
        right[number] = min(right.get(number, 1.0), float(wins))
    return right


def _loss_a_token(score: Score) -> float:
    return score.nll / max(1, score.tokens)
