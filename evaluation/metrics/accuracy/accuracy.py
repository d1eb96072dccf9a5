"""Knows what share of answers is right; answers are found by their task's form, not compared letter by
letter.
"""

import datasets
import evaluate

from evaluation.answers import Verdict, judge
from expert_cache.metrics import bootstrap_ci


class Accuracy(evaluate.Metric):
    """`accuracy` and `no_answer`, the share in which no answer was found (which counts as wrong), with
    intervals.

    `compute(predictions=, references=, form=, choices=)`: texts as written by the model, reference answers,
    the form of the task file and, optionally, each request's choices.
    """

    def _info(self):
        texts = {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
        return evaluate.MetricInfo(
            description=str(__doc__),
            citation="",
            inputs_description=str(Accuracy.__doc__),
            features=datasets.Features(texts),
        )

    def _compute(self, predictions, references, form, choices=None):
        options = choices or [()] * len(predictions)
        verdicts = [
            judge(written, reference, form, option)
            for written, reference, option in zip(predictions, references, options, strict=True)
        ]
        right = [float(verdict is Verdict.RIGHT) for verdict in verdicts]
        unanswered = [verdict is Verdict.NO_ANSWER for verdict in verdicts]
        return {
            "accuracy": sum(right) / len(right),
            "accuracy_ci95": bootstrap_ci(right),
            "no_answer": sum(unanswered) / len(unanswered),
        }
