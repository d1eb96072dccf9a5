"""Accuracy: the share of right answers, each extracted in the form of its task."""

from types import MappingProxyType

from dwellmoe.cache.intervals import RESAMPLES, bootstrap_ci
from dwellmoe.evaluation import metrics
from dwellmoe.evaluation.answers.judge import Verdict, judge


class Accuracy(metrics.RequestMetric):
    """`accuracy`, and `no_answer`: the share without an answer, which counts as wrong; both with intervals.

    `compute(predictions=, references=, form=, choices=)`: generated texts, reference answers, the form of the
    task file and, optionally, each request's choices.
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
