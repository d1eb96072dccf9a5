"""Knows which metrics a task is judged by and gives them what they need; does not define them.

The metrics are the `evaluate` modules of `evaluation/metrics`.
"""

import math
from collections.abc import Sequence
from typing import Any

from dwellmoe.cache.intervals import bootstrap_ci
from dwellmoe.data.task import Task
from dwellmoe.evaluation.answers.choices import task_of
from dwellmoe.evaluation.answers.programs import program_of
from dwellmoe.evaluation.measure import Measured
from dwellmoe.evaluation.metrics import load_metric
from dwellmoe.evaluation.requests import Request
from dwellmoe.evaluation.sandbox.confine import BACKENDS


def quality_row(
    variant: str,
    task: Task,
    requests: Sequence[Request],
    measured: Measured,
    resamples: int,
    backends: Sequence[str] = BACKENDS,
) -> dict:
    """Perplexity of all reference answers, and what the task's metric says of the generated ones.

    A mix has its members' metrics apart, under `by_task`. A metric that is not finite is None. `backends`: how
    programs may be fenced (code_sandbox.py).
    """
    scores = list(measured.scores.values())
    tokens = [score.tokens for score in scores]
    row: dict[str, Any] = {"variant": variant, "scored_requests": len(scores), "scored_tokens": sum(tokens)}
    nll = [score.nll for score in scores]
    row |= load_metric("perplexity").compute(nll=nll, tokens=tokens, resamples=resamples) or {}
    row |= _choice_accuracy(measured.rightly, resamples)
    groups = _groups(task, requests, measured)
    by_task = {name: _judged(rule, some, measured, backends, resamples) for name, rule, some in groups}
    row |= {"by_task": by_task} if task.mix else by_task.get(task.name, {})
    return _finite(row)


def _choice_accuracy(rightly: dict[int, float], resamples: int) -> dict:
    if not rightly:
        return {}
    right = list(rightly.values())
    return {
        "choice_accuracy": sum(right) / len(right),
        "choice_accuracy_ci95": bootstrap_ci(right, resamples=resamples),
        "ranked_requests": len(right),
    }


def _groups(
    task: Task, requests: Sequence[Request], measured: Measured
) -> list[tuple[str, Task, list[Request]]]:
    """`(name, task, answered requests)` of every task the answered requests come from."""
    answered = [request for request in requests if request.number in measured.answers and request.has_prompt]
    names = dict.fromkeys(request.example.task or task.name for request in answered)
    parts = [(name, [r for r in answered if (r.example.task or task.name) == name]) for name in names]
    return [(name, task_of(task, some[0].example), some) for name, some in parts]


def _judged(
    rule: Task, requests: Sequence[Request], measured: Measured, backends: Sequence[str], resamples: int
) -> dict:
    if rule.metric not in ("accuracy", "pass_at_1", "rouge"):
        return {}
    written = [measured.answers[request.number].text for request in requests]
    texts: dict[str, Any] = {
        "predictions": written,
        "references": [request.example.answer for request in requests],
        "resamples": resamples,
    }
    if rule.metric == "pass_at_1":
        pairs = zip(requests, written, strict=True)
        programs = [program_of(rule, request.example, text) for request, text in pairs]
        texts = {"predictions": programs, "backends": tuple(backends), "resamples": resamples}
    if rule.metric == "accuracy":
        choices = [tuple(request.example.fields.get("choices", ())) for request in requests]
        texts |= {"form": rule.form, "choices": choices}
    return {"answered_requests": len(requests)} | (load_metric(rule.metric).compute(**texts) or {})


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return None if any(_finite(each) is None for each in value) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
