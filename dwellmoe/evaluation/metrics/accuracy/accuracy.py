"""Knows what share of answers is right; answers are found by their task's form, not compared letter by
letter.
"""

from types import MappingProxyType

from dwellmoe.cache.intervals import RESAMPLES, bootstrap_ci
from dwellmoe.evaluation.answers.judge import Verdict, judge
from dwellmoe.evaluation.metrics import base


class Accuracy(base.RequestMetric):
    """`accuracy` and `no_answer`, the share in which no answer was found (which counts as wrong), with
    intervals.

    `compute(predictions=, references=, form=, choices=)`: texts as written by the model, reference answers,
    the form of the task file and, optionally, each request's choices.
    """

    COLUMNS = MappingProxyType({"predictions": "string", "references": "string"})

    def _compute(self, predictions, references, form, choices=None, resamples=RESAMPLES):
        options = choices or [()] * len(predictions)
        verdicts = [
            judge(written, reference, form, option)
            for written, reference, option in zip(predictions, references, options, strict=True)
        ]
        right = [float(verdict is Verdict.RIGHT) for verdict in verdicts]
        unanswered = [float(verdict is Verdict.NO_ANSWER) for verdict in verdicts]
        return {
            "accuracy": sum(right) / len(right),
            "accuracy_ci95": bootstrap_ci(right, resamples=resamples),
            "no_answer": sum(unanswered) / len(unanswered),
            "no_answer_ci95": bootstrap_ci(unanswered, resamples=resamples),
        }
