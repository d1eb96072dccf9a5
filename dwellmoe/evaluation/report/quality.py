"""Quality rows of a report: perplexity, choice accuracy, and the metric of the task on generated answers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from dwellmoe.cache.intervals import bootstrap_ci
from dwellmoe.data.task import Task
from dwellmoe.evaluation.answers.choices import states_answers, task_of
from dwellmoe.evaluation.answers.judge import program_of
from dwellmoe.evaluation.generation import Answer, before_stop
from dwellmoe.evaluation.measure import Measured
from dwellmoe.evaluation.metrics import load_metric
from dwellmoe.evaluation.requests import Request
from dwellmoe.evaluation.sandbox.confine import BACKENDS
from dwellmoe.log import warn_once


@dataclass(frozen=True)
class ChoiceAccuracy:
    """Share of multiple-choice requests whose reference is the likeliest choice."""

    choice_accuracy: float
    choice_accuracy_ci95: list[float] | None
    ranked_requests: int


@dataclass(frozen=True)
class QualityRow:
    """Quality of one variant."""

    variant: str
    scored_requests: int
    scored_tokens: int
    perplexity: float
    perplexity_ci95: list[float] | None
    choices: ChoiceAccuracy | None
    generated: Mapping[str, Any]
    """`answered_requests` and the fields of the task's metric; empty for a mix, or without answers."""
    by_task: Mapping[str, Mapping[str, Any]] | None
    """For a mix: the same for each member."""

    def as_dict(self) -> dict[str, Any]:
        """The row as one JSON object, without what was not measured."""
        row = dict(vars(self))
        choices = row.pop("choices")
        generated = row.pop("generated")
        by_task = row.pop("by_task")
        row |= vars(choices) if choices else {}
        row |= generated if by_task is None else {"by_task": by_task}
        return row


def quality_row(
    variant: str,
    task: Task,
    requests: Sequence[Request],
    measured: Measured,
    resamples: int,
    backends: Sequence[str] = BACKENDS,
) -> QualityRow:
    """Perplexity of all reference answers, and the task's metric on the generated ones.

    `backends`: the sandboxes in which generated programs may run.
    """
    scores = list(measured.scores.values())
    nll = [score.nll for score in scores]
    tokens = [score.tokens for score in scores]
    perplexity = load_metric("perplexity").compute(nll=nll, tokens=tokens, resamples=resamples) or {}
    if perplexity["perplexity"] == math.inf:
        warn_once(f"{variant}: perplexity is too large for a number, so the report has none")
    groups = _groups(task, requests, measured)
    by_task = {group.name: _judged(group, measured, backends, resamples) for group in groups}
    return QualityRow(
        variant=variant,
        scored_requests=len(scores),
        scored_tokens=sum(tokens),
        perplexity=perplexity["perplexity"],
        perplexity_ci95=perplexity["perplexity_ci95"],
        choices=_choice_accuracy(measured.choice_right, resamples),
        generated={} if task.mix else by_task.get(task.name, {}),
        by_task=by_task if task.mix else None,
    )


def quality_of_answers(
    task: Task,
    requests: Sequence[Request],
    answers: Mapping[int, Answer],
    resamples: int,
    backends: Sequence[str] = BACKENDS,
) -> dict[str, Any]:
    """The task's metric on some texts, each up to its first stop word; for a mix that of each member."""
    answers = {
        each: replace(answer, text=before_stop(answer.text, task.stop)) for each, answer in answers.items()
    }
    found = Measured(recordings={}, scores={}, choice_right={}, answers=answers)
    groups = _groups(task, requests, found)
    by_task = {group.name: _judged(group, found, backends, resamples) for group in groups}
    return {"by_task": by_task} if task.mix else by_task.get(task.name, {})


def _choice_accuracy(choice_right: Mapping[int, float], resamples: int) -> ChoiceAccuracy | None:
    if not choice_right:
        return None
    right = list(choice_right.values())
    return ChoiceAccuracy(sum(right) / len(right), bootstrap_ci(right, resamples=resamples), len(right))


class _Group(NamedTuple):
    """The answered requests of one task."""

    name: str
    task: Task
    requests: list[Request]


def _groups(task: Task, requests: Sequence[Request], measured: Measured) -> list[_Group]:
    """A group for every task that the answered requests come from."""
    by_name: dict[str, list[Request]] = {}
    for request in requests:
        if request.request_id in measured.answers and request.has_prompt:
            by_name.setdefault(request.example.task or task.name, []).append(request)
    return [_Group(name, task_of(task, found[0].example), found) for name, found in by_name.items()]


def _judged(group: _Group, measured: Measured, backends: Sequence[str], resamples: int) -> dict[str, Any]:
    task = group.task
    requests = group.requests
    if task.metric not in ("accuracy", "pass_at_1", "rouge"):
        return {}
    written = [measured.answers[request.request_id].text for request in requests]
    inputs: dict[str, Any] = {
        "predictions": written,
        "references": [request.example.answer for request in requests],
    }
    if task.metric == "pass_at_1":
        pairs = zip(requests, written, strict=True)
        programs = [program_of(task, request.example, text) for request, text in pairs]
        inputs = {"predictions": programs, "backends": tuple(backends)}
    if task.metric == "accuracy":
        choices = [tuple(request.example.fields.get("choices", ())) for request in requests]
        if not states_answers(task, [request.example for request in requests]):
            warn_once(
                f"{task.name}: no accuracy of generated answers, since the prompts do not state the choices; "
                "choice_accuracy ranks them (--choice_limit)"
            )
            return {"answered_requests": len(requests)}
        inputs |= {"form": task.form, "choices": choices}
    found = load_metric(task.metric).compute(**inputs, resamples=resamples) or {}
    if task.form == "free_text" and task.metric == "accuracy":
        found = {f"exact_match{end}": found[f"accuracy{end}"] for end in ("", "_ci95")}
    return {"answered_requests": len(requests)} | found
